"""DICOM folders: finds the series in any tree of files, chooses one, and decodes its slices one by one.

The steps: ``_headers``, ``_choose``, ``_like_slices``, ``_slice``, and ``stack`` of ``geometry``.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from data.ct.findings import ScanError, judge
from data.ct.reading.geometry import SMALLEST_SIDE, Slice, check_size, gantry_tilt, stack
from data.ct.reading.scan import Scan, to_hounsfield

# It quotes the values it complains of, names included.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
MAX_FILES = 20_000
MAX_SIDE = 4096
MAX_HALVINGS = 2
AXIAL_COSINE = 0.6  # of the slices' normal with the head-to-foot axis, at least
DIRECTION_TOLERANCE = 0.01  # of the directions' lengths and of the cosine between them
ENOUGH_MM = 100.0  # a series that covers this much counts as a head
TILT_APART_DEG, NO_TILT_DEG = 2.0, 1.0
_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType", "ConvolutionKernel",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "SliceThickness",
    "InstanceNumber", "AcquisitionNumber", "GantryDetectorTilt", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "KVP",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The part of a file that is read before its pixels.

    Attributes:
        shape: rows, columns.  spacing: mm between rows, between columns.
        axes: (2, 3) directions of a row and of a column.  position: (3,) LPS mm of the first pixel.
        order: numbers of acquisition and instance.
        problem: why the file cannot be used; then the geometry may be zeros.
    """

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
    spacing: np.ndarray
    axes: np.ndarray
    position: np.ndarray
    problem: str | None

    @property
    def normal(self) -> np.ndarray:
        return np.cross(*self.axes)


@dataclass
class Series:
    """Files that share a SeriesInstanceUID."""

    uid: str
    headers: list[Header] = field(default_factory=list)

    @property
    def number(self) -> str:
        return self.headers[0].number

    @cached_property
    def usable(self) -> list[Header]:
        return [h for h in self.headers if h.problem is None and not h.localizer and h.modality == "CT"]

    @cached_property
    def heights(self) -> np.ndarray:
        """Return the different places of the slices along their normal, mm, ascending."""
        return np.unique(np.round([float(h.position @ self.usable[0].normal) for h in self.usable], 2))

    @property
    def coverage(self) -> float:
        """Return the mm from the first to the last slice."""
        return float(np.ptp(self.heights)) if self.usable else 0.0

    @property
    def step(self) -> float:
        return float(np.median(np.diff(self.heights))) if len(self.heights) > 1 else math.inf

    @property
    def axial(self) -> bool:
        return bool(self.usable) and abs(float(self.usable[0].normal[2])) >= AXIAL_COSINE

    def describe(self) -> str:
        """Return a line without descriptions and UIDs, which may hold names."""
        one = self.headers[0]
        kind = "localizer" if one.localizer else one.modality[:4]
        text = f"series={one.number}: {kind}, {len(self.headers)} images of {one.shape[1]} x {one.shape[0]}"
        if math.isfinite(self.step):
            text += f", {self.step:.2f} mm apart over {self.coverage:.0f} mm"
            text += ("" if self.axial else ", not axial") + (f", kernel {one.kernel}" if one.kernel else "")
        return text


def read_folder(folder: Path, requested: str, max_bytes: int, offset: float) -> Scan:
    """Return the chosen series of all DICOM files below ``folder``. Raises: ScanError, see ``read_scan``."""
    headers, others = _headers(folder)
    if not headers:
        raise ScanError(f"no DICOM image among its {others} files: expected a DICOM folder or a volume file")
    groups: dict[str, Series] = {}
    for header in headers:
        groups.setdefault(header.series, Series(header.series)).headers.append(header)
    series = list(groups.values())
    chosen = _choose(series, requested)
    scan = _decode(chosen, max_bytes, offset)
    scan.facts["series_found"] = [one.describe() for one in series]
    scan.facts["series_used"] = chosen.number
    scan.facts["other_files"] = others
    if sum(bool(one.usable) for one in series) > 1:
        scan.findings += judge("several_series", len(series), chosen=chosen.describe())
    return scan


