"""Volumes kept in one file (NIfTI, NRRD, MetaImage, by SimpleITK) and InVesalius projects."""

from __future__ import annotations

import plistlib
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import SimpleITK as sitk

from data.ct.reading.headers import check_header
from data.ct.reading.scan import AIR_HU, DENSEST_HU, Finding, Scan, ScanError, check_size

SUFFIXES = {
    ".nii": "NIfTI", ".nii.gz": "NIfTI", ".nrrd": "NRRD", ".nhdr": "NRRD",
    ".mha": "MetaImage", ".mhd": "MetaImage", ".inv3": "InVesalius",
}  # fmt: skip
_READERS = {"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
_BYTES = {  # of a voxel, as SimpleITK will hold it
    sitk.sitkInt8: 1, sitk.sitkUInt8: 1, sitk.sitkInt16: 2, sitk.sitkUInt16: 2, sitk.sitkInt32: 4,
    sitk.sitkUInt32: 4, sitk.sitkInt64: 8, sitk.sitkUInt64: 8, sitk.sitkFloat32: 4, sitk.sitkFloat64: 8,
}  # fmt: skip


def suffix_of(path: Path) -> str | None:
    """The part of a file's name that says its format, such as ``.nii.gz``; None for any other file."""
    name = path.name.lower()
    return max((s for s in SUFFIXES if name.endswith(s)), key=len, default=None)


def read_file(path: Path, max_bytes: int, offset: float) -> Scan:
    """Raises: ScanError, see ``read_scan``."""
    suffix = suffix_of(path)
    assert suffix is not None
    kind = SUFFIXES[suffix]
    if path.stat().st_size == 0:
        raise ScanError(f"the {kind} file is empty (0 bytes): copy or export it again")
    if kind == "InVesalius":
        with tarfile_of(path) as archive:
            return _read_invesalius(_TarSource(archive), max_bytes, offset)
    return _read_itk(path, kind, max_bytes, offset)


def tarfile_of(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:*")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ScanError(
            "the .inv3 file is no InVesalius project (a tar archive), or a damaged one"
        ) from error


def _read_itk(path: Path, kind: str, max_bytes: int, offset: float) -> Scan:
    check_header(path, kind, max_bytes)
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
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _BYTES:
        raise ScanError(
            f"its voxels are {reader.GetNumberOfComponents()} values each, expected one grey value"
        )
    check_size(shape, spacing, _BYTES[reader.GetPixelID()], max_bytes)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise ScanError(f"the {kind} file's voxels cannot be read: it is cut short or damaged") from error
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.hstack([steps, np.array(image.GetOrigin())[:, None]])
    values = to_hounsfield(sitk.GetArrayViewFromImage(image), offset)
    return Scan(values, affine, {"format": kind, "stored_size": list(shape)})


def to_hounsfield(values: np.ndarray, offset: float) -> np.ndarray:
    """Stored values -> int16 HU; padding, NaN and everything below air become air."""
    whole = np.clip(
        np.nan_to_num(values, nan=AIR_HU, posinf=DENSEST_HU, neginf=AIR_HU) + offset, None, DENSEST_HU
    )
    return np.maximum(whole, -4096).round().astype(np.int16)


class _TarSource:
    """Members of an archive by their last name."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive

    def open(self, name: str) -> Any:
        try:
            members = {PurePosixPath(m.name).name: m for m in self.archive.getmembers() if m.isfile()}
            file = self.archive.extractfile(members[name]) if name in members else None
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ScanError("the InVesalius project is cut short or damaged") from error
        if file is None:
            raise ScanError(f"the InVesalius project has no {name}")
        return file


class FolderSource:
    """The same for a project that was unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, name: str) -> Any:
        if not (self.folder / name).is_file():
            raise ScanError(f"the InVesalius project has no {name}")
        return (self.folder / name).open("rb")


def read_invesalius_folder(folder: Path, max_bytes: int, offset: float) -> Scan:
    return _read_invesalius(FolderSource(folder), max_bytes, offset)


def _read_invesalius(source: _TarSource | FolderSource, max_bytes: int, offset: float) -> Scan:
    """The voxels of a project: ``main.plist`` and ``matrix.dat``; slices from the feet up, rows from the front.

    Source: github.com/invesalius/invesalius3, invesalius/project.py (names of the fields).
    """
    try:
        with source.open("main.plist") as file:
            main = plistlib.load(file)
        matrix, spacing = main["matrix"], [float(s) for s in main["spacing"]]
        name, shape = PurePosixPath(matrix["filename"]).name, [int(n) for n in matrix["shape"]]
        dtype, modality = str(matrix["dtype"]), str(main.get("modality", "CT"))
    except ScanError:
        raise
    except Exception as error:  # a property list may hold anything at all
        raise ScanError("the InVesalius project's main.plist is damaged") from error
    if modality != "CT":
        raise ScanError(f"its modality is {modality[:8]!r}, expected CT")
    if dtype not in ("int16", "uint16", "uint8"):
        raise ScanError(f"the InVesalius project's voxels are {dtype[:12]!r}, expected int16")
    size = np.dtype(dtype).itemsize
    check_size((*shape[::-1],), (*spacing,), size, max_bytes)
    with source.open(name) as file:
        wanted = int(np.prod(shape)) * size
        raw = file.read(wanted)
    if len(raw) < wanted:
        raise ScanError(f"the InVesalius project's voxels are cut short: {len(raw)} bytes of {wanted}")
    values = to_hounsfield(np.frombuffer(raw, dtype).reshape(shape), offset)
    # Rows run from the back of the head to the front, so that columns must run from its left to its right.
    affine = np.hstack([np.diag([-spacing[0], -spacing[1], spacing[2]]), np.zeros((3, 1))])
    text = (
        "an InVesalius project does not say which side is left: the first column is taken to be at its left"
    )
    side = Finding("side_not_stored", "note", 1, 0, "", text)
    return Scan(values, affine, {"format": "InVesalius", "stored_size": shape[::-1]}, [side])
