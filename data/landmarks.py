"""Landmark files: ``{"points": [[x, y], ...], "visible": [...]}`` in px of the face picture, or the bare list."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.files import PackError, read_bytes
from data.manifest import Record

MAX_BYTES = 4_000_000


class LandmarksError(ValueError):
    """A landmark file that cannot be used; the message names it, what is wrong and what is expected."""


def read_landmarks(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Points (N, 2) in px (x right, y down, pixel centres at integers) and whether each is seen (N,).

    Without ``visible`` all count as seen.

    Raises:
        LandmarksError: missing, not JSON, or not such points.
    """
    wanted = 'expected {"points": [[x, y], ...]} in px of the face picture'
    try:
        contents = read_bytes(path)
        if len(contents) > MAX_BYTES:
            raise LandmarksError(f"{path}: {len(contents)} bytes are too many for landmarks; {wanted}")
        value = json.loads(contents)
        points = np.array(value["points"] if isinstance(value, dict) else value, np.float32)
        seen = value.get("visible") if isinstance(value, dict) else None
        visible = np.ones(len(points), bool) if seen is None else np.array(seen, bool)
    except LandmarksError:
        raise
    except (OSError, PackError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise LandmarksError(f"{path}: no landmarks ({type(error).__name__}: {reason}); {wanted}") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise LandmarksError(f"{path}: points of shape {points.shape}, or not all finite; {wanted}")
    if visible.shape != (len(points),):
        raise LandmarksError(f"{path}: {visible.size} values in 'visible' for {len(points)} points")
    return points, visible


def read_confidence(path: Path, num: int) -> NDArray[np.float32]:
    """How sure each of the ``num`` points of a file is, (num,) in [0, 1]; 1 where the file does not say.

    Raises:
        LandmarksError: it says something else.
    """
    try:
        value = json.loads(read_bytes(path))
        said = value.get("confidence") if isinstance(value, dict) else None
        confidence = np.ones(num, np.float32) if said is None else np.array(said, np.float32)
    except (OSError, PackError, ValueError, TypeError, RecursionError) as error:
        raise LandmarksError(f"{path}: 'confidence' cannot be read ({type(error).__name__})") from error
    if confidence.shape != (num,) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise LandmarksError(f"{path}: 'confidence', expected {num} numbers from 0 to 1")
    return confidence


def landmark_fractions(record: Record) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A record's points as fractions of the square that ``data.images.read_image`` makes of its face picture.

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
    return fractions_of(points, picture_size(record.face_path)), visible


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file in px.

    Raises:
        LandmarksError: it cannot be read as a picture.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as picture:
            return picture.size
    except (OSError, PackError, UnidentifiedImageError) as error:
        raise LandmarksError(f"{path}: cannot be read as a picture ({error})") from error


def fractions_of(points: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Points (N, 2) in px of a picture of ``size`` (width, height) -> fractions of the square it is laid into."""
    longer, own = max(size), np.array(size, np.float32)
    return ((points + 0.5 + (longer - own) / 2) / longer).astype(np.float32)


def pixels_of(fractions: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """What :func:`fractions_of` undoes."""
    longer, own = max(size), np.array(size, np.float32)
    return (fractions * longer - (longer - own) / 2 - 0.5).astype(np.float32)
