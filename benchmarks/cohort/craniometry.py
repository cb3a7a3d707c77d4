"""Caliper distances and tissue depths of a synthetic head, found on its surfaces by rays, whatever mesh they are.

Frame: mm, x to the subject's left, y up, z forward, as `data.cohort` builds heads. Sites are found by their anatomical
definition (the most anterior point of the brow, the widest point of the arch, ...) on each head anew; the facial
landmarks of the head only say where to look. A site that a mesh does not have (the vault cut away behind, a nasal
bone without an end) gives NaN, never a guess.
"""

from __future__ import annotations

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from numpy.typing import NDArray

Floats = NDArray[np.floating]

FAR_MM = 400.0  # rays from outside start this far from the origin
PROFILE_STEP_MM = 0.5
SIDES = (-1.0, 1.0)
NOWHERE = np.full(3, np.nan)

# Landmarks of the 106-point scheme that say where to look.
SELLION, SUBNASALE = 51, 60
UPPER_LIP, LOWER_LIP, LIPS_MEET = 87, 93, (98, 102)
PUPILS = (104, 105)


class Surface:
    """A triangle mesh that can be asked where rays meet it first.

    Args:
        vertices: (V, 3) mm.  triangles: (T, 3) vertex indices.
    """

    def __init__(self, vertices: Floats, triangles: NDArray[np.integer]) -> None:
        self.used = np.unique(triangles)
        self.points = np.asarray(vertices, float)[self.used]
        self._vertices = np.ascontiguousarray(vertices, np.float32)
        self._scene = rtcore_scene.EmbreeScene()
        self._mesh = TriangleMesh(self._scene, self._vertices, np.ascontiguousarray(triangles, np.int32))

    def reach(self, origins: Floats, directions: Floats) -> Floats:
        """(N, 3) mm and (N, 3) unit vectors -> (N,) mm to the first surface met, NaN where there is none or no ray."""
        origins, directions = np.broadcast_arrays(np.atleast_2d(origins), np.atleast_2d(directions))
        rays = np.stack([origins, directions]).astype(np.float32)
        finite = np.asarray(np.isfinite(rays).all(axis=(0, 2)))
        hits = self._scene.run(*np.where(finite[:, None], rays, np.float32(0)), output=True)
        return np.where(finite & (hits["primID"] >= 0), hits["tfar"], np.nan)

    def front(self, x: Floats | float, y: Floats | float, behind: bool = False) -> Floats:
        """z of the surface seen from the front (or from behind) at (x, y); NaN beside it."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        sign = -1.0 if behind else 1.0
        origins = np.stack([x.ravel(), y.ravel(), np.full(x.size, sign * FAR_MM)], 1)
        return sign * (FAR_MM - self.reach(origins, np.array([0.0, 0.0, -sign]))).reshape(x.shape)

    def side(self, y: Floats | float, z: Floats | float, sign: float) -> Floats:
        """|x| of the surface seen from the side ``sign`` (1 the subject's left) at (y, z); NaN beside it."""
        y, z = np.broadcast_arrays(np.asarray(y, float), np.asarray(z, float))
        origins = np.stack([np.full(y.size, sign * FAR_MM), y.ravel(), z.ravel()], 1)
        return (FAR_MM - self.reach(origins, np.array([-sign, 0.0, 0.0]))).reshape(y.shape)

    def front_normal(self, x: float, y: float, reach_mm: float = 4.0) -> Floats:
        """(3,) unit normal of the surface seen from the front, as a plane through points ``reach_mm`` around (x, y)."""
        grid = np.linspace(-reach_mm, reach_mm, 5)
        dx, dy = (a.ravel() for a in np.meshgrid(grid, grid))
        z = self.front(x + dx, y + dy)
        if not np.isfinite(z).any():
            return NOWHERE
        near = np.isfinite(z) & (np.abs(z - np.nanmedian(z)) < 2 * reach_mm)
        if near.sum() < 6:
            return NOWHERE
        plane = np.stack([dx[near], dy[near], np.ones(near.sum())], 1)
        slope = np.linalg.lstsq(plane, z[near], rcond=None)[0]
        normal = np.array([-slope[0], -slope[1], 1.0])
        return normal / np.linalg.norm(normal)


class Anchors:
    """Heights (mm) of (106, 3) facial landmarks, and half the distance of the pupils: where to look for sites."""

    def __init__(self, landmarks: Floats) -> None:
        y = landmarks[:, 1]
        self.eye = float(y[list(PUPILS)].mean())
        self.sellion = float(y[SELLION])
        self.subnasale = float(y[SUBNASALE])
        self.upper_lip = float(y[UPPER_LIP])
        self.stomion = float(y[list(LIPS_MEET)].mean())
        self.lower_lip = float(y[LOWER_LIP])
        self.pupil_x = float(np.abs(landmarks[list(PUPILS), 0]).mean())


def midline(surface: Surface, low: float, high: float) -> Floats:
    """Return the median profile from the front, (N, 3), from ``low`` to ``high``; z is NaN beside the surface."""
    y = np.arange(low, high, PROFILE_STEP_MM)
    return np.stack([np.zeros_like(y), y, surface.front(0.0, y)], 1)


def extreme(points: Floats, scores: Floats) -> Floats:
    """Return the point (3,) of the highest score; NaN where no score is finite."""
    return points[np.nanargmax(scores)] if np.isfinite(scores).any() else NOWHERE


def nasal_bone_end(skull: Surface, sellion: float) -> Floats:
    """(3,) rhinion: the last median point of the nasal bones above the nasal opening; NaN if they do not end."""
    profile = midline(skull, sellion - 40, sellion + 2)[::-1]  # downwards
    z, ahead = profile[:, 2], round(2 / PROFILE_STEP_MM)
    fall = z[:-ahead] - np.where(np.isfinite(z[ahead:]), z[ahead:], -np.inf)
    ends = np.flatnonzero(fall > 5)
    return profile[ends[0]] if len(ends) else NOWHERE


def root_of_nose(surface: Surface, near: float, lowest: float = -np.inf) -> Floats:
    """(3,) nasion (bone) or sellion (skin): the median point deepest behind the chord from brow to nasal bridge.

    Looked for within 12 mm below and 14 mm above ``near``, not below ``lowest`` (where the nasal bones end).
    """
    profile = midline(surface, max(near - 12, lowest), near + 14)
    if len(profile) < 3 or not np.isfinite(profile).all():
        return NOWHERE
    _, y, z = profile.T
    return extreme(profile, np.interp(y, y[[0, -1]], z[[0, -1]]) - z)


def glabella(surface: Surface, root: Floats) -> Floats:
    """(3,) the most anterior median point between 5 and 22 mm above the root of the nose."""
    profile = midline(surface, root[1] + 5, root[1] + 22)
    return extreme(profile, profile[:, 2])


def farthest_behind(surface: Surface, front: Floats) -> Floats:
    """(3,) opisthocranion: the median point behind that is farthest from ``front``; NaN if the back is open."""
    y = np.arange(front[1] - 65, front[1] + 25, 1.0)
    behind = np.stack([np.zeros_like(y), y, surface.front(0.0, y, behind=True)], 1)
    if not (behind[:, 2] < -40).mean() > 0.95:  # one looks into a vault that was cut away
        return NOWHERE
    return extreme(behind, np.linalg.norm(behind - front, axis=1))


def farthest_of(points: Floats, front: Floats) -> Floats:
    """The same among vertices, for a skin whose back is there but not drawn."""
    behind = points[(np.abs(points[:, 0]) < 8) & (points[:, 2] < -40) & (points[:, 1] > front[1] - 70)]
    return extreme(behind, np.linalg.norm(behind - front, axis=1))


def widest(points: Floats, y: tuple[float, float], z: tuple[float, float]) -> tuple[Floats, Floats]:
    """The leftmost and the rightmost of the points within heights and depths: two (3,), NaN where there is none."""
    inside = points[
        (points[:, 1] > y[0]) & (points[:, 1] < y[1]) & (points[:, 2] > z[0]) & (points[:, 2] < z[1])
    ]
    return extreme(inside, -inside[:, 0]), extreme(inside, inside[:, 0])


def gonion(points: Floats, gnathion: Floats, sign: float) -> Floats:
    """(3,) the most lateral, lowest and hindmost point of the mandible's angle on one side."""
    above = points[:, 1] - gnathion[1]
    jaw = points[(points[:, 0] * sign > 25) & (above < 40) & (above > 5) & (points[:, 2] > 8)]
    return extreme(jaw, jaw @ np.array([0.5 * sign, -0.65, -0.57]))


def distance(a: Floats, b: Floats) -> float:
    return float(np.linalg.norm(a - b))


class SkullSites:
    """Sites of one skull, (3,) mm each, NaN where the mesh has none; pairs are (right, left)."""

    def __init__(self, skull: Surface, at: Anchors) -> None:
        self.rhinion = nasal_bone_end(skull, at.sellion)
        lowest = self.rhinion[1] if np.isfinite(self.rhinion[1]) else -np.inf
        self.nasion = root_of_nose(skull, at.sellion, lowest)
        self.glabella = glabella(skull, self.nasion)
        self.opisthocranion = farthest_behind(skull, self.glabella)
        points = skull.points
        chin = points[(np.abs(points[:, 0]) < 8) & (points[:, 2] > 30)]
        self.gnathion = chin[chin[:, 1].argmin()]
        self.eurion = widest(points, (at.eye - 5, np.inf), (-90, 60))
        self.zygion = widest(points, (at.eye - 45, at.eye - 8), (12, 85))
        self.gonion = gonion(points, self.gnathion, -1.0), gonion(points, self.gnathion, 1.0)


def skull_distances(sites: SkullSites) -> dict[str, float]:
    """Craniometric distances in mm: GOL, XCB, ZYB, bigonial and nasion-gnathion."""
    return {
        "cranial length g-op": distance(sites.glabella, sites.opisthocranion),
        "cranial breadth eu-eu": float(sites.eurion[1][0] - sites.eurion[0][0]),
        "bizygomatic zy-zy": float(sites.zygion[1][0] - sites.zygion[0][0]),
        "bigonial go-go": distance(*sites.gonion),
        "nasion-gnathion n-gn": distance(sites.nasion, sites.gnathion),
    }


def head_distances(skin: Surface, everywhere: Floats, sites: SkullSites, at: Anchors) -> dict[str, float]:
    """Caliper distances of the living head in mm.

    Args:
        everywhere: (N, 3) skin vertices, also those that are not drawn (the back of the head).
    """
    sellion = root_of_nose(skin, at.sellion)
    brow = glabella(skin, sellion)
    vault = widest(everywhere, (at.eye + 22, np.inf), (-90, 60))
    down = np.array([0.0, -1.0, 0.0])
    menton = sites.gnathion + down * depth_from_inside(skin, sites.gnathion, down)
    widths = [  # in front of the ears
        2 * skin.side(zygion[1] + np.arange(-8, 9, 2.0)[:, None], np.arange(26, 50, 2.0), sign)
        for sign, zygion in zip(SIDES, sites.zygion, strict=True)
    ]
    jaw = [skin.side(go[1], go[2], sign) for sign, go in zip(SIDES, sites.gonion, strict=True)]
    return {
        "head length g-op": distance(brow, farthest_of(everywhere, brow)),
        "head breadth eu-eu": float(vault[1][0] - vault[0][0]),
        "bizygomatic zy-zy": float(np.mean([np.nanmax(width) for width in widths])),
        "bigonial go-go": float(sum(jaw)),
        "sellion-menton": distance(sellion, menton),
    }


def depth(skin: Surface, site: Floats, direction: Floats, outside_mm: float = 60.0) -> float:
    """Tissue depth in mm over a site of the bone along a unit vector; negative where bone stands out of the skin.

    Looked for from ``outside_mm`` outside, so that folds of lids and lips behind the skin do not count.
    """
    return float(outside_mm - skin.reach(site + outside_mm * direction, -direction)[0])


def depth_from_inside(skin: Surface, site: Floats, direction: Floats, inside_mm: float = 8.0) -> float:
    """The same, looked for from ``inside_mm`` inside: where something else (neck, ear) stands further out."""
    return float(skin.reach(site - inside_mm * direction, direction)[0] - inside_mm)
