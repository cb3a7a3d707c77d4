"""Looks at the headers of volume files before a library decodes them.

ITK's readers end the whole process on some damaged headers, take a spacing of zero for 1 mm, and reserve whatever
memory a header asks for. What passes here, they can be given.

Sources: nifti.nimh.nih.gov (nifti1.h, nifti2.h); teem.sourceforge.net/nrrd/format.html; itk.org/Wiki/ITK/MetaIO.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

from data.ct.reading.scan import ScanError, check_size

HEADER_BYTES = 1 << 16
NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4}  # datatype code -> bytes a voxel
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
    except (ValueError, struct.error, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"its header is no {kind} header, or a damaged one: export it again") from error


def _numbers(text: str, count: int, what: str) -> list[float]:
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise ScanError(f"{what} in the header is damaged: expected {count} numbers")
    return values


def _whole(path: Path, start: int, wanted: int, compressed: bool) -> None:
    """Whether all voxels are there, without keeping them."""
    if not compressed:
        found = max(0, path.stat().st_size - start)
    else:
        found = 0
        try:
            with path.open("rb") as raw:
                raw.seek(start)
                unpack = zlib.decompressobj(47)  # gzip or zlib
                while found < wanted and (block := raw.read(1 << 18)):
                    data = unpack.decompress(block, 1 << 22)
                    found += len(data)
                    while unpack.unconsumed_tail and found < wanted:
                        data = unpack.decompress(unpack.unconsumed_tail, 1 << 22)
                        found += len(data)
        except zlib.error as error:
            raise ScanError("its compressed voxels are damaged: copy or export it again") from error
    if found < wanted:
        raise ScanError(f"it is cut short: {found} bytes of voxels, its header promises {wanted}")


def _check_nifti(path: Path, max_bytes: int) -> None:
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(544)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError("it is no gzip file, or a damaged one: copy or export it again") from error
    if len(head) < 348:
        raise ScanError("it is cut short: its header is not whole")
    order = next((o for o in "<>" if struct.unpack_from(o + "i", head)[0] in (348, 540)), None)
    if order is None:
        raise ScanError("it is no NIfTI file, or its header is damaged")
    second = struct.unpack_from(order + "i", head)[0] == 540
    if second:
        dim = struct.unpack_from(order + "8q", head, 16)
        datatype, magic = struct.unpack_from(order + "h", head, 12)[0], head[4:8]
        pixdim = struct.unpack_from(order + "8d", head, 104)
        start = struct.unpack_from(order + "q", head, 168)[0]
        slope, inter = struct.unpack_from(order + "2d", head, 176)
    else:
        dim = struct.unpack_from(order + "8h", head, 40)
        datatype, magic = struct.unpack_from(order + "h", head, 70)[0], head[344:348]
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
    wanted = _checked(dim[1:4], pixdim[1:4], NIFTI_BYTES[datatype], max_bytes)
    if packed:
        _whole(path, 0, int(start) + wanted, True)
    else:
        _whole(path, int(start), wanted, False)


def _checked(shape: tuple[int, ...], spacing: tuple[float, ...], bytes_each: int, max_bytes: int) -> int:
    check_size(tuple(int(n) for n in shape), tuple(float(s) for s in spacing), bytes_each, max_bytes)
    return int(shape[0]) * int(shape[1]) * int(shape[2]) * bytes_each


def _beside(path: Path, name: str) -> Path:
    """A data file named in a header: in the same folder, nowhere else."""
    if not name or Path(name).name != name or not (path.parent / name).is_file():
        raise ScanError("the file with its voxels, named in its header, is not beside it")
    return path.parent / name


def _check_nrrd(path: Path, max_bytes: int) -> None:
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if not head.startswith(b"NRRD000"):
        raise ScanError("it is no NRRD file, or its first line is damaged")
    end = next((i for i in (head.find(b"\n\n"), head.find(b"\r\n\r\n")) if i > 0), -1)
    detached = end < 0
    lines = (head if detached else head[:end]).decode("ascii", "replace").splitlines()
    start = 0 if detached else end + (2 if head[end : end + 1] == b"\n" else 4)
    fields = {
        key.strip().lower(): value.strip()
        for key, colon, value in (line.partition(":") for line in lines[1:] if not line.startswith("#"))
        if colon
    }
    sizes = [int(n) for n in _numbers(fields.get("sizes", ""), 3, "sizes")]
    each = NRRD_BYTES.get(fields.get("type", ""))
    encoding = fields.get("encoding", "").lower()
    if fields.get("dimension") != "3" or each is None or encoding not in ("raw", "gzip", "gz"):
        raise ScanError(
            "its header's dimension, type or encoding is damaged, or not supported (raw and gzip are)"
        )
    if "space directions" in fields:
        numbers = _numbers(
            fields["space directions"].replace("(", " ").replace(")", " "), 9, "space directions"
        )
        spacing = [sum(v * v for v in numbers[3 * n : 3 * n + 3]) ** 0.5 for n in range(3)]
    else:
        spacing = _numbers(fields.get("spacings", ""), 3, "spacings")
    wanted = _checked(tuple(sizes), tuple(spacing), each, max_bytes)
    name = fields.get("data file", fields.get("datafile", ""))
    if detached or name:
        path, start = _beside(path, name), 0
    _whole(path, start, wanted, encoding != "raw")


def _check_meta(path: Path, max_bytes: int) -> None:
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", start)
        if end < 0 or end - start > 4096:
            raise ScanError("its header is no MetaImage header, or is cut short")
        key, equals, value = head[start:end].decode("ascii", "replace").partition("=")
        if not equals:
            raise ScanError("its header is no MetaImage header, or a damaged one")
        fields[key.strip()] = value.strip()
        start = end + 1
    each = META_BYTES.get(fields.get("ElementType", ""))
    if fields.get("NDims") != "3" or each is None or fields.get("ElementNumberOfChannels", "1") != "1":
        raise ScanError("its header's NDims or ElementType is damaged, or is not that of one grey volume")
    sizes = [int(n) for n in _numbers(fields.get("DimSize", ""), 3, "DimSize")]
    spacing = _numbers(fields.get("ElementSpacing", fields.get("ElementSize", "")), 3, "ElementSpacing")
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        if key in fields:
            _numbers(fields[key], 9, key)
    wanted = _checked(tuple(sizes), tuple(spacing), each, max_bytes)
    if fields["ElementDataFile"] != "LOCAL":
        path, start = _beside(path, fields["ElementDataFile"]), 0
    _whole(path, start, wanted, fields.get("CompressedData", "False").lower() == "true")
