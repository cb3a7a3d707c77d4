"""DICOM folders: finds the series in any tree of files, chooses one, and decodes its slices one by one."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from data.ct.reading.geometry import Slice, stack
from data.ct.reading.scan import Finding, Scan, ScanError, check_size
from data.ct.reading.volumes import to_hounsfield

MAX_FILES = 20_000
MAX_SIDE = 4096
AXIAL_COSINE = (
    0.6  # of the slices' normal with the head-to-foot axis: sagittal and coronal series stay outside
)
ENOUGH_MM = 100.0  # a series that covers this much counts as a head
_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType", "ConvolutionKernel",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "SliceThickness",
    "InstanceNumber", "AcquisitionNumber", "GantryDetectorTilt", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "KVP",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is read of one file before its pixels."""

    path: Path
    series: str
    number: str
    modality: str
    localizer: bool
    kernel: str
    order: tuple[int, int]
    tilt: float | None
    thickness: float | None
    kvp: float | None
    shape: tuple[int, int]
    spacing: tuple[float, float]
    axes: np.ndarray | None
    position: np.ndarray | None
    problem: str | None


@dataclass
class Series:
    """Files that share a SeriesInstanceUID."""

    uid: str
    headers: list[Header] = field(default_factory=list)

    @property
    def usable(self) -> list[Header]:
        return [h for h in self.headers if h.problem is None and not h.localizer and h.modality == "CT"]

    @property
    def coverage(self) -> float:
        """mm from the first to the last slice, along the slices' normal."""
        heights = self._heights()
        return float(heights[-1] - heights[0]) if len(heights) > 1 else 0.0

    @property
    def step(self) -> float:
        heights = self._heights()
        return float(np.median(np.diff(heights))) if len(heights) > 1 else math.inf

    @property
    def axial(self) -> bool:
        first = self.usable[0].axes if self.usable else None
        return first is not None and abs(float(np.cross(first[0], first[1])[2])) >= AXIAL_COSINE

    def _heights(self) -> np.ndarray:
        group = [h for h in self.usable if h.axes is not None and h.position is not None]
        if not group:
            return np.zeros(0)
        first = group[0].axes
        assert first is not None
        normal = np.cross(first[0], first[1])
        return np.unique(np.round([float(h.position @ normal) for h in group if h.position is not None], 2))

    def is_ct(self) -> bool:
        return any(h.modality == "CT" for h in self.headers)

    def describe(self) -> str:
        """Without descriptions and UIDs, which may hold names."""
        one = self.headers[0]
        kind = "localizer" if one.localizer else one.modality[:4]
        text = f"series={one.number}: {kind}, {len(self.headers)} images of {one.shape[1]} x {one.shape[0]}"
        if self.usable and math.isfinite(self.step):
            text += f", {self.step:.2f} mm apart over {self.coverage:.0f} mm" + (
                "" if self.axial else ", not axial"
            )
            text += f", kernel {one.kernel}" if one.kernel else ""
        return text


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings quote the values they complain of, names included."""
    log = logging.getLogger("pydicom")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def read_folder(folder: Path, wanted: str, max_bytes: int, offset: float) -> Scan:
    """The chosen series of all DICOM files below ``folder``. Raises: ScanError, see ``read_scan``."""
    headers, others = _headers(folder)
    if not headers:
        raise ScanError(f"no DICOM image among its {others} files: expected a DICOM folder or a volume file")
    series = _group(headers)
    chosen = _choose(series, wanted)
    scan = _decode(chosen, max_bytes, offset)
    scan.facts["series_found"] = [one.describe() for one in series]
    scan.facts["series_used"] = chosen.headers[0].number
    scan.facts["other_files"] = others
    if len([one for one in series if one.usable and one.is_ct()]) > 1:
        text = f"{len(series)} series in the folder; taken was {chosen.describe()}"
        scan.findings.append(Finding("several_series", "note", len(series), 1, "series", text))
    return scan


def _headers(folder: Path) -> tuple[list[Header], int]:
    found: list[Header] = []
    others = 0
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if len(found) + others >= MAX_FILES:
                raise ScanError(f"more than {MAX_FILES} files: give the folder of one patient")
            header = _header(Path(base) / name)
            if header is None:
                others += 1
            else:
                found.append(header)
    return found, others


def _header(path: Path) -> Header | None:
    """None for what is no DICOM image at all."""
    try:
        with quiet():
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            if "Rows" not in data:  # DICOMDIR, reports, dose records
                return None
            return _parse(path, data)
    except Exception:  # anything may be in a file: whatever pydicom stumbles over is no DICOM image
        return None


def _parse(path: Path, data: Dataset) -> Header:
    problem = None
    axes = _floats(data, "ImageOrientationPatient", 6)
    position = _floats(data, "ImagePositionPatient", 3)
    spacing = _floats(data, "PixelSpacing", 2)
    shape = (int(data.get("Rows") or 0), int(data.get("Columns") or 0))
    if not (1 < shape[0] <= MAX_SIDE and 1 < shape[1] <= MAX_SIDE):
        problem = f"a size of {shape[1]} x {shape[0]} px"
    elif axes is None or position is None:
        problem = "no ImageOrientationPatient or ImagePositionPatient"
    elif spacing is None or min(spacing) <= 0 or max(spacing) > 10:
        problem = "no usable PixelSpacing"
    elif abs(np.linalg.norm(axes[:3]) - 1) > 0.01 or abs(np.linalg.norm(axes[3:]) - 1) > 0.01:
        problem = "ImageOrientationPatient that is no direction"
    elif abs(float(axes[:3] @ axes[3:])) > 0.01:
        problem = "ImageOrientationPatient whose directions are not at right angles"
    elif int(data.get("NumberOfFrames") or 1) > 1:
        problem = "several frames a file (enhanced CT); convert it with dcm2niix"
    elif int(data.get("SamplesPerPixel") or 1) != 1 or data.get("PhotometricInterpretation") != "MONOCHROME2":
        problem = "colour or inverted pixels"
    kernel = data.get("ConvolutionKernel") or ""
    kernel = kernel if isinstance(kernel, str) else str(kernel[0])
    parts = [str(part).upper() for part in (data.get("ImageType") or [])]
    return Header(
        path=path,
        series=str(data.get("SeriesInstanceUID") or "none"),
        number=_digits(data.get("SeriesNumber")),
        modality=str(data.get("Modality") or "?"),
        localizer="LOCALIZER" in parts,
        kernel=kernel if len(kernel) <= 8 and kernel.isascii() and kernel.isalnum() else "",
        order=(_int(data.get("AcquisitionNumber")), _int(data.get("InstanceNumber"))),
        tilt=_number(data.get("GantryDetectorTilt")),
        thickness=_number(data.get("SliceThickness")),
        kvp=_number(data.get("KVP")),
        shape=shape,
        spacing=(0.0, 0.0) if spacing is None else (float(spacing[0]), float(spacing[1])),
        axes=None if axes is None else axes.reshape(2, 3),
        position=position,
        problem=problem,
    )


def _floats(data: Dataset, key: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(v) for v in data.get(key) or []])
    except (TypeError, ValueError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _int(value: Any) -> int:
    number = _number(value)
    return 0 if number is None else int(number)


def _digits(value: Any) -> str:
    number = _number(value)
    return "none" if number is None else str(int(number))


def _group(headers: list[Header]) -> list[Series]:
    groups: dict[str, Series] = {}
    for header in headers:
        groups.setdefault(header.series, Series(header.series)).headers.append(header)
    return list(groups.values())


def _choose(series: list[Series], wanted: str) -> Series:
    """Of the CT series that are axial and no localizers: those that cover a head, of these the finest, the longest."""
    listed = "; ".join(one.describe() for one in series[:12])
    if wanted:
        matching = [one for one in series if wanted in (one.uid, one.headers[0].number)]
        if len(matching) != 1:
            what = "no series has" if not matching else f"{len(matching)} series have"
            hint = "" if not matching else " (give its SeriesInstanceUID instead)"
            raise ScanError(f"{what} the number asked for{hint}; there are: {listed}")
        series = matching
    ct = [one for one in series if one.is_ct()]
    if not ct:
        found = sorted({one.headers[0].modality[:4] for one in series})
        raise ScanError(
            f"modality {', '.join(found)}, expected CT: bone and skin are found by their Hounsfield units"
        )
    usable = [one for one in ct if one.usable]
    if not usable:
        problem = next((h.problem for one in ct for h in one.headers if h.problem), "only localizers")
        raise ScanError(f"no image of its CT series can be used: {problem}")
    axial = [one for one in usable if one.axial]
    if not axial:
        raise ScanError(f"no axial CT series; there are: {listed}")
    full = [one for one in axial if one.coverage >= ENOUGH_MM]
    if full:
        return min(
            full, key=lambda one: (round(one.step, 2), -len(one.usable), one.headers[0].number, one.uid)
        )
    return max(axial, key=lambda one: one.coverage)


def _decode(series: Series, max_bytes: int, offset: float) -> Scan:
    """Decode the largest group of like slices; slices that cannot be decoded count as missing."""
    groups: dict[tuple[Any, ...], list[Header]] = {}
    for header in series.usable:
        assert header.axes is not None
        key = (header.shape, *np.round(header.spacing, 4), *np.round(header.axes, 3).ravel())
        groups.setdefault(key, []).append(header)
    headers = max(groups.values(), key=len)
    findings: list[Finding] = []
    unlike = len(series.headers) - len(headers)
    if unlike:
        text = f"{unlike} of {len(series.headers)} images differ in kind, size, spacing or direction, and were left out"
        findings.append(Finding("mixed_series", "flag", unlike, 0, "images", text))
    first = headers[0]
    # Thin, wide series are halved in the plane as often as needed while they are read.
    halvings = 0
    while first.shape[0] * first.shape[1] * len(headers) * 2 >> (2 * halvings) > max_bytes and halvings < 2:
        halvings += 1
    shape = (first.shape[1] >> halvings, first.shape[0] >> halvings, max(len(headers), 16))
    check_size(shape, (*(s * 2**halvings for s in first.spacing), 1.0), 2, max_bytes)
    slices: list[Slice] = []
    broken = 0
    for header in headers:
        values = _pixels(header, offset)
        if values is None:
            broken += 1
            continue
        assert header.axes is not None and header.position is not None
        position = header.position
        for _ in range(halvings):
            values = _halve(values)
        if halvings:  # the middle of the voxels that were joined
            shift = (2**halvings - 1) / 2
            position = position + shift * (
                header.axes[0] * first.spacing[1] + header.axes[1] * first.spacing[0]
            )
        slices.append(Slice(values, position, header.order))
    if broken:
        text = f"{broken} of {len(headers)} images could not be decoded (cut short, damaged, or an unknown coding)"
        findings.append(Finding("undecodable", "flag", broken, 0, "images", text))
    if len(slices) < 16:
        raise ScanError(f"{len(slices)} of its {len(headers)} images can be read, a head needs at least 16")
    assert first.axes is not None
    row, column = first.axes
    scale = 2**halvings
    values, affine, more = stack(slices, row * first.spacing[1] * scale, column * first.spacing[0] * scale)
    scan = Scan(values, affine, _facts(series, first, headers), findings + more)
    _compare_tilt(scan, first)
    return scan


def _pixels(header: Header, offset: float) -> np.ndarray | None:
    """(rows, columns) int16 HU, or None where the file's pixels are damaged."""
    try:
        with quiet():
            data = pydicom.dcmread(header.path)
            pixels = data.pixel_array
            slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    except (
        Exception
    ):  # decoders of damaged data raise anything; what is lost is counted and told by the caller
        return None
    if pixels.shape != header.shape or not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        return None
    return to_hounsfield(pixels * np.float32(slope) + np.float32(intercept), offset)


