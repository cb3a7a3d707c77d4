"""Landmark files ``{"points": [[x, y], ...], "visible": [...]}`` in px of the face picture (or the bare list), and one
file with the landmarks that a network predicted for a whole list of pairs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.files import read_bytes, replacing
from data.images import ImageError, picture_size
from data.manifest import Record

MAX_BYTES = 4_000_000
_EXPECTED = 'expected {"points": [[x, y], ...]} in px of the face picture'


class LandmarksError(ValueError):
    """A landmark file cannot be used; the message names it, what is wrong and what is expected."""


def read_landmarks(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return points (N, 2) in px (x right, y down, pixel centres at integers) and whether each is visible (N,).

    Without ``visible`` all are.

    Raises:
        LandmarksError: missing, not JSON, or not such points.
    """
    value = _read_json(path)
    try:
        points = np.array(value["points"] if isinstance(value, dict) else value, np.float32)
        flags = value.get("visible") if isinstance(value, dict) else None
        visible = np.ones(len(points), bool) if flags is None else np.array(flags, bool)
    except (ValueError, TypeError, KeyError) as error:
        raise _no_landmarks(path, error) from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise LandmarksError(f"{path}: points of shape {points.shape}, or not all finite; {_EXPECTED}")
    if visible.shape != (len(points),):
        raise LandmarksError(f"{path}: {visible.size} values in 'visible' for {len(points)} points")
    return points, visible


def read_confidence(path: Path, num: int) -> NDArray[np.float32]:
    """Return the confidence of each of the ``num`` points of a file, (num,) in [0, 1]; 1 where the file has none.

    Raises:
        LandmarksError: it has something else.
    """
    value = _read_json(path)
    numbers = value.get("confidence") if isinstance(value, dict) else None
    try:
        confidence = np.ones(num, np.float32) if numbers is None else np.array(numbers, np.float32)
    except (ValueError, TypeError) as error:
        raise LandmarksError(f"{path}: 'confidence' cannot be read ({type(error).__name__})") from error
    if confidence.shape != (num,) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise LandmarksError(f"{path}: 'confidence', expected {num} numbers from 0 to 1")
    return confidence


def _read_json(path: Path) -> Any:
    try:
        contents = read_bytes(path)
        if len(contents) > MAX_BYTES:
            raise ValueError(f"{len(contents)} bytes are too many")
        return json.loads(contents)
    except (OSError, ValueError, RecursionError) as error:
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
            with np.load(path, allow_pickle=False) as file:
                content = {key: file[key] for key in KEYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
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
