"""What can be told from each picture, beside the others of its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.check.cases import Case, DataSet
from data.check.facts import PictureFacts
from data.check.findings import Finding
from data.check.likeness import check_likeness
from data.check.statistics import MIN_PICTURES, limit, where

_SIDES = ("left", "top", "right", "bottom")
# Of PictureFacts.lossy: up to 1.3 in our cohort; at JPEG quality 75 3 to 9 in its smooth faces, 1 where grain hides it.
_JPEG = 2.2
_STRAY = 12  # px at 256 px
_FEW_LEVELS = 32
Picture = tuple[Case, PictureFacts]


def check_pictures(data: DataSet, tolerance: float) -> Iterator[Finding]:
    """All findings about single pictures."""
    yield from _files(data)
    spoilt: set[Path] = set()
    for kind in ("skull", "face"):
        pictures = data.pictures_of(kind)
        yield from _formats(kind, pictures)
        if len(pictures) >= MIN_PICTURES:
            bright = float(np.median([facts.background for _, facts in pictures]))
            how = (
                "a bright background, as a negative"
                if bright < 0.5
                else "a dark background, unlike the others"
            )
            for case, facts in pictures:
                if abs(facts.background - bright) > 0.5:
                    spoilt.add(facts.path)
                    yield case.about(kind, "inverted", how)
            pictures = [(case, facts) for case, facts in pictures if facts.path not in spoilt]
            yield from _grey_levels(kind, pictures, tolerance)
            yield from _framing(kind, pictures, tolerance)
            yield from _beside(kind, pictures, tolerance)
    for _, skull, face, _ in data.good_pairs():
        if skull.digest == face.digest:
            spoilt |= {skull.path, face.path}
    yield from check_likeness(data, spoilt, tolerance)


def _files(data: DataSet) -> Iterator[Finding]:
    told = set()
    for case in data.cases:
        for kind, path in (("skull", case.skull), ("face", case.face)):
            if path is None or path in told:
                continue
            told.add(path)
            facts = data.pictures[path]
            if facts.problem is not None:
                yield case.about(kind, "unreadable", facts.problem.removeprefix(f"{path}: "))
            elif facts.blank:
                level = f"grey level {facts.thumb.mean():.0f} of 255"
                yield case.about(kind, "blank", f"nothing stands out of the background ({level})")


def _formats(kind: str, pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Size, bit depth, colour and compression, against what most have."""
    if not pictures:
        return
    sizes = Counter((facts.width, facts.height) for _, facts in pictures)
    depths = Counter(_depth(facts) for _, facts in pictures)
    usual_size, usual_depth = sizes.most_common(1)[0][0], depths.most_common(1)[0][0]
    mostly_grey = sum(facts.colour < 0.004 for _, facts in pictures) > len(pictures) / 2
    lossy = [case for case, facts in pictures if facts.format == "JPEG" or facts.lossy > _JPEG]
    if usual_size[0] != usual_size[1]:
        seen = f"{kind}s are {usual_size[0]} x {usual_size[1]} px; they will be letterboxed to a square"
        yield Finding("size", seen)
    if len(lossy) > max(3, len(pictures) / 2):
        yield Finding("lossy", f"{len(lossy)} of {len(pictures)} {kind}s are or were JPEG files")
    for case, facts in pictures:
        size = (facts.width, facts.height)
        if size != usual_size:
            others = f"{usual_size[0]} x {usual_size[1]} px are usual"
            yield case.about(kind, "size", f"{size[0]} x {size[1]} px, where {others}")
        elif _depth(facts) != usual_depth:
            seen = f"{_depth(facts)}, where {usual_depth} is usual"
            yield case.about(kind, "size", seen)
        if mostly_grey and facts.colour >= 0.004:
            seen = f"its channels differ by {255 * facts.colour:.1f} of 255 on average"
            yield case.about(kind, "colour", seen)
        if len(lossy) <= max(3, len(pictures) / 2) and (facts.format == "JPEG" or facts.lossy > _JPEG):
            seen = (
                "a JPEG file" if facts.format == "JPEG" else f"it was a JPEG once (blocks: {facts.lossy:.1f})"
            )
            yield case.about(kind, "lossy", seen)


