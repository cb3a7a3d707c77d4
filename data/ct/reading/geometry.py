"""From single slices to an even stack: order, duplicates, gaps, and the direction in which they were stacked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.ct.reading.scan import Finding, ScanError, Severity

SAME_PLACE_MM = 0.01
UNEVEN_SHARE = 0.03  # steps within this share of the median count as equal
LARGEST_GAP_MM = 7.5  # of missing slices; beyond, what was in between cannot be guessed
LARGEST_LOSS = 0.15  # of all slices
OFF_LINE_MM = 1.0


@dataclass(frozen=True)
class Slice:
    """``values`` (rows, columns) HU; ``position`` (3,) LPS mm of its first pixel; ``order``: as acquired."""

    values: np.ndarray
    position: np.ndarray
    order: tuple[int, int]


def stack(
    slices: list[Slice], along_i: np.ndarray, along_j: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """Slices of one direction and size -> (K, J, I) values, (3, 4) affine, findings.

    Args:
        slices: in any order.
        along_i, along_j: (3,) mm from one column, one row, to the next.

    Raises:
        ScanError: too few places, a gap too large to bridge, or positions that lie on no straight line.
    """
    normal = np.cross(along_i, along_j)
    normal /= np.linalg.norm(normal)
    findings: list[Finding] = []
    slices = sorted(slices, key=lambda s: (round(float(s.position @ normal), 2), s.order))
    kept = [slices[0]]
    differing = 0
    for one in slices[1:]:
        if abs(float((one.position - kept[-1].position) @ normal)) > SAME_PLACE_MM:
            kept.append(one)
        elif not np.array_equal(one.values, kept[-1].values):
            differing += 1
    doubles = len(slices) - len(kept)
    if doubles:
        text = f"{doubles} slices lie where another one does; the first acquired was kept"
        severity: Severity = "note"
        if differing:
            text += f"; {differing} of them show something else (two acquisitions in one series?)"
            severity = "flag"
        findings.append(Finding("duplicated_slices", severity, doubles, 0, "slices", text))
    if len(kept) < 16:
        raise ScanError(f"its slices lie at only {len(kept)} different places, a head needs at least 16")

    places = np.array([s.position for s in kept])
    heights = places @ normal
    steps = np.diff(heights)
    step = float(np.median(steps))
    findings += _judge_steps(steps, step)
    # A tilted gantry moves each slice sideways in proportion to its height.
    design = np.stack([np.ones_like(heights), heights], 1)
    line, *_ = np.linalg.lstsq(design, places, rcond=None)
    off = np.linalg.norm(places - design @ line, axis=1).max()
    if off > OFF_LINE_MM:
        raise ScanError(
            f"its slices' positions stray {off:.1f} mm from a straight line, the limit is {OFF_LINE_MM:g} mm"
        )
    values, step = _even(np.stack([s.values for s in kept]), heights, step)
    origin = line[0] + heights[0] * line[1]
    affine = np.stack([along_i, along_j, step * line[1], origin], 1)
    return values, affine, findings


def _judge_steps(steps: np.ndarray, step: float) -> list[Finding]:
    findings = []
    missing = np.maximum(0, np.rint(steps / step) - 1).astype(int)
    lost = int(missing.sum())
    largest = float(steps.max())
    if lost:
        if largest > max(LARGEST_GAP_MM, 1.6 * step) or lost > LARGEST_LOSS * (len(steps) + 1 + lost):
            raise ScanError(
                f"{lost} slices are missing (the widest gap is {largest:.1f} mm where slices lie {step:.2f} mm apart; "
                f"up to {LARGEST_GAP_MM:g} mm, and {LARGEST_LOSS:.0%} of all, can be bridged): copy the series again"
            )
        text = f"{lost} slices are missing, the widest gap is {largest:.1f} mm; they were interpolated"
        findings.append(Finding("missing_slices", "flag", lost, 0, "slices", text))
    whole = steps / (missing + 1)
    spread = float(np.abs(whole - step).max())
    if spread > UNEVEN_SHARE * step:
        text = (
            f"slices lie {whole.min():.2f} to {whole.max():.2f} mm apart; resampled to an even {step:.2f} mm"
        )
        findings.append(Finding("uneven_slices", "note", spread, round(UNEVEN_SHARE * step, 3), "mm", text))
    return findings


def _even(values: np.ndarray, heights: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Linear interpolation to equal steps, only where they are not equal already. Returns values and the step."""
    extent = heights[-1] - heights[0]
    count = round(float(extent / step)) + 1
    even = extent / (count - 1)
    targets = heights[0] + even * np.arange(count)
    if count == len(heights) and np.abs(targets - heights).max() < UNEVEN_SHARE * step:
        return values, float(even)
    upper = np.clip(np.searchsorted(heights, targets), 1, len(heights) - 1)
    share = ((targets - heights[upper - 1]) / (heights[upper] - heights[upper - 1])).clip(0, 1)
    result = np.empty((count, *values.shape[1:]), np.int16)
    for k, (above, s) in enumerate(zip(upper, share, strict=True)):
        result[k] = np.rint((1 - s) * values[above - 1] + s * values[above]).astype(np.int16)
    return result, float(even)
