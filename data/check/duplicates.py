"""The same picture, or almost the same, for two people; in one list or in two that must not share anybody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.check.cases import Case, DataSet
from data.check.facts import SIZE, PictureFacts
from data.check.findings import Finding
from data.check.lists import conflict
from data.check.statistics import in_blocks, nearest, principal_axes, unit
from data.images import read_image

_SIMILAR = (
    0.7  # correlation of what sets two pictures apart from the mean picture, from which they are looked at
)
_CLOSE = 0.98  # correlation of the fine detail of thumbs, from which the pictures themselves are compared
_SAME = (
    0.98  # the same at 128 px, from which they are the same; 0.96 at most between two people of our cohort
)
_AXES = 96


def check_duplicates(data: DataSet) -> Iterator[Finding]:
    """All findings about two pictures or more."""
    told: set[frozenset[str]] = set()
    yield from _same_pairs(data)
    for kind in ("skull", "face"):
        pictures = data.pictures_of(kind)
        yield from _exact(data, kind, pictures, told)
        yield from _near(data, kind, pictures, told)


def _same_pairs(data: DataSet) -> Iterator[Finding]:
    """One pair twice under two file names."""
    first: dict[tuple[bytes, bytes, str], Case] = {}
    for case, skull, face, _ in data.good_pairs():
        before = first.setdefault((skull.digest, face.digest, case.subject), case)
        if before is not case:
            seen = f"the same two pictures as {before.source}, {before.list_name} line {before.line}"
            yield case.finding("duplicate_pair", seen, other=before.skull)


def _exact(
    data: DataSet, kind: str, pictures: list[tuple[Case, PictureFacts]], told: set[frozenset[str]]
) -> Iterator[Finding]:
    """Cases of one file come from all lines that name it, not only the first."""
    digest_of = {facts.path: facts.digest for _, facts in pictures}
    groups: dict[bytes, dict[str, Case]] = defaultdict(dict)
    for case in data.cases:
        path = case.skull if kind == "skull" else case.face
        if path in digest_of:
            groups[digest_of[path]].setdefault(case.subject, case)
    for people in groups.values():
        first, *others = people.values()
        for case in others:
            yield from _told(data, kind, first, case, "shared_picture", "the same", told)


def _near(
    data: DataSet, kind: str, pictures: list[tuple[Case, PictureFacts]], told: set[frozenset[str]]
) -> Iterator[Finding]:
    """Each picture is compared in detail with its nearest of other people, as they are and mirrored."""
    if len(pictures) < 2:
        return
    thumbs = np.stack([facts.thumb for _, facts in pictures])
    people = np.unique([case.subject for case, _ in pictures], return_inverse=True)[1]

    def normed(part: np.ndarray) -> np.ndarray:
        return unit(part.reshape(len(part), -1).astype(np.float32))  # (N, D); brightness does not matter

    middle = (
        in_blocks(normed, thumbs[:: 1 + len(thumbs) // 4000]).mean(0) if len(thumbs) > 8 else np.float32(0)
    )
    axes = principal_axes(thumbs, _AXES, lambda part: normed(part) - middle)
    scores, flipped = (
        unit(in_blocks(lambda part: (normed(part) - middle) @ axes, one))
        for one in (thumbs, thumbs[:, :, ::-1])
    )
    for other, how in ((scores, "almost the same"), (flipped, "almost the same, mirrored,")):
        likeness, index = nearest(scores, 2, people, other)
        for k, j in np.argwhere(likeness > _SIMILAR):
            first, second = sorted((int(k), int(index[k, j])))
            theirs = thumbs[second][:, ::-1] if "mirrored" in how else thumbs[second]
            if detail_likeness(thumbs[first], theirs) < _CLOSE:
                continue
            case, before = pictures[second][0], pictures[first][0]
            halves = [_half(pictures[one][1].path) for one in (first, second)]
            theirs = halves[1][:, ::-1] if "mirrored" in how else halves[1]
            if detail_likeness(halves[0], theirs) > _SAME:
                yield from _told(data, kind, before, case, "near_duplicate", how, told)


def _told(
    data: DataSet, kind: str, first: Case, case: Case, check: str, how: str, told: set[frozenset[str]]
) -> Iterator[Finding]:
    """A person in two lists if that is what it means, else the duplicate itself; each two people once."""
    both = frozenset((first.subject, case.subject))
    if both in told:
        return
    told.add(both)
    path = first.skull if kind == "skull" else first.face
    mine = case.skull if kind == "skull" else case.face
    name = path.name if path else first.source
    seen = f"{how} {kind} as {name} of {first.subject}, {first.list_name} line {first.line}"
    if conflict(first.list_name, case.list_name, {one.list_name for one in data.cases}):
        check = "subject_in_two_lists"
    yield case.finding(check, seen, file=mine.name if mine else None, other=path)


def detail_likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the fine detail of two (H, W) pictures in 0 to 255: blind to brightness and contrast.

    Shades coarser than a sixteenth of the side are no detail.
    """
    x, y = _detail(a), _detail(b)
    return float((x * y).sum() / max(np.sqrt((x**2).sum() * (y**2).sum()), 1e-12))


def _half(path: Path) -> np.ndarray:
    """The picture at half of ``SIZE``, (H, W) in 0 to 255."""
    side = SIZE // 2
    return read_image(path, SIZE)[0].reshape(side, 2, side, 2, 3).mean((1, 3, 4)) * 255


def _detail(picture: np.ndarray) -> np.ndarray:
    values = picture.astype(np.float64) / 255
    reach = len(values) // 32
    sums = np.pad(np.pad(values, reach, mode="edge").cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * reach + 1
    mean = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    return values - mean
