"""The headers of DICOM images: one record for each slice, also for each frame of a multi-frame file."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from data.ct.findings import Finding, ScanError, judge
from data.ct.reading.kinds import dicom_start

# It quotes the values it complains of, names included.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
MAX_IMAGES = 20_000
MAX_SIDE = 4096
NO_SERIES = "none"  # stands for an empty SeriesInstanceUID
DIRECTION_TOLERANCE = 0.01  # of the directions' lengths and of the cosine between them
CT_CLASSES = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
SCOUTS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANO")
PROJECTIONS = ("MIP", "MINIP", "PROJECTION IMAGE", "RENDERED", "VRT")
_PEOPLE = ("PatientID", "PatientName", "PatientBirthDate")
_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType", "FrameType", "ConvolutionKernel",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "SliceThickness",
    "InstanceNumber", "AcquisitionNumber", "FrameAcquisitionNumber", "GantryDetectorTilt", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "KVP", "StudyInstanceUID", *_PEOPLE,
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation",
]  # fmt: skip
_GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


@dataclass(frozen=True, eq=False)
class Header:
    """The part of an image that is read before its pixels; one equals itself alone.

    Attributes:
        frame: its place in the file, from 0.  person: number, name and date of birth, for comparison alone.
        scout, projection: whether the type of the image says so.
        shape: rows, columns.  spacing: mm between rows, between columns.
        axes: (2, 3) directions of a row and of a column.  position: (3,) LPS mm of the first pixel.
        order: numbers of acquisition and instance.
        slope, intercept: from stored values to HU; None where the file holds something else than a usable number.
        padding: stored values, lowest and highest, that stand for "not measured".
        compressed: whether a decoder has to read the pixels.
        inverted: on the screen; the stored values mean the same HU.
        problem: why the image cannot be used; then the geometry may be zeros.
    """

    path: Path
    frame: int
    series: str
    study: str
    person: tuple[str, ...]
    number: str
    modality: str
    scout: bool
    projection: bool
    kernel: str
    order: tuple[int, int]
    tilt: float | None
    thickness: float | None
    kvp: float | None
    shape: tuple[int, int]
    spacing: np.ndarray
    axes: np.ndarray
    position: np.ndarray
    slope: float | None
    intercept: float | None
    padding: tuple[int, int] | None
    compressed: bool
    inverted: bool
    problem: str | None

    @property
    def normal(self) -> np.ndarray:
        return np.cross(*self.axes)


def read_headers(files: list[Path]) -> tuple[list[Header], int, list[Finding]]:
    """Return the headers of all images in ``files``, the number of files without one, and the flag of damaged ones.

    The flag names no file: names may be those of people.

    Raises:
        ScanError: too many images.
    """
    headers: list[Header] = []
    others, damaged = 0, []
    for number, path in enumerate(files, 1):
        images = _images(path)
        headers += images or []
        others += not images
        damaged += [number] if images is None else []
        if len(headers) > MAX_IMAGES:
            raise ScanError(f"more than {MAX_IMAGES} images: give the folder of one patient")
    return (
        headers,
        others,
        judge("damaged_headers", len(damaged), first=min(damaged, default=0), total=len(files)),
    )


def read_dataset(path: Path, **options: Any) -> Dataset:
    """Return a file's elements, with the coding of its pixels where the file does not state it."""
    data = pydicom.dcmread(path, force=True, **options)
    meta = getattr(data, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:
        implicit, little = data.original_encoding
        plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data.file_meta = meta or FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else plain
    return data


def _images(path: Path) -> list[Header] | None:
    """Return the headers of a file's images; none for a file of another kind, None for damaged headers of a CT."""
    start = dicom_start(path)
    if not start:
        return []
    classes: set[str] = set()
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote values, names included
            data = read_dataset(path, stop_before_pixels=True, specific_tags=_TAGS + _GROUPS)
            if "Rows" in data:
                compressed = data.file_meta.TransferSyntaxUID not in uid.UncompressedTransferSyntaxes
                return [_parse(path, k, frame, compressed) for k, frame in enumerate(_frames(data))]
            classes = {
                str(data.get("SOPClassUID", "")),
                str(data.file_meta.get("MediaStorageSOPClassUID", "")),
            } - {""}
    except Exception:  # anything may be in a file; where pydicom stumbles, no class is known
        pass
    # DICOMDIR, reports and dose records have a class of their own. Without a preamble it may be no DICOM at all.
    return None if classes & {*CT_CLASSES} or (not classes and start == "whole") else []


def _frames(data: Dataset) -> Iterator[Dataset]:
    """Return the elements of each frame: those of the file, of all its frames, and of the frame alone.

    Source: DICOM PS3.3 C.7.6.16, multi-frame functional groups.
    """
    shared, frames = (data.get(name) or [] for name in _GROUPS)
    if not frames:
        yield data
    own = Dataset()
    own.update({element.tag: element for element in data if element.keyword in _TAGS})
    for frame in frames:
        flat = Dataset()
        flat.update(own)
        for group in (*shared, frame):
            flat.update({one.tag: one for one in group.iterall() if one.keyword in _TAGS})
        flat.NumberOfFrames = 1
        yield flat


def _parse(path: Path, frame: int, data: Dataset, compressed: bool) -> Header:
    axes = _floats(data, "ImageOrientationPatient", 6)
    position = _floats(data, "ImagePositionPatient", 3)
    spacing = _floats(data, "PixelSpacing", 2)
    shape = (_int(data.get("Rows")), _int(data.get("Columns")))
    kernel = data.get("ConvolutionKernel") or ""
    kernel = kernel if isinstance(kernel, str) else str(kernel[0])
    number = _number(data.get("SeriesNumber"))
    kind = [part for key in ("ImageType", "FrameType") for part in str(data.get(key, "")).upper().split("'")]
    acquisition = data.get("FrameAcquisitionNumber") or data.get("AcquisitionNumber")
    modality = data.get("Modality") or ("CT" if data.get("SOPClassUID") in CT_CLASSES else "?")
    return Header(
        path=path,
        frame=frame,
        series=str(data.get("SeriesInstanceUID") or NO_SERIES),
        study=str(data.get("StudyInstanceUID") or ""),
        person=tuple(" ".join(str(data.get(key) or "").upper().replace("^", " ").split()) for key in _PEOPLE),
        number="none" if number is None else str(int(number)),
        modality=str(modality),
        scout=any(word in part for part in kind for word in SCOUTS),
        projection=any(part.endswith(PROJECTIONS) for part in kind),
        kernel=kernel if len(kernel) <= 8 and kernel.isascii() and kernel.isalnum() else "",
        order=(_int(acquisition), _int(data.get("InstanceNumber")) or frame),
        tilt=_number(data.get("GantryDetectorTilt")),
        thickness=_number(data.get("SliceThickness")),
        kvp=_number(data.get("KVP")),
        shape=shape,
        spacing=np.zeros(2) if spacing is None else spacing,
        axes=np.zeros((2, 3)) if axes is None else axes.reshape(2, 3),
        position=np.zeros(3) if position is None else position,
        slope=_number(data.get("RescaleSlope", 1)) or None,
        intercept=_number(data.get("RescaleIntercept", 0)),
        padding=_padding(data),
        compressed=compressed,
        inverted=data.get("PhotometricInterpretation") == "MONOCHROME1",
        problem=_problem(data, shape, axes, position, spacing),
    )


def _padding(data: Dataset) -> tuple[int, int] | None:
    """Return the stored values that pad, lowest and highest; signed or not as the pixels are, whatever was written."""
    value = _number(data.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _number(data.get("PixelPaddingRangeLimit"))
    turn = 1 << max(8, min(32, _int(data.get("BitsAllocated")) or 16))
    lowest = -turn // 2 if _int(data.get("PixelRepresentation")) else 0
    low, high = sorted((int(v) - lowest) % turn + lowest for v in (value, value if limit is None else limit))
    return low, high


def _problem(
    data: Dataset,
    shape: Sequence[int],
    axes: np.ndarray | None,
    position: np.ndarray | None,
    spacing: np.ndarray | None,
) -> str | None:
    """Return why an image cannot be placed, or its pixels cannot be used, or None."""
    if not (1 < shape[0] <= MAX_SIDE and 1 < shape[1] <= MAX_SIDE):
        return f"a size of {shape[1]} x {shape[0]} px"
    if axes is None or position is None:
        return "no ImageOrientationPatient or ImagePositionPatient"
    if spacing is None or min(spacing) <= 0 or max(spacing) > 10:
        return "no usable PixelSpacing"
    directions = axes.reshape(2, 3)
    if (np.abs(directions @ directions.T - np.eye(2)) > DIRECTION_TOLERANCE * (1 + np.eye(2))).any():
        return "ImageOrientationPatient that is no pair of directions at right angles"
    if int(data.get("NumberOfFrames") or 1) > 1:
        return "several frames in a file without a place for each; export them as single slices"
    if (
        int(data.get("SamplesPerPixel") or 1) != 1
        or str(data.get("PhotometricInterpretation"))[:-1] != "MONOCHROME"
    ):
        return "colour pixels"
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
