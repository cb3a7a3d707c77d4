"""Volumes kept in one file (NIfTI, NRRD, MetaImage, by SimpleITK) and InVesalius projects."""

from __future__ import annotations

import plistlib
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import SimpleITK as sitk

from data.ct.findings import ScanError, judge
from data.ct.reading.geometry import affine_of, check_size
from data.ct.reading.headers import check_header
from data.ct.reading.scan import Scan, to_hounsfield

SUFFIXES = {
    ".nii": "NIfTI", ".nii.gz": "NIfTI", ".nrrd": "NRRD", ".nhdr": "NRRD",
    ".mha": "MetaImage", ".mhd": "MetaImage", ".inv3": "InVesalius",
}  # fmt: skip
_READERS = {"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
# Rows of an InVesalius project run from the back of the head to the front, columns from its left to its right.
_INVESALIUS_AXES = np.diag([-1.0, -1.0, 1.0])
Opener = Callable[[str], Any]  # the name of a project's file -> the open file


def suffix_of(path: Path) -> str | None:
    """Return the part of a file's name that says its format, such as ``.nii.gz``; None for any other file."""
    name = path.name.lower()
    return max((s for s in SUFFIXES if name.endswith(s)), key=len, default=None)


def read_volume(path: Path, max_bytes: int, offset: float) -> Scan:
    """Return the volume of one file with one of ``SUFFIXES``. Raises: ScanError, see ``read_scan``."""
    kind = SUFFIXES[suffix_of(path) or ""]
    if path.stat().st_size == 0:
        raise ScanError(f"the {kind} file is empty (0 bytes): copy or export it again")
    if kind == "InVesalius":
        return _read_invesalius_archive(path, max_bytes, offset)
    check_header(path, kind, max_bytes)
    return _read_itk(path, kind, max_bytes, offset)


def _read_itk(path: Path, kind: str, max_bytes: int, offset: float) -> Scan:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # they name the file; what matters is checked below
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[kind])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ScanError(f"its header is no {kind} header, or a damaged one: export it again") from error
    shape, spacing = reader.GetSize(), reader.GetSpacing()
    if len(shape) == 4 and shape[3] == 1:
        reader.SetExtractSize([*shape[:3], 0])
        shape, spacing = shape[:3], spacing[:3]
    channels = reader.GetNumberOfComponents()
    voxel_bytes = sitk.Image(1, 1, reader.GetPixelID()).GetSizeOfPixelComponent()
    if channels != 1:
        raise ScanError(f"its voxels are {channels} values each, expected one grey value")
    check_size(shape, spacing, voxel_bytes, max_bytes)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise ScanError(f"the {kind} file's voxels cannot be read: it is cut short or damaged") from error
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine = affine_of(directions, image.GetSpacing(), image.GetOrigin())
    values = to_hounsfield(sitk.GetArrayViewFromImage(image), offset)
    return Scan(values, affine, {"format": kind, "stored_size": list(shape)})


def read_invesalius_folder(folder: Path, max_bytes: int, offset: float) -> Scan:
    """Return the volume of an unpacked project. Raises: ScanError, see ``read_scan``."""
    return _read_invesalius(lambda name: (folder / name).open("rb"), max_bytes, offset)


def _read_invesalius_archive(path: Path, max_bytes: int, offset: float) -> Scan:
    try:
        with tarfile.open(path, "r:*") as archive:
            members = {PurePosixPath(m.name).name: m for m in archive.getmembers() if m.isfile()}
            return _read_invesalius(lambda name: archive.extractfile(members[name]), max_bytes, offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ScanError(
            "the .inv3 file is no InVesalius project (a tar archive), is cut short or damaged"
        ) from error


def _read_invesalius(opener: Opener, max_bytes: int, offset: float) -> Scan:
    """Return the voxels of a project: ``main.plist`` and ``matrix.dat``; slices from the feet up.

    Source: github.com/invesalius/invesalius3, invesalius/project.py (names of the fields).
    """
    try:
        with opener("main.plist") as file:
            main = plistlib.load(file)
        matrix, spacing = main["matrix"], [float(s) for s in main["spacing"]]
        name, shape = PurePosixPath(matrix["filename"]).name, [int(n) for n in matrix["shape"]]
        dtype, modality = str(matrix["dtype"]), str(main.get("modality", "CT"))
    except Exception as error:  # a property list may hold anything at all
        raise ScanError("the InVesalius project's main.plist is missing or damaged") from error
    if modality != "CT":
        raise ScanError(f"its modality is {modality[:8]!r}, expected CT")
    if dtype not in ("int16", "uint16", "uint8"):
        raise ScanError(f"the InVesalius project's voxels are {dtype[:12]!r}, expected int16")
    voxel_bytes = np.dtype(dtype).itemsize
    check_size(shape[::-1], spacing, voxel_bytes, max_bytes)
    expected = int(np.prod(shape)) * voxel_bytes
    try:
        with opener(name) as file:
            raw = file.read(expected)
    except (KeyError, FileNotFoundError) as error:
        raise ScanError(f"the InVesalius project has no {name}") from error
    if len(raw) < expected:
        raise ScanError(f"the InVesalius project's voxels are cut short: {len(raw)} bytes of {expected}")
    values = to_hounsfield(np.frombuffer(raw, dtype).reshape(shape), offset)
    affine = affine_of(_INVESALIUS_AXES, spacing, (0.0, 0.0, 0.0))
    facts = {"format": "InVesalius", "stored_size": shape[::-1]}
    return Scan(values, affine, facts, judge("side_not_stored", 1))
