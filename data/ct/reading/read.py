"""Reads a head CT from any file or folder that may hold one."""

from __future__ import annotations

from pathlib import Path

from data.ct.findings import ScanError
from data.ct.reading.archives import unpacked
from data.ct.reading.dicom import read_folder, read_image
from data.ct.reading.headers import other_half
from data.ct.reading.kinds import VOLUMES, dicom_start, is_packed, suffix_of
from data.ct.reading.scan import Scan, hounsfield
from data.ct.reading.volumes import read_invesalius, read_volume


def read_scan(
    path: Path, series: str = "", max_bytes: int = 3 << 29, offset: float = 0.0, rescale: str = "header"
) -> Scan:
    """Read a DICOM folder, file or archive, NIfTI, NRRD, MetaImage, or an InVesalius project.

    Args:
        path: the file or folder.
        series: SeriesNumber or SeriesInstanceUID; "" takes the best (see ``data.ct.reading.dicom``).
        max_bytes: of the volume as int16; the header's numbers are checked before anything is decoded.
        offset: added to every value, for volumes stored without their rescaling.
        rescale: "auto" makes Hounsfield units of other values, see ``data.ct.reading.scan.hounsfield``.

    Raises:
        ScanError: what cannot be used, and why; the message names no file.
    """
    scan = _read(path, series, max_bytes, offset, rescale)
    if scan.facts["format"] == "DICOM":
        scan.values, findings = hounsfield(scan.values, rescale=rescale)
        scan.findings += findings
    return scan


def _read(path: Path, series: str, max_bytes: int, offset: float, rescale: str) -> Scan:
    if path.is_dir():
        if (path / "main.plist").is_file():
            return read_invesalius(path, max_bytes, offset, rescale)
        # macOS leaves ._NAME beside NAME.
        visible = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
        volumes = [p for p in visible if suffix_of(p) in VOLUMES and p.is_file()]
        if len(volumes) > 1:
            raise ScanError(f"{len(volumes)} volume files in the folder, expected one: give the file itself")
        if volumes:
            return read_volume(volumes[0], max_bytes, offset, rescale)
        return read_folder(path, series, max_bytes, offset)
    if not path.is_file():
        raise ScanError("there is no such file or folder")
    if path.name.lower().endswith((".img", ".img.gz")):
        path = other_half(path, "hdr")
    if suffix_of(path) in VOLUMES:
        return read_volume(path, max_bytes, offset, rescale)
    if path.stat().st_size == 0:
        raise ScanError("the file is empty (0 bytes)")
    if is_packed(path):
        with unpacked(path, max_bytes) as folder:
            return _read(folder, series, max_bytes, offset, rescale)
    if dicom_start(path):
        return read_image(path, series, max_bytes, offset)
    expected = f"a DICOM folder, file or archive, or a file that ends in one of {', '.join(VOLUMES)}"
    raise ScanError(f"unknown kind of file: expected {expected}")
