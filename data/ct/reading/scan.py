"""The result of a reader: grey values in Hounsfield units (HU), the place of each voxel, and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.ct.findings import Finding, ScanError, Severity, judge
from data.ct.reading.geometry import check_affine, spacing_of

OUTSIDE_HU = -1024  # what stands where the scanner measured nothing
AIR_HU, DENSEST_HU, UNMEASURED_HU = -1024, 32000, -4096
USUAL_OFFSETS = (1024, 1000, 32768)  # that volumes are stored with
SCALE_HU = (-1000.0, 40.0)  # air and soft tissue: what an unknown scale is fitted to
DENSEST_BONE_HU = 4000


@dataclass
class Scan:
    """A volume as it was stored.

    Attributes:
        values: (K, J, I) int16 HU.
        affine: (3, 4); voxel index (i, j, k) -> position in LPS mm (x to the patient's left, y to the back, z up).
            Its columns need not be at right angles: a tilted gantry shears the stack.
        facts: what the report keeps of the headers; nothing that could identify anyone.
        findings: those of the reader.
    """

    values: np.ndarray
    affine: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_affine(self.affine)

    @property
    def spacing(self) -> np.ndarray:
        """Return (3,) mm between voxels along i, j and k."""
        return spacing_of(self.affine)


def to_hounsfield(values: np.ndarray, offset: float) -> np.ndarray:
    """Return stored values plus ``offset`` as int16 HU; NaN becomes air, padding stays below it."""
    finite = np.nan_to_num(values, nan=AIR_HU, posinf=DENSEST_HU, neginf=AIR_HU)
    return np.clip(finite + offset, UNMEASURED_HU, DENSEST_HU).round().astype(np.int16)


def hounsfield(
    voxels: np.ndarray,
    slope: float = 1.0,
    intercepts: Sequence[float] = (0.0,),
    offset: float = 0.0,
    rescale: str = "header",
) -> tuple[np.ndarray, list[Finding]]:
    """Return the (K, J, I) stored values of a volume as int16 HU, and what is doubtful about them.

    Args:
        slope, intercepts: HU = slope * value + intercept + ``offset``; the first intercept that gives HU holds.
        rescale: "auto" applies the linear map that brings air to -1000 and soft tissue to 40, where they are no HU.

    Raises:
        ScanError: the values cannot be those of a head CT; names the linear map that would make them so.
    """
    sample = voxels.reshape(-1)[:: max(1, voxels.size // 2_000_000)] * float(slope)
    sample = sample[np.isfinite(sample)] + offset
    problems = [_not_hounsfield(sample + intercept) for intercept in intercepts]
    inter, findings = offset + intercepts[0], []
    if None in problems:
        inter = offset + intercepts[problems.index(None)]
    else:
        sample += intercepts[0]
        guess = _linear_map(sample)
        formula = "" if guess is None else f"HU = {guess[0]:.6g} x value {guess[1]:+.6g}"
        if guess is None or rescale != "auto":
            remedy = f"; {formula} would make air -1000 HU and soft tissue plausible: rescale=auto applies it"
            raise ScanError(f"{problems[0]}{remedy if formula else ''}")
        exact = guess[0] == 1
        more = "" if exact else ", estimated from the volume itself: densities are inexact"
        severity: Severity = "note" if exact else "flag"
        findings = judge("rescaled", 1, severity=severity, reason=formula, more=more)
        slope, inter = guess[0] * slope, guess[0] * inter + guess[1]
    values = np.empty(voxels.shape, np.int16)
    with np.errstate(all="ignore"):
        for k, plane in enumerate(voxels):
            values[k] = to_hounsfield(plane * float(slope) if slope != 1 else plane, inter)
    return values, findings


def _linear_map(sample: np.ndarray) -> tuple[float, float] | None:
    """Return slope and intercept that make Hounsfield units of a head CT's values, or None."""
    air_of = {-offset: air for offset in USUAL_OFFSETS if (air := _air(sample - offset)) is not None}
    if air_of:
        return 1.0, float(min(air_of, key=lambda offset: abs(air_of[offset] - SCALE_HU[0])))
    low, high = np.percentile(sample, [0.1, 99.5]) if sample.size else (0.0, 0.0)
    if not high > low:
        return None
    counts, edges = np.histogram(sample, 256, (low, high))
    peaks = int(np.argmax(counts[:32])), 40 + int(np.argmax(counts[40:]))  # air; soft tissue, some way above
    air, soft = (float(np.median(sample[(sample >= edges[n]) & (sample <= edges[n + 1])])) for n in peaks)
    slope = (SCALE_HU[1] - SCALE_HU[0]) / (soft - air)
    intercept = SCALE_HU[0] - slope * air
    too_dense = slope * high + intercept >= DENSEST_BONE_HU
    return None if too_dense or _not_hounsfield(slope * sample + intercept) else (slope, intercept)


def _air(sample: np.ndarray) -> float | None:
    """Return the HU of the air in a sample of Hounsfield units, None for other values."""
    air = sample[(sample > -1100) & (sample < -850)]
    return None if _not_hounsfield(sample) else float(np.median(air))


def _not_hounsfield(sample: np.ndarray) -> str | None:
    """Return why a sample's values cannot be a head CT's Hounsfield units (air about -1000, soft tissue 0 to 100)."""
    bulk = sample[(sample > -1500) & (sample < 4000)]
    low, high = (float(v) for v in np.percentile(bulk, [1, 99.5])) if bulk.size else (0.0, 0.0)
    air, soft, bone = (
        float(((sample > least) & (sample < most)).mean()) if sample.size else 0.0
        for least, most in ((-1100, -850), (-150, 250), (250, 3500))
    )
    if low == high:
        return "every voxel has the same value: there is nothing in it"
    if air < 0.005 or soft < 0.02:
        shares = f"{air:.1%} are air (-1100 to -850), {soft:.1%} soft tissue"
        reason = "this is no CT (MR?), or it was stored without its rescaling (then offset=-1024 may mend it)"
        return f"the values (mostly {low:.4g} to {high:.4g}) are not Hounsfield units: {shares}; {reason}"
    if bone < 0.002:
        return f"only {bone:.2%} of the volume is as dense as bone: no head CT, or a damaged one"
    return None
