"""Brings the scanned cranium into the reference head: landmarks at skin minus tissue depth, then the vault.

Places on the scan are in its own frame (data.templates.scan); places on the head in unscaled MakeHuman mm, as in
data.templates.skull. Both frames are in mm with x to the subject's left, y up, z forward.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from data.cohort.heads.proportions import reshape_vault
from data.cohort.heads.rays import Surface
from data.templates.makehuman import to_template_frame

FORWARD, BACKWARD, DOWN = (
    np.array([0, 0, -1.0]),
    np.array([0, 0, 1.0]),
    np.array([0, -1.0, 0]),
)  # ways of looking
SIDES = (-1, 1)
VAULT_DEPTH_MM = 6.0
NUM_VAULT_POINTS, VAULT_ROUNDS = 500, 3
BROW_ABOVE_EYES_MM = 29.0
REACH_MM = 300.0

# Height on the scan, height on the head, tissue depth: where the midline is seen from the front.
FRONT_MIDLINE = (
    (125, 708, 5.5),
    (102, 683, 5.0),
    (82, 657, 5.5),
    (68, 641, 6.5),
    (54, 621, 3.0),
    (9, 583, 11.5),
)
# Left side: (x, y) on the scan, (x, y) on the head, depth: seen from the front.
FRONT_PAIRED = (
    ((27, 80), (28, 653), 6.5),
    ((31, 41.5), (31, 617), 7.0),
    ((47, 27), (46, 603), 13.0),
    ((32, 105), (32, 688), 5.0),
    ((50, 92), (49, 668), 6.5),
    ((20, 12), (19, 586), 12.5),
    ((15, 50), (13.5, 622), 7.0),
)
# (y, z) on the scan, (y, z) on the head, depth: seen from the side.
SIDE_PAIRED = (
    ((40, 142), (617, 82), 7.0),
    ((105, 80), (680, 28), 7.0),
    ((82, 148), (655, 88), 12.0),
    ((8, 142), (588, 74), 18.0),
)
BACK_MIDLINE = ((70, 663, 6.5), (110, 705, 6.0), (28, 622, 9.0))
# Left side, points that no skin lies over: on the scan -> on the head.
DEEP_PAIRED = (
    ((56, 12, 107), (50.5, 588, 44)),
    ((31, -0.5, 172), (30, 570, 92)),
    ((54, 31.5, 128), (53, 609, 62)),
)


def on_head(x: float, y: float, z: float = 50.0) -> np.ndarray:
    """(3,) head frame from unscaled MakeHuman mm."""
    return reshape_vault(to_template_frame(np.array([[x, y, z]], float)))[0]


class Skin:
    """The reference head's skin, asked for points under it."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface

    def under(self, through: np.ndarray, way: np.ndarray, depth: float) -> np.ndarray:
        """``depth`` mm below the point of the skin that is seen along ``way`` through ``through``."""
        point = self.surface.seen_from(through, way)
        normal = self.surface.normal_at(point)
        return point - depth * normal * -np.sign(normal @ way)

    def front(self, x: float, y: float, depth: float) -> np.ndarray:
        return self.under(on_head(x, y), FORWARD, depth)


