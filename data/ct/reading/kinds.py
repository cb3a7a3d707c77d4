"""The kind of a file that may hold a scan, by its name and by its first bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data.images import IMAGE_SUFFIXES

VOLUMES = {  # ending of a name -> format
    ".nii": "NIfTI", ".nii.gz": "NIfTI", ".hdr": "NIfTI", ".hdr.gz": "NIfTI", ".nrrd": "NRRD", ".nhdr": "NRRD",
    ".mha": "MetaImage", ".mhd": "MetaImage", ".inv3": "InVesalius",
}  # fmt: skip
ARCHIVES = (".dcm.gz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".tar", ".tgz", ".gz")
SUFFIXES = (*VOLUMES, ".dcm", ".dicom", ".ima", *ARCHIVES)


def suffix_of(path: Path) -> str:
    """Return which of ``SUFFIXES`` a file's name ends in, the longest, such as ``.nii.gz``; "" for any other name."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def is_packed(path: Path) -> bool:
    """Return whether a file's content is that of a zip or tar archive or of a gzip file."""
    start = _start(path)
    return start.startswith((b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar"


def dicom_start(path: Path) -> Literal["whole", "bare", ""]:
    """Return how a DICOM file starts: with its preamble, or with the tag of an early element; "" for other files."""
    start = _start(path)
    if start[128:132] == b"DICM":
        return "whole"
    return "bare" if start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0" else ""


def is_scan_file(path: Path) -> bool:
    """Return whether a file is a scan's by its name or by its first bytes; DICOM files need no ending."""
    if suffix_of(path) or path.name.lower() in ("dicomdir", "main.plist"):
        return True
    return not path.name.lower().endswith(IMAGE_SUFFIXES) and bool(dicom_start(path))


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below ``folder``, by name, without hidden ones and pipes, which would wait for ever."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        paths = (Path(base) / name for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _start(path: Path) -> bytes:
    """Return the first bytes of a file; none of what cannot be read. A pipe would wait for ever."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(265)
    except OSError:
        return b""
