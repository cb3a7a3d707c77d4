"""Decides where voxels lie: checks a header's numbers, measures the gantry's tilt, stacks single slices evenly.

Positions are LPS mm: x to the patient's left, y to the back, z up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.ct.findings import Finding, ScanError, Severity, judge

SMALLEST_SIDE = 16  # voxels along each axis
LARGEST_SPACING_MM = 10.0
EXTENT_MM = (60.0, 3000.0)  # of the longest side
SMALLEST_VOLUME = 0.5  # of the box with the same edges; less is 60 degrees of tilt
SAME_PLACE_MM = 0.01
UNEVEN_SHARE = 0.03  # steps within this share of the median count as equal
LARGEST_GAP_MM = 7.5  # of missing slices; beyond, what was in between cannot be guessed
LARGEST_LOSS = 0.15  # of all slices
OFF_LINE_MM = 1.0


def check_size(shape: Sequence[int], spacing: Sequence[float], voxel_bytes: int, max_bytes: int) -> None:
    """Check a header's numbers before anything is decoded.

    Raises:
        ScanError: not a volume, no or impossible lengths, or larger than ``max_bytes``.
    """
    voxels = " x ".join(map(str, shape))
    if len(shape) != 3 or min(shape) < 1:
        raise ScanError(f"the header describes {voxels or 'no'} voxels, expected a 3-D volume")
    if min(shape) < SMALLEST_SIDE:
        raise ScanError(f"only {voxels} voxels: a head needs at least {SMALLEST_SIDE} along each axis")
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ScanError(f"spacing {tuple(spacing)} mm in the header, expected positive lengths")
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    if max(spacing) > LARGEST_SPACING_MM or not EXTENT_MM[0] <= max(extent) <= EXTENT_MM[1]:
        lengths = " x ".join(f"{e:.4g}" for e in extent)
        raise ScanError(
            f"the header's spacing gives a volume of {lengths} mm: no head scan (are the units mm?)"
        )
    size = voxel_bytes * int(shape[0]) * int(shape[1]) * int(shape[2])
    if size > max_bytes:
        raise ScanError(
            f"{voxels} voxels take {size / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f} GiB: crop it to the "
            "head or resample it to about 1 mm, or raise max_gib"
        )


def check_affine(affine: np.ndarray) -> None:
    """Raises: ScanError where a (3, 4) affine holds no numbers, steps of 0 mm or (nearly) parallel directions."""
    if not np.isfinite(affine).all():
        raise ScanError("the header's spacing, origin or direction holds values that are no numbers")
    lengths = np.linalg.norm(affine[:, :3], axis=0)
    if (lengths < 1e-3).any():
        raise ScanError("the header says that voxels lie 0 mm apart; the true spacing is needed")
    if abs(np.linalg.det(affine[:, :3] / lengths)) < SMALLEST_VOLUME:
        raise ScanError(
            "the header's directions are (nearly) parallel to each other: its geometry is damaged"
        )


def affine_of(directions: np.ndarray, spacing: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """Return the (3, 4) affine of a volume: the columns of ``directions`` (3, 3) are those of i, j and k."""
    return np.column_stack([directions * np.array(spacing), origin])


def gantry_tilt(affine: np.ndarray) -> float:
    """Return the degrees between the slices' normal and the direction in which they are stacked."""
    i, j, k = (affine[:, :3] / np.linalg.norm(affine[:, :3], axis=0)).T
    return float(np.degrees(np.arccos(np.clip(abs(np.cross(i, j) @ k), 0, 1))))


@dataclass(frozen=True)
class Slice:
    """``values`` (rows, columns) HU; ``position`` (3,) of its first pixel; ``order``: as acquired."""

    values: np.ndarray
    position: np.ndarray
    order: tuple[int, int]


