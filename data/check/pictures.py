"""Checks of each picture beside the others of its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.check.dataset import KINDS, DataSet, ListLine
from data.check.flaws import Flaw
from data.check.measure import THUMB, PictureFacts
from data.check.statistics import MIN_PICTURES, limit, nearest, outliers, principal_axes, unit

_SIDES = ("left", "top", "right", "bottom")
# Of PictureFacts.lossy: up to 1.3 in our cohort; at JPEG quality 75 3 to 9 in its smooth faces, 1 where grain hides it.
_JPEG = 2.2
_STRAY = 12  # px at 256 px
_FEW_LEVELS = 32
Picture = tuple[ListLine, PictureFacts]
_NEIGHBOURS = 7
_HEAD = 32  # px of a head alone
_AXES = 64  # numbers that stand for a head when neighbours are sought
_SAME_KIND = 0.2  # share of the neighbours; with fewer of its own kind a picture is of the other
_ODD = 0.05  # distance (1 less the correlation) to the nearest neighbour that is never odd
_GAIN = 0.05  # of the correlation with the usual head, at least, when a head is turned upright
_QUARTER = "a quarter turn to the"
_TURNS = f"{_QUARTER} left", "upside down", f"{_QUARTER} right", "top and bottom exchanged"


def check_pictures(data: DataSet, tolerance: float) -> Iterator[Flaw]:
    """Yield all findings about single pictures."""
    yield from _files(data)
    spoilt: set[Path] = set()
    for kind in KINDS:
        pictures = data.pictures_of(kind)
        yield from _formats(kind, pictures)
        if len(pictures) < MIN_PICTURES:
            continue
        usual = float(np.median([facts.background for _, facts in pictures]))
        ground = (
            "a bright background, as a negative" if usual < 0.5 else "a dark background, unlike the others"
        )
        for line, facts in pictures:
            if abs(facts.background - usual) > 0.5:
                spoilt.add(facts.path)
                yield line.picture_flaw(kind, "inverted", ground)
        pictures = [(line, facts) for line, facts in pictures if facts.path not in spoilt]
        yield from _grey_levels(kind, pictures, tolerance)
        yield from _framing(kind, pictures, tolerance)
        yield from _beside(kind, pictures, tolerance)
    for _, skull, face, _ in data.good_pairs():
        if skull.digest == face.digest:
            spoilt |= {skull.path, face.path}
    yield from _looks(data, spoilt, tolerance)


def _files(data: DataSet) -> Iterator[Flaw]:
    done = set()
    for line in data.lines:
        for kind in KINDS:
            path = line.picture(kind)
            if path is None or path in done:
                continue
            done.add(path)
            facts = data.pictures[path]
            if facts.problem is not None:
                yield line.picture_flaw(kind, "unreadable", facts.problem.removeprefix(f"{path}: "))
            elif facts.blank:
                level = f"grey level {facts.thumb.mean():.0f} of 255"
                yield line.picture_flaw(kind, "blank", f"nothing stands out of the background ({level})")


def _formats(kind: str, pictures: Sequence[Picture]) -> Iterator[Flaw]:
    """Compare size, bit depth, colour and compression with what most have."""
    if not pictures:
        return
    sizes = Counter((facts.width, facts.height) for _, facts in pictures)
    depths = Counter(_depth(facts) for _, facts in pictures)
    usual_size, usual_depth = sizes.most_common(1)[0][0], depths.most_common(1)[0][0]
    mostly_grey = sum(facts.colour < 0.004 for _, facts in pictures) > len(pictures) / 2
    lossy = {facts.path for _, facts in pictures if facts.format == "JPEG" or facts.lossy > _JPEG}
    all_lossy = len(lossy) > max(3, len(pictures) / 2)
    if usual_size[0] != usual_size[1]:
        detail = f"{kind}s are {usual_size[0]} x {usual_size[1]} px; they will be letterboxed to a square"
        yield Flaw("size", detail)
    if all_lossy:
        yield Flaw("lossy", f"{len(lossy)} of {len(pictures)} {kind}s are or were JPEG files")
    for line, facts in pictures:
        size, depth = (facts.width, facts.height), _depth(facts)
        if size != usual_size:
            others = f"{usual_size[0]} x {usual_size[1]} px are usual"
            yield line.picture_flaw(kind, "size", f"{size[0]} x {size[1]} px, where {others}")
        elif depth != usual_depth:
            yield line.picture_flaw(kind, "size", f"{depth}, where {usual_depth} is usual")
        if mostly_grey and facts.colour >= 0.004:
            detail = f"its channels differ by {255 * facts.colour:.1f} of 255 on average"
            yield line.picture_flaw(kind, "colour", detail)
        if facts.path in lossy and not all_lossy:
            once = f"it was a JPEG once (blocks: {facts.lossy:.1f})"
            yield line.picture_flaw(kind, "lossy", "a JPEG file" if facts.format == "JPEG" else once)


def _depth(facts: PictureFacts) -> str:
    if facts.mode.startswith("I"):
        return "16 bits"
    if facts.mode in ("RGBA", "LA", "PA"):
        return "with transparency"
    return "1 bit" if facts.mode == "1" else "8 bits"


def _grey_levels(kind: str, pictures: Sequence[Picture], tolerance: float) -> Iterator[Flaw]:
    """Compare the head's and the background's grey levels with those of the others. Limits in grey levels of 1."""
    levels = np.array([facts.levels for _, facts in pictures])
    measures = {
        "the head's dark parts": (levels[:, 0], 0.15),
        "the head": (levels[:, 2], 0.12),
        "the head's bright parts": (levels[:, 4], 0.15),
        "the background": (np.array([facts.background for _, facts in pictures]), 0.05),
    }

    def describe(name: str, value: float, usual: float, allowed: float) -> str:
        return f"{name} {255 * value:.0f} (usual {255 * usual:.0f} +- {255 * allowed:.0f})"

    notes = outliers(measures, tolerance, describe)
    white = np.array([facts.white for _, facts in pictures])
    usual, allowed = limit(white, 0.12, tolerance)
    for k in np.flatnonzero(white > usual + allowed).tolist():
        notes[k].append(f"{white[k]:.0%} of the head is pure white (usual {usual:.0%})")
    distinct = np.array([facts.distinct for _, facts in pictures])
    if np.median(distinct) >= 3 * _FEW_LEVELS:
        for k in np.flatnonzero(distinct <= _FEW_LEVELS).tolist():
            notes[k].append(f"only {distinct[k]} grey levels")
    for k in sorted(notes):
        yield pictures[k][0].picture_flaw(kind, "grey_levels", "; ".join(notes[k]))


def _framing(kind: str, pictures: Sequence[Picture], tolerance: float) -> Iterator[Flaw]:
    """Compare where the head is with the others. Lengths in fractions of the picture's side."""
    boxes = np.array([facts.box for _, facts in pictures])
    touching = np.array([facts.touches for _, facts in pictures]) > 0.02
    cut = touching & ~(touching.mean(0) > 0.3)  # where many are cut, they are on purpose: at the neck
    for k in np.flatnonzero(cut.any(1)).tolist():
        sides = " and ".join(_SIDES[side] for side in np.flatnonzero(cut[k]))
        yield pictures[k][0].picture_flaw(kind, "cut_off", f"the head touches the {sides} border")
    measures = {
        "width": (boxes[:, 2] - boxes[:, 0], 0.15),
        "height": (boxes[:, 3] - boxes[:, 1], 0.18),
        "middle from the left": ((boxes[:, 0] + boxes[:, 2]) / 2, 0.05),
        "middle from the top": ((boxes[:, 1] + boxes[:, 3]) / 2, 0.07),
    }

    def describe(name: str, value: float, usual: float, allowed: float) -> str:
        return f"{name} {100 * value:.0f} % of the picture (usual {100 * usual:.0f} +- {100 * allowed:.0f})"

    for k, notes in sorted(outliers(measures, tolerance, describe).items()):
        if not cut[k].any():
            yield pictures[k][0].picture_flaw(kind, "framing", "; ".join(notes))


