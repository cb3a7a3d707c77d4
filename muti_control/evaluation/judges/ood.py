"""The distance of a skull from the training skulls. A reconstruction from a distant skull is a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.results.results import OutOfDistribution

Floats = NDArray[np.floating]

SIDE = 32  # px of the skull pictures that are compared
FOLDS = 5  # of the training skulls; each is scored by a fit that has not seen it
NUM_COMPONENTS = 64
USUAL, FLAGGED = 95, 99  # percentiles of the training skulls' own scores: the unit, and the threshold
LEAST = 20  # training skulls below which there is no score
NUM_BINS = 40
SCORE = (
    "The larger of two distances to the training skulls, each in units of what 95 % of these stay below among "
    f"themselves: Mahalanobis (probabilistic PCA, {NUM_COMPONENTS} components, {SIDE} px), and RMS to the nearest."
)
RULE = f"{FLAGGED} % of the training skulls, each scored by a fit without it ({FOLDS} folds), stay below."


class OddityError(ValueError):
    """There are no skulls to compare with; the message says why."""


@dataclass(frozen=True)
class Density:
    """A Gaussian with a few strong directions and equal noise in all others (probabilistic PCA).

    Source: Tipping and Bishop, "Probabilistic principal component analysis", JRSS B 61(3), 1999.
    """

    mean: Floats
    axes: Floats
    variances: Floats
    noise: float

    @classmethod
    def fit(cls, rows: Floats, num: int = NUM_COMPONENTS) -> Density:
        """Return the density of rows (N, D), from their covariance (D, D)."""
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        num = min(num, max(1, (len(rows) - 1) // 2))
        rest = max(1, min(len(rows) - 1, len(values)) - num)
        noise = max(float(values[num:].sum()) / rest, 1e-9 * float(values[0]), 1e-12)
        return cls(mean, vectors[:, :num].T, np.maximum(values[:num], noise), noise)

    def distances(self, rows: Floats) -> Floats:
        """Return the Mahalanobis distances (N,), per square root of the dimensions."""
        centred = rows - self.mean
        scores = centred @ self.axes.T
        rest = np.maximum((centred**2).sum(axis=1) - (scores**2).sum(axis=1), 0)
        return np.sqrt(((scores**2 / self.variances).sum(axis=1) + rest / self.noise) / rows.shape[1])


def nearest_distances(rows: Floats, others: Floats) -> Floats:
    """Return the root mean square difference (N,) of each row to the nearest of ``others``."""
    a, b = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    squared = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    return np.sqrt(np.maximum(squared.min(axis=1), 0) / rows.shape[1])


def score_skulls(
    probes: Floats, train: Floats, subjects: Sequence[str], seed: int = 0
) -> tuple[Floats, OutOfDistribution]:
    """Return scores (P,) of skull features (P, D) against the training skulls (N, D).

    Args:
        subjects: (N,) owners of the training skulls; all skulls of one person are held out together.

    Raises:
        OddityError: too few training skulls.
    """
    people = sorted(set(subjects))
    if len(people) < LEAST:
        raise OddityError(f"{len(people)} training subjects; a score needs {LEAST}")
    order = np.random.default_rng([seed, len(people)]).permutation(len(people))
    fold_of = {people[place]: k % FOLDS for k, place in enumerate(order)}
    folds = np.array([fold_of[subject] for subject in subjects])
    distances = np.zeros((2, len(train)))
    for fold in range(FOLDS):
        out = folds == fold
        distances[:, out] = _both(train[out], train[~out])
    unit = np.percentile(distances, USUAL, axis=1)[:, None]
    unit = np.maximum(unit, 1e-12)
    reference = (distances / unit).max(axis=0)
    scores = (_both(probes, train) / unit).max(axis=0)
    edges = np.linspace(0, 1.5 * max(float(reference.max()), 1.0), NUM_BINS + 1)
    counts, _ = np.histogram(reference, edges)
    return scores, OutOfDistribution(
        score=SCORE,
        threshold=float(np.percentile(reference, FLAGGED)),
        rule=RULE,
        num_reference=len(train),
        edges=tuple(float(edge) for edge in edges),
        reference=tuple(float(count) / len(train) for count in counts),
    )


def _both(rows: Floats, train: Floats) -> Floats:
    return np.stack([Density.fit(train).distances(rows), nearest_distances(rows, train)])
