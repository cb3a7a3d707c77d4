"""Landmark files: ``{"points": [[x, y], ...], "visible": [...]}`` in px of the face picture, or the bare list."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.manifest import Record
from data.shards import ShardError, read_bytes

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
    except (OSError, ShardError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise LandmarksError(f"{path}: no landmarks ({type(error).__name__}: {reason}); {wanted}") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise LandmarksError(f"{path}: points of shape {points.shape}, or not all finite; {wanted}")
    if visible.shape != (len(points),):
        raise LandmarksError(f"{path}: {visible.size} values in 'visible' for {len(points)} points")
    return points, visible


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
    try:
        with Image.open(io.BytesIO(read_bytes(record.face_path))) as picture:
            size = np.array(picture.size, np.float32)
    except (OSError, ShardError, UnidentifiedImageError) as error:
        raise LandmarksError(f"{record.face_path}: cannot be read as a picture ({error})") from error
    longer = size.max()
    return (points + 0.5 + (longer - size) / 2) / longer, visible