def _headers(folder: Path) -> tuple[list[Header], int]:
    """Return the headers of all images below ``folder``, by name, and the number of other files."""
    headers: list[Header] = []
    others = 0
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if len(headers) + others >= MAX_FILES:
                raise ScanError(f"more than {MAX_FILES} files: give the folder of one patient")
            header = _header(Path(base) / name)
            if header is None:
                others += 1
            else:
                headers.append(header)
    return headers, others


def _header(path: Path) -> Header | None:
    """Return None for a file that is no DICOM image."""
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote values, names included
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            if "Rows" not in data:  # DICOMDIR, reports, dose records
                return None
            return _parse(path, data)
    except Exception:  # anything may be in a file: whatever pydicom stumbles over is no DICOM image
        return None


def _parse(path: Path, data: Dataset) -> Header:
    axes = _floats(data, "ImageOrientationPatient", 6)
    position = _floats(data, "ImagePositionPatient", 3)
    spacing = _floats(data, "PixelSpacing", 2)
    shape = (_int(data.get("Rows")), _int(data.get("Columns")))
    kernel = data.get("ConvolutionKernel") or ""
    kernel = kernel if isinstance(kernel, str) else str(kernel[0])
    number = _number(data.get("SeriesNumber"))
    return Header(
        path=path,
        series=str(data.get("SeriesInstanceUID") or "none"),
        number="none" if number is None else str(int(number)),
        modality=str(data.get("Modality") or "?"),
        localizer="LOCALIZER" in [str(part).upper() for part in (data.get("ImageType") or [])],
        kernel=kernel if len(kernel) <= 8 and kernel.isascii() and kernel.isalnum() else "",
        order=(_int(data.get("AcquisitionNumber")), _int(data.get("InstanceNumber"))),
        tilt=_number(data.get("GantryDetectorTilt")),
        thickness=_number(data.get("SliceThickness")),
        kvp=_number(data.get("KVP")),
        shape=shape,
        spacing=np.zeros(2) if spacing is None else spacing,
        axes=np.zeros((2, 3)) if axes is None else axes.reshape(2, 3),
        position=np.zeros(3) if position is None else position,
        problem=_geometry_problem(shape, axes, position, spacing) or _pixel_problem(data),
    )


def _geometry_problem(
    shape: tuple[int, int], axes: np.ndarray | None, position: np.ndarray | None, spacing: np.ndarray | None
) -> str | None:
    """Return why an image cannot be placed, or None."""
    if not (1 < shape[0] <= MAX_SIDE and 1 < shape[1] <= MAX_SIDE):
        return f"a size of {shape[1]} x {shape[0]} px"
    if axes is None or position is None:
        return "no ImageOrientationPatient or ImagePositionPatient"
    if spacing is None or min(spacing) <= 0 or max(spacing) > 10:
        return "no usable PixelSpacing"
    row, column = axes.reshape(2, 3)
    if max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1)) > DIRECTION_TOLERANCE:
        return "ImageOrientationPatient that is no direction"
    if abs(float(row @ column)) > DIRECTION_TOLERANCE:
        return "ImageOrientationPatient whose directions are not at right angles"
    return None


def _pixel_problem(data: Dataset) -> str | None:
    """Return why an image's pixels cannot be used, or None."""
    if int(data.get("NumberOfFrames") or 1) > 1:
        return "several frames a file (enhanced CT); convert it with dcm2niix"
    if int(data.get("SamplesPerPixel") or 1) != 1 or data.get("PhotometricInterpretation") != "MONOCHROME2":
        return "colour or inverted pixels"
    return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _int(value: Any) -> int:
    return int(_number(value) or 0)


