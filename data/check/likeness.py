"""What a head looks like, wherever it is in its picture: a face among the skulls, heads upside down, odd ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.check.cases import Case, DataSet
from data.check.facts import THUMB, PictureFacts
from data.check.findings import Finding
from data.check.statistics import MIN_PICTURES, limit, nearest, principal_axes, unit, where

_NEIGHBOURS = 7
_HEAD = 32  # px of a head alone
_AXES = 64  # numbers that stand for a head when neighbours are looked for
_SAME_KIND = 0.2  # share of the neighbours; with fewer of its own kind a picture is of the other
_ODD = 0.05  # distance (1 less the correlation) to the nearest neighbour that is never odd
_GAIN = 0.05  # of the correlation with the usual head, at least, when a head is turned upright
_TURNS = (
    "a quarter turn to the left",
    "upside down",
    "a quarter turn to the right",
    "top and bottom exchanged",
)


def check_likeness(data: DataSet, spoilt: set[Path], tolerance: float) -> Iterator[Finding]:
    """Judges each picture by its nearest neighbours among the pictures of other people; ``spoilt`` are left out."""
    pictures = [
        (case, facts, kind)
        for kind in ("skull", "face")
        for case, facts in data.pictures_of(kind)
        if facts.path not in spoilt
    ]
    kinds = np.array([kind for *_, kind in pictures])
    if min((kinds == "skull").sum(), (kinds == "face").sum()) < MIN_PICTURES // 2:
        return
    heads = np.stack([head_alone(facts) for _, facts, _ in pictures])
    crowd = Crowd(heads, [case.subject for case, *_ in pictures])
    far, index = crowd.nearest(heads)
    alike = (kinds[index] == kinds[:, None]).mean(1)
    if np.mean(alike) < 0.5:
        return  # skulls and faces cannot be told apart by their looks
    told = set(where(alike < _SAME_KIND))
    yield from _wrong_kinds(data, [pictures[k] for k in sorted(told)])
    upright = _turned(heads, kinds)
    for k, how in upright.items():
        if k not in told:
            case, _, kind = pictures[k]
            yield case.about(kind, "rotated", how)
    told |= set(upright)
    for kind in ("skull", "face"):
        of_kind = kinds == kind
        usual, allowed = limit(far[of_kind], _ODD, tolerance, sigmas=12)
        for k in where(of_kind & (far > usual + allowed)):
            if k not in told:
                times = far[k] / max(usual, 1e-6)
                yield pictures[k][0].about(
                    kind, "odd_one", f"its nearest neighbour is {times:.0f} times as far as usual"
                )


def head_alone(facts: PictureFacts) -> np.ndarray:
    """The head's box stretched over a (32, 32) picture in [0, 1], so that neither place nor size matters."""
    left, top, right, bottom = (THUMB * edge for edge in facts.box)
    image = Image.fromarray(facts.thumb)
    small = image.resize((_HEAD, _HEAD), Image.Resampling.BILINEAR, (left, top, right, bottom))
    return np.asarray(small, np.float32) / 255


class Crowd:
    """Pictures to be compared with: their differences from the mean picture, of length 1 before, on a few axes."""

    def __init__(self, heads: np.ndarray, people: Sequence[str]) -> None:
        rows = unit(heads.reshape(len(heads), -1))
        self._middle = rows.mean(0)
        self._axes = principal_axes(rows - self._middle, _AXES)
        scores = (rows - self._middle) @ self._axes
        self._members = np.hstack([scores, -(scores**2).sum(1, keepdims=True) / 2]).astype(np.float32)
        self._people = np.unique(list(people), return_inverse=True)[1]  # nobody is their own neighbour

    def nearest(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 32, 32), one for each member and in their order -> how far the nearest of other people is, (N,) half
        squared distances (1 less the correlation), and who the nearest seven are, (N, 7)."""
        rows = unit(heads.reshape(len(heads), -1)) - self._middle
        scores = np.hstack([rows @ self._axes, np.ones((len(rows), 1), np.float32)]).astype(np.float32)
        product, index = nearest(scores, _NEIGHBOURS, self._people, self._members)
        return (rows**2).sum(1) / 2 - product[:, 0], index


def _turned(heads: np.ndarray, kinds: np.ndarray) -> dict[int, str]:
    """Which heads are much more like the usual head of their kind when they are turned."""
    found = {}
    for kind in ("skull", "face"):
        of_kind = np.flatnonzero(kinds == kind)
        usual = np.median(heads[of_kind], axis=0)
        usual = (usual - usual.mean()).ravel()

        def likeness(rows: np.ndarray, usual: np.ndarray = usual) -> np.ndarray:
            flat = rows.reshape(len(rows), -1)
            return unit(flat - flat.mean(1, keepdims=True)) @ (usual / np.linalg.norm(usual))

        rows = heads[of_kind]
        turns = [*(np.rot90(rows, k, axes=(1, 2)) for k in (3, 2, 1)), rows[:, ::-1]]
        then = np.stack([likeness(turn) for turn in turns])
        gain = then.max(0) - likeness(rows)
        for k in where(gain > _GAIN):
            found[int(of_kind[k])] = _TURNS[int(then[:, k].argmax())]
    return found


def _wrong_kinds(data: DataSet, wrong: Sequence[tuple[Case, PictureFacts, str]]) -> Iterator[Finding]:
    """A pair of which both look like the other kind is swapped; one alone is the wrong file."""
    looks_other = {(facts.path, kind) for _, facts, kind in wrong}
    told: set[object] = set()
    for case in data.cases:
        skull, face = (case.skull, "skull") in looks_other, (case.face, "face") in looks_other
        if skull and face and (case.skull, case.face) not in told:
            yield case.finding("swapped", "the skull looks like the faces, and the face like the skulls")
        elif skull and case.skull not in told:
            yield case.about("skull", "wrong_kind", "it looks like the faces")
        elif face and case.face not in told:
            yield case.about("face", "wrong_kind", "it looks like the skulls")
        told |= {case.skull, case.face, (case.skull, case.face)}
