"""Soft-tissue depths: a table by sex, age and BMI, and the correction that gives a face these depths over its skull.

Sources. Adult means follow Stephan's pooled T-Tables (Stephan and Simpson, J Forensic Sci 53, 2008, 1257-1272, with the
raises at gonion and ramus that the abstracts of Stephan, Forensic Sci Int 280, 2017 (the 2018 table), and of Hona and
Stephan, Int J Legal Med 2023, report) and, where these have no such site, Rhine's table of 1983 as quoted in
Rangel-de Lazaro et al. 2026 (10.4995/var.2024.24796). The numbers of the T-Tables are from memory, rounded to 0.5 mm.
BMI: 0.12 mm per kg/m2 at pogonion is published (Chen et al., Diagnostics 13, 2023, 997: 0.120 [0.073, 0.168]); that
depth grows with BMI at every site, most over cheek and ramus, and that men are thicker at most sites but not over the
cheek bones, too (Dong et al., Forensic Sci Int 222, 2012; De Greef et al., Forensic Sci Med Pathol 5, 2009). The
other slopes, the sex differences, the trends with age and the individual deviations are assumptions of that order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.spatial import cKDTree

from data.cohort.heads.rays import RayMesh
from data.cohort.heads.skulls import SPINE, SkullTemplate

NEUTRAL_BMI, NEUTRAL_AGE = 22.5, 40.0
KERNEL_MM, RIDGE = 17.0, 0.01
# Of the individual deviation's variance: one-sided, and common to all sites.
SIDE_SHARE, COMMON_SHARE = 0.35, 0.4


@dataclass(frozen=True)
class Site:
    """A place on the bone and the tissue over it.

    Attributes:
        name: as in the tables.
        side: "front", found at (x, y); "side", at (y, z); "below", at (x, z): mm in the reference head, left side.
        place: those two coordinates.
        way: direction of measuring, outwards; normalised when used.
        mean: mm, adults, mean of both sexes, at BMI 22.5 and age 40.
        male: men minus women, mm.  bmi: mm per kg/m2.  decade: mm per ten years.  sd: individual deviation, mm.
        paired: also on the right.
    """

    name: str
    side: str
    place: tuple[float, float]
    way: tuple[float, float, float]
    mean: float
    male: float
    bmi: float
    decade: float
    sd: float
    paired: bool = False


SITES: tuple[Site, ...] = (
    Site("glabella", "front", (0, 17), (0, 0.1, 1), 5.5, 0.2, 0.08, 0.0, 0.5),
    Site("nasion", "front", (0, 1), (0, 0, 1), 6.5, 0.5, 0.08, 0.0, 0.6),
    Site("rhinion", "front", (0, -11), (0, 0.45, 1), 2.8, 0.2, 0.03, 0.0, 0.3),
    Site("mid-philtrum", "front", (0, -53), (0, 0, 1), 11.0, 1.6, 0.06, -0.15, 0.9),
    Site("upper lip (prosthion)", "front", (0, -61), (0, 0, 1), 11.5, 1.6, 0.07, -0.25, 0.9),
    Site("lower lip (infradentale)", "front", (0, -81), (0, 0, 1), 13.0, 1.0, 0.09, -0.25, 0.9),
    Site("supramentale", "front", (0, -88), (0, 0, 1), 11.0, 0.6, 0.09, -0.05, 0.8),
    Site("pogonion", "front", (0, -97), (0, 0, 1), 11.0, 0.8, 0.12, 0.0, 1.1),
    Site("menton", "below", (0, 68), (0, -1, 0), 9.0, 0.4, 0.20, 0.1, 0.9),
    Site("upper forehead", "front", (0, 55), (0, 0.4, 1), 5.0, 0.2, 0.06, 0.0, 0.4),
    Site("frontal eminence", "front", (30, 44), (0.3, 0.3, 1), 4.5, 0.2, 0.06, 0.0, 0.4, True),
    Site("supraorbital", "front", (29, 15), (0.1, 0, 1), 6.5, 0.2, 0.11, 0.0, 0.5, True),
    Site("suborbital", "front", (33, -20), (0.1, 0, 1), 7.0, 0.0, 0.16, -0.1, 0.8, True),
    Site("side of nose", "front", (8, -11), (0.6, 0, 1), 4.5, 0.2, 0.04, 0.0, 0.3, True),
    Site("inner orbit rim", "front", (18, -26), (0.3, 0, 1), 7.0, 0.2, 0.08, 0.0, 0.4, True),
    Site("alare", "front", (16, -38), (0.2, 0, 1), 10.0, 0.5, 0.12, -0.05, 0.8, True),
    Site("inferior malar", "front", (38, -33), (0.4, -0.2, 1), 13.0, -0.4, 0.35, -0.2, 1.2, True),
    Site("lateral orbit", "front", (47, -12), (0.75, 0, 1), 9.5, -0.4, 0.22, -0.05, 0.9, True),
    Site("zygion", "side", (-22, 36), (1, 0, 0), 6.5, 0.6, 0.22, 0.0, 0.8, True),
    Site("temple", "side", (22, 30), (1, 0, 0), 9.0, 0.5, 0.12, -0.1, 0.8, True),
    Site("gonion", "side", (-78, 22), (1, 0, 0), 11.5, 0.6, 0.48, 0.0, 1.4, True),
    Site("mid-masseter", "side", (-60, 30), (1, 0, 0), 18.5, 0.8, 0.50, 0.0, 1.5, True),
    Site("sub-M2", "side", (-82, 49), (2.75, 0, 1), 17.0, 0.6, 0.55, 0.1, 1.5, True),
    Site("supra-M2", "side", (-59, 52), (2.75, 0, 1), 23.0, 0.4, 0.50, -0.2, 1.6, True),
    Site("mid-mandibular border", "front", (21, -96), (0.6, -0.1, 1), 12.0, 0.5, 0.28, 0.15, 1.1, True),
    Site("euryon", "side", (45, 10), (1, 0, 0), 6.0, 0.3, 0.05, 0.0, 0.4, True),
)  # fmt: skip


def both_sides() -> list[tuple[Site, int]]:
    """Return (site, 1 for the left and the midline, -1 for the right), in the order of all arrays here."""
    return [(site, s) for site in SITES for s in ((1, -1) if site.paired else (1,))]


def mean_depths(sex: str, age: float, bmi: float) -> np.ndarray:
    """Return (K,) mean depths in mm of men ("M") or women at an age in years and a BMI."""
    male = 0.5 if sex == "M" else -0.5
    decades = (min(max(age, 20.0), 80.0) - NEUTRAL_AGE) / 10
    return np.array(
        [k.mean + male * k.male + k.bmi * (bmi - NEUTRAL_BMI) + k.decade * decades for k, _ in both_sides()]
    )


def draw_deviations(rng: np.random.Generator) -> np.ndarray:
    """Return (K,) one person's deviations from the mean in mm: partly common to all sites, partly one-sided."""
    common = rng.normal()
    deviations: list[float] = []
    for site in SITES:
        shared = rng.normal()
        for _ in range(2 if site.paired else 1):
            alone = rng.normal()
            if site.paired:
                own = np.sqrt(1 - SIDE_SHARE) * shared + np.sqrt(SIDE_SHARE) * alone
            else:
                own = shared
            deviations.append(site.sd * (np.sqrt(COMMON_SHARE) * common + np.sqrt(1 - COMMON_SHARE) * own))
    return np.array(deviations)


