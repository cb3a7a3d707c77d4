"""Landmark files: readable, within the picture, on the face, left where left is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.check.dataset import DataSet, ListLine
from data.check.flaws import Flaw
from data.check.measure import PictureFacts
from data.check.statistics import MIN_PICTURES
from data.landmarks import LandmarksError, fractions_of, read_landmarks

_MARGIN = 0.03  # of the picture's side; contour points lie on the rim
_OFF = 0.1  # share of the points that must be off the face


def check_landmarks(data: DataSet) -> Iterator[Flaw]:
    """Yield all findings about landmark files."""
    readable: list[tuple[ListLine, PictureFacts, np.ndarray]] = []
    done: set[tuple[Path, Path | None]] = set()
    for line in data.lines:
        if line.landmarks is None or (line.landmarks, line.face) in done:
            continue
        done.add((line.landmarks, line.face))
        facts = data.pictures.get(line.face) if line.face is not None else None
        try:
            points, _ = read_landmarks(line.landmarks)
        except LandmarksError as error:
            yield _flaw(line, "landmarks_unreadable", str(error).removeprefix(f"{line.landmarks}: "))
        else:
            if facts is not None and facts.usable:
                readable.append((line, facts, fractions_of(points, (facts.width, facts.height))))
    if not readable:
        return
    usual = Counter(len(points) for *_, points in readable).most_common(1)[0][0]
    alike = [one for one in readable if len(one[2]) == usual]
    for line, _, points in readable:
        if len(points) != usual:
            yield _flaw(line, "landmarks_unreadable", f"{len(points)} points, where {usual} are usual")
    layout = np.median([points - points.mean(0) for *_, points in alike], axis=0)
    for line, facts, points in alike:
        off = _off_face(points, facts)
        if off.mean() > _OFF:
            low, high = points.min() * facts.width, points.max() * facts.width
            detail = (
                f"{off.sum()} of {usual} points are off the face (values from {low:.3g} to {high:.3g} px)"
            )
            yield _flaw(line, "landmarks_off_face", detail)
        elif len(alike) >= MIN_PICTURES // 2:
            across, down = ((points - points.mean(0)) * layout).sum(0)
            if across < 0 or down < 0:
                sides = "left and right" if across < 0 else "top and bottom"
                yield _flaw(line, "landmarks_flipped", f"{sides} are exchanged against the others")


def _off_face(points: np.ndarray, facts: PictureFacts) -> np.ndarray:
    """Return which points (N,) are outside the head's box and a margin; all, where they are on one spot."""
    low, high = np.array(facts.box[:2]), np.array(facts.box[2:])
    if (np.ptp(points, axis=0) < 0.1 * (high - low)).any():
        return np.ones(len(points), bool)
    outside: np.ndarray = np.any((points < low - _MARGIN) | (points > high + _MARGIN), axis=1)
    return outside


def _flaw(line: ListLine, check: str, detail: str) -> Flaw:
    assert line.landmarks is not None
    return line.flaw(check, detail, file=line.landmarks.name)
