"""The baselines, fitted to the training pairs and drawn at full resolution in one pass over these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images import write_png
from data.manifest import Record
from muti_control.evaluation.judges.features import feature
from muti_control.evaluation.methods.baselines import Vocabulary, choose_ridge, group_weights, nearest_skull
from muti_control.evaluation.methods.faces import read_grey
from muti_control.evaluation.protocol.inputs import face_of, group_of

Floats = NDArray[np.floating]
Advance = Callable[[int], None]
_AT_ONCE = 64  # training faces held at full resolution
_ROWS_AT_ONCE = 1024  # faces drawn in one pass over the training pairs


def read_pairs(records: Sequence[Record], size: int, advance: Advance) -> tuple[Floats, Floats]:
    """Return the features (N, D) of the skulls and of the faces, from pictures of ``size`` px. Raises: ImageError."""
    skulls, faces = [], []
    for record in records:
        skulls.append(feature(read_grey(record.skull_path, size)))
        faces.append(feature(read_grey(face_of(record), size)))
        advance(1)
    return np.stack(skulls), np.stack(faces)


class Drawing:
    """Weighted sums of training faces, drawn together in one pass over these."""

    def __init__(self, train: Sequence[Record], size: int) -> None:
        self._train, self._size = train, size
        self._rows: list[NDArray[np.float32]] = []
        self._targets: list[list[Path]] = []
        self._known: dict[bytes, int] = {}

    def add(self, weights: Floats, path: Path) -> None:
        """Plan the sum with ``weights`` (N,) for ``path``; equal sums are computed once."""
        row = np.asarray(weights, np.float32)
        place = self._known.setdefault(row.tobytes(), len(self._rows))
        if place == len(self._rows):
            self._rows.append(row)
            self._targets.append([])
        self._targets[place].append(path)

    def draw(self, advance: Advance) -> None:
        """Write all pictures, grey. Raises: ImageError, OSError."""
        for start in range(0, len(self._rows), _ROWS_AT_ONCE):
            weights = np.stack(self._rows[start : start + _ROWS_AT_ONCE])
            sums = np.zeros((len(weights), self._size**2), np.float32)
            for first in range(0, len(self._train), _AT_ONCE):
                part = self._train[first : first + _AT_ONCE]
                faces = np.stack([read_grey(face_of(record), self._size).ravel() for record in part]).astype(
                    np.float32
                )
                sums += weights[:, first : first + _AT_ONCE] @ faces
                advance(len(part))
            for row, targets in zip(sums, self._targets[start : start + _ROWS_AT_ONCE], strict=True):
                picture = np.rint(row.clip(0, 255)).astype(np.uint8).reshape(self._size, self._size)
                for path in targets:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_png(path, picture)


class Learnt:
    """The baselines, fitted to the training pairs. ridge_choice: how the ridge was chosen; empty without one."""

    def __init__(
        self, train: Sequence[Record], valid: Sequence[Record], size: int, with_ridge: bool, advance: Advance
    ) -> None:
        """Read the pairs and fit. advance: called for every pair. Raises: ImageError."""
        self._train, self._groups = train, [group_of(record) for record in train]
        self._skulls, faces = read_pairs(train, size, advance)
        self.ridge_choice: dict[str, float] = {}
        if with_ridge:
            skulls, true = read_pairs(valid, size, advance)
            self._vocabulary = Vocabulary.of(self._groups)
            self._ridge, self._strength, self.ridge_choice = choose_ridge(
                (self._skulls, self._vocabulary.encode(self._groups), faces),
                (skulls, self._encode(valid), true),
            )

    def _encode(self, records: Sequence[Record]) -> Floats:
        return self._vocabulary.encode([group_of(record) for record in records])

    def nearest(self, skulls: Floats) -> list[Path]:
        """Return the face picture of the training subject with the most similar skull, for skulls (P, D)."""
        return [face_of(self._train[i]) for i in nearest_skull(self._skulls, skulls)]

    def weights(self, method: str, skulls: Floats, records: Sequence[Record]) -> Floats:
        """Return (P, N): the weights of the training faces in the faces of ridge, group_mean or mean_face."""
        num = len(self._groups)
        if method == "mean_face":
            return np.full((len(records), num), 1 / num, np.float32)
        if method == "group_mean":
            return group_weights(self._groups, [group_of(record) for record in records])
        return self._ridge.weights(skulls, self._encode(records), self._strength)
