"""Decides where voxels lie: checks a header's numbers, measures the gantry's tilt, stacks single slices evenly.

Positions are LPS mm: x to the patient's left, y to the back, z up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndimage

from data.ct.findings import Finding, ScanError, Severity, judge

SMALLEST_SIDE = 16  # voxels along each axis
LARGEST_SPACING_MM = 10.0
EXTENT_MM = (60.0, 3000.0)  # of the longest side
SMALLEST_VOLUME = 0.5  # of the box with the same edges; less is 60 degrees of tilt
SAME_PLACE_MM = 0.01
SAME_SHARE = 0.2  # of most steps, up to 0.1 mm: slices nearer than this lie at one place
STEPS_AROUND = 7  # fewer steps than half of it that differ from the others are gaps, more are another spacing
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
        raise ScanError(f"the header's spacing gives {lengths} mm: no head scan (are the units mm?)")
    size = voxel_bytes * math.prod(map(int, shape))
    if size > max_bytes:
        large = f"{voxels} voxels take {size / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f} GiB"
        raise ScanError(f"{large}: crop it to the head or resample it to about 1 mm, or raise max_gib")


def affine_problem(affine: np.ndarray) -> str | None:
    """Return what makes a (3, 4) affine useless: no numbers, steps of 0 mm, (nearly) parallel directions; or None."""
    if not np.isfinite(affine).all():
        return "the header's spacing, origin or direction holds values that are no numbers"
    lengths = spacing_of(affine)
    if (lengths < 1e-3).any():
        return "the header says that voxels lie 0 mm apart; the true spacing is needed"
    parallel = abs(np.linalg.det(affine[:, :3] / lengths)) < SMALLEST_VOLUME
    return "the header's directions are (nearly) parallel: its geometry is damaged" if parallel else None


def check_affine(affine: np.ndarray) -> None:
    """Raises: ScanError, see ``affine_problem``."""
    if problem := affine_problem(affine):
        raise ScanError(problem)


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Return (3,) mm between voxels along i, j and k."""
    return np.linalg.norm(affine[:, :3], axis=0)


def affine_of(
    directions: np.ndarray, spacing: Sequence[float] | np.ndarray, origin: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return the (3, 4) affine of a volume: the columns of ``directions`` (3, 3) are those of i, j and k."""
    return np.column_stack([directions * np.array(spacing), origin])


def gantry_tilt(affine: np.ndarray) -> float:
    """Return the degrees between the slices' normal and the direction in which they are stacked."""
    i, j, k = (affine[:, :3] / spacing_of(affine)).T
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
        raise ScanError(f"its slices lie at only {len(slices)} places, a head needs at least {SMALLEST_SIDE}")
    places = np.array([s.position for s in slices])
    heights = places @ normal
    step, more = _judge_steps(np.diff(heights))
    findings += more
    start, rise = _line(places, heights)
    values, step = _even(np.stack([s.values for s in slices]), heights, step)
    affine = np.stack([along_i, along_j, step * rise, start + heights[0] * rise], 1)
    return values, affine, findings


def same_places(heights: np.ndarray) -> np.ndarray:
    """Return the number of the place, from 0, of each of (K,) ascending heights: headers round them differently."""
    steps = np.diff(heights, prepend=heights[:1])
    typical = float(np.percentile(steps, 90)) if len(steps) else 0.0
    return np.cumsum(steps > max(SAME_PLACE_MM, min(0.1, SAME_SHARE * typical)))


def _without_doubles(slices: list[Slice], normal: np.ndarray) -> tuple[list[Slice], list[Finding]]:
    """Return the slices by height, the first acquired of each place."""
    heights = np.array([s.position @ normal for s in slices])
    ascending = np.argsort(heights, kind="stable")
    places: dict[int, list[Slice]] = {}
    for k, place in zip(ascending, same_places(heights[ascending]), strict=True):
        places.setdefault(int(place), []).append(slices[k])
    unique, differing = [], 0
    for doubles in places.values():
        first, *others = sorted(doubles, key=lambda s: s.order)
        unique.append(first)
        differing += sum(not np.array_equal(other.values, first.values) for other in others)
    more = f"; {differing} of them show something else (two acquisitions in one series?)" if differing else ""
    severity: Severity | None = "flag" if differing else None
    return unique, judge("duplicated_slices", len(slices) - len(unique), severity=severity, more=more)


def _judge_steps(steps: np.ndarray) -> tuple[float, list[Finding]]:
    """Return the step to interpolate to, and what is wrong with the (K - 1,) distances of slices.

    A distance is compared with those around it: the base of a skull is often scanned in finer steps than its vault.

    Raises:
        ScanError: too much is missing.
    """
    local = ndimage.median_filter(steps, STEPS_AROUND, mode="mirror")
    missing = np.maximum(0, np.floor(steps / local + 0.3) - 1).astype(int)  # less than 1.7 steps are uneven
    whole = steps / (missing + 1)
    region = ndimage.uniform_filter1d(whole, STEPS_AROUND, mode="nearest")
    step = float(np.median(steps))
    if region.min() < 0.8 * step:
        step = max(float(region.min()), float(steps.sum()) / (3 * len(steps)))
    lost = int(missing.sum())
    widest = int(np.argmax(np.where(missing > 0, steps, 0)))
    gap = float(steps[widest])
    too_wide = gap > max(LARGEST_GAP_MM, 1.6 * local[widest])
    if lost and (too_wide or lost > LARGEST_LOSS * (len(steps) + 1 + lost)):
        raise ScanError(
            f"{lost} slices are missing (the widest gap is {gap:.1f} mm where slices lie {local[widest]:.2f} mm apart; "
            f"up to {LARGEST_GAP_MM:g} mm, and {LARGEST_LOSS:.0%} of all, can be bridged): copy the series again"
        )
    low, high = float(whole.min()), float(whole.max())
    if high > max(LARGEST_GAP_MM, 1.6 * step):
        bridged = f"up to {LARGEST_GAP_MM:g} mm can be bridged"
        raise ScanError(f"its slices lie {low:.2f} to {high:.2f} mm apart, {bridged}: are some missing?")
    spread = float(np.abs(whole - step).max())
    findings = judge("missing_slices", lost, gap=gap)
    uneven = round(UNEVEN_SHARE * step, 3)
    findings += judge("uneven_slices", spread, limit=uneven, low=low, high=high, step=step)
    if region.max() > 1.2 * step:
        findings += judge("spacing", float(region.max()))
    return step, findings


def _line(places: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit ``start + height * rise`` to the (K, 3) positions: a tilted gantry moves each slice sideways as it rises.

    Raises:
        ScanError: a position strays from the line.
    """
    design = np.stack([np.ones_like(heights), heights], 1)
    line, *_ = np.linalg.lstsq(design, places, rcond=None)
    off = np.linalg.norm(places - design @ line, axis=1).max()
    if off > OFF_LINE_MM:
        raise ScanError(f"its slices lie {off:.1f} mm off a straight line, the limit is {OFF_LINE_MM:g} mm")
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
