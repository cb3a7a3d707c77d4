"""Measure soft-tissue depths at the usual craniofacial sites, from a skull and the skin over it.

Midline sites are measured in the direction that published tables name (forwards; at the menton downwards). Paired sites
are measured along the normal of the bone; the figure is the mean of both sides. Sites on the alveolar bone lie at the
height of the lips, since teeth differ from skull to skull.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cohort.craniometry import (
    NOWHERE,
    SIDES,
    Anchors,
    Floats,
    SkullSites,
    Surface,
    depth,
    depth_from_inside,
    midline,
)

FORWARD, DOWN = np.array([0.0, 0.0, 1.0]), np.array([0.0, -1.0, 0.0])
# Depth of the dental arch from the incisors to the middle of the second molar.
MOLAR_BEHIND_INCISORS_MM = 34.0


def tissue_depths(skull: Surface, skin: Surface, sites: SkullSites, at: Anchors) -> dict[str, float]:
    """mm by site name; NaN where the bone has no such site."""
    median = _median(skull, sites, at)
    result = {name: depth(skin, site, direction) for name, (site, direction) in median.items()}
    result["menton"] = depth_from_inside(skin, *median["menton"])  # the neck lies below it
    sides = [_paired(skull, sites, at, sign) for sign in SIDES]
    for name in sides[0]:
        values = [depth(skin, *side[name]) for side in sides]
        result[name] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return result


def _median(skull: Surface, sites: SkullSites, at: Anchors) -> dict[str, tuple[Floats, Floats]]:
    def normal(site: Floats) -> Floats:
        return skull.front_normal(0.0, site[1]) * np.array([0.0, 1.0, 1.0])

    above_lip = (at.subnasale + at.upper_lip) / 2
    profile = midline(skull, sites.gnathion[1] + 3, at.lower_lip)
    _, y, z = profile.T
    chin = int(np.nanargmax(np.where(y < sites.gnathion[1] + 22, z, -np.inf)))
    fold = chin + int(np.nanargmin(np.where(np.isfinite(z[chin:]), z[chin:], np.inf)))
    return {
        "glabella": (sites.glabella, normal(sites.glabella)),
        "nasion": (sites.nasion, normal(sites.nasion)),
        "rhinion": (sites.rhinion, normal(sites.rhinion)),
        "mid-philtrum": (_seen(skull, 0.0, above_lip), FORWARD),
        "upper lip (prosthion)": (_seen(skull, 0.0, at.upper_lip), FORWARD),
        "lower lip (infradentale)": (_seen(skull, 0.0, at.lower_lip), FORWARD),
        "supramentale": (profile[fold], FORWARD),
        "pogonion": (profile[chin], FORWARD),
        "menton": (sites.gnathion, DOWN),
    }


def _paired(skull: Surface, sites: SkullSites, at: Anchors, sign: float) -> dict[str, tuple[Floats, Floats]]:
    x = sign * at.pupil_x
    lateral = np.array([sign, 0.0, 0.0])
    upper, lower, outer = orbit_rims(skull, at, sign)
    zygion = sites.zygion[int(sign > 0)]
    gonion = sites.gonion[int(sign > 0)]
    frontal = _seen(skull, x, at.eye + 40)
    malar = _seen(skull, 0.8 * x, lower[1] - 12)
    if not malar[2] > lower[2] - 12:  # looks past the maxilla: nothing to measure on
        malar = NOWHERE
    cheekbone = _seen(skull, 0.95 * outer[0], lower[1])
    ramus = _beside(skull, at.stomion + 3, gonion[2] + 12, sign)
    molar_z = float(skull.front(0.0, at.upper_lip)) - MOLAR_BEHIND_INCISORS_MM
    above, below = (_beside(skull, at.stomion + rise, molar_z, sign) for rise in (13, -12))
    return {
        "frontal eminence": (frontal, skull.front_normal(*frontal[:2])),
        "supraorbital": (upper, FORWARD),
        "suborbital": (lower, FORWARD),
        "inferior malar": (malar, skull.front_normal(*malar[:2])),
        "lateral orbit": (cheekbone, _turned(sign, 37)),
        "zygion": (zygion, lateral),
        "gonion": (gonion, lateral),
        "mid-masseter": (ramus, lateral),
        "supra-M2": (above, _turned(sign, 70)),
        "sub-M2": (below, _turned(sign, 70)),
    }


def orbit_rims(skull: Surface, at: Anchors, sign: float) -> tuple[Floats, Floats, Floats]:
    """Three (3,) points on the rim of one orbit: highest and lowest (over the pupil) and outermost (at its height).

    The rim is where, coming from the middle of the orbit, the bone first comes forward to within 4 mm of the most
    forward bone of the next 12 mm.
    """
    x = sign * at.pupil_x
    steps = np.arange(4, 40, 0.5)

    def rim(px: Floats, py: Floats) -> Floats:
        z = skull.front(px, py)
        ahead = [np.nanmax(np.append(z[k : k + 24], -np.inf)) for k in range(len(z))]
        there = np.flatnonzero(
            (z > np.array(ahead) - 4) & (z > z[:4].min(initial=np.inf, where=np.isfinite(z[:4])) + 4)
        )
        if len(there) == 0:
            return NOWHERE
        return np.array([px[there[0]], py[there[0]], z[there[0]]])

    same = np.zeros_like(steps)
    return (
        rim(x + same, at.eye + steps),
        rim(x + same, at.eye - steps),
        rim(x + sign * steps, at.eye - 2 + same),
    )


def _seen(skull: Surface, x: float, y: float) -> Floats:
    """(3,) the bone seen from the front at (x, y)."""
    return np.array([x, y, float(skull.front(x, y))])


def _beside(skull: Surface, y: float, z: float, sign: float) -> Floats:
    """(3,) the bone seen from one side at (y, z)."""
    return np.array([sign * float(skull.side(y, z, sign)), y, z])


def _turned(sign: float, degrees: float) -> Floats:
    """(3,) horizontal unit vector, turned from forwards towards one side."""
    angle = np.radians(degrees)
    return np.array([sign * np.sin(angle), 0.0, np.cos(angle)])
