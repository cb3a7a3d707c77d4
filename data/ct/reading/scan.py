"""The result of a reader: grey values in Hounsfield units (HU), the place of each voxel, and findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.ct.findings import Finding, ScanError
from data.ct.reading.geometry import check_affine

OUTSIDE_HU = -1024  # what stands where the scanner measured nothing
AIR_HU, DENSEST_HU, UNMEASURED_HU = -1024, 32000, -4096


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
        return np.linalg.norm(self.affine[:, :3], axis=0)


def to_hounsfield(values: np.ndarray, offset: float) -> np.ndarray:
    """Return stored values plus ``offset`` as int16 HU; NaN becomes air, padding stays below it."""
    finite = np.nan_to_num(values, nan=AIR_HU, posinf=DENSEST_HU, neginf=AIR_HU)
    return np.clip(finite + offset, UNMEASURED_HU, DENSEST_HU).round().astype(np.int16)


def check_hounsfield(values: np.ndarray) -> None:
    """Raises: ScanError where the values cannot be a CT's Hounsfield units (air about -1000, soft tissue 0 to 100)."""
    sample = values.reshape(-1)[:: max(1, values.size // 2_000_000)]
    bulk = sample[(sample > -1500) & (sample < 4000)]
    low, high = (int(v) for v in np.percentile(bulk, [1, 99.5])) if bulk.size else (0, 0)
    air, soft, bone = (
        float(((sample > least) & (sample < most)).mean())
        for least, most in ((-1100, -850), (-150, 250), (250, 3500))
    )
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
