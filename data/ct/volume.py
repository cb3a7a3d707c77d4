"""An even, upright volume with only the head in it: resampled once, table and tubes taken away, airways filled.

Volumes are indexed ``[x, y, z]`` in the axes of ``data.render``: x to the patient's left, y up, z forward; mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndimage

from data.ct.reading.scan import OUTSIDE_HU, Scan, ScanError

FROM_LPS = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
SKIN_HU = -300.0
PADDING_HU = -1500  # scanners fill what they did not measure with values below air
COARSE = 2  # steps of the volume in a step of the masks
LARGEST_HEAD_MM = 290.0  # from the vertex down: shoulders are left out
CLOSED_MM = (
    4  # openings of the skin up to twice as wide are closed; the surface keeps this much of their depth
)
EAR_MM = 24
THIN_MM = 8  # of the nose's wings, say
LARGEST_SINUS_MM2 = 3000.0
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
    """A ``Volume`` and ``head``, (X, Y, Z) bool: skin and all within; ``skin``: HU with air around it and
    the airways filled."""

    volume: Volume
    head: np.ndarray
    skin: np.ndarray


def resample(scan: Scan, step: float) -> Volume:
    """Onto an upright grid, whatever the scan's axes, steps and shear. Thin slices are averaged, not skipped."""
    affine = FROM_LPS @ scan.affine
    shape = np.array(scan.values.shape[::-1])
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    placed = corners @ affine[:, :3].T + affine[:, 3]
    low = placed.min(0) + step / 2
    size = np.maximum(1, np.floor((placed.max(0) - low) / step).astype(int) + 1)
    if np.prod(size.astype(float)) > 120e6:
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
    field = np.ones(tuple(size), bool)
    for k in range(3):
        steps = [matrix[k, a] * np.arange(size[a], dtype=np.float32) for a in range(3)]
        index = offset[k] + steps[0][:, None, None] + steps[1][:, None] + steps[2]
        field &= (index >= -0.5) & (index <= shape[k] - 0.5)
    field &= hu > PADDING_HU
    hu[~field] = OUTSIDE_HU
    return Volume(np.maximum(hu, OUTSIDE_HU), low, step, field)


def _between_slices(values: np.ndarray, finer: int) -> np.ndarray:
    """(K, ...) -> ((K - 1) finer + 1, ...): cubic interpolation between neighbours. Source: Catmull and Rom (1974)."""
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
    """The largest body in the field, without what touches it lightly: table, headrest, pads, tubes, wires.

    Raises:
        ScanError: nothing in it has the size of a head.
    """
    part = volume.hu[::COARSE, ::COARSE, ::COARSE]
    body = _with_sinuses(part > SKIN_HU, COARSE * volume.step)
    struct = ndimage.generate_binary_structure(3, 1)
    sizes, labels = _components(
        ndimage.binary_opening(body, struct, iterations=max(1, round(TABLE_MM / (COARSE * volume.step))))
    )
    litres = sizes.max(initial=0) * (COARSE * volume.step) ** 3 / 1e6
    if litres < 0.7:
        raise ScanError(f"the largest body in the field has {litres:.2f} litres, a head has about 4")
    core = labels == 1 + int(np.argmax(sizes))
    core = _above_shoulders(core, volume)
    head = _with_ears(core, body, struct, COARSE * volume.step)
    solid = _closed(head, volume, struct)
    deep = ndimage.binary_erosion(
        solid, struct, iterations=round(1.5 * CLOSED_MM / (COARSE * volume.step)), border_value=1
    )
    near = _finer(ndimage.binary_dilation(head | solid, struct, iterations=2), volume.hu.shape)
    skin = np.where(near, volume.hu, OUTSIDE_HU).astype(np.int16)
    skin[_finer(deep, skin.shape) & (skin < 0)] = 0
    return HeadVolume(volume, near & (skin > SKIN_HU), skin)