def _depth(facts: PictureFacts) -> str:
    if facts.mode.startswith("I"):
        return "16 bits"
    return (
        "1 bit"
        if facts.mode == "1"
        else "with transparency"
        if facts.mode in ("RGBA", "LA", "PA")
        else "8 bits"
    )


def _grey_levels(kind: str, pictures: Sequence[Picture], tolerance: float) -> Iterator[Finding]:
    """The head's and the background's grey levels against those of the others. Limits in grey levels of 1."""
    levels = np.array([facts.levels for _, facts in pictures])
    measures = {
        "the head's dark parts": (levels[:, 0], 0.15),
        "the head": (levels[:, 2], 0.12),
        "the head's bright parts": (levels[:, 4], 0.15),
        "the background": (np.array([facts.background for _, facts in pictures]), 0.05),
    }
    seen: dict[int, list[str]] = {}
    for name, (values, floor) in measures.items():
        middle, allowed = limit(values, floor, tolerance)
        for k in where(np.abs(values - middle) > allowed):
            seen.setdefault(k, []).append(
                f"{name} {255 * values[k]:.0f} (usual {255 * middle:.0f} +- {255 * allowed:.0f})"
            )
    white = np.array([facts.white for _, facts in pictures])
    middle, allowed = limit(white, 0.12, tolerance)
    for k in where(white > middle + allowed):
        seen.setdefault(k, []).append(f"{white[k]:.0%} of the head is pure white (usual {middle:.0%})")
    distinct = np.array([facts.distinct for _, facts in pictures])
    if np.median(distinct) >= 3 * _FEW_LEVELS:
        for k in where(distinct <= _FEW_LEVELS):
            seen.setdefault(k, []).append(f"only {distinct[k]} grey levels")
    for k in sorted(seen):
        yield pictures[k][0].about(kind, "grey_levels", "; ".join(seen[k]))


def _framing(kind: str, pictures: Sequence[Picture], tolerance: float) -> Iterator[Finding]:
    """Where the head is, against the others. Lengths in fractions of the picture's side."""
    boxes = np.array([facts.box for _, facts in pictures])
    touching = np.array([facts.touches for _, facts in pictures]) > 0.02
    usual = touching.mean(0) > 0.3  # where many are cut on purpose, at the neck
    cut = touching & ~usual
    for k in where(cut.any(1)):
        sides = " and ".join(_SIDES[side] for side in where(cut[k]))
        yield pictures[k][0].about(kind, "cut_off", f"the head touches the {sides} border")
    measures = {
        "width": (boxes[:, 2] - boxes[:, 0], 0.15),
        "height": (boxes[:, 3] - boxes[:, 1], 0.18),
        "middle from the left": ((boxes[:, 0] + boxes[:, 2]) / 2, 0.05),
        "middle from the top": ((boxes[:, 1] + boxes[:, 3]) / 2, 0.07),
    }
    seen: dict[int, list[str]] = {}
    for name, (values, floor) in measures.items():
        middle, allowed = limit(values, floor, tolerance)
        for k in where(np.abs(values - middle) > allowed):
            seen.setdefault(k, []).append(
                f"{name} {100 * values[k]:.0f} % of the picture (usual {100 * middle:.0f} +- {100 * allowed:.0f})"
            )
    for k in sorted(seen):
        if not cut[k].any():
            yield pictures[k][0].about(kind, "framing", "; ".join(seen[k]))


def _beside(kind: str, pictures: Sequence[Picture], tolerance: float) -> Iterator[Finding]:
    stray = np.array([facts.stray for _, facts in pictures], float)
    middle, allowed = limit(stray, _STRAY, tolerance)
    for k in where(stray > middle + allowed):
        seen = f"{stray[k]:.0f} px of small things away from the head (at 256 px)"
        yield pictures[k][0].about(kind, "beside_head", seen)
