"""One door for everything a head CT may be kept in."""

from __future__ import annotations

from pathlib import Path

from data.ct.reading.dicom import read_folder
from data.ct.reading.scan import Scan, ScanError, check_hounsfield
from data.ct.reading.volumes import SUFFIXES, read_file, read_invesalius_folder, suffix_of


def read_scan(path: Path, series: str = "", max_bytes: int = 3 << 29, offset: float = 0.0) -> Scan:
    """Read a DICOM folder (or one file of it), NIfTI, NRRD, MetaImage, or an InVesalius project.

    Args:
        path: the file or folder.
        series: SeriesNumber or SeriesInstanceUID; "" takes the best (see ``data.ct.reading.dicom``).
        max_bytes: of the volume as it is held here, told from the header before anything is decoded.
        offset: added to every value, for volumes stored without their rescaling.

    Raises:
        ScanError: what cannot be used, and why; the message names no file.
    """
    if path.is_dir():
        volumes = [p for p in sorted(path.iterdir()) if p.is_file() and suffix_of(p) is not None]
        if (path / "main.plist").is_file():
            scan = read_invesalius_folder(path, max_bytes, offset)
        elif len(volumes) == 1:
            scan = read_file(volumes[0], max_bytes, offset)
        elif len(volumes) > 1:
            raise ScanError(f"{len(volumes)} volume files in the folder, expected one: give the file itself")
        else:
            scan = read_folder(path, series, max_bytes, offset)
    elif not path.is_file():
        raise ScanError("there is no such file or folder")
    elif suffix_of(path) is not None:
        scan = read_file(path, max_bytes, offset)
    elif path.stat().st_size == 0:
        raise ScanError("the file is empty (0 bytes)")
    else:
        known = ", ".join(SUFFIXES)
        raise ScanError(
            f"unknown kind of file: expected a DICOM folder, or a file that ends in one of {known}"
        )
    check_hounsfield(scan.values)
    return scan
