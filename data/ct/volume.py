"""Makes an even, upright volume with only the head in it: one resampling, table and tubes away, airways filled.

Volumes are indexed ``[x, y, z]`` in the axes of ``data.render``: x to the patient's left, y up, z forward; mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import scipy.ndimage as ndimage

from data.ct.findings import ScanError
from data.ct.reading.scan import OUTSIDE_HU, Scan

FROM_LPS = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
SKIN_HU = -300.0
PADDING_HU = -1500  # scanners fill what they did not measure with values below air
COARSE = 2  # steps of the volume in a step of the masks
LARGEST_HEAD_MM = 290.0  # from the vertex down: shoulders are left out
# Openings of the skin up to twice as wide are closed; the surface keeps this much of their depth.
CLOSED_MM = 4
EAR_MM = 24
THIN_MM = 8  # of the nose's wings, say
LARGEST_SINUS_MM2 = 3000.0
MOST_VOXELS = 120e6  # of the upright grid
LEAST_LITRES = 0.7  # of a head
_STRUCT = ndimage.generate_binary_structure(3, 1)
TABLE_MM = 4  # what is up to twice as thick, or touches the head no wider than that, is none of it


@dataclass
class Volume:
    """``hu`` (X, Y, Z) int16; ``low`` (3,) mm of its first voxel; ``step`` mm; ``field`` bool, what was measured."""

    hu: np.ndarray
    low: np.ndarray
    step: float
    field: np.ndarray


@dataclass
class HeadVolume:
    """A volume and the head in it.

    Attributes:
        head: (X, Y, Z) bool, skin and all within.
        skin: (X, Y, Z) HU with air around the head and its airways filled.
    """

    volume: Volume
    head: np.ndarray
    skin: np.ndarray


def resample(scan: Scan, step: float) -> Volume:
    """Return a scan on an upright grid, whatever its axes, steps and shear. Thin slices are averaged, not skipped.

    Raises:
        ScanError: the grid would be too large.
    """
    affine = FROM_LPS @ scan.affine
    shape = np.array(scan.values.shape[::-1])
    corners = np.array(list(product(*[(-0.5, n - 0.5) for n in shape])))
    placed = corners @ affine[:, :3].T + affine[:, 3]
    low = placed.min(0) + step / 2
    size = np.maximum(1, np.floor((placed.max(0) - low) / step).astype(int) + 1)
    if np.prod(size.astype(float)) > MOST_VOXELS:
        lengths = " x ".join(f"{n * step:.0f}" for n in size)
        raise ScanError(f"the volume covers {lengths} mm: crop it to the head")
    values = scan.values
    finer = int(np.ceil(scan.spacing[2] / step - 0.2))
    if finer > 1:  # slices farther apart than the grid's: a spline between them leaves no terraces
        values = _between_slices(values, finer)
        affine = affine @ np.diag([1, 1, 1 / finer, 1])
        shape[2] = len(values)
    for axis, spacing in zip((2, 1, 0), np.linalg.norm(affine[:, :3], axis=0), strict=True):
        if spacing < 0.8 * step:
            sigma = 0.42 * float(np.sqrt((step / spacing) ** 2 - 1))
            values = ndimage.gaussian_filter1d(values, sigma, axis=axis, mode="nearest", truncate=3)
    inverse = np.linalg.inv(affine[:, :3])
    matrix = step * inverse
    offset = inverse @ (low - affine[:, 3])
    hu = ndimage.affine_transform(
        values.transpose(2, 1, 0), matrix, offset, tuple(size), np.int16, order=1, mode="nearest"
    )
    field = hu > PADDING_HU
    for k in range(3):
        steps = [matrix[k, a] * np.arange(size[a], dtype=np.float32) for a in range(3)]
        index = offset[k] + steps[0][:, None, None] + steps[1][:, None] + steps[2]
        field &= (index >= -0.5) & (index <= shape[k] - 0.5)
    hu[~field] = OUTSIDE_HU
    return Volume(np.maximum(hu, OUTSIDE_HU), low, step, field)


def _between_slices(values: np.ndarray, finer: int) -> np.ndarray:
    """Interpolate (K, ...) slices to ((K - 1) finer + 1, ...) by cubic splines. Source: Catmull and Rom (1974)."""
    result = np.empty(((len(values) - 1) * finer + 1, *values.shape[1:]), np.int16)
    result[::finer] = values
    for k in range(len(values) - 1):
        four = [values[min(max(k + n, 0), len(values) - 1)].astype(np.float32) for n in (-1, 0, 1, 2)]
        for n in range(1, finer):
            t = n / finer
            weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            parts = [np.float32(w / 2) * part for w, part in zip(weights, four, strict=True)]
            result[k * finer + n] = np.rint(parts[0] + parts[1] + parts[2] + parts[3])
    return result


def find_head(volume: Volume) -> HeadVolume:
    """Return the largest body in the field, without what touches it lightly: table, headrest, pads, tubes, wires.

    Raises:
        ScanError: nothing in it has the size of a head.
    """
    coarse = COARSE * volume.step
    body = _with_sinuses(volume.hu[::COARSE, ::COARSE, ::COARSE] > SKIN_HU, coarse)
    labels, _ = ndimage.label(ndimage.binary_opening(body, _STRUCT, max(1, round(TABLE_MM / coarse))))
    sizes = np.bincount(labels.ravel())[1:]
    litres = sizes.max(initial=0) * coarse**3 / 1e6
    if litres < LEAST_LITRES:
        raise ScanError(f"the largest body in the field has {litres:.2f} litres, a head has about 4")
    core = labels == 1 + int(np.argmax(sizes))
    top = int(np.flatnonzero(core.any((0, 2))).max())
    core[:, : max(0, top - round(LARGEST_HEAD_MM / coarse))] = False
    head = _with_ears(core, body, coarse)
    solid = _closed(head, volume)
    deep = ndimage.binary_erosion(solid, _STRUCT, round(1.5 * CLOSED_MM / coarse), border_value=1)
    near = _finer(ndimage.binary_dilation(head | solid, _STRUCT, 2), volume.hu.shape)
    skin = np.where(near, volume.hu, OUTSIDE_HU).astype(np.int16)
    skin[_finer(deep, skin.shape) & (skin < 0)] = 0
    return HeadVolume(volume, near & (skin > SKIN_HU), skin)


def _with_sinuses(body: np.ndarray, coarse: float) -> np.ndarray:
    """Add the air that a level slice of the body encloses in front: the wall of a sinus is as thin as a table."""
    forward = np.flatnonzero(body.any((0, 1)))
    if not len(forward):
        return body
    limit = forward[0] + 0.35 * (forward[-1] - forward[0])
    filled = body.copy()
    for y in np.flatnonzero(body.any((0, 2))):
        holes, count = ndimage.label(ndimage.binary_fill_holes(body[:, y]) & ~body[:, y])
        if count:
            area = np.bincount(holes.ravel())
            depth = np.bincount(holes.ravel(), np.indices(holes.shape)[1].ravel())
            sinus = (area * coarse**2 < LARGEST_SINUS_MM2) & (depth > limit * area)
            sinus[0] = False
            filled[:, y] |= sinus[holes]
    return filled


def _finer(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a coarse mask on the volume's grid: voxel n of it stands for voxels 2n - 1 to 2n + 1, nearest wins."""
    index = [
        np.minimum((np.arange(n) + COARSE // 2) // COARSE, m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*index)]


def _with_ears(core: np.ndarray, body: np.ndarray, coarse: float) -> np.ndarray:
    """Give back what opening took off the head: a little everywhere, ears' length at the sides, nothing behind."""
    occupied = [np.flatnonzero(core.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    (x0, x1), (y0, _), (z0, z1) = ((int(o[0]), int(o[-1])) for o in occupied)
    behind = z0 + round(0.3 * (z1 - z0))
    width = round(0.3 * (x1 - x0))
    front, side = np.zeros_like(core), np.zeros_like(core)
    front[:, :, behind:] = True
    side[: x0 + width, y0:, behind:] = True
    side[x1 - width :, y0:, behind:] = True
    # Before the face there is no table: what is thin there is its own.
    near = ndimage.binary_dilation(core, _STRUCT, max(1, round(TABLE_MM / coarse)), mask=body)
    near = ndimage.binary_dilation(near, _STRUCT, round(THIN_MM / coarse), mask=body & (front | near))
    return near | ndimage.binary_dilation(near, _STRUCT, round(EAR_MM / coarse), mask=body & (side | near))


def _closed(head: np.ndarray, volume: Volume) -> np.ndarray:
    """Return the head without openings: nostrils, mouth and ear canals bridged, everything inside filled."""
    rounds = round(CLOSED_MM / (COARSE * volume.step))
    pad = rounds + 1
    padded = np.pad(head, pad)
    measured = np.pad(volume.field[::COARSE, ::COARSE, ::COARSE], pad)
    # What lies under the lowest slice counts as solid while holes are filled: the airway ends there.
    cut = ~measured & padded.any(1, keepdims=True)
    cut[:, cut.shape[1] // 2 :] = False
    filled = ndimage.binary_fill_holes(ndimage.binary_dilation(padded, _STRUCT, rounds) | cut)
    solid = ndimage.binary_erosion(filled, _STRUCT, rounds) & measured
    return (solid | padded)[(slice(pad, -pad),) * 3]
