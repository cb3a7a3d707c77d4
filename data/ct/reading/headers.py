"""Headers of volume files: where the voxels lie, in the files and in the patient, checked before any is read.

No library reads these files: those that do may end the whole process on a damaged header, read files anywhere on the
disk, or drop what a header says (a shear, a missing side). Here every field is checked, memory is bounded by the
header's own numbers, and the files that a header names must lie in its folder.

Sources: nifti.nimh.nih.gov (nifti1.h, nifti2.h); teem.sourceforge.net/nrrd/format.html; itk.org/Wiki/ITK/MetaIO.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy.spatial.transform import Rotation

from data.ct.findings import Finding, ScanError, Severity, judge
from data.ct.reading.geometry import affine_of, affine_problem, check_affine, check_size, spacing_of

HEADER_BYTES = 1 << 20
LONGEST_LINE = 4096
LONGEST_NAME = 1024  # of data files
MOST_LINES = 10_000  # that a header may skip in its data file
BLOCK_BYTES = 1 << 18
# The types of voxels that are read: datatype code or name in the header -> numpy's code.
NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
NRRD_TYPES = {name: code for code, names in (
    ("i1", "signed char,int8,int8_t"), ("u1", "uchar,unsigned char,uint8,uint8_t"),
    ("i2", "short,short int,signed short,signed short int,int16,int16_t"),
    ("u2", "ushort,unsigned short,unsigned short int,uint16,uint16_t"),
    ("i4", "int,signed int,int32,int32_t"), ("u4", "uint,unsigned int,uint32,uint32_t"), ("f4", "float"),
    ("i8", "longlong,long long,signed long long,int64,int64_t"), ("f8", "double"),
    ("u8", "ulonglong,unsigned long long,uint64,uint64_t"),
) for name in names.split(",")}  # fmt: skip
META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # from RAS
TEMPLATE_CODE = 3  # NIfTI forms from this code on lead to a template's space (Talairach, MNI)
SAME_LENGTH = 0.01  # share within which a form's steps are those of the header's spacing
_SEPARATORS = str.maketrans(",()", "   ")
PAIR = re.compile(r"\.(hdr|img)(\.gz)?$", re.IGNORECASE)
NUMBERED = re.compile(r"([^%]*%0?\d{0,2}[diu][^%]*?)\s+(\d{1,6})\s+(\d{1,6})\s+(\d{1,6})(?:\s+\d)?")


@dataclass(frozen=True)
class Layout:
    """Where the voxels of a volume lie.

    Attributes:
        parts: the files that hold them, in order, with equal shares.
        start: byte at which they begin in each file; -1: they end where the file ends.
        packed: each file is a gzip or zlib stream from ``start`` on.
        skip: bytes before the voxels in what was unpacked.
        dtype, shape: of the voxels; (I, J, K), i runs fastest.
        affine: (3, 4), see ``Scan``.
        slope, intercepts: HU = slope * value + intercept; the first intercept that gives Hounsfield units holds.
        findings: what is doubtful in the header.
    """

    parts: list[Path]
    start: int
    packed: bool
    skip: int
    dtype: np.dtype
    shape: tuple[int, ...]
    affine: np.ndarray
    slope: float = 1.0
    intercepts: Sequence[float] = (0.0,)
    findings: list[Finding] = field(default_factory=list)


def read_layout(path: Path, kind: str, max_bytes: int) -> Layout:
    """Return the layout of a NIfTI, NRRD or MetaImage file.

    Raises:
        ScanError: names the field that is damaged or too large.
    """
    try:
        layout = {"NIfTI": _nifti, "NRRD": _nrrd, "MetaImage": _meta}[kind](path, max_bytes)
        check_affine(layout.affine)
        return layout
    except ScanError:
        raise
    except (ValueError, struct.error, OverflowError) as error:
        raise ScanError(f"its header is no {kind} header, or a damaged one: export it again") from error


def read_voxels(layout: Layout) -> np.ndarray:
    """Return the (K, J, I) stored values. Raises: ScanError where some are missing or their coding is damaged."""
    expected = layout.dtype.itemsize * int(np.prod(layout.shape, dtype=np.int64))
    each = expected // len(layout.parts)
    parts = [_read_part(path, layout, each) for path in layout.parts]
    length = sum(map(len, parts))
    if length < expected:
        raise ScanError(f"it is cut short: {length} bytes of voxels, its header promises {expected}")
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    return np.frombuffer(whole, layout.dtype).reshape(layout.shape[::-1])


def _read_part(path: Path, layout: Layout, length: int) -> memoryview:
    """Return the ``length`` bytes of voxels that a file holds, or fewer."""
    with path.open("rb") as file:
        file.seek(layout.start if layout.start >= 0 else max(0, path.stat().st_size - length))
        count = layout.skip + length
        try:
            data = _unpack(file, count) if layout.packed else file.read(count)
        except zlib.error as error:
            raise ScanError("its compressed voxels are damaged: copy or export it again") from error
    return memoryview(data)[layout.skip : count]


def _unpack(file: BinaryIO, count: int) -> bytearray:
    """Return the first bytes of a zlib stream or of gzip members; one more than ``count``, to reach the checksum."""
    result, unpack = bytearray(), zlib.decompressobj(zlib.MAX_WBITS + 32)
    block = file.read(BLOCK_BYTES)
    while block and len(result) <= count:
        result += unpack.decompress(block, min(1 << 22, count + 1 - len(result)))
        block = unpack.unconsumed_tail
        if unpack.eof:
            if len(result) >= count:
                break
            block, unpack = unpack.unused_data, zlib.decompressobj(zlib.MAX_WBITS + 32)
        block = block or file.read(BLOCK_BYTES)
    return result


def _nifti(path: Path, max_bytes: int) -> Layout:
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as start_of_file:
            head = start_of_file.read(544)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError("it is no gzip file, or a damaged one: copy or export it again") from error
    if len(head) < 348:
        raise ScanError("it is cut short: its header is not whole")
    lengths = {order: struct.unpack_from(order + "i", head)[0] for order in "<>"}
    order = next((o for o, length in lengths.items() if length in (348, 540)), "")
    if not order:
        raise ScanError("it is no NIfTI file, or its header is damaged")
    second = lengths[order] == 540
    real, whole, code = "dqi" if second else "fhh"

    def numbers(form: str, first: int, of_second: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, head, of_second if second else first)

    dim, (datatype,) = numbers(f"8{whole}", 40, 16), numbers("h", 70, 12)
    magic = head[4:8] if second else head[344:348]
    pixdim = np.array(numbers(f"8{real}", 76, 104))
    start, slope, inter = numbers("q2d" if second else "3f", 108, 168)
    forms = numbers(f"2{code}", 252, 344)
    quaternion, rows = numbers(f"6{real}", 256, 352), numbers(f"12{real}", 280, 400)
    (units,) = numbers("i" if second else "B", 123, 500)
    pair = magic[:3] in (b"ni1", b"ni2")
    if magic[:3] not in (b"n+1", b"n+2") and not pair:
        raise ScanError("it is no NIfTI file (.nii, or .hdr and .img): convert it, for example with dcm2niix")
    if not 3 <= dim[0] <= 7 or any(n != 1 for n in dim[4 : dim[0] + 1]):
        raise ScanError(f"its header tells of {dim[0]} dimensions, expected one volume of three")
    if datatype not in NIFTI_TYPES:
        raise ScanError(f"its voxels are of type {datatype}, expected plain numbers")
    if not (0 if pair else 352) <= start < 1 << 24:
        raise ScanError(f"its header puts the voxels at byte {start:g}: it is damaged")
    slope, intercepts, findings = _nifti_rescaling(slope, inter)
    unit_mm = {1: 1000.0, 3: 0.001}.get(units & 7, 1.0)
    dtype = np.dtype(order + NIFTI_TYPES[datatype])
    check_size(dim[1:4], (pixdim[1:4] * unit_mm).tolist(), dtype.itemsize, max_bytes)
    affine, more = _nifti_affine(forms, pixdim, np.array(quaternion), np.reshape(rows, (3, 4)), dim[1:4])
    voxels = other_half(path, "img") if pair else path
    place = (0, True, int(start)) if _is_gzip(voxels) else (int(start), False, 0)
    return Layout([voxels], *place, dtype, dim[1:4], affine * unit_mm, slope, intercepts, [*findings, *more])


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"  # whatever the file is called


def other_half(path: Path, ending: str) -> Path:
    """Return the file of a NIfTI pair that ends in ``hdr`` or ``img``, plain or packed; ``path`` is one of the pair."""
    stem = PAIR.sub("", path.name)
    names = (f"{stem}.{end}{packed}" for end in (ending, ending.upper()) for packed in ("", ".gz"))
    name = next((name for name in names if (path.parent / name).is_file()), None)
    if name is None:
        raise ScanError(
            f"a NIfTI pair is two files, .hdr and .img of one name: its .{ending} is not beside it"
        )
    return _beside(path, name)


def _nifti_rescaling(slope: float, inter: float) -> tuple[float, tuple[float, ...], list[Finding]]:
    """Return the slope, the intercepts to try and what is odd: a slope of 0 or no number means that none is stored."""
    if np.isfinite(slope) and slope != 0:
        if not 1e-6 < abs(slope) < 1e4 or 1e6 < abs(inter) < np.inf:
            raise ScanError(f"its header's rescaling ({slope:g}, {inter:g}) is damaged")
        if np.isfinite(inter):
            return slope, (inter,), []
        return slope, (0.0,), judge("rescale_unclear", 1, reason="intercept is no number: 0 was taken")
    if np.isfinite(slope) and inter == 0:
        return 1.0, (0.0,), []
    if not np.isfinite(inter) or inter == 0 or abs(inter) > 1e6:
        reason = f"slope is {slope:g}: the stored values were taken as they are"
        return 1.0, (0.0,), judge("rescale_unclear", 1, reason=reason)
    reason = f"slope is {slope:g}: its intercept of {inter:g} is added only where this alone gives Hounsfield units"
    return 1.0, (0.0, inter), judge("rescale_unclear", 1, reason=reason)


def _nifti_affine(
    codes: Sequence[float], pixdim: np.ndarray, quaternion: np.ndarray, rows: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, list[Finding]]:
    """Return the affine of the sform, else of the qform, else of the spacing alone; and how the two forms differ.

    Args:
        codes: of qform and sform; 0: not stored.
        pixdim: qform's handedness, then the spacing.
        quaternion: b, c, d and the offset.
        rows: (3, 4) of the sform, RAS.
    """
    spacing = pixdim[1:4]
    forms: dict[str, np.ndarray] = {}
    if codes[1] > 0:
        forms["sform"] = _TO_LPS @ rows
    if codes[0] > 0:
        b, c, d = quaternion[:3]
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        turn = Rotation.from_quat([b, c, d, a]).as_matrix() if np.isfinite(quaternion).all() else np.nan
        sided = spacing * [1, 1, -1 if pixdim[0] < 0 else 1]
        forms["qform"] = _TO_LPS @ affine_of(turn * np.ones((3, 3)), sided, quaternion[3:])
    if not forms:
        unsided = affine_of(np.eye(3), spacing, (0.0, 0.0, 0.0))
        return unsided, side_not_stored("a NIfTI header without sform and qform", "right")
    usable = {name: form for name, form in forms.items() if affine_problem(form) is None}
    chosen, form = next(iter(usable.items() or forms.items()))
    if len(forms) == 1 or not usable:
        return form, []
    if len(usable) == 1:
        (damaged,) = forms.keys() - usable
        return form, judge("form_damaged", 1, reason=damaged, chosen=chosen)
    sform, qform = usable["sform"], usable["qform"]
    lengths = np.linalg.norm(sform[:, :3], axis=0)
    if codes[1] >= TEMPLATE_CODE and np.abs(lengths / spacing - 1).max() > SAME_LENGTH:
        chosen = "qform"
    corners = np.array([*product(*((0, n - 1) for n in shape), (1,))])
    apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    mirrored = np.linalg.det(sform[:, :3]) * np.linalg.det(qform[:, :3]) < 0
    more = " and mirror each other: left and right may be swapped" if mirrored else ""
    severity: Severity | None = "flag" if mirrored else None
    return usable[chosen], judge("forms_differ", apart, severity=severity, chosen=chosen, more=more)


def side_not_stored(what: str, first: str) -> list[Finding]:
    """Return the note that ``what`` states no side, and which side the first column is taken for."""
    return judge("side_not_stored", 1, chosen=what, place=first)


def _nrrd(path: Path, max_bytes: int) -> Layout:
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if not head.startswith(b"NRRD000"):
        raise ScanError("it is no NRRD file, or its first line is damaged")
    end, gap = min(((i, gap) for gap in (b"\n\n", b"\n\r\n") if (i := head.find(gap)) > 0), default=(-1, b""))
    detached = end < 0
    lines = _lines(head if detached else head[:end])[1:]
    lists = (n for n, line in enumerate(lines) if re.match(r"data ?file:\s*LIST", line, re.I))
    listed = next(lists, len(lines))
    pairs = (line.split(":", 1) for line in lines[: listed + 1] if re.match(r"[^#:][^:]*:(?!=)", line))
    fields = _fields(
        (re.sub("^(data|line|byte)(?=file|skip)", r"\1 ", key.lower()), value) for key, value in pairs
    )
    shape, axes = _axes([int(n) for n in _numbers(fields, "sizes")], fields.get("dimension", ""))
    code = NRRD_TYPES.get(fields.get("type", "").lower())
    encoding = fields.get("encoding", "").lower()
    if code is None or encoding not in ("raw", "gzip", "gz"):
        raise ScanError("its header's type or encoding is damaged, or not supported (raw and gzip are)")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower(), "" if code[1] == "1" else None)
    if order is None:
        raise ScanError("endian in the header is damaged: expected little or big")
    dtype = np.dtype(order + code)
    affine, findings = _nrrd_affine(fields, axes)
    check_size(shape, spacing_of(affine).tolist(), dtype.itemsize, max_bytes)
    name = fields.get("data file", "")
    parts = _parts(path, name, lines[listed + 1 :], shape[2]) if detached or name else [path]
    start = 0 if detached or name else end + len(gap)
    lines_skipped, skip = (int(fields.get(key, "0")) for key in ("line skip", "byte skip"))
    if not (0 <= lines_skipped <= MOST_LINES and -1 <= skip <= HEADER_BYTES):
        raise ScanError("line skip or byte skip in the header is damaged")
    start = _after_lines(parts[0], start, lines_skipped)
    packed = encoding != "raw"
    if not packed:
        start, skip = start + skip if skip >= 0 else -1, 0
    return Layout(parts, start, packed, max(0, skip), dtype, shape, affine, findings=findings)


def _nrrd_affine(fields: dict[str, str], axes: list[int]) -> tuple[np.ndarray, list[Finding]]:
    """Return the affine of three axes; the sides are stored only where space and directions are."""
    space = fields.get("space", "").lower().removesuffix("-time")
    letters = "".join(word[0] for word in space.split("-")) if "-" in space else space.removesuffix("t")
    sided = re.fullmatch("[rl][ap]s", letters) is not None
    signs = [-1.0 if letter in "ra" else 1.0 for letter in (letters if sided else "lps")]
    origin = np.array(_vector(fields.get("space origin", "(0,0,0)"), "space origin"))
    if "space directions" in fields:
        vectors = re.findall(r"none|\([^()]*\)", fields["space directions"])
        if len(vectors) <= max(axes):
            raise ScanError("space directions in the header is damaged: expected one vector for each axis")
        steps = np.array([_vector(vectors[axis], "space directions") for axis in axes]).T
    else:
        spacings = _numbers(fields, "spacings")
        if len(spacings) <= max(axes):
            raise ScanError("spacings in the header is damaged: expected one number for each axis")
        steps, sided = np.diag([spacings[axis] for axis in axes]), False
    affine = np.column_stack([steps, origin]) * np.reshape(signs, (3, 1))
    return affine, [] if sided else side_not_stored("an NRRD header without an anatomical space", "right")


def _vector(text: str, key: str) -> list[float]:
    values = _numbers({key: text}, key)
    if len(values) not in (3, 4):  # the fourth is time
        raise ScanError(f"{key} in the header is damaged: expected vectors of 3 numbers")
    return values[:3]


def _meta(path: Path, max_bytes: int) -> Layout:
    pairs: list[tuple[str, str]] = []
    with path.open("rb") as file:
        while not pairs or pairs[-1][0] != "ElementDataFile":
            line = file.readline(LONGEST_LINE)
            key, equals, value = line.decode("utf-8", "surrogateescape").partition("=")
            if not equals or len(line) == LONGEST_LINE or file.tell() > HEADER_BYTES:
                raise ScanError("its header is no MetaImage header, or a damaged one")
            pairs.append((key.strip(), value.strip()))
        begin = file.tell()
        name = pairs[-1][1]
        listed = _lines(file.read(HEADER_BYTES)) if name.split()[:1] == ["LIST"] else []
    fields = _fields(pairs)
    code = META_TYPES.get(fields.get("ElementType", ""))
    text = fields.get("BinaryData", "True").lower() == "false"
    if code is None or text or fields.get("ElementNumberOfChannels", "1") != "1":
        raise ScanError("its header's ElementType is damaged, or is not that of one binary grey volume")
    shape, axes = _axes([int(n) for n in _numbers(fields, "DimSize")], fields.get("NDims", ""))
    most = int(fields["NDims"])
    orders = {fields.get(key, "").lower() for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")} - {""}
    dtype = np.dtype((">" if orders == {"true"} else "<") + code)
    size = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    spacing, origin, turn = np.array(_numbers(fields, size, most)), np.zeros(most), np.eye(most)
    for key in fields.keys() & {"Offset", "Position", "Origin"}:
        origin = np.array(_numbers(fields, key, most))
    turns = fields.keys() & {"TransformMatrix", "Rotation", "Orientation"}
    for key in turns:  # a row is the direction of an axis
        turn = np.reshape(_numbers(fields, key, most * most), (most, most))
    affine = affine_of(turn[axes, :3].T, spacing[axes], origin[:3])
    check_size(shape, spacing_of(affine).tolist(), dtype.itemsize, max_bytes)
    start = int(fields.get("HeaderSize", "0"))
    packed = fields.get("CompressedData", "False").lower() == "true"
    if not -1 <= start <= HEADER_BYTES or (packed and start < 0):
        raise ScanError("HeaderSize in the header is damaged")
    start = start or (begin if name == "LOCAL" else 0)
    parts = [path] if name == "LOCAL" else _parts(path, name, listed, shape[2])
    sided = turns or fields.get("AnatomicalOrientation", "???").upper() == "RAI"
    findings = [] if sided else side_not_stored("a MetaImage header without TransformMatrix", "right")
    return Layout(parts, start, packed, 0, dtype, shape, affine, findings=findings)


def _lines(text: bytes) -> list[str]:
    """Return lines that end at a line feed, and nowhere else."""
    return [line.removesuffix("\r") for line in text.decode("utf-8", "surrogateescape").split("\n")]


def _fields(pairs: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the fields of a text header. Raises: ScanError where one stands there twice."""
    fields: dict[str, str] = {}
    for key, value in pairs:
        if key.strip() in fields:
            raise ScanError(f"{key.strip()[:40]!a} stands twice in its header: it is damaged")
        fields[key.strip()] = value.strip()
    return fields


