"""Finds orbits, their lower rims, ear canals and chin on a skull that looks at the camera, of a scan or the cohort."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndimage

from data.ct.surfaces import Mesh
from data.render import Camera, Scene, Surface

STEP_MM = 1.0
HALF_FIELD_MM = 140.0
ORBIT_WINDOW = ((14.0, 55.0), (-34.0, 34.0))  # mm: away from the midline; below and above the expected height
ORBIT_WIDTH_MM = 46.0
DEEP_MM = 10.0  # behind the rim
RIM_COLUMNS = 5
SMALLEST_ORBIT_MM2, LARGEST_ORBIT_MM2 = 300.0, 2200.0
MEATUS_WINDOW = ((-50.0, 8.0), (-45.0, 22.0))  # mm: below and above the orbits; behind and before the origin
MEATUS_WIDTH_MM = 17  # what bridges the ear canal's opening, and no more
MEATUS_DEEP_MM = (8.0, 12.0)  # all are tried: a shallow limit may join it to the gap before it
RING_MM = 13.0
MEATUS_MM2 = (5.0, 170.0)
ALIKE_MM = 9.0  # left and right, in height and forward
CHIN_WITHIN_MM = 14.0  # of the midline


@dataclass(frozen=True)
class Orbits:
    """The subject's eye sockets, left (x > 0) before right.

    Attributes:
        points: (4, 3) mm: middles of the openings, with the rims' z; then orbitale, the rim below the opening.
    """

    points: np.ndarray

    @property
    def height(self) -> float:
        return float(self.points[:2, 1].mean())


class Looker:
    """A mesh near the origin, to be viewed from any side; building it takes longer than a view."""

    def __init__(self, mesh: Mesh) -> None:
        self._scene = Scene(mesh.vertices, mesh.triangles, Camera())

    def look(self, yaw: float = 0.0, pitch: float = 0.0, step: float = STEP_MM) -> Surface:
        """Return what is seen with one ray every ``step`` mm; angles in degrees."""
        size = round(2 * HALF_FIELD_MM / step)
        camera = Camera(size=size, half_field=HALF_FIELD_MM, yaw=yaw, pitch=pitch, supersampling=1)
        return self._scene.seen_by(camera).trace()

    def depth(self, yaw: float = 0.0, pitch: float = 0.0) -> np.ndarray:
        """Return (280, 280) mm towards the camera, ``-inf`` where nothing is; row 0 is the top, STEP_MM a pixel."""
        return self.look(yaw, pitch).nearest()

    def outer_points(
        self, views: tuple[tuple[float, float], ...], step: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (N, 3) points and (N, 3) normals of what is seen from any of the (yaw, pitch) directions."""
        points, normals = [], []
        for yaw, pitch in views:
            view = self.look(yaw, pitch, step)
            facing = view.normal @ view.camera.rotation()[2].astype(np.float32)
            points.append(view.point)
            normals.append(view.normal * np.where(facing < 0, -1, 1)[:, None])
        return np.concatenate(points).astype(float), np.concatenate(normals).astype(float)


def find_orbits(looker: Looker, expected_y: float = 0.0) -> Orbits | None:
    """Return the two deep openings beside the midline; None where there are no two of the right size."""
    far = looker.depth()
    depth = np.maximum(far, far[np.isfinite(far)].max(initial=-100.0) - 90)
    left, right = (_orbit(depth, sign, expected_y) for sign in (1, -1))
    return None if left is None or right is None else Orbits(np.stack([left, right], 1).reshape(4, 3))


def _orbit(depth: np.ndarray, sign: int, expected_y: float) -> np.ndarray | None:
    """Return (2, 3) mm: the middle of one opening, with the rim's z, and its lower rim."""
    middle = (depth.shape[0] - 1) / 2
    (near, far), (below, above) = ORBIT_WINDOW
    low, high = sorted((sign * near, sign * far))
    columns = np.arange(round(middle + low), round(middle + high) + 1)
    rows = np.arange(round(middle - expected_y - above), round(middle - expected_y - below) + 1)
    if rows[0] < 0 or rows[-1] >= depth.shape[0]:
        return None
    part = depth[np.ix_(rows, columns)]
    opening = _largest_opening(part)
    if opening is None:
        return None
    y, x = np.nonzero(opening)
    center_x, center_y = (columns[0] + x.mean() - middle) * STEP_MM, (middle - rows[0] - y.mean()) * STEP_MM
    # The rim below the middle of the opening; where thin bone is lost, the opening's lowest point lies elsewhere.
    under = [round(float(x.mean())) + n for n in range(-RIM_COLUMNS, RIM_COLUMNS + 1)]
    bottom = int(np.median([int(y[x == column].max()) for column in under if (x == column).any()]))
    ledge = part[bottom + 1 : bottom + 6, max(0, under[0]) : under[-1] + 1]
    if not ledge.size:  # the opening goes on below the window: no orbit
        return None
    height = (middle - rows[0] - bottom - 1) * STEP_MM
    rim_z = float(np.median(ledge.max(0)))
    return np.array([[center_x, center_y, rim_z], [center_x, height, rim_z]])