def _with_sinuses(body: np.ndarray, step: float) -> np.ndarray:
    """With the air that a level slice of it encloses in front: the wall of a sinus is as thin as a table."""
    forward = np.flatnonzero(body.any((0, 1)))
    if not len(forward):
        return body
    limit = forward[0] + 0.35 * (forward[-1] - forward[0])
    filled = body.copy()
    for y in np.flatnonzero(body.any((0, 2))):
        holes, count = ndimage.label(ndimage.binary_fill_holes(body[:, y]) & ~body[:, y])
        if count:
            area = np.bincount(holes.ravel())
            depth = np.bincount(
                holes.ravel(), np.broadcast_to(np.arange(holes.shape[1]), holes.shape).ravel()
            )
            sinus = (area * step**2 < LARGEST_SINUS_MM2) & (depth > limit * area)
            sinus[0] = False
            filled[:, y] |= sinus[holes]
    return filled


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, _ = ndimage.label(mask)
    return np.bincount(labels.ravel())[1:], labels


def _finer(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A coarse mask on the volume's grid: voxel n of it stands for voxels 2n - 1 to 2n + 1, nearest wins."""
    index = [
        np.minimum((np.arange(n) + COARSE // 2) // COARSE, m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*index)]


def _above_shoulders(core: np.ndarray, volume: Volume) -> np.ndarray:
    top = int(np.flatnonzero(core.any((0, 2))).max())
    lowest = top - round(LARGEST_HEAD_MM / (COARSE * volume.step))
    if lowest > 0:
        core = core.copy()
        core[:, :lowest] = False
    return core


def _with_ears(core: np.ndarray, body: np.ndarray, struct: np.ndarray, step: float) -> np.ndarray:
    """What opening took off the head, given back: a little everywhere, ears' length at the sides, nothing behind."""
    occupied = [np.flatnonzero(core.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    (x0, x1), (y0, _), (z0, z1) = ((int(o[0]), int(o[-1])) for o in occupied)
    side = np.zeros_like(core)
    width, depth = x1 - x0, z1 - z0
    behind = z0 + round(0.3 * depth)
    # Before the face there is no table: what is thin there is its own.
    near = ndimage.binary_dilation(core, struct, iterations=max(1, round(TABLE_MM / step)), mask=body)
    front = np.zeros_like(core)
    front[:, :, behind:] = True
    near = ndimage.binary_dilation(near, struct, iterations=round(THIN_MM / step), mask=body & (front | near))
    side[: x0 + round(0.3 * width), y0:, behind:] = True
    side[x1 - round(0.3 * width) :, y0:, behind:] = True
    ears = ndimage.binary_dilation(near, struct, iterations=round(EAR_MM / step), mask=body & (side | near))
    return near | ears


def _closed(head: np.ndarray, volume: Volume, struct: np.ndarray) -> np.ndarray:
    """The head without openings: nostrils, mouth and ear canals bridged, everything inside filled."""
    rounds = round(CLOSED_MM / (COARSE * volume.step))
    pad = rounds + 1
    padded = np.pad(head, pad)
    measured = np.pad(volume.field[::COARSE, ::COARSE, ::COARSE], pad)
    # What lies under the lowest slice counts as solid while holes are filled: the airway ends there.
    cut = ~measured
    cut[:, cut.shape[1] // 2 :] = False
    grown = ndimage.binary_dilation(padded, struct, iterations=rounds)
    filled = ndimage.binary_fill_holes(grown | (cut & _below(padded)))
    solid = ndimage.binary_erosion(filled, struct, iterations=rounds)
    solid &= measured | padded
    inner = (slice(pad, -pad),) * 3
    whole: np.ndarray = np.logical_or(solid, padded)
    return whole[inner]


def _below(head: np.ndarray) -> np.ndarray:
    """Voxels in the columns under the head."""
    return np.broadcast_to(np.any(head, axis=1, keepdims=True), head.shape)
