"""Every face against the gallery, one at a time: what is kept of a face is its vectors and its ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.judges.dlib_recogniser import Pictures
from muti_control.evaluation.judges.recognisers import Eye, Judge, Vector
from muti_control.evaluation.judges.sightings import Sightings
from muti_control.evaluation.methods.faces import Faces, read_grey
from muti_control.evaluation.results.results import Identification
from muti_control.evaluation.results.statistics import ranks_of_truth
from muti_control.evaluation.results.summary import Resampling, identification

Floats = NDArray[np.floating]
_NOWHERE = 1e9  # distance to a gallery face in which the recogniser finds none


@dataclass(frozen=True)
class Gallery:
    """What each eye sees in the gallery's faces: its name -> vectors (G, D), and whether a face was found (G,)."""

    vectors: Mapping[str, Floats]
    found: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def of(
        cls,
        paths: Sequence[Path],
        size: int,
        eyes: Sequence[Eye],
        sightings: Sightings,
        advance: Callable[[int], None],
    ) -> Gallery:
        """Look at every gallery face. Raises: ImageError, CacheError; ValueError: an eye finds no face in any."""
        rows: dict[str, list[Vector | None]] = {eye.name: [] for eye in eyes}
        for path in paths:
            for name, vector in sightings.look_at_all(eyes, read_grey(path, size)).items():
                rows[name].append(vector)
            advance(1)
        vectors, found = {}, {}
        for name, seen in rows.items():
            known = [vector for vector in seen if vector is not None]
            if not known:
                raise ValueError(
                    f"{name} finds no face in any of the {len(paths)} true faces: are these frontal faces, upright?"
                )
            found[name] = np.array([vector is not None for vector in seen])
            vectors[name] = np.stack([known[0] if vector is None else vector for vector in seen])
        return cls(vectors, found)

    @property
    def size(self) -> int:
        """Number of faces."""
        return len(next(iter(self.found.values())))

    def distances(self, judge: Judge, vector: Vector) -> Floats:
        """(G,) from one face to all of the gallery."""
        row = judge.compare(vector[None], self.vectors[judge.eye.name])[0].astype(np.float64)
        row[~self.found[judge.eye.name]] = _NOWHERE
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
        nowhere = np.full(num, np.nan)
        return cls(np.zeros(num, np.int64), nowhere, nowhere.copy(), np.full(num, -1))

    def enter(self, probe: int, distances: Floats | None, truth: int, excluded: int, size: int) -> None:
        """Enter the next face of a probe: its distances (G,), or None where the judge finds no face in it."""
        first = probe not in self.draws
        missed = distances is None or distances[truth] >= _NOWHERE
        self.draws.setdefault(probe, []).append(_rank(distances, truth, excluded, size))
        rank = self.draws[probe][-1]
        if distances is not None:  # a sum orders the gallery as the mean does; faces without one say nothing
            self._sums[probe] = self._sums.get(probe, 0.0) + distances
        self.together.setdefault(probe, []).append(_rank(self._sums.get(probe), truth, excluded, size))
        if not first:
            return
        self.ranks[probe] = rank
        if missed:
            self.missed.add(probe)
        if distances is not None:
            kept = distances < _NOWHERE
            kept[truth] = False
            if excluded >= 0:
                kept[excluded] = False
            self.own[probe] = np.nan if missed else distances[truth]
            self.others[probe] = distances[kept].mean() if kept.any() else np.nan
            self.nearest[probe] = int(np.argmin(distances))

    def summary(
        self, groups: Sequence[Mapping[str, str]], size: int, excluded: int, how: Resampling
    ) -> Identification:
        """Its figures."""
        return identification(
            self.ranks,
            size,
            groups,
            self.own,
            self.others,
            missed=len(self.missed),
            excluded=excluded,
            resampling=how,
        )


def _rank(distances: Floats | None, truth: int, excluded: int, size: int) -> int:
    """Of the true face by (G,) distances; the last where there are none, or the truth cannot be found."""
    if distances is None or distances[truth] >= _NOWHERE:
        return size
    return int(ranks_of_truth(distances[None], np.array([truth]), np.array([excluded]))[0])


@dataclass(frozen=True)
class Bench:
    """Where faces are judged. truths: (P,) gallery column of each probe."""

    judges: Sequence[Judge]
    gallery: Gallery
    truths: NDArray[np.int64]
    size: int
    sightings: Sightings

    @property
    def eyes(self) -> list[Eye]:
        """Of all judges, each once."""
        return list({judge.eye.name: judge.eye for judge in self.judges}.values())

    def judge(
        self,
        faces: Faces,
        look_on: Callable[[int, int, Pictures, Mapping[str, Vector | None]], None],
    ) -> dict[str, Verdict]:
        """What each judge says of a method's faces.

        Args:
            look_on: called with every face: probe, number of the draw, the picture, what the eyes see in it.
        """
        verdicts = {judge.name: Verdict.empty(len(self.truths)) for judge in self.judges}
        for probe, paths in faces.pictures.items():
            for draw, path in enumerate(paths):
                picture = read_grey(path, self.size)
                seen = self.sightings.look_at_all(self.eyes, picture)
                for judge in self.judges:
                    vector = seen[judge.eye.name]
                    row = None if vector is None else self.gallery.distances(judge, vector)
                    verdicts[judge.name].enter(
                        probe, row, int(self.truths[probe]), faces.excluded.get(probe, -1), self.gallery.size
                    )
                look_on(probe, draw, picture, seen)
        return verdicts


def all_paths(methods: Sequence[Faces]) -> list[Path]:
    """Every picture of every method, each once, in order."""
    return list(
        dict.fromkeys(path for faces in methods for paths in faces.pictures.values() for path in paths)
    )
