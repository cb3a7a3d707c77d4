"""The head CT of the Debian package ``invesalius-examples`` (GPL-2) as a clean bone volume.

Frame of the scan in mm: x to the subject's left, y up, z forward; the mid-sagittal plane is x = 0 after ``upright``.
The scan ends at the edges of the upper teeth: of the mandible it holds the rami only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndimage
from scipy.spatial import cKDTree

SHAPE = (108, 256, 256)  # slices upwards, rows forward, columns to the subject's right
SLICE_MM, PIXEL_MM = 1.5, 0.9570312
AIR, SOFT = -1000.0, 40.0  # Hounsfield units
STEP_MM = 0.8
LOW_MM, HIGH_MM = (-84.0, -2.0, 0.0), (84.0, 164.0, 232.0)
RAMUS_TOP_SLICE = 22
RAMUS_SEEDS = (
    (slice(76, 88)),
    (slice(178, 192)),
)  # columns through the right and left ramus in slice 10, row 150
DEFECT_MM = (9.0, 66.0, 120.0)  # left of, above and in front of these planes the frontal bone was opened
_CONNECTED = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class Volume:
    """``values`` (X, Y, Z) float32 on the points ``low + step * index``, in mm."""

    values: np.ndarray
    low: np.ndarray
    step: float = STEP_MM

    def at(self, points: np.ndarray, order: int = 1, outside: float = AIR) -> np.ndarray:
        """(..., 3) mm -> interpolated values."""
        index = np.moveaxis((points - self.low) / self.step, -1, 0)
        return ndimage.map_coordinates(self.values, index, order=order, mode="constant", cval=outside)


@dataclass(frozen=True)
class Scan:
    """``cranium`` and ``ramus``: Hounsfield units, each without the other's bone."""

    cranium: Volume
    ramus: Volume


def read_scan(folder: Path) -> np.ndarray:
    """(108, 256, 256) float32 Hounsfield units. Raises: ValueError if the folder is not the unpacked project."""
    path = folder / "matrix.dat"
    expected = 2 * int(np.prod(SHAPE))
    if not path.is_file() or path.stat().st_size != expected:
        raise ValueError(
            f"{folder}: no matrix.dat of {expected} bytes in it; expected the unpacked Cranium.inv3 (a tar.gz) of the "
            "Debian package invesalius-examples"
        )
    return np.fromfile(path, np.int16).reshape(SHAPE).astype(np.float32)


def prepare(raw: np.ndarray) -> Scan:
    """Headrest removed, rami parted from the cranium, midplane at x = 0, the opened forehead mended by its mirror."""
    grey = _without_headrest(raw)
    ramus = _ramus_mask(grey)
    around = ndimage.binary_dilation(ramus, _CONNECTED, iterations=3)
    around[26:] = False
    cranium = np.where(around & (grey > 120), SOFT, grey)
    only_ramus = np.where(around, grey, SOFT)
    cranium[:9, 60:140, 95:165] = np.minimum(cranium[:9, 60:140, 95:165], SOFT)  # upper vertebrae
    normal, offset = _midplane(cranium)
    first = _upright(cranium, normal, offset)
    first = _complete_teeth(first)
    return Scan(_mend(first), _upright(only_ramus, normal, offset))


def _without_headrest(raw: np.ndarray) -> np.ndarray:
    body = ndimage.binary_opening(raw > -300, iterations=2)
    label, count = ndimage.label(body)
    sizes = ndimage.sum_labels(body, label, range(1, count + 1))
    head = ndimage.binary_dilation(label == 1 + int(np.argmax(sizes)), iterations=5)
    return np.where(head, raw, np.float32(AIR))


def _ramus_mask(grey: np.ndarray) -> np.ndarray:
    cores = ndimage.binary_erosion(grey[:RAMUS_TOP_SLICE] > 350, structure=_CONNECTED)
    label, _ = ndimage.label(cores)
    mask = np.zeros(grey.shape, bool)
    for columns in RAMUS_SEEDS:
        met = label[10, 150, columns]
        mask[:RAMUS_TOP_SLICE] |= label == np.bincount(met[met > 0]).argmax()
    return mask