def _floats(data: Dataset, key: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(v) for v in data.get(key) or []])
    except (TypeError, ValueError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _choose(series: list[Series], requested: str) -> Series:
    """Return the axial CT series that covers a head with the finest, then the most slices. Raises: ScanError."""
    listed = "; ".join(one.describe() for one in series[:12])
    if requested:
        matching = [one for one in series if requested in (one.uid, one.number)]
        if len(matching) > 1:
            raise ScanError(
                f"{len(matching)} series have the number asked for: give the SeriesInstanceUID; there are: {listed}"
            )
        if not matching:
            raise ScanError(f"no series has the number asked for; there are: {listed}")
        series = matching
    ct = [one for one in series if any(h.modality == "CT" for h in one.headers)]
    if not ct:
        modalities = ", ".join(sorted({one.headers[0].modality[:4] for one in series}))
        raise ScanError(
            f"modality {modalities}, expected CT: bone and skin are found by their Hounsfield units"
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
        return min(full, key=lambda one: (round(one.step, 2), -len(one.usable), one.number, one.uid))
    return max(axial, key=lambda one: one.coverage)


def _decode(series: Series, max_bytes: int, offset: float) -> Scan:
    """Return the volume of the largest group of like slices."""
    headers = _like_slices(series)
    first = headers[0]
    halvings = _halvings(first, len(headers), max_bytes)
    slices = [one for header in headers if (one := _slice(header, offset, halvings)) is not None]
    if len(slices) < SMALLEST_SIDE:
        raise ScanError(
            f"{len(slices)} of its {len(headers)} images can be read, a head needs at least {SMALLEST_SIDE}"
        )
    findings = judge("mixed_series", len(series.headers) - len(headers), total=len(series.headers))
    findings += judge("undecodable", len(headers) - len(slices), total=len(headers))
    along_i, along_j = first.axes * first.spacing[::-1, None] * 2**halvings
    values, affine, more = stack(slices, along_i, along_j)
    facts: dict[str, Any] = {"format": "DICOM", "stored_size": [first.shape[1], first.shape[0], len(headers)]}
    optional = {"slice_thickness_mm": first.thickness, "kvp": first.kvp, "kernel": first.kernel}
    facts |= {name: value for name, value in optional.items() if value}
    measured = gantry_tilt(affine)
    facts["gantry_tilt_deg"] = round(measured, 2)
    stated = abs(first.tilt or 0.0)
    if measured < NO_TILT_DEG and abs(stated - measured) > TILT_APART_DEG:
        more += judge("tilt_unclear", stated, measured=measured)
    return Scan(values, affine, facts, findings + more)


def _like_slices(series: Series) -> list[Header]:
    """Return the largest group of images with one size, spacing and direction."""
    groups: dict[tuple[Any, ...], list[Header]] = {}
    for header in series.usable:
        key = (header.shape, *np.round(header.spacing, 4), *np.round(header.axes, 3).ravel())
        groups.setdefault(key, []).append(header)
    return max(groups.values(), key=len)


def _halvings(first: Header, count: int, max_bytes: int) -> int:
    """Return how often slices are halved in the plane: thin, wide series would not fit otherwise. Raises: ScanError."""
    halvings = 0
    while (
        2 * count * first.shape[0] * first.shape[1] >> (2 * halvings) > max_bytes and halvings < MAX_HALVINGS
    ):
        halvings += 1
    shape = (first.shape[1] >> halvings, first.shape[0] >> halvings, max(count, SMALLEST_SIDE))
    check_size(shape, (*(s * 2**halvings for s in first.spacing.tolist()), 1.0), 2, max_bytes)
    return halvings


def _slice(header: Header, offset: float, halvings: int) -> Slice | None:
    """Return one decoded image, or None where its pixels are damaged."""
    values = _pixels(header, offset)
    if values is None:
        return None
    for _ in range(halvings):
        rows, columns = (n // 2 for n in values.shape)
        blocks = values[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
        values = blocks.mean((1, 3)).round().astype(np.int16)
    middle = (2**halvings - 1) / 2  # of the pixels that were joined
    position = header.position + middle * (header.spacing[::-1] @ header.axes)
    return Slice(values, position, header.order)


def _pixels(header: Header, offset: float) -> np.ndarray | None:
    """Return (rows, columns) int16 HU, or None where the file's pixels are damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote values, names included
            data = pydicom.dcmread(header.path)
            pixels = data.pixel_array
            slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    except Exception:  # decoders of damaged data raise anything; the caller counts what is lost
        return None
    if pixels.shape != header.shape or not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        return None
    return to_hounsfield(pixels * np.float32(slope) + np.float32(intercept), offset)
