"""Ranks: every drawn face against the gallery, one at a time. Of a face only its vectors and ranks are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.judges.recognisers import Eye, Judge, Vector
from muti_control.evaluation.judges.sightings import Sightings
from muti_control.evaluation.methods.faces import read_grey
from muti_control.evaluation.results.statistics import ranks_of_truth

Floats = NDArray[np.floating]
_NOWHERE = 1e9  # distance to a gallery face in which the recogniser finds no face


@dataclass(frozen=True)
class Gallery:
    """What each eye sees in the gallery's faces: its name -> vectors (G, D), and whether it finds a face (G,)."""

    vectors: Mapping[str, Floats]
    has_face: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def of(cls, paths: Sequence[Path], size: int, eyes: Sequence[Eye], sightings: Sightings) -> Gallery:
        """Look at every gallery face. Raises: ImageError, CacheError; ValueError: an eye finds no face in any."""
        rows: dict[str, list[Vector | None]] = {eye.name: [] for eye in eyes}
        for path in paths:
            for name, vector in sightings.look_at_all(eyes, read_grey(path, size)).items():
                rows[name].append(vector)
        vectors, has_face = {}, {}
        for name, every in rows.items():
            usable = [vector for vector in every if vector is not None]
            if not usable:
                raise ValueError(
                    f"{name} finds no face in any of the {len(paths)} true faces: are these frontal faces, upright?"
                )
            has_face[name] = np.array([vector is not None for vector in every])
            vectors[name] = np.stack([usable[0] if vector is None else vector for vector in every])
        return cls(vectors, has_face)

    @property
    def size(self) -> int:
        """Number of faces."""
        return len(next(iter(self.has_face.values())))

    def distances(self, judge: Judge, vector: Vector) -> Floats:
        """Return the distances (G,) from one face to all of the gallery."""
        row = judge.compare(vector[None], self.vectors[judge.eye.name])[0].astype(np.float64)
        row[~self.has_face[judge.eye.name]] = _NOWHERE
        return row


@dataclass
class Verdict:
    """One judge on one method: per probe (P,), NaN or 0 where it has no face. nearest: gallery column, -1 for none.

    draws: probe -> rank of every face drawn of it. together: probe -> rank by the mean distance of its first k faces,
    k = 1, 2, ...
    """

    ranks: NDArray[np.int64]
    own: Floats
    others: Floats
    nearest: NDArray[np.int64]
    missed: set[int] = field(default_factory=set)
    draws: dict[int, list[int]] = field(default_factory=dict)
    together: dict[int, list[int]] = field(default_factory=dict)
    _sums: dict[int, Floats] = field(default_factory=dict)

    @classmethod
    def empty(cls, num: int) -> Verdict:
        """Return a verdict on ``num`` probes without a face."""
        nowhere = np.full(num, np.nan)
        return cls(np.zeros(num, np.int64), nowhere, nowhere.copy(), np.full(num, -1))

    def enter(self, probe: int, distances: Floats | None, truth: int, excluded: int, size: int) -> None:
        """Enter the next face of a probe: its distances (G,), or None where the judge finds no face in it."""
        first = probe not in self.draws
        missed = distances is None or distances[truth] >= _NOWHERE
        self.draws.setdefault(probe, []).append(_rank(distances, truth, excluded, size))
        # the sum orders the gallery as the mean does; a face without distances adds nothing
        if distances is not None:
            self._sums[probe] = self._sums.get(probe, 0.0) + distances
        self.together.setdefault(probe, []).append(_rank(self._sums.get(probe), truth, excluded, size))
        if not first:
            return
        self.ranks[probe] = self.draws[probe][0]
        if missed:
            self.missed.add(probe)
        if distances is not None:
            counted = distances < _NOWHERE
            counted[[truth, excluded] if excluded >= 0 else [truth]] = False
            self.own[probe] = np.nan if missed else distances[truth]
            self.others[probe] = distances[counted].mean() if counted.any() else np.nan
            self.nearest[probe] = int(np.argmin(distances))


def _rank(distances: Floats | None, truth: int, excluded: int, size: int) -> int:
    """Return the rank of the true face; the last where no face is seen in the picture or in the true face."""
    if distances is None or distances[truth] >= _NOWHERE:
        return size
    return int(ranks_of_truth(distances[None], np.array([truth]), np.array([excluded]))[0])