def _halve(values: np.ndarray) -> np.ndarray:
    rows, columns = (n // 2 for n in values.shape)
    blocks = values[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
    return blocks.mean((1, 3)).round().astype(np.int16)


def _facts(series: Series, first: Header, headers: list[Header]) -> dict[str, Any]:
    facts: dict[str, Any] = {"format": "DICOM", "stored_size": [first.shape[1], first.shape[0], len(headers)]}
    for name, value in (
        ("slice_thickness_mm", first.thickness),
        ("kvp", first.kvp),
        ("kernel", first.kernel),
    ):
        if value:
            facts[name] = value
    return facts


def _compare_tilt(scan: Scan, first: Header) -> None:
    """The header's word on the gantry beside what the slices' positions say."""
    normal = np.cross(scan.affine[:, 0], scan.affine[:, 1])
    along = scan.affine[:, 2]
    cosine = abs(float(normal @ along)) / float(np.linalg.norm(normal) * np.linalg.norm(along))
    measured = math.degrees(math.acos(min(1.0, cosine)))
    scan.facts["gantry_tilt_deg"] = round(measured, 2)
    said = abs(first.tilt or 0.0)
    if abs(said - measured) > 2 and measured < 1:
        text = (
            f"the header says {said:.1f} degrees of gantry tilt, the slices' positions show {measured:.1f}: the stack "
            "may have been straightened without its positions, then the head looks sheared"
        )
        scan.findings.append(Finding("tilt_unclear", "flag", said, 2, "degrees", text))