def stack(
    slices: list[Slice], along_i: np.ndarray, along_j: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """Return the (K, J, I) values, the (3, 4) affine and the findings of slices of one direction and size.

    Args:
        slices: in any order.
        along_i, along_j: (3,) mm from one column, one row, to the next.

    Raises:
        ScanError: too few places, a gap too large to bridge, or positions that lie on no straight line.
    """
    normal = np.cross(along_i, along_j)
    normal /= np.linalg.norm(normal)
    slices, findings = _without_doubles(slices, normal)
    if len(slices) < SMALLEST_SIDE:
        raise ScanError(
            f"its slices lie at only {len(slices)} different places, a head needs at least {SMALLEST_SIDE}"
        )
    places = np.array([s.position for s in slices])
    heights = places @ normal
    steps = np.diff(heights)
    step = float(np.median(steps))
    findings += _judge_steps(steps, step)
    start, rise = _line(places, heights)
    values, step = _even(np.stack([s.values for s in slices]), heights, step)
    affine = np.stack([along_i, along_j, step * rise, start + heights[0] * rise], 1)
    return values, affine, findings


def _without_doubles(slices: list[Slice], normal: np.ndarray) -> tuple[list[Slice], list[Finding]]:
    """Return the slices by height, the first acquired of each place."""
    slices = sorted(slices, key=lambda s: (round(float(s.position @ normal), 2), s.order))
    unique = [slices[0]]
    differing = 0
    for one in slices[1:]:
        if abs(float((one.position - unique[-1].position) @ normal)) > SAME_PLACE_MM:
            unique.append(one)
        elif not np.array_equal(one.values, unique[-1].values):
            differing += 1
    more = f"; {differing} of them show something else (two acquisitions in one series?)" if differing else ""
    doubles = len(slices) - len(unique)
    severity: Severity | None = "flag" if differing else None
    return unique, judge("duplicated_slices", doubles, severity=severity, more=more)


def _judge_steps(steps: np.ndarray, step: float) -> list[Finding]:
    """Return what is wrong with the (K - 1,) distances of slices whose median is ``step``. Raises: ScanError."""
    missing = np.maximum(0, np.rint(steps / step) - 1).astype(int)
    lost = int(missing.sum())
    gap = float(steps.max())
    if lost and (gap > max(LARGEST_GAP_MM, 1.6 * step) or lost > LARGEST_LOSS * (len(steps) + 1 + lost)):
        raise ScanError(
            f"{lost} slices are missing (the widest gap is {gap:.1f} mm where slices lie {step:.2f} mm apart; up to "
            f"{LARGEST_GAP_MM:g} mm, and {LARGEST_LOSS:.0%} of all, can be bridged): copy the series again"
        )
    whole = steps / (missing + 1)
    spread = float(np.abs(whole - step).max())
    limit = round(UNEVEN_SHARE * step, 3)
    return [
        *judge("missing_slices", lost, gap=gap),
        *judge("uneven_slices", spread, limit=limit, low=whole.min(), high=whole.max(), step=step),
    ]


def _line(places: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit ``start + height * rise`` to the (K, 3) positions: a tilted gantry moves each slice sideways as it rises.

    Raises:
        ScanError: a position strays from the line.
    """
    design = np.stack([np.ones_like(heights), heights], 1)
    line, *_ = np.linalg.lstsq(design, places, rcond=None)
    off = np.linalg.norm(places - design @ line, axis=1).max()
    if off > OFF_LINE_MM:
        raise ScanError(
            f"its slices' positions stray {off:.1f} mm from a straight line, the limit is {OFF_LINE_MM:g} mm"
        )
    return line[0], line[1]


def _even(values: np.ndarray, heights: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Interpolate (K, J, I) slices to equal steps where they are not equal already; return them and the step."""
    count = round(float((heights[-1] - heights[0]) / step)) + 1
    targets, even = np.linspace(heights[0], heights[-1], count, retstep=True)
    if count == len(heights) and np.abs(targets - heights).max() < UNEVEN_SHARE * step:
        return values, float(even)
    upper = np.clip(np.searchsorted(heights, np.asarray(targets)), 1, len(heights) - 1)
    share = ((targets - heights[upper - 1]) / (heights[upper] - heights[upper - 1])).clip(0, 1)
    result = np.empty((count, *values.shape[1:]), np.int16)
    for k in range(count):
        above, s = int(upper[k]), float(share[k])
        result[k] = np.rint((1 - s) * values[above - 1] + s * values[above])
    return result, float(even)
