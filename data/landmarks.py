"""Landmark files, and one file with the landmarks that a network predicted for a whole list of pairs.

A data set has ``{"points": [[x, y], ...], "visible": [...]}`` in px of the face picture, or the bare list.
``sample.py`` writes one named and numbered point a line, in px of the skull picture, for people to edit. Both are read
everywhere.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.files import read_bytes, replacing
from data.images import ImageError, picture_size
from data.manifest import Record
from settings.parsing import decoded, parse_json

MAX_BYTES = 4_000_000
MAX_POINTS = 10_000
_EXPECTED = (
    'expected {"points": [...]} in px of the picture, each [x, y] or {"number": 16, "x": 128.4, "y": 230.1}'
)
FAR = 0.06  # of the picture's longer side: a point that was moved by more may be a typing error
_GROUPS = (  # of the 106 points, in their order (data/templates/README.md); R and L: the person's right and left
    ("jaw", "|".join([*(f"jaw {k} R" for k in range(16, 0, -1)), "menton", *(f"jaw {k} L" for k in range(1, 17))])),
    ("brow", "brow outer end R|brow upper 1 R|brow upper 2 R|brow upper 3 R|brow upper 4 R|brow lower 4 R|"
     "brow lower 3 R|brow lower 2 R|brow lower 1 R|brow upper 4 L|brow upper 3 L|brow upper 2 L|brow upper 1 L|"
     "brow outer end L|brow lower 1 L|brow lower 2 L|brow lower 3 L|brow lower 4 L"),
    ("nose", "nasion|nose bridge 1|nose bridge 2|nose tip|nose root R|nose wing upper R|alare R|"
     "nose wing lower R|nostril R|subnasale|nostril L|nose wing lower L|alare L|nose wing upper L|"
     "nose root L"),
    ("eye", "exocanthion R|upper lid outer R|upper lid middle R|upper lid inner R|endocanthion R|lower lid inner R|"
     "lower lid middle R|lower lid outer R|eye centre R|endocanthion L|upper lid inner L|upper lid middle L|"
     "upper lid outer L|exocanthion L|lower lid outer L|lower lid middle L|lower lid inner L|eye centre L"),
    ("mouth", "cheilion R|upper lip outer R|upper lip peak R|labiale superius|upper lip peak L|upper lip outer L|"
     "cheilion L|lower lip outer L|lower lip inner L|labiale inferius|lower lip inner R|lower lip outer R|"
     "mouth line corner R|mouth line upper R|stomion upper|mouth line upper L|mouth line corner L|mouth line lower L|"
     "stomion lower|mouth line lower R"),
    ("eye", "pupil R|pupil L"),
)  # fmt: skip
_SIDES = {" R": " right", " L": " left"}
_NAMES = [
    (name[:-2] + _SIDES.get(name[-2:], name[-2:]), group)
    for group, names in _GROUPS
    for name in names.split("|")
]


class LandmarksError(ValueError):
    """A landmark file cannot be used; the message names it, what is wrong and what is expected."""


@dataclass(frozen=True)
class LandmarkFile:
    """What a file of landmarks holds.

    points: (N, 2) in px, x right, y down, pixel centres at integers. visible: (N,). confidence: (N,) in [0, 1].
    before: (N, 2), where a network read the points off the skull; NaN where that is not known.
    prepared: whether the points lie in the prepared picture of the skull, not in its own.
    """

    points: NDArray[np.float32]
    visible: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    before: NDArray[np.float32]
    prepared: bool = False

    @property
    def num_edited(self) -> int:
        """How many points a person has moved."""
        return int((self._moved > 0.05).sum())  # of two points that are written with one decimal

    @property
    def _moved(self) -> NDArray[np.float32]:
        return np.linalg.norm(self.points - self.before, axis=1)

    def doubts(self, size: tuple[int, int]) -> str | None:
        """Return what a person who edited the points should look at again, or None.

        size: width and height of the picture in px.

        Raises:
            LandmarksError: a point farther outside the picture than the picture is long.
        """
        longer, own = max(size), np.array(size, np.float32)
        beyond = np.maximum(-0.5 - self.points, self.points - (own - 0.5)).max(1)  # px outside the picture
        moved = self._moved
        if beyond.max() > longer:
            place = _place(int(beyond.argmax()), self.points)
            raise LandmarksError(f"{place}, far outside the picture of {size[0]} x {size[1]} px; correct it")
        notes = [
            f"{_place(k, self.points)}, outside the picture" for k in np.flatnonzero(beyond > 0).tolist()
        ]
        notes += [
            f"{_place(k, self.points)}, {moved[k]:.1f} px from where it was: a typing error?"
            for k in np.flatnonzero(moved > FAR * longer).tolist()
        ]
        more = [f"and {len(notes) - 8} more"] if len(notes) > 8 else []
        edited = self.num_edited
        return (
            "; ".join(
                ([f"{edited} point{'s were' if edited > 1 else ' was'} edited"] if edited else [])
                + notes[:8]
                + more
            )
            or None
        )


def point_name(number: int, num: int) -> tuple[str, str]:
    """Return name and group of a point of a set of ``num``; sets other than the 106 have no names."""
    return _NAMES[number] if num == len(_NAMES) else (f"point {number}", "points")


def _place(number: int, points: NDArray[np.floating]) -> str:
    x, y = points[number]
    return f"point {number} ({point_name(number, len(points))[0]}) lies at x {x:.1f}, y {y:.1f}"


def landmarks_text(
    points: NDArray[np.floating],
    confidence: NDArray[np.floating],
    head: Mapping[str, Any],
    before: NDArray[np.floating] | None = None,
) -> str:
    """Return a file of points (N, 2) in px for people to edit: JSON, one point a line.

    head: entries before them. before: of LandmarkFile; where it is NaN, and by default, a point's own place.
    """
    origins = points if before is None else np.where(np.isnan(before), points, before)
    lines = []
    for number, (place, sure, origin) in enumerate(zip(points, confidence.tolist(), origins, strict=True)):
        name, group = point_name(number, len(points))
        (x, y), was = ([round(value, 1) for value in one.tolist()] for one in (place, origin))
        line = {"number": number, "name": name, "group": group, "x": x, "y": y}
        lines.append(json.dumps({**line, "confidence": round(sure, 3), "before": was}))
    entries = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    points_entry = '"points": [\n' + ",\n".join(lines) + "\n]"
    return "{\n" + ",\n".join([*entries, points_entry]) + "\n}\n"


def read_landmarks(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return points (N, 2) in px and whether each is visible (N,), of :func:`read_landmark_file`."""
    content = read_landmark_file(path)
    return content.points, content.visible


