"""Landmark files: readable, within the picture, on the face, left where left is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.check.cases import Case, DataSet
from data.check.facts import PictureFacts
from data.check.findings import Finding
from data.check.statistics import MIN_PICTURES
from data.files import read_bytes

_MARGIN = 0.03  # of the picture's side; contour points lie on the rim
_OFF = 0.1  # share of the points that must be off the face
_MAX_BYTES = 4_000_000


def check_landmarks(data: DataSet) -> Iterator[Finding]:
    """All findings about landmark files."""
    found: list[tuple[Case, PictureFacts, np.ndarray]] = []
    seen_files: set[tuple[Path, Path | None]] = set()
    for case in data.cases:
        if case.landmarks is None or (case.landmarks, case.face) in seen_files:
            continue
        seen_files.add((case.landmarks, case.face))
        points = read_points(case.landmarks)
        facts = data.pictures.get(case.face) if case.face is not None else None
        if isinstance(points, str):
            yield _finding(case, "landmarks_unreadable", points)
        elif facts is not None and facts.problem is None and not facts.blank:
            found.append((case, facts, _fractions(points, facts)))
    if not found:
        return
    usual = Counter(len(points) for *_, points in found).most_common(1)[0][0]
    alike = [one for one in found if len(one[2]) == usual]
    for case, _, points in found:
        if len(points) != usual:
            yield _finding(case, "landmarks_unreadable", f"{len(points)} points, where {usual} are usual")
    layout = np.median([_centred(points) for *_, points in alike], axis=0)
    for case, facts, points in alike:
        off = _off_face(points, facts)
        if off.mean() > _OFF:
            low, high = points.min() * facts.width, points.max() * facts.width
            seen = f"{off.sum()} of {usual} points are off the face (values from {low:.3g} to {high:.3g} px)"
            yield _finding(case, "landmarks_off_face", seen)
        elif len(alike) >= MIN_PICTURES // 2:
            across, down = (_centred(points) * layout).sum(0)
            if across < 0 or down < 0:
                what = "left and right" if across < 0 else "top and bottom"
                yield _finding(case, "landmarks_flipped", f"{what} are exchanged against the others")


def read_points(path: Path) -> np.ndarray | str:
    """(N, 2) px, x right and y down; or what is wrong with the file."""
    try:
        contents = read_bytes(path)
        if len(contents) > _MAX_BYTES:
            return f"{len(contents)} bytes: too large for landmarks"
        value = json.loads(contents)
        points = np.array(value["points"] if isinstance(value, dict) else value, float)
    except KeyError:
        return 'no "points" in it; write {"points": [[x, y], ...]} in px'
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return f"not readable: {' '.join(str(error).split())[:80]}"
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        return f"points of shape {points.shape}, expected (N, 2)"
    if not np.isfinite(points).all():
        return "a point is not finite"
    return points


def _fractions(points: np.ndarray, facts: PictureFacts) -> np.ndarray:
    """Px of the file -> fractions of the letterboxed square that everything is measured on."""
    longer = max(facts.width, facts.height)
    offset = np.array([longer - facts.width, longer - facts.height]) / 2
    return (points + 0.5 + offset) / longer


def _centred(points: np.ndarray) -> np.ndarray:
    return points - points.mean(0)


def _off_face(points: np.ndarray, facts: PictureFacts) -> np.ndarray:
    """(N,) which points are outside the picture, or outside the head's box and a margin."""
    left, top, right, bottom = facts.box
    low, high = np.array([left, top]) - _MARGIN, np.array([right, bottom]) + _MARGIN
    outside: np.ndarray = np.any((points < low) | (points > high), axis=1)
    spread = np.ptp(points, axis=0)
    if (spread < 0.1 * (np.array([right, bottom]) - [left, top])).any():
        return np.ones(len(points), bool)  # all on one spot
    return outside


def _finding(case: Case, check: str, seen: str) -> Finding:
    assert case.landmarks is not None
    return case.finding(check, seen, file=case.landmarks.name)
