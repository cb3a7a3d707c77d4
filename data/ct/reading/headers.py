"""Checks of the headers of volume files before a library decodes them.

ITK's readers end the whole process on some damaged headers, take a spacing of zero for 1 mm, and reserve whatever
memory a header asks for. A file that passes here can be given to them.

Sources: nifti.nimh.nih.gov (nifti1.h, nifti2.h); teem.sourceforge.net/nrrd/format.html; itk.org/Wiki/ITK/MetaIO.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.ct.findings import ScanError
from data.ct.reading.geometry import check_size

HEADER_BYTES = 1 << 16
LONGEST_LINE = 4096
# The types of voxels that are read: datatype code or name in the header -> bytes a voxel.
NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4}
NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "float"), 4),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), 4),
    "double": 8,
}
META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}  # fmt: skip


def check_header(path: Path, kind: str, max_bytes: int) -> None:
    """Raises: ScanError naming the field that is damaged or too large, or how much of the file is missing."""
    try:
        {"NIfTI": _check_nifti, "NRRD": _check_nrrd, "MetaImage": _check_meta}[kind](path, max_bytes)
    except ScanError:
        raise
    except (ValueError, struct.error, OverflowError) as error:
        raise ScanError(f"its header is no {kind} header, or a damaged one: export it again") from error


def _check_nifti(path: Path, max_bytes: int) -> None:
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(544)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError("it is no gzip file, or a damaged one: copy or export it again") from error
    if len(head) < 348:
        raise ScanError("it is cut short: its header is not whole")
    order, length = next(
        ((o, n) for o in "<>" if (n := struct.unpack_from(o + "i", head)[0]) in (348, 540)), ("", 0)
    )
    if not order:
        raise ScanError("it is no NIfTI file, or its header is damaged")
    if length == 540:
        dim = struct.unpack_from(order + "8q", head, 16)
        (datatype,), magic = struct.unpack_from(order + "h", head, 12), head[4:8]
        pixdim = struct.unpack_from(order + "8d", head, 104)
        start, slope, inter = struct.unpack_from(order + "q2d", head, 168)
    else:
        dim = struct.unpack_from(order + "8h", head, 40)
        (datatype,), magic = struct.unpack_from(order + "h", head, 70), head[344:348]
        pixdim = struct.unpack_from(order + "8f", head, 76)
        start, slope, inter = struct.unpack_from(order + "3f", head, 108)
    if magic[:3] not in (b"n+1", b"n+2"):
        raise ScanError("it is no single-file NIfTI (.nii): convert it, for example with dcm2niix")
    if not 3 <= dim[0] <= 7 or any(n != 1 for n in dim[4 : dim[0] + 1]):
        raise ScanError(f"its header tells of {dim[0]} dimensions, expected one volume of three")
    if datatype not in NIFTI_BYTES:
        raise ScanError(f"its voxels are of type {datatype}, expected plain numbers")
    if not (abs(slope) < 1e4 and abs(inter) < 1e6) or 0 < abs(slope) < 1e-6:
        raise ScanError(f"its header's rescaling ({slope:g}, {inter:g}) is damaged")
    if not 352 <= start < 1 << 24:
        raise ScanError(f"its header puts the voxels at byte {start:g}: it is damaged")
    size = _size(dim[1:4], pixdim[1:4], NIFTI_BYTES[datatype], max_bytes)
    if packed:
        _check_length(path, 0, int(start) + size, True)
    else:
        _check_length(path, int(start), size, False)


def _check_nrrd(path: Path, max_bytes: int) -> None:
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if not head.startswith(b"NRRD000"):
        raise ScanError("it is no NRRD file, or its first line is damaged")
    end, gap = next(((i, gap) for gap in (b"\n\n", b"\r\n\r\n") if (i := head.find(gap)) > 0), (-1, b""))
    detached = end < 0
    lines = (head if detached else head[:end]).decode("ascii", "replace").splitlines()[1:]
    parts = [line.partition(":") for line in lines if ":" in line and not line.startswith("#")]
    fields = {key.strip().lower(): value.strip() for key, _, value in parts}
    shape = [int(n) for n in _numbers(fields, "sizes", 3)]
    voxel_bytes = NRRD_BYTES.get(fields.get("type", ""))
    encoding = fields.get("encoding", "").lower()
    if fields.get("dimension") != "3" or voxel_bytes is None or encoding not in ("raw", "gzip", "gz"):
        raise ScanError(
            "its header's dimension, type or encoding is damaged, or not supported (raw and gzip are)"
        )
    if "space directions" in fields:
        steps = np.reshape(_numbers(fields, "space directions", 9), (3, 3))
        spacing = np.linalg.norm(steps, axis=1).tolist()
    else:
        spacing = _numbers(fields, "spacings", 3)
    size = _size(shape, spacing, voxel_bytes, max_bytes)
    name = fields.get("data file", fields.get("datafile", ""))
    if detached or name:
        _check_length(_beside(path, name), 0, size, encoding != "raw")
    else:
        _check_length(path, end + len(gap), size, encoding != "raw")


def _check_meta(path: Path, max_bytes: int) -> None:
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in fields:
            line = file.readline(LONGEST_LINE)
            key, equals, value = line.decode("ascii", "replace").partition("=")
            if not (equals and line.endswith(b"\n")):
                raise ScanError("its header is no MetaImage header, or a damaged one")
            fields[key.strip()] = value.strip()
        start = file.tell()
    voxel_bytes = META_BYTES.get(fields.get("ElementType", ""))
    one_value = fields.get("ElementNumberOfChannels", "1") == "1"
    if fields.get("NDims") != "3" or voxel_bytes is None or not one_value:
        raise ScanError("its header's NDims or ElementType is damaged, or is not that of one grey volume")
    shape = [int(n) for n in _numbers(fields, "DimSize", 3)]
    spacing = _numbers(fields, "ElementSpacing" if "ElementSpacing" in fields else "ElementSize", 3)
    for key in fields.keys() & {"TransformMatrix", "Rotation", "Orientation"}:
        _numbers(fields, key, 9)
    size = _size(shape, spacing, voxel_bytes, max_bytes)
    packed = fields.get("CompressedData", "False").lower() == "true"
    if fields["ElementDataFile"] == "LOCAL":
        _check_length(path, start, size, packed)
    else:
        _check_length(_beside(path, fields["ElementDataFile"]), 0, size, packed)


def _numbers(fields: dict[str, str], key: str, count: int) -> list[float]:
    """Return the numbers of a text header's field; commas and brackets may stand between them."""
    try:
        values = [float(part) for part in fields.get(key, "").translate(_SEPARATORS).split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise ScanError(f"{key} in the header is damaged: expected {count} numbers")
    return values


_SEPARATORS = str.maketrans(",()", "   ")


def _size(shape: Sequence[int], spacing: Sequence[float], voxel_bytes: int, max_bytes: int) -> int:
    """Return the bytes of all voxels. Raises: ScanError, see ``check_size``."""
    check_size(shape, spacing, voxel_bytes, max_bytes)
    return voxel_bytes * shape[0] * shape[1] * shape[2]


def _beside(path: Path, name: str) -> Path:
    """Return the data file that a header names: in the same folder, nowhere else."""
    if not name or Path(name).name != name or not (path.parent / name).is_file():
        raise ScanError("the file with its voxels, named in its header, is not beside it")
    return path.parent / name


def _check_length(path: Path, start: int, expected: int, packed: bool) -> None:
    """Check that all voxels are in the file, without keeping them."""
    length = max(0, path.stat().st_size - start)
    if packed:
        try:
            with path.open("rb") as file:
                file.seek(start)
                length = _unpacked_length(file, expected)
        except zlib.error as error:
            raise ScanError("its compressed voxels are damaged: copy or export it again") from error
    if length < expected:
        raise ScanError(f"it is cut short: {length} bytes of voxels, its header promises {expected}")


def _unpacked_length(file: BinaryIO, enough: int) -> int:
    """Return how many bytes a gzip or zlib stream gives, counted up to about ``enough``."""
    unpack = zlib.decompressobj(zlib.MAX_WBITS + 32)
    length = 0
    while length < enough and (block := unpack.unconsumed_tail or file.read(1 << 18)):
        length += len(unpack.decompress(block, 1 << 22))
    return length