def _beside(kind: str, pictures: Sequence[Picture], tolerance: float) -> Iterator[Flaw]:
    stray = np.array([facts.stray for _, facts in pictures], float)
    usual, allowed = limit(stray, _STRAY, tolerance)
    for k in np.flatnonzero(stray > usual + allowed).tolist():
        detail = f"{stray[k]:.0f} px of small things away from the head (at 256 px)"
        yield pictures[k][0].picture_flaw(kind, "beside_head", detail)


def _looks(data: DataSet, spoilt: set[Path], tolerance: float) -> Iterator[Flaw]:
    """Judge each picture by its nearest neighbours among the pictures of other people; ``spoilt`` are left out."""
    pictures = [
        (line, facts, kind)
        for kind in KINDS
        for line, facts in data.pictures_of(kind)
        if facts.path not in spoilt
    ]
    kinds = np.array([kind for *_, kind in pictures])
    if min((kinds == "skull").sum(), (kinds == "face").sum()) < MIN_PICTURES // 2:
        return
    heads = np.stack([head_alone(facts) for _, facts, _ in pictures])
    far, index = neighbours(heads, [line.subject for line, *_ in pictures])
    alike = (kinds[index] == kinds[:, None]).mean(1)
    if np.mean(alike) < 0.5:
        return  # skulls and faces cannot be told apart by their looks
    reported = set(np.flatnonzero(alike < _SAME_KIND).tolist())
    yield from _wrong_kinds(data, [pictures[k] for k in sorted(reported)])
    turns = _turned(heads, kinds)
    for k, turn in turns.items():
        if k not in reported:
            line, _, kind = pictures[k]
            yield line.picture_flaw(kind, "rotated", turn)
    reported |= set(turns)
    for kind in KINDS:
        of_kind = kinds == kind
        usual, allowed = limit(far[of_kind], _ODD, tolerance, sigmas=12)
        for k in np.flatnonzero(of_kind & (far > usual + allowed)).tolist():
            if k not in reported:
                detail = f"its nearest neighbour is {far[k] / max(usual, 1e-6):.0f} times as far as usual"
                yield pictures[k][0].picture_flaw(kind, "odd_one", detail)


