"""What can be told from a skull beside its face: alignment, mirroring, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data.check.cases import DataSet
from data.check.facts import SIZE
from data.check.findings import Finding
from data.check.fit import Fit, Pair
from data.check.statistics import MIN_PICTURES, limit, where

MIN_PAIRS = 150  # fewer do not teach which face belongs to which skull
_OUTSIDE = 0.01  # share of the bone


def check_pairs(data: DataSet, tolerance: float, spoilt: frozenset[tuple[str, int]]) -> Iterator[Finding]:
    """All findings about pairs. Nothing is learned from the lines in ``spoilt``, whose pictures are wrong."""
    pairs = list(data.good_pairs())
    for case, skull, face, _ in pairs:
        if skull.digest == face.digest:
            yield case.finding("same_picture", f"{skull.path.name} and {face.path.name} are the same picture")
    if len(pairs) >= 4 and np.median([s.area - f.area for _, s, f, _ in pairs]) > 0.01:
        yield Finding("swapped", "most skulls are larger than their faces: the two folders are exchanged")
        return
    shifted = set()
    for finding in _alignment(pairs, tolerance):
        shifted.add((finding.list_name, finding.line))
        yield finding
    out = spoilt | shifted
    rest = [
        pair
        for pair in pairs
        if (pair[0].list_name, pair[0].line) not in out and pair[1].digest != pair[2].digest
    ]
    if len(rest) >= MIN_PAIRS:
        for k, (check, seen) in Fit.of(rest).doubtful(rest, tolerance).items():
            yield rest[k][0].finding(check, seen)


def _alignment(pairs: Sequence[Pair], tolerance: float) -> Iterator[Finding]:
    if not pairs:
        return
    outside = np.array([pair.outside for *_, pair in pairs])
    enough = len(pairs) >= MIN_PICTURES
    usual, allowed = limit(outside, _OUTSIDE, tolerance) if enough else (0.0, 0.05)
    beyond = outside > usual + allowed
    for k in where(beyond):
        seen = f"{outside[k]:.1%} of the bone lies outside the face"
        yield pairs[k][0].finding("bone_outside", seen)
    if not enough:
        return
    measures = {
        "the face lies {:+.0f} px to the right of the skull": (np.array([p.shift for *_, p in pairs]), 3.0),
        "its crown is {:.0f} px above the skull's": (np.array([p.gap for *_, p in pairs]), 4.0),
        "its vault is {:.2f} times as wide as the skull's": (np.array([p.scale for *_, p in pairs]), 0.06),
    }
    seen_of: dict[int, list[str]] = {}
    for text, (values, floor) in measures.items():
        usual, allowed = limit(values, floor, tolerance)
        for k in where(~(np.abs(values - usual) <= allowed)):
            note = f"{text.format(values[k])} (usual {usual:.2g} +- {allowed:.2g})"
            seen_of.setdefault(k, []).append(note)
    for k in sorted(seen_of):
        yield pairs[k][0].finding("misaligned", "; ".join(seen_of[k]) + f", at {SIZE} px")
