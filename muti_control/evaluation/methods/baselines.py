"""Faces predicted without the model: means, the face of the nearest training skull, and PCA + ridge.

All use what the prompt gives the model, and no more: sex, age level, body mass level and ethnicity.
Arrays are features as in `muti_control.evaluation.judges.features`: (N, D) float32 in [0, 1]. Every one of these
faces is a weighted sum of training faces, so that it can be drawn at any resolution (weights: (P, N), rows sum to 1).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Group = tuple[str, int, int, str]  # sex, age level 1-5, body mass level 1-5, ethnicity


def group_weights(train_groups: Sequence[Group], groups: Sequence[Group]) -> NDArray[np.float32]:
    """Return the mean training face of each probe's group as weights (P, N) of the training faces.

    A group without a training face falls back on its sex, age level and body mass, then sex and age level, then
    sex, then everybody.
    """
    weights = np.zeros((len(groups), len(train_groups)), np.float32)
    for row, group in zip(weights, groups, strict=True):
        members = _members(train_groups, group)
        row[members] = 1 / len(members)
    return weights


def nearest_skull(train_skulls: Floats, skulls: Floats) -> Ints:
    """Return the index (P,) of the training skull with the smallest root mean square difference to each skull."""
    train, probes = (np.asarray(a, dtype=np.float64) for a in (train_skulls, skulls))
    distances = (probes**2).sum(axis=1)[:, None] - 2 * probes @ train.T + (train**2).sum(axis=1)
    return distances.argmin(axis=1)


def _members(train_groups: Sequence[Group], group: Group) -> Ints:
    for length in (4, 3, 2, 1):
        members = np.flatnonzero([other[:length] == group[:length] for other in train_groups])
        if len(members):
            return members
    return np.arange(len(train_groups))


def shuffle_within_groups(
    groups: Sequence[Hashable],
    pool_groups: Sequence[Hashable],
    subjects: Sequence[str],
    pool_subjects: Sequence[str],
    rng: np.random.Generator,
) -> Ints:
    """Return, for each probe, a random pool index of the same group but another subject; -1 where the pool has none.

    Within a group they are drawn without replacement while the pool lasts: the pool is a random circle; a probe in it
    takes the next one, and any other probe takes the next in turn.
    """
    donors = np.full(len(groups), -1)
    for group in dict.fromkeys(groups):
        circle = rng.permutation(np.flatnonzero([other == group for other in pool_groups]))
        places = {pool_subjects[j]: place for place, j in enumerate(circle)}
        members = [i for i, other in enumerate(groups) if other == group]
        for turn, i in enumerate(members):
            start = places[subjects[i]] + 1 if subjects[i] in places else turn
            others = (circle[(start + k) % len(circle)] for k in range(len(circle)))
            donors[i] = next((j for j in others if pool_subjects[j] != subjects[i]), -1)
    return donors


@dataclass(frozen=True)
class Vocabulary:
    """The levels that each attribute has in the training split: the columns of the one-hot attribute matrix."""

    levels: tuple[tuple[Hashable, ...], ...]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Vocabulary":
        """Return the levels of the training subjects."""
        return cls(tuple(tuple(sorted(set(column))) for column in zip(*groups, strict=True)))

    def encode(self, groups: Sequence[Group]) -> NDArray[np.float32]:
        """Return (N, number of levels) zeros and ones; a level that training lacks is all zeros."""
        columns = zip(zip(*groups, strict=True), self.levels, strict=True)
        return np.hstack(
            [np.equal.outer(np.array(own, object), np.array(levels, object)) for own, levels in columns]
        ).astype(np.float32)


@dataclass(frozen=True)
class Components:
    """Principal components: mean (D,), axes (K, D) with unit rows, standard deviations (K,).

    sums: (K, N), the axes as weighted sums of the centred rows they were fitted to.
    """

    mean: Floats
    axes: Floats
    deviations: Floats
    sums: Floats

    @classmethod
    def fit(cls, rows: Floats, num: int) -> "Components":
        """Return at most `num` components of rows (N, D), from the N x N Gram matrix (N is smaller than D here)."""
        mean = rows.mean(axis=0)
        centred = np.asarray(rows - mean, dtype=np.float64)
        values, vectors = np.linalg.eigh(centred @ centred.T)
        keep = np.argsort(values)[::-1][: min(num, len(rows) - 1)]
        keep = keep[values[keep] > 1e-9 * values.max()]
        scale = np.sqrt(values[keep])
        sums = (vectors[:, keep] / scale).T
        return cls(mean, sums @ centred, scale / np.sqrt(len(rows)), sums)

    def first(self, num: int) -> "Components":
        """Return the `num` strongest components."""
        return Components(self.mean, self.axes[:num], self.deviations[:num], self.sums[:num])

    def project(self, rows: Floats) -> Floats:
        """Return the scores (N, K) of rows (N, D)."""
        return (rows - self.mean) @ self.axes.T


class Ridge:
    """PCA + ridge: skull picture and attributes -> face picture. Linear, and hard to beat on synthetic heads."""

    def __init__(
        self, skulls: Floats, attributes: Floats, faces: Floats, skull: Components, face: Components
    ) -> None:
        """Args: skulls and faces (N, D), attributes (N, A), and the components of the skulls and of the faces."""
        self._skull, self._face = skull, face
        inputs = self._inputs(skulls, attributes)
        self._centre = inputs.mean(axis=0)
        centred = inputs - self._centre
        self._gram = centred.T @ centred
        self._cross = centred.T @ self._face.project(faces)
        self._num = len(inputs)

    def _inputs(self, skulls: Floats, attributes: Floats) -> Floats:
        # one scale for all skull components: whitening would give noise the weight of signal; skulls that are all the
        # same have no component
        return np.hstack([self._skull.project(skulls) / (self._skull.deviations[:1].sum() or 1), attributes])

    def predict(self, skulls: Floats, attributes: Floats, strength: float) -> Floats:
        """Return faces (P, D) for a ridge penalty `strength` >= 0 per training subject."""
        return self._scores(skulls, attributes, strength) @ self._face.axes + self._face.mean

    def weights(self, skulls: Floats, attributes: Floats, strength: float) -> Floats:
        """Return the same faces as weights (P, N) of the training faces."""
        around_mean = self._scores(skulls, attributes, strength) @ self._face.sums
        return around_mean + (1 - around_mean.sum(axis=1, keepdims=True)) / self._num

    def _scores(self, skulls: Floats, attributes: Floats, strength: float) -> Floats:
        penalty = strength * self._num * np.eye(len(self._gram))
        weights = np.linalg.solve(
            self._gram + penalty + 1e-9 * self._num * np.eye(len(self._gram)), self._cross
        )
        return (self._inputs(skulls, attributes) - self._centre) @ weights


def choose_ridge(
    train: tuple[Floats, Floats, Floats],
    valid: tuple[Floats, Floats, Floats],
    strengths: Sequence[float] = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    num_components: Sequence[int] = (60, 150, 300, 600, 1200),
) -> tuple[Ridge, float, dict[str, float]]:
    """Return the ridge whose predictions have the smallest root mean square error on the validation split.

    Args:
        train, valid: (skulls, attributes, faces) each.

    Returns:
        The model, its penalty, and {"components", "strength", "valid_rms"}.
    """
    skull = Components.fit(train[0], max(num_components))
    face = Components.fit(train[2], max(num_components))
    models = {num: Ridge(*train, skull.first(num), face.first(num)) for num in num_components}
    errors = {
        (num, strength): float(
            np.sqrt(((model.predict(valid[0], valid[1], strength) - valid[2]) ** 2).mean())
        )
        for num, model in models.items()
        for strength in strengths
    }
    num, strength = min(errors, key=errors.__getitem__)
    choice = {"components": num, "strength": strength, "valid_rms": errors[num, strength]}
    return models[num], strength, choice