def read_landmark_file(path: Path) -> LandmarkFile:
    """Read a file of landmarks: of a data set, or one that ``sample.py`` wrote and a person has edited.

    Where ``visible`` or ``confidence`` is missing, all points are visible, and the confidence is 1.

    Raises:
        LandmarksError: missing, not JSON, or not such points.
    """
    value = _read_json(path)
    rows = value.get("points") if isinstance(value, dict) else value
    prepared = isinstance(value, dict) and value.get("prepared") is True
    if isinstance(rows, list) and any(isinstance(row, dict) for row in rows):
        value = _columns(path, rows)
    more = {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else {}
    try:
        points = np.array(value["points"] if isinstance(value, dict) else value, np.float32)
        visible = np.array(more.get("visible", [True] * len(points)), bool)
        confidence = np.array(more.get("confidence", [1.0] * len(points)), np.float32)
        before = np.array(more.get("before", [[math.nan] * 2] * len(points)), np.float32)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _no_landmarks(path, error) from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise LandmarksError(f"{path}: points of shape {points.shape}, or not all finite; {_EXPECTED}")
    if visible.shape != (len(points),):
        raise LandmarksError(f"{path}: {visible.size} values in 'visible' for {len(points)} points")
    if before.shape != points.shape:
        raise LandmarksError(f"{path}: 'before', expected two numbers for each point")
    if confidence.shape != (len(points),) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise LandmarksError(f"{path}: 'confidence', expected {len(points)} numbers from 0 to 1")
    return LandmarkFile(points, visible, confidence, before, prepared)


def _columns(path: Path, rows: list[Any]) -> dict[str, list[Any]]:
    """Return the lines of an edited file by number, as columns. Raises: LandmarksError, which names the point."""
    by_number: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows, 1):
        number = row.get("number") if isinstance(row, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_POINTS:
            raise LandmarksError(f"{path}: 'number' of entry {place} is {number!r}, expected 0, 1, 2 ...")
        if number in by_number:
            raise LandmarksError(f"{path}: point {number} stands there twice; each number is needed once")
        for axis in ("x", "y"):
            got = row.get(axis)
            if isinstance(got, bool) or not isinstance(got, int | float) or not abs(got) < 1e6:
                name = f" ({row['name']})" if "name" in row else ""
                raise LandmarksError(
                    f"{path}: {axis} of point {number}{name} is {got!r}, expected px, such as 128.4"
                )
        by_number[number] = row
    if lacking := sorted({*range(max(by_number))} - {*by_number}):
        raise LandmarksError(
            f"{path}: point {', '.join(map(str, lacking[:8]))} is missing; each number is needed once"
        )
    ordered = [by_number[number] for number in range(len(rows))]
    return {
        "points": [[row["x"], row["y"]] for row in ordered],
        "confidence": [row.get("confidence", 1.0) for row in ordered],
        "before": [row.get("before", [math.nan, math.nan]) for row in ordered],
    }


def _read_json(path: Path) -> Any:
    try:
        contents = read_bytes(path)
        if len(contents) > MAX_BYTES:
            raise ValueError(f"{len(contents)} bytes are too many")
        return parse_json(decoded(contents, ""), "")
    except (OSError, ValueError) as error:
        raise _no_landmarks(path, error) from error


def _no_landmarks(path: Path, error: Exception) -> LandmarksError:
    reason = " ".join(str(error).split())[:120]
    return LandmarksError(f"{path}: no landmarks ({type(error).__name__}: {reason}); {_EXPECTED}")


def landmark_fractions(record: Record) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a record's points as fractions of the square that ``data.images.read_image`` makes of its face picture.

    0 is the left (upper) edge of the square's first pixel, 1 the right (lower) edge of its last.

    Raises:
        LandmarksError: the record names no landmarks, or they or the size of the face picture cannot be read.
    """
    if record.landmarks_path is None or record.face_path is None:
        lacks = "'landmarks'" if record.landmarks_path is None else "'target'"
        raise LandmarksError(
            f"line {record.line} ({record.source}) has no {lacks}: landmarks are trained on faces with known points; "
            "python -m data.cohort makes such pairs"
        )
    points, visible = read_landmarks(record.landmarks_path)
    try:
        return fractions_of(points, picture_size(record.face_path)), visible
    except ImageError as error:
        raise LandmarksError(str(error)) from error


def fractions_of(points: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return points (N, 2) in px of a picture of ``size`` (width, height) as fractions of its letterboxed square."""
    longer, own = max(size), np.array(size, np.float32)
    return ((points + 0.5 + (longer - own) / 2) / longer).astype(np.float32)


def pixels_of(fractions: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Undo :func:`fractions_of`."""
    longer, own = max(size), np.array(size, np.float32)
    return (fractions * longer - (longer - own) / 2 - 0.5).astype(np.float32)


# --- landmarks that a network predicted -------------------------------------------------------------------

KEYS = ("sources", "targets", "points", "confidences", "folds")
_KINDS = ("U", "U", "f", "f", "iu")  # of their numbers
_MOST_BYTES = 1 << 30
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class PredictionsError(ValueError):
    """A file of predicted landmarks cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class PredictedLandmarks:
    """Predicted points of M pairs.

    sources, targets: the pairs' names in their manifest. points: (M, N, 2) float32, fractions of the picture.
    confidences: (M, N) float32 in [0, 1]. folds: (M,), which network read each: one not trained on its subject.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    points: NDArray[np.float32]
    confidences: NDArray[np.float32]
    folds: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        points: NDArray[np.float32],
        confidences: NDArray[np.float32],
        folds: NDArray[np.int64],
    ) -> PredictedLandmarks:
        """Return the points of ``records``, row by row."""
        return cls([r.source for r in records], [r.target or "" for r in records], points, confidences, folds)

    def rows_of(self, records: Sequence[Record]) -> NDArray[np.int64]:
        """Return the row of each record, (R,).

        Raises:
            PredictionsError: a pair that is not in the file.
        """
        place = {pair: row for row, pair in enumerate(zip(self.sources, self.targets, strict=True))}
        lacking = [r for r in records if (r.source, r.target or "") not in place]
        if lacking:
            first = lacking[0]
            raise PredictionsError(
                f"the predicted landmarks lack {len(lacking)} of {len(records)} pairs (the first: {first.source}, line "
                f"{first.line}); make them of the same list: python -m muti_control.training.crossfit"
            )
        return np.array([place[(r.source, r.target or "")] for r in records], np.int64)

    def write(self, path: Path) -> None:
        """Write one NumPy archive, whole or not at all."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                sources=np.array(self.sources, np.str_),
                targets=np.array(self.targets, np.str_),
                points=self.points.astype(np.float32),
                confidences=self.confidences.astype(np.float32),
                folds=self.folds.astype(np.int64),
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PredictedLandmarks:
        """Read what :meth:`write` wrote; nothing in the file is executed.

        Raises:
            PredictionsError: missing, broken, or no such file.
        """
        try:
            if not os.path.isfile(path):
                raise FileNotFoundError("no such file")
            with zipfile.ZipFile(path) as archive:
                if (size := sum(entry.file_size for entry in archive.infolist())) > _MOST_BYTES:
                    raise ValueError(f"{size} bytes unpacked, expected at most {_MOST_BYTES}")
            with np.load(path, allow_pickle=False) as file:
                content = {key: file[key] for key in KEYS}
            for key, kind in zip(KEYS, _KINDS, strict=True):
                if content[key].dtype.kind not in kind or not content[key].ndim:
                    raise ValueError(f"{key} is {content[key].dtype}, {content[key].ndim}-dimensional")
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:120]
            raise PredictionsError(
                f"{path} holds no predicted landmarks ({type(error).__name__}: {reason}); python -m "
                "muti_control.training.crossfit writes such a file"
            ) from error
        points, num = content["points"], len(content["sources"])
        whole = points.ndim == 3 and points.shape[2] == 2 and content["confidences"].shape == points.shape[:2]
        if not whole or not len(points) == num == len(content["targets"]) == len(content["folds"]):
            raise PredictionsError(
                f"{path}: points of shape {points.shape} for {num} pairs; make the file anew"
            )
        if not (np.isfinite(points).all() and np.isfinite(content["confidences"]).all()):
            raise PredictionsError(f"{path}: not all numbers are finite; make the file anew")
        return cls(
            content["sources"].tolist(),
            content["targets"].tolist(),
            points.astype(np.float32),
            content["confidences"].astype(np.float32),
            content["folds"].astype(np.int64),
        )
