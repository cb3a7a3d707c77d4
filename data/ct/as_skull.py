"""One scan as the skull of a case: recognised by its files, drawn in memory. Only drawing needs the extra ``ct``."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.cohort.config import check_packages
from data.ct.config import PACKAGES, CtConfig
from data.ct.reading.kinds import files_below, is_scan_file
from data.images import IMAGE_SUFFIXES

_LOOKED_AT = 1000  # files of a folder


@dataclass(frozen=True)
class ScanSkull:
    """What was drawn of a scan. Nothing in it names a patient, but the pictures show one.

    skull, face: (S, S) uint8, bone and skin. mm_per_px: of both. record: the SHA-256 of the scan, and what
    ``data.ct`` reports: status, findings, how the scan was stored and posed. findings: a line each, for people.
    """

    skull: np.ndarray
    face: np.ndarray
    mm_per_px: float
    record: dict[str, Any]
    findings: list[str]


def is_scan(path: Path) -> bool:
    """Return whether a path is a scan: a volume, a DICOM file, an archive, or a folder with these and no picture."""
    if path.is_file():
        return is_scan_file(path)
    if not path.is_dir():
        return False
    names = [name.lower() for name in os.listdir(path) if name[0] != "."]
    if "dicomdir" not in names and any(name.endswith(IMAGE_SUFFIXES) for name in names):
        return False  # a folder of pictures; a DICOM disk may have some beside its scan
    return holds_scan(path)


def holds_scan(path: Path) -> bool:
    """Return whether one of the first files in a folder, and the folders within, is a scan's; False of no folder."""
    return any(is_scan_file(file) for file in islice(files_below(path), _LOOKED_AT))


def draw_scan_skull(path: Path, config: CtConfig) -> ScanSkull:
    """Read and draw a scan as ``python -m data.ct`` does.

    Raises:
        ValueError: packages that are not installed, or a scan that is refused; the message names no file.
    """
    check_packages(PACKAGES, "cohort,ct")
    from data.ct.drawing import draw_scan  # after check_packages

    drawing = draw_scan(path, config)
    if drawing.skull is None or drawing.face is None:
        reasons = "; ".join(finding.text for finding in drawing.findings if finding.severity == "refuse")
        raise ValueError(f"the scan is refused: {reasons}")
    return ScanSkull(
        drawing.skull,
        drawing.face,
        2 * config.half_field / config.size,
        {"sha256": _sha256(path), **drawing.record()},
        [f"{'flagged, ' * (one.severity == 'flag')}{one.name}: {one.text}" for one in drawing.findings],
    )


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the sorted SHA-256 sums of the files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    sums = sorted(_sha256(file) for file in files_below(path))
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