def _scan_points(mask: np.ndarray) -> np.ndarray:
    z, y, x = np.where(mask)
    return np.stack([-(x - 128) * PIXEL_MM, z * SLICE_MM, y * PIXEL_MM], 1)


def _midplane(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit normal (towards the left) and offset of the plane about which the bone is most symmetric (mirror ICP)."""
    bone = grey > 250
    points = _scan_points(bone & ~ndimage.binary_erosion(bone, _CONNECTED))
    points = points[points[:, 1] > 8]
    points = points[np.random.default_rng(0).choice(len(points), 6000, replace=False)]
    tree = cKDTree(points)
    flipped = points * [-1, 1, 1]
    moved = flipped
    for _ in range(40):
        distance, nearest = tree.query(moved)
        near = distance < np.percentile(distance, 80)
        turn, shift = _rigid(moved[near], points[nearest[near]])
        moved = moved @ turn.T + shift
    turn, shift = _rigid(flipped, moved)
    reflection = turn @ np.diag([-1.0, 1.0, 1.0])
    _, vectors = np.linalg.eigh((reflection + reflection.T) / 2)
    normal = vectors[:, 0] * np.sign(vectors[0, 0])
    return normal, float(normal @ shift) / 2


def _rigid(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of the least squares (Kabsch)."""
    a, b = source.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((source - a).T @ (target - b))
    turn = (u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt).T
    return turn, b - turn @ a


def _upright(grey: np.ndarray, normal: np.ndarray, offset: float) -> Volume:
    forward = np.array([0, 0, 1.0]) - normal[2] * normal
    forward /= np.linalg.norm(forward)
    axes = np.stack([normal, np.cross(forward, normal), forward])
    grids = [np.arange(a, b + STEP_MM / 2, STEP_MM) for a, b in zip(LOW_MM, HIGH_MM, strict=True)]
    filtered = ndimage.spline_filter(grey, order=3).astype(np.float32)
    slabs = []
    for x in grids[0]:
        y, z = np.meshgrid(grids[1], grids[2], indexing="ij")
        point = np.stack([np.full_like(y, x), y, z], -1) @ axes + offset * normal
        index = np.stack([point[..., 1] / SLICE_MM, point[..., 2] / PIXEL_MM, 128 - point[..., 0] / PIXEL_MM])
        slabs.append(
            ndimage.map_coordinates(filtered, index, order=3, mode="constant", cval=AIR, prefilter=False)
        )
    return Volume(np.stack(slabs).astype(np.float32), np.array(LOW_MM))


def _complete_teeth(volume: Volume) -> Volume:
    """The right back teeth, one of which is missing, from the left ones."""
    x, y, z = (volume.low[k] + STEP_MM * np.arange(volume.values.shape[k]) for k in range(3))
    weight = (
        (1 / (1 + np.exp((x + 15) / 0.8)))[:, None, None]
        * (1 / (1 + np.exp((y - 17) / 2)))[:, None]
        * (1 / (1 + np.exp(-(z - 148) / 2)))
        * (1 / (1 + np.exp(-(x + 39) / 0.8)))[:, None, None]
    ).astype(np.float32)
    return Volume(volume.values * (1 - weight) + volume.values[::-1] * weight, volume.low)


def _mend(volume: Volume) -> Volume:
    """The left forehead from the right one, blended over a few mm."""
    axes = [volume.low[k] + STEP_MM * np.arange(volume.values.shape[k]) for k in range(3)]
    widths = (1.5, 2.0, 3.0)
    share = [1 / (1 + np.exp(-(axis - c) / w)) for axis, c, w in zip(axes, DEFECT_MM, widths, strict=True)]
    weight = (share[0][:, None, None] * share[1][:, None] * share[2]).astype(np.float32)
    return Volume(volume.values * (1 - weight) + volume.values[::-1] * weight, volume.low)
