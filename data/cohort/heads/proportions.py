"""Head proportions: rounds the basic head's egg-shaped vault and brings heads to published mean sizes.

MakeHuman's heads, once widened, are up to 213 mm long, and the sexes differ by as much as 37 mm. Each of the six
corner heads (sex x ancestry, young adult) gets factors that bring it to the means below; a subject's factors are
mixed as its shape is, so that people scatter around the means and nothing but the means is imposed.
"""

from __future__ import annotations

import numpy as np

# Means of young adults over the skin in mm: head length (glabella - back of the head), head breadth, bizygomatic
# breadth, nasion - menton. African and Caucasian: near ANSUR (Gordon et al. 1989) and ANSUR II (Paquette et al. 2009),
# US soldiers, rounded and shortened by 2 mm for the shaven, recumbent head of a CT. Asian: near GB/T 10000-1988
# (Chinese adults) and Du et al. 2008 (Chinese workers). Rounded by us: see the data card before quoting them.
NORMS_MM = {
    ("african", "male"): (196.0, 151.0, 139.0, 123.0),
    ("african", "female"): (187.0, 145.0, 131.0, 113.5),
    ("asian", "male"): (187.0, 156.0, 147.0, 121.5),
    ("asian", "female"): (178.0, 149.0, 139.0, 112.0),
    ("caucasian", "male"): (195.0, 152.0, 139.0, 122.0),
    ("caucasian", "female"): (186.0, 145.0, 131.0, 112.5),
}
JAW_WIDENING = 0.085  # at the angles of the jaw, which the basic head has too narrow
# The means belong to the average man and woman, whose bone stands this far from the corner heads (of 1).
MEAN_FEMININITY = (0.23, 0.77)


def corner_norms(race: str) -> np.ndarray:
    """Return (2, 4) sizes in mm of the male and the female corner head, which lie beyond the average man and woman."""
    men, women = (np.array(NORMS_MM[race, sex]) for sex in ("male", "female"))
    slope = (women - men) / (MEAN_FEMININITY[1] - MEAN_FEMININITY[0])
    return np.stack([men - MEAN_FEMININITY[0] * slope, women + (1 - MEAN_FEMININITY[1]) * slope])


def scaled(points: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return (N, 3) points in mm, scaled smoothly about the origin (between the eyes).

    Args:
        factors: (4,) of the length (z), the breadth of the vault and of the face (x), and the height (y).
    """
    length, vault_breadth, face_breadth, height = factors
    x, y, z = points.T
    upper = 1 / (1 + np.exp(-(y - 8) / 12))
    breadth = face_breadth + (vault_breadth - face_breadth) * upper
    angles = 1 / (1 + np.exp((y + 58) / 7)) / (1 + np.exp((z - 48) / 8))
    breadth = breadth * (1 + JAW_WIDENING * angles)
    return np.stack([x * breadth, y * height, z * length], 1)


def reshape_vault(points: np.ndarray) -> np.ndarray:
    """Return (N, 3) points in mm with the basic head's vault lower, rounder and shorter, its forehead less upright.

    The face below the brows is left as it is. Smooth, and applied to skin and bone alike.
    """
    x, y, z = np.asarray(points, float).T
    above = np.maximum(y - 15.0, 0.0)
    lowered = y - 0.13 * above**2 / (above + 25.0)
    rounded = x * (1 - 0.11 * np.clip((above - 20.0) / 65.0, 0, 1.2) ** 2)
    behind = np.maximum(35.0 - z, 0.0)
    front = np.clip((z - 15.0) / 60.0, 0, 1)
    sloped = (
        z + 0.10 * behind**2 / (behind + 20.0) - 0.16 * above**2 / (above + 25.0) * front**2 * (3 - 2 * front)
    )
    return np.stack([rounded, lowered, sloped], 1)


def skin_sizes(skin: np.ndarray, nasion: np.ndarray, menton: np.ndarray) -> np.ndarray:
    """Return (4,) sizes of (N, 3) skin points: the four of NORMS_MM."""
    x, y, z = skin.T
    middle = skin[(np.abs(x) < 15) & (y > 8)]
    vault = skin[(y > 28)]
    cheek = skin[(np.abs(y + 24) < 5) & (z > 15)]
    length, breadth, face = np.ptp(middle[:, 2]), np.ptp(vault[:, 0]), np.ptp(cheek[:, 0])
    return np.array([length, breadth, face, np.linalg.norm(nasion - menton)])
