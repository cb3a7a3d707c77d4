"""The same picture, or almost the same, for two people; in one list or in two that must not share anybody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data.check.dataset import KINDS, DataSet, ListLine
from data.check.flaws import Flaw
from data.check.lists import conflict
from data.check.measure import SIZE, PictureFacts
from data.check.statistics import in_blocks, nearest, principal_axes, unit
from data.images import read_image

_SIMILAR = 0.7  # correlation of two pictures' differences from the mean picture, from which they are compared
_CLOSE = 0.98  # correlation of the fine detail of thumbs, from which the pictures themselves are compared
_SAME = 0.98  # the same at 128 px, from which they are one; at most 0.96 between two people of our cohort
_AXES = 96
_MIRRORED = "almost the same, mirrored,"
Picture = tuple[ListLine, PictureFacts]
People = frozenset[str]


def check_duplicates(data: DataSet) -> Iterator[Flaw]:
    """Yield all findings about two pictures or more."""
    reported: set[People] = set()
    yield from _same_pairs(data)
    for kind in KINDS:
        pictures = data.pictures_of(kind)
        yield from _exact(data, kind, pictures, reported)
        yield from _near(data, kind, pictures, reported)


def _same_pairs(data: DataSet) -> Iterator[Flaw]:
    """Yield pairs that are there twice, under two file names."""
    first_of: dict[tuple[bytes, bytes, str], ListLine] = {}
    for line, skull, face, _ in data.good_pairs():
        first = first_of.setdefault((skull.digest, face.digest, line.subject), line)
        if first is not line:
            detail = f"the same two pictures as {first.source}, {first.place}"
            yield line.flaw("duplicate_pair", detail, other=first.skull)


def _exact(data: DataSet, kind: str, pictures: list[Picture], reported: set[People]) -> Iterator[Flaw]:
    """Yield people with the same picture; every line that names a file counts, not only the first."""
    digest_of = {facts.path: facts.digest for _, facts in pictures}
    groups: dict[bytes, dict[str, ListLine]] = defaultdict(dict)
    for line in data.lines:
        digest = digest_of.get(line.picture(kind))  # type: ignore[arg-type]  # None is in no dictionary of paths
        if digest is not None:
            groups[digest].setdefault(line.subject, line)
    for people in groups.values():
        first, *others = people.values()
        for line in others:
            yield from _report(data, kind, first, line, "shared_picture", "the same", reported)


def _near(data: DataSet, kind: str, pictures: list[Picture], reported: set[People]) -> Iterator[Flaw]:
    """Compare each picture in detail with its nearest of other people, as they are and mirrored."""
    if len(pictures) < 2:
        return
    thumbs = np.stack([facts.thumb for _, facts in pictures])
    people = np.unique([line.subject for line, _ in pictures], return_inverse=True)[1]

    def normed(part: np.ndarray) -> np.ndarray:
        return unit(part.reshape(len(part), -1).astype(np.float32))  # (N, D); brightness does not matter

    some = thumbs[:: 1 + len(thumbs) // 4000]
    middle = in_blocks(normed, some).mean(0) if len(thumbs) > 8 else np.float32(0)
    axes = principal_axes(thumbs, _AXES, lambda part: normed(part) - middle)
    scores, flipped = (
        unit(in_blocks(lambda part: (normed(part) - middle) @ axes, one))
        for one in (thumbs, thumbs[:, :, ::-1])
    )
    for other, how in ((scores, "almost the same"), (flipped, _MIRRORED)):
        likeness, index = nearest(scores, 2, people, other)
        for k, j in np.argwhere(likeness > _SIMILAR):
            first, second = sorted((int(k), int(index[k, j])))
            if _correlation(thumbs[first], thumbs[second], how) < _CLOSE:
                continue
            (before, facts), (line, others) = pictures[first], pictures[second]
            if _correlation(_half(facts.path), _half(others.path), how) > _SAME:
                yield from _report(data, kind, before, line, "near_duplicate", how, reported)


def _report(
    data: DataSet, kind: str, first: ListLine, line: ListLine, check: str, how: str, reported: set[People]
) -> Iterator[Flaw]:
    """Yield a person in two lists if the duplicate means that, else the duplicate; each two people once."""
    people = frozenset((first.subject, line.subject))
    if people in reported:
        return
    reported.add(people)
    path, own = first.picture(kind), line.picture(kind)
    detail = f"{how} {kind} as {path.name if path else first.source} of {first.subject}, {first.place}"
    if conflict(first.list_name, line.list_name, {one.list_name for one in data.lines}):
        check = "subject_in_two_lists"
    yield line.flaw(check, detail, file=own.name if own else None, other=path)


def _correlation(first: np.ndarray, second: np.ndarray, how: str) -> float:
    return detail_likeness(first, second[:, ::-1] if how == _MIRRORED else second)


def detail_likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of the fine detail of two (H, W) pictures in 0 to 255, whatever their contrast.

    Shades coarser than a sixteenth of the side are no detail.
    """
    x, y = _detail(first), _detail(second)
    return float((x * y).sum() / max(np.sqrt((x**2).sum() * (y**2).sum()), 1e-12))


def _detail(picture: np.ndarray) -> np.ndarray:
    values = picture.astype(np.float64) / 255
    side = 2 * (len(values) // 32) + 1
    return values - cv2.blur(values, (side, side), borderType=cv2.BORDER_REPLICATE)


def _half(path: Path) -> np.ndarray:
    """Return the picture at half of ``SIZE``, (H, W) in 0 to 255."""
    picture = read_image(path, SIZE)[0].mean(2) * 255
    return cv2.resize(picture, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