def landmarks(cranium: Surface, skin: Skin) -> tuple[np.ndarray, np.ndarray]:
    """(L, 3) points on the scan and the (L, 3) points of the head that they belong to."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for y, head_y, depth in FRONT_MIDLINE:
        pairs.append((cranium.seen_from(np.array([0, y, 0.0]), FORWARD), skin.front(0, head_y, depth)))
    for y, head_y, depth in BACK_MIDLINE:
        pairs.append(
            (
                cranium.seen_from(np.array([0, y, 0.0]), BACKWARD),
                skin.under(on_head(0, head_y), BACKWARD, depth),
            )
        )
    vertex = cranium.seen_from(np.array([0, 0, 110.0]), DOWN)
    pairs.append((vertex, skin.under(on_head(0, 700, 48), DOWN, 6.0)))
    nostrils = skin.front(0, 594, 0.0)
    pairs.append((np.array([0, 21.0, 207.0]), nostrils + np.array([0, 1.5, -12])))  # anterior nasal spine
    lip = skin.front(0, 578, 0.0)
    edge = on_head(0, 571)[1]
    pairs.append((np.array([0, 0.5, 206.5]), np.array([0, edge, lip[2] - 12.5])))  # edges of the incisors
    pairs.append((np.array([0, -0.5, 203.5]), np.array([0, edge, lip[2] - 15.5])))
    beside_nose = skin.front(20, 600, 9.0)[2]
    for s in SIDES:
        mirror = np.array([s, 1, 1])
        for (x, front_y), (head_x, head_y), depth in FRONT_PAIRED:
            pairs.append(
                (
                    cranium.seen_from(np.array([s * x, front_y, 0.0]), FORWARD),
                    skin.front(s * head_x, head_y, depth),
                )
            )
        for (side_y, z), (head_y, head_z), depth in SIDE_PAIRED:
            way = np.array([-s, 0, 0.0])
            pairs.append(
                (
                    cranium.seen_from(np.array([0, side_y, z], float), way),
                    skin.under(on_head(0, head_y, head_z), way, depth),
                )
            )
        for place, head in DEEP_PAIRED:
            pairs.append((np.array(place, float) * mirror, on_head(s * head[0], head[1], head[2])))
        rim = cranium.seen_from(np.array([s * 47.5, 62, 0.0]), FORWARD)
        pairs.append((rim, skin.front(s * 48.5, 637, 7.0) - [0, 0, 3]))  # lateral rim of the orbit
        wing = on_head(s * 11.5, 604)
        pairs.append((np.array([s * 11.5, 32, 196.0]), np.array([wing[0], wing[1], beside_nose])))
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


def smooth_map(source: np.ndarray, target: np.ndarray, smoothing: float = 2.0) -> RBFInterpolator:
    """Kernel r with an affine part: (N, 3) points of the source space -> target space."""
    return RBFInterpolator(source, target, kernel="linear", degree=1, smoothing=smoothing)


def register(
    vertices: np.ndarray, triangles: np.ndarray, skin_vertices: np.ndarray, skin_triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 3) points on the scanned cranium and the points of the reference head where they go."""
    cranium = Surface(vertices, triangles)
    skin = Skin(Surface(skin_vertices, skin_triangles))
    source, target = landmarks(cranium, skin)
    warp = smooth_map(source, target)
    center = np.array([0, BROW_ABOVE_EYES_MM - 10, 0.0])
    rng = np.random.default_rng(0)
    pool = rng.choice(np.flatnonzero(vertices[:, 1] > 60), 12_000, replace=False)
    for _ in range(VAULT_ROUNDS):
        moved = warp(vertices[pool])
        chosen = pool[moved[:, 1] > BROW_ABOVE_EYES_MM]
        moved = moved[moved[:, 1] > BROW_ABOVE_EYES_MM]
        way = moved - center
        distance = np.linalg.norm(way, axis=1, keepdims=True)
        way /= distance
        outer = _outermost(moved, way, distance[:, 0])[:NUM_VAULT_POINTS]
        hits = skin.surface.first_hits(center + REACH_MM * way[outer], -way[outer])
        wanted = hits - VAULT_DEPTH_MM * skin.surface.normal_at(hits)
        known = ~np.isnan(wanted).any(1)
        warp = smooth_map(
            np.vstack([source, vertices[chosen[outer[known]]]]), np.vstack([target, wanted[known]])
        )
    picked = chosen[outer[known]]
    return np.vstack([source, vertices[picked]]), np.vstack([target, warp(vertices[picked])])


def _outermost(points: np.ndarray, ways: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Indices of points that no other point lies clearly farther out than, in nearly the same direction."""
    tree = cKDTree(ways)
    neighbours = tree.query(ways, k=12)[1]
    return np.flatnonzero(distance >= distance[neighbours].max(1) - 1.5)
