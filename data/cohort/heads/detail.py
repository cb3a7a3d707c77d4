"""Detail of one skull on its template: local shapes, teeth, sutures and thin bone, in the reference head's frame (mm).

Everything acts before the skull is carried to the subject, so that it stays where the anatomy has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from data.cohort.heads.skulls import SPINE, SkullTemplate
from data.cohort.heads.subject import SkullTraits

# Small shapes: centre (left side; mirrored), radii and full displacement per SD, mm. "spread" moves points away from
# the centre (or towards it) along the given axes instead.
LOCAL = (
    ("spread", (7.0, -33.0, 70.0), (9.0, 12.0, 30.0), (0.10, 0.0, 0.0)),  # width of the nasal aperture
    ("spread", (0.0, -33.0, 70.0), (14.0, 16.0, 30.0), (0.0, 0.06, 0.0)),  # its height
    ("spread", (34.0, -6.0, 60.0), (17.0, 17.0, 30.0), (0.0, 0.06, 0.0)),  # height of the orbits
    ("spread", (34.0, -6.0, 60.0), (18.0, 15.0, 30.0), (0.04, 0.0, 0.0)),  # their width
    ("move", (24.0, 18.0, 72.0), (16.0, 8.0, 20.0), (0.0, 0.0, 0.8)),  # brow ridges
    ("move", (28.0, 48.0, 62.0), (16.0, 14.0, 25.0), (0.0, 0.0, 0.7)),  # frontal eminences
    ("move", (48.0, -80.0, 20.0), (12.0, 12.0, 14.0), (1.1, 0.0, 0.0)),  # angles of the jaw turned out
    ("move", (12.0, -101.0, 70.0), (8.0, 6.0, 10.0), (0.6, -0.6, 0.5)),  # mental tubercles
    ("move", (44.0, -30.0, 52.0), (9.0, 8.0, 16.0), (0.0, -0.8, 0.5)),  # lower edge of the cheek bone
    ("move", (17.0, -46.0, 74.0), (7.0, 10.0, 14.0), (0.0, 0.0, 0.7)),  # canine ridges
)
# Upper teeth's mean widths, from the midline backwards, and where the boundaries between teeth lie along the arch.
WIDTHS = {1: (8.5, 6.6, 7.6, 7.0, 6.8, 10.2, 9.8, 8.6), 2: (5.4, 6.0, 6.9, 7.1, 7.2, 11.4, 10.7, 9.4)}
THIN_BELOW_MM = 10.0  # walls of the orbits, front of the maxilla; the brow is thick
HEALED_MM = 12.0  # the jaw above this depth takes part when a socket heals
# Sutures as lines in the face's plane (x, y; left side), found on the bone as seen from the front; the coronal one in
# space. Width of the groove and depth (mm), amplitude of its windings (mm), and whether it is mirrored.
FRONT_SUTURES = (
    (((47, 13), (49, 9), (53, 6)), 0.8, 0.7, 0.5, True),  # frontozygomatic
    (((22, -19), (25, -26), (30, -33), (37, -41)), 0.8, 0.5, 0.8, True),  # zygomaticomaxillary
    (((0, 3.5), (5, 3.0), (10, 0.5)), 0.7, 0.6, 0.5, True),  # frontonasal, frontomaxillary
    (((6, 1), (8, -8), (10.5, -18)), 0.7, 0.5, 0.3, True),  # nasomaxillary
    (((0, 2), (0, -17)), 0.7, 0.5, 0.3, False),  # internasal
    (((0, -45), (0, -60)), 0.7, 0.5, 0.3, False),  # intermaxillary
)
CORONAL = ((0, 88, 22), (18, 86, 26), (36, 76, 30), (52, 56, 34), (60, 36, 38), (64, 16, 42))
METOPIC = ((0, 12), (0, 40), (0, 70))


@dataclass(frozen=True)
class Groove:
    """Vertices near a suture: ``ids``, ``aside`` (mm, signed, from the line), ``along`` (mm), and its shape in mm."""

    ids: np.ndarray
    aside: np.ndarray
    along: np.ndarray
    width: float
    depth: float
    winding: float


def reference_detail(
    skull: SkullTemplate, traits: SkullTraits, grooves: list[Groove], local_shapes: np.ndarray
) -> np.ndarray:
    """Return (S, 3) the template's vertices with this subject's local shapes, teeth and sutures."""
    rng = np.random.default_rng(traits.seed)
    vertices = skull.vertices + _sutures(skull, traits, grooves, rng)
    vertices = _teeth(vertices, skull, traits, rng)
    return vertices + np.tensordot(traits.local, local_shapes, 1)


def kept_triangles(
    skull: SkullTemplate, traits: SkullTraits, vertices: np.ndarray, lowest_y: float
) -> np.ndarray:
    """Return (T', 3) triangles that the scan shows: thin bone may be lost, and vertebrae end or are left out.

    Args:
        vertices: (S, 3) of the subject's skull.
        lowest_y: of its chin, mm.
    """
    rng = np.random.default_rng([traits.seed, 1])
    waves, phase = rng.normal(0, 1 / 9.0, (8, 3)), rng.uniform(0, 2 * np.pi, 8)
    candidates = np.flatnonzero((skull.strength < 90) & (skull.vertices[:, 1] < THIN_BELOW_MM))
    lost = np.zeros(len(vertices), bool)
    noise = 8 * np.cos(skull.vertices[candidates] @ waves.T + phase).sum(1) / 2
    lost[candidates] = skull.strength[candidates] + noise < traits.thin_below
    spine = skull.part == SPINE
    lost |= spine if traits.spine_mm is None else spine & (vertices[:, 1] < lowest_y - traits.spine_mm)
    parts = skull.part[skull.triangles]
    dental = np.zeros(len(vertices), bool)
    dental[skull.dental_ids] = True
    # where upper and lower teeth touch: these would stretch
    bridges = (parts.min(1) != parts.max(1)) & dental[skull.triangles].any(1)
    return skull.triangles[~(lost[skull.triangles].any(1) | bridges)]


def find_grooves(skull: SkullTemplate) -> tuple[list[Groove], Groove]:
    """Return the sutures of a template skull, and the metopic one, which few people keep."""
    bone = np.flatnonzero(skull.part != SPINE)
    ordinary: list[Groove] = []
    for line, width, depth, winding, mirrored in FRONT_SUTURES:
        for s in (1, -1) if mirrored else (1,):
            path = _seen_from_front(skull.vertices[bone], np.array(line, float) * [s, 1])
            ordinary.append(_groove(skull, bone, path, width, depth, winding))
    for s in (1, -1):
        near = skull.vertices[bone]
        path = near[cKDTree(near).query(_dense(np.array(CORONAL, float) * [s, 1, 1]))[1]]
        ordinary.append(_groove(skull, bone, path, 1.0, 0.55, 1.6))
    forehead = _seen_from_front(skull.vertices[bone], np.array(METOPIC, float))
    return ordinary, _groove(skull, bone, forehead, 0.9, 0.55, 1.3)


def _dense(line: np.ndarray) -> np.ndarray:
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.arange(0, knots[-1], 1.0)
    return np.stack([np.interp(at, knots, line[:, k]) for k in range(line.shape[1])], 1)


def _seen_from_front(vertices: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Return (N, 3) points of the bone that a line (K, 2) in the face's plane meets, coming from the front."""
    tree = cKDTree(vertices[:, :2])
    path = []
    for point in _dense(line):
        near = tree.query_ball_point(point, 1.5)
        if near:
            path.append(vertices[near][vertices[near, 2].argmax()])
    return np.array(path)


def _groove(
    skull: SkullTemplate, bone: np.ndarray, path: np.ndarray, width: float, depth: float, winding: float
) -> Groove:
    distance, nearest = cKDTree(path).query(
        skull.vertices[bone], distance_upper_bound=3 * width + 2.5 * winding
    )
    near = np.isfinite(distance)
    ids, nearest = bone[near], nearest[near]
    tangent = np.gradient(path, axis=0)[nearest]
    across = np.cross(tangent, skull.normals[ids])
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    offset = skull.vertices[ids] - path[nearest]
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    along = lengths[nearest] + (offset * tangent).sum(1)
    return Groove(ids, (offset * across).sum(1), along, width, depth, winding)


def _sutures(
    skull: SkullTemplate, traits: SkullTraits, grooves: list[Groove], rng: np.random.Generator
) -> np.ndarray:
    moved = np.zeros_like(skull.vertices)
    for groove in grooves:
        pitch = rng.uniform(4.5, 8.0, 3)
        phase = rng.uniform(0, 2 * np.pi, 4)
        wound = sum(
            np.sin(2 * np.pi * groove.along / p * k + f) / k
            for k, p, f in zip((1, 2, 3), pitch, phase[:3], strict=True)
        )
        patchy = 0.65 + 0.35 * np.sin(2 * np.pi * groove.along / rng.uniform(18, 40) + phase[3])
        shift = rng.normal(0, 0.8)
        profile = np.exp(-0.5 * ((groove.aside - shift - 0.6 * groove.winding * wound) / groove.width) ** 2)
        depth = traits.suture_strength * groove.depth * patchy * profile
        moved[groove.ids] -= skull.normals[groove.ids] * depth[:, None]
    return moved


def local_shapes(points: np.ndarray) -> np.ndarray:
    """Return (LOCAL_SHAPES, S, 3) float32 displacements in mm per standard deviation of each local shape."""
    x, y, z = points.T
    side = np.where(x >= 0, 1.0, -1.0)
    folded = np.stack([np.abs(x), y, z], 1)
    shapes = []
    for how, center, radii, amount in LOCAL:
        offset = folded - center
        within = np.exp(-0.5 * ((offset / radii) ** 2).sum(1))[:, None]
        change = within * np.array(amount) * (offset if how == "spread" else 1.0)
        change[:, 0] *= side * np.minimum(np.abs(x) / 3, 1)
        shapes.append(change.astype(np.float32))
    return np.stack(shapes)


def _teeth(
    vertices: np.ndarray, skull: SkullTemplate, traits: SkullTraits, rng: np.random.Generator
) -> np.ndarray:
    """Return the vertices with lost teeth healed over, crowns worn, teeth a little out of line."""
    ids, along, beyond = skull.dental_ids, skull.dental_along, skull.dental_beyond
    upper = skull.dental_jaw == 1
    new_beyond = beyond.copy()
    sideways = np.zeros(len(ids))
    forward = np.zeros(len(ids))
    crown = np.clip(beyond / 3.0, 0, 1)
    new_beyond -= traits.wear * np.maximum(beyond, 0)
    for jaw in (1, 2):
        bounds = np.concatenate([[0], np.cumsum(WIDTHS[jaw])])
        for half, left in enumerate((True, False)):
            chosen = (skull.dental_jaw == jaw) & ((along >= 0) == left)
            at = np.abs(along)
            for k in range(len(bounds) - 1):
                inside = _window(at, bounds[k], bounds[k + 1]) * chosen
                shift, out, longer = rng.normal(0, traits.crowding, 3)
                if traits.lost[2 * (jaw - 1) + half, k]:
                    healed = np.where(
                        beyond > -HEALED_MM,
                        -HEALED_MM
                        + (beyond + HEALED_MM) * (HEALED_MM - traits.resorption) / (HEALED_MM + 9.0),
                        beyond,
                    )
                    new_beyond += inside * (healed - new_beyond)
                else:
                    sideways += inside * crown * shift
                    forward += inside * crown * out
                    new_beyond += inside * crown * 0.8 * longer
    change = (new_beyond - beyond) * skull.dental_weight
    moved = vertices.copy()
    moved[ids, 1] += np.where(upper, -change, change)
    moved[ids, 0] += sideways * np.where(along >= 0, 1, -1) * skull.dental_weight
    moved[ids, 2] += forward * skull.dental_weight
    return moved


def _window(at: np.ndarray, start: float, end: float) -> np.ndarray:
    """Return 1 between ``start`` and ``end``, falling to 0 within about 1 mm outside."""
    return np.clip(np.minimum(at - start + 0.7, end - at + 0.7) / 1.2, 0, 1)