def directions() -> np.ndarray:
    """Return (K, 3) unit directions of measuring."""
    raw = np.array([np.array(site.way, float) * [s, 1, 1] for site, s in both_sides()])
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def other_side() -> np.ndarray:
    """Return (K,) the number of the same site on the other side."""
    return np.array([k + s * site.paired for k, (site, s) in enumerate(both_sides())])


@dataclass(frozen=True)
class SitesOnSkull:
    """The sites on a template skull and on the skin over it.

    Attributes:
        skull_ids: (K,) into the skull's vertices.
        skin_rows: (K, V) give the skin's points from base vertices.
        spread: (V, K) spreads values at the sites over the base vertices.
    """

    skull_ids: np.ndarray
    skin_rows: sparse.csr_matrix
    spread: np.ndarray

    def depths(self, places: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Return (K,) mm from bone (K, 3) to the skin of base vertices (V, 3), in the sites' directions."""
        return ((self.skin_rows @ base - places) * directions()).sum(1)

    def corrected(self, base: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Return base vertices (V, 3) with the skin ``change`` (K,) mm farther out at the sites."""
        return base + self.spread @ (change[:, None] * directions())


def find_sites(
    skull: SkullTemplate,
    base: np.ndarray,
    skin: np.ndarray,
    skin_ids: np.ndarray,
    skin_triangles: np.ndarray,
    refinement: sparse.csr_matrix,
) -> SitesOnSkull:
    """Return the sites of a template skull under the reference head: ``base`` (V, 3), refined to ``skin`` (W, 3)."""
    bone_ids = np.flatnonzero(skull.part != SPINE)
    ids = bone_ids[cKDTree(skull.vertices[bone_ids]).query(_bone_places(skull))[1]]
    outside = RayMesh(skin, skin_triangles).outermost(skull.vertices[ids], directions())
    rows = refinement[skin_ids[cKDTree(skin[skin_ids]).query(outside)[1]]]
    front = 1 / (1 + np.exp(-(base[:, 2] + 25) / 8))  # the back of the head and the neck keep their shape
    return SitesOnSkull(ids, rows, _spread(base, rows @ base) * front[:, None])


def _bone_places(skull: SkullTemplate) -> np.ndarray:
    """Return (K, 3) the sites on the outside of the bone, NaN where there is no bone."""
    bone = skull.triangles[(skull.part[skull.triangles] != SPINE).all(1)]
    through, outwards = [], []
    for site, s in both_sides():
        a, b = site.place
        through.append({"front": (s * a, b, 0), "side": (0, a, b), "below": (a, 0, b)}[site.side])
        outwards.append({"front": (0, 0, 1), "side": (s, 0, 0), "below": (0, -1, 0)}[site.side])
    return RayMesh(skull.vertices, bone).outermost(np.array(through, float), np.array(outwards, float))


def _spread(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return (P, K) weights that spread values at ``places`` (K, 3) smoothly over ``points`` (P, 3): Matern 3/2."""

    def matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        r = np.sqrt(3) * np.linalg.norm(a[:, None] - b, axis=2) / KERNEL_MM
        return (1 + r) * np.exp(-r)

    return matern(points, places) @ np.linalg.inv(matern(places, places) + RIDGE * np.eye(len(places)))