def head_alone(facts: PictureFacts) -> np.ndarray:
    """Return the head's box stretched over a (32, 32) picture in [0, 1], so that neither place nor size matters."""
    left, top, right, bottom = (THUMB * edge for edge in facts.box)
    image = Image.fromarray(facts.thumb)
    small = image.resize((_HEAD, _HEAD), Image.Resampling.BILINEAR, (left, top, right, bottom))
    return np.asarray(small, np.float32) / 255


def neighbours(heads: np.ndarray, people: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Compare heads (N, 32, 32) with those of other people.

    Returns:
        How far the nearest one is, (N,) half squared distances (1 less the correlation), and the indices of the nearest
        seven, (N, 7).
    """
    rows = unit(heads.reshape(len(heads), -1))
    rows = rows - rows.mean(0)
    scores = rows @ principal_axes(rows, _AXES)
    ones = np.ones((len(rows), 1), np.float32)
    members = np.hstack([scores, -(scores**2).sum(1, keepdims=True) / 2]).astype(np.float32)
    group = np.unique(list(people), return_inverse=True)[1]  # nobody is their own neighbour
    product, index = nearest(np.hstack([scores, ones]).astype(np.float32), _NEIGHBOURS, group, members)
    return (rows**2).sum(1) / 2 - product[:, 0], index


def _turned(heads: np.ndarray, kinds: np.ndarray) -> dict[int, str]:
    """Return the heads that are much more like the usual head of their kind when they are turned."""
    turned = {}
    for kind in KINDS:
        of_kind = np.flatnonzero(kinds == kind)
        rows = heads[of_kind]
        usual = np.median(rows, axis=0).ravel()
        usual -= usual.mean()
        usual /= np.linalg.norm(usual)
        turns = [rows, *(np.rot90(rows, k, axes=(1, 2)) for k in (3, 2, 1)), rows[:, ::-1]]
        flat = [turn.reshape(len(rows), -1) for turn in turns]
        likeness = np.stack([unit(one - one.mean(1, keepdims=True)) @ usual for one in flat])
        gain = likeness[1:].max(0) - likeness[0]
        for k in np.flatnonzero(gain > _GAIN).tolist():
            turned[int(of_kind[k])] = _TURNS[int(likeness[1:, k].argmax())]
    return turned


def _wrong_kinds(data: DataSet, wrong: Sequence[tuple[ListLine, PictureFacts, str]]) -> Iterator[Flaw]:
    """Yield swapped pairs, of which both look like the other kind, and single wrong files."""
    looks_other = {(facts.path, kind) for _, facts, kind in wrong}
    done: set[object] = set()
    for line in data.lines:
        skull, face = (line.skull, "skull") in looks_other, (line.face, "face") in looks_other
        if skull and face and (line.skull, line.face) not in done:
            yield line.flaw("swapped", "the skull looks like the faces, and the face like the skulls")
        elif skull and line.skull not in done:
            yield line.picture_flaw("skull", "wrong_kind", "it looks like the faces")
        elif face and line.face not in done:
            yield line.picture_flaw("face", "wrong_kind", "it looks like the skulls")
        done |= {line.skull, line.face, (line.skull, line.face)}
