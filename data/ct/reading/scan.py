"""What a reader hands on: grey values in Hounsfield units (HU), where each voxel lies, and what was noticed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Severity = Literal["note", "flag", "refuse"]
OUTSIDE_HU = -1024  # what stands where the scanner measured nothing
AIR_HU, DENSEST_HU = -1024, 32000


class ScanError(ValueError):
    """A scan that cannot be used. The message holds no path, no name and no date: it may go into a log."""


@dataclass(frozen=True)
class Finding:
    """One measured property of a scan, beside its limit.

    Attributes:
        name: of the property, like ``slice_spacing``.
        severity: "note" (worth knowing), "flag" (drawn, and marked), "refuse" (not drawn).
        value, limit, unit: what was measured and what it was compared with.
        text: the same in a sentence.
    """

    name: str
    severity: Severity
    value: float
    limit: float
    unit: str
    text: str

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "severity": self.severity,
            "value": round(float(self.value), 3),
            "limit": self.limit,
            "unit": self.unit,
            "text": self.text,
        }


@dataclass
class Scan:
    """A volume as it was stored.

    Attributes:
        values: (K, J, I) int16 HU.
        affine: (3, 4); voxel index (i, j, k) -> position in LPS mm (x to the patient's left, y to the back, z up).
            Its columns need not be at right angles: a tilted gantry shears the stack.
        facts: what is worth keeping of the headers; nothing that could identify anyone.
        findings: what the reader noticed.
    """

    values: np.ndarray
    affine: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm between voxels along i, j and k."""
        return np.linalg.norm(self.affine[:, :3], axis=0)

    def __post_init__(self) -> None:
        steps = self.affine[:, :3]
        if not np.isfinite(self.affine).all():
            raise ScanError("the header's spacing, origin or direction holds values that are no numbers")
        if (np.linalg.norm(steps, axis=0) < 1e-3).any():
            raise ScanError("the header says that voxels lie 0 mm apart; the true spacing is needed")
        share = abs(np.linalg.det(steps / np.linalg.norm(steps, axis=0)))
        if share < 0.5:  # 60 degrees of tilt
            raise ScanError(
                "the header's directions are (nearly) parallel to each other: its geometry is damaged"
            )


def check_size(shape: tuple[int, ...], spacing: tuple[float, ...], bytes_each: int, max_bytes: int) -> None:
    """Called with a header's numbers, before anything is decoded.

    Raises:
        ScanError: not a volume, no or impossible lengths, or larger than ``max_bytes``.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ScanError(
            f"the header describes {' x '.join(map(str, shape)) or 'no'} voxels, expected a 3-D volume"
        )
    if min(shape) < 16:
        raise ScanError(
            f"only {' x '.join(map(str, shape))} voxels: a head needs at least 16 along each axis"
        )
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ScanError(f"spacing {spacing} mm in the header, expected positive lengths")
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    if max(spacing) > 10 or max(extent) > 3000 or max(extent) < 60:
        lengths = " x ".join(f"{e:.4g}" for e in extent)
        raise ScanError(
            f"the header's spacing gives a volume of {lengths} mm: no head scan (are the units mm?)"
        )
    size = int(np.prod([int(n) for n in shape], dtype=object)) * bytes_each
    if size > max_bytes:
        raise ScanError(
            f"{' x '.join(map(str, shape))} voxels take {size / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f} "
            "GiB: crop it to the head or resample it to about 1 mm, or raise max_gib"
        )


def check_hounsfield(values: np.ndarray) -> None:
    """Raises: ScanError where the values cannot be a CT's Hounsfield units (air about -1000, soft tissue 0 to 100)."""
    sample = values.reshape(-1)[:: max(1, values.size // 2_000_000)]
    inside = sample[(sample > -1500) & (sample < 4000)]
    low, high = (int(v) for v in np.percentile(inside, [1, 99.5])) if inside.size else (0, 0)
    air = float(((sample > -1100) & (sample < -850)).mean())
    soft = float(((sample > -150) & (sample < 250)).mean())
    bone = float(((sample > 250) & (sample < 3500)).mean())
    if low == high:
        raise ScanError("every voxel has the same value: there is nothing in it")
    if air < 0.005 or soft < 0.02:
        raise ScanError(
            f"the values ({low} to {high} for the bulk) are not Hounsfield units: {air:.1%} are air (-1100 to -850), "
            f"{soft:.1%} soft tissue; this is no CT (MR?), or it was stored without its rescaling (then offset=-1024 "
            "may mend it)"
        )
    if bone < 0.002:
        raise ScanError(f"only {bone:.2%} of the volume is as dense as bone: no head CT, or a damaged one")