def _numbers(fields: dict[str, str], key: str, count: int = 0) -> list[float]:
    """Return the numbers of a text header's field; commas and brackets may stand between them."""
    try:
        values = [float(part) for part in fields.get(key, "").translate(_SEPARATORS).split()]
    except ValueError:
        values = []
    if len(values) != (count or len(values)) or not values:
        raise ScanError(f"{key} in the header is damaged: expected {count or 'its'} numbers")
    return values


def _axes(sizes: list[int], dimension: str) -> tuple[tuple[int, ...], list[int]]:
    """Return the three sizes of a volume and their axes; further axes may have one place each."""
    axes = [axis for axis, size in enumerate(sizes) if size != 1 or len(sizes) == 3]
    if dimension != str(len(sizes)) or len(axes) != 3:
        what = f"{' x '.join(map(str, sizes[:8]))} voxels in {dimension[:8] or 'no'} dimensions"
        raise ScanError(f"its header describes {what}, expected one volume of three")
    return tuple(sizes[axis] for axis in axes), axes


def _parts(path: Path, name: str, listed: list[str], slices: int) -> list[Path]:
    """Return the data files that a header names: one, a list, or numbered ones (pattern, first, last, step)."""
    numbered = NUMBERED.fullmatch(name) if len(name) < LONGEST_NAME else None
    names = [name]
    if name.split()[:1] == ["LIST"]:
        names = [line.strip() for line in listed if line.strip()]
    elif numbered:
        first, last, step = (int(n) for n in numbered.groups()[1:])
        names = [numbered[1] % n for n in range(first, last + 1, max(1, step))]
    if not names or slices % len(names):
        raise ScanError(f"its header names {len(names)} files, which cannot share {slices} slices evenly")
    return [_beside(path, one) for one in names]


def _beside(path: Path, name: str) -> Path:
    """Return a data file that a header names: an ordinary file in the header's folder, or below it."""
    folder, name = path.parent, name.replace("\\", "/")
    place = folder / name
    try:
        inside = name and ".." not in place.parts[len(folder.parts) :] and place.is_file()
        inside = inside and place.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # no name of a file
        inside = False
    if not inside:
        raise ScanError("the file with its voxels, named in its header, is not beside it")
    return place


def _after_lines(path: Path, start: int, count: int) -> int:
    """Return the byte after so many lines."""
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(count):
            file.readline(LONGEST_LINE)
        return file.tell()