def _largest_opening(part: np.ndarray) -> np.ndarray | None:
    """Return (H, W) bool: the deep place of an orbit's size that is largest and nearest to the middle, or None."""
    # The rim bridges the opening: what lies well behind the bridge belongs to it.
    wide = round(ORBIT_WIDTH_MM / STEP_MM)
    bridge = ndimage.grey_closing(np.pad(part, wide, mode="edge"), (wide, wide))[wide:-wide, wide:-wide]
    labels, count = ndimage.label(ndimage.binary_opening(bridge - part > DEEP_MM, iterations=2))
    best, best_score = 0, 0.0
    for k in range(1, count + 1):
        places = np.argwhere(labels == k)
        area = len(places) * STEP_MM**2
        score = area * (1 - np.hypot(*(places.mean(0) / part.shape - 0.5)))
        if SMALLEST_ORBIT_MM2 <= area <= LARGEST_ORBIT_MM2 and score > best_score:
            best, best_score = k, score
    return ndimage.binary_fill_holes(labels == best) if best else None


def find_porions(looker: Looker, orbits: Orbits) -> np.ndarray | None:
    """Return (2, 3) left and right porion, the upper edge of the bony ear canal; None without alike pits.

    The ear canal is the small round pit in the side of the skull that has bone all around it.
    """
    left = _pits(looker.depth(-90.0), -1, orbits.height)
    right = _pits(looker.depth(90.0), 1, orbits.height)
    if not (len(left) and len(right)):
        return None
    unlike = np.abs(left[:, None, 1:] - right[None, :, 1:])
    unlike = np.where((unlike > ALIKE_MM).any(-1), np.inf, unlike.sum(-1))
    i, j = np.unravel_index(int(np.argmin(unlike)), unlike.shape)
    return None if np.isinf(unlike[i, j]) else np.stack([left[i], right[j]])


def _pits(far: np.ndarray, forward: int, height: float) -> np.ndarray:
    """Return (P, 3) tops of the pits in a view of the skull's side.

    Args:
        far: (280, 280) depth, whose columns run forward (``forward`` = 1) or backward (-1).
        height: of the orbits, mm.
    """
    middle = (far.shape[0] - 1) / 2
    (below, above), (behind, before) = MEATUS_WINDOW
    span = sorted((middle + forward * behind, middle + forward * before))
    columns = np.arange(round(span[0]), round(span[1]) + 1)
    rows = np.arange(round(middle - height - above), round(middle - height - below) + 1)
    wide = MEATUS_WIDTH_MM
    part = far[rows[0] - wide : rows[-1] + wide + 1, columns[0] - wide : columns[-1] + wide + 1]
    part = np.where(np.isfinite(part), part, -HALF_FIELD_MM)
    disc = np.hypot(*np.mgrid[-wide // 2 + 1 : wide // 2 + 1, -wide // 2 + 1 : wide // 2 + 1]) <= wide / 2
    bridged = ndimage.grey_closing(part, footprint=disc) - part
    pits = []
    for deep in MEATUS_DEEP_MM:
        labels = ndimage.label(bridged > deep)[0]
        for k, box in enumerate(ndimage.find_objects(labels), 1):
            extent = max(side.stop - side.start for side in box)
            pit = labels == k
            y, x = np.nonzero(pit)
            inside = wide <= y.mean() < part.shape[0] - wide and wide <= x.mean() < part.shape[1] - wide
            round_pit = MEATUS_MM2[0] <= len(y) <= MEATUS_MM2[1] and len(y) > 0.35 * extent**2
            if extent > wide or not (inside and round_pit):
                continue
            ring = part[ndimage.binary_dilation(pit, iterations=3) & ~ndimage.binary_dilation(pit)]
            low, high = np.percentile(ring, [10, 95])
            if high - low <= RING_MM:  # bone all around
                along = forward * (columns[0] - wide + x.mean() - middle)
                top = middle - (rows[0] - wide + y.min()) + 0.5
                pits.append([-forward * float(np.median(ring)), top, along])
    return np.array(pits).reshape(-1, 3)


def lowest_chin(mesh: Mesh, rims_z: float) -> float:
    """Return the height of the lowest bone in front, near the midline: of a mandible, the menton."""
    points = mesh.vertices
    front = (np.abs(points[:, 0]) < CHIN_WITHIN_MM) & (points[:, 2] > rims_z - 45)
    return float(points[front, 1].min()) if front.any() else float("nan")
