"""Landmarks predicted by a network from pictures: one file for a whole list of pairs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.files import replacing
from data.manifest import Record

KEYS = ("sources", "targets", "points", "confidences", "folds")


class PredictionsError(ValueError):
    """A file of predicted landmarks cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class PredictedLandmarks:
    """Predicted points of M pairs.

    sources, targets: the pairs' names in their manifest. points: (M, N, 2) float32, fractions of the picture.
    confidences: (M, N) float32 in [0, 1]. folds: (M,), which network read each: one not trained on its subject.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    points: NDArray[np.float32]
    confidences: NDArray[np.float32]
    folds: NDArray[np.int64]

    def rows_of(self, records: Sequence[Record]) -> NDArray[np.int64]:
        """Return the row of each record, (R,).

        Raises:
            PredictionsError: a pair that is not in the file.
        """
        place = {pair: row for row, pair in enumerate(zip(self.sources, self.targets, strict=True))}
        lacking = [r for r in records if (r.source, r.target or "") not in place]
        if lacking:
            first = lacking[0]
            raise PredictionsError(
                f"the predicted landmarks lack {len(lacking)} of {len(records)} pairs (the first: {first.source}, line "
                f"{first.line}); make them of the same list: python -m muti_control.training.crossfit"
            )
        return np.array([place[(r.source, r.target or "")] for r in records], np.int64)

    def write(self, path: Path) -> None:
        """Write one NumPy archive, whole or not at all."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                sources=np.array(self.sources, np.str_),
                targets=np.array(self.targets, np.str_),
                points=self.points.astype(np.float32),
                confidences=self.confidences.astype(np.float32),
                folds=self.folds.astype(np.int64),
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PredictedLandmarks:
        """Read what :meth:`write` wrote; nothing in the file is executed.

        Raises:
            PredictionsError: missing, broken, or no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {key: file[key] for key in KEYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:120]
            raise PredictionsError(
                f"{path} holds no predicted landmarks ({type(error).__name__}: {reason}); python -m "
                "muti_control.training.crossfit writes such a file"
            ) from error
        points, num = content["points"], len(content["sources"])
        whole = points.ndim == 3 and points.shape[2] == 2 and content["confidences"].shape == points.shape[:2]
        if not whole or not len(points) == num == len(content["targets"]) == len(content["folds"]):
            raise PredictionsError(
                f"{path}: points of shape {points.shape} for {num} pairs; make the file anew"
            )
        if not (np.isfinite(points).all() and np.isfinite(content["confidences"]).all()):
            raise PredictionsError(f"{path}: not all numbers are finite; make the file anew")
        return cls(
            [str(name) for name in content["sources"]],
            [str(name) for name in content["targets"]],
            points.astype(np.float32),
            content["confidences"].astype(np.float32),
            content["folds"].astype(np.int64),
        )
