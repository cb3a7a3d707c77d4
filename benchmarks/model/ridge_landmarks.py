"""Landmarks by ridge regression on a picture's principal components and what is known of the person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from muti_control.networks.pipnet.measures import nme
from muti_control.training.landmark_pairs import LandmarkDataset

Floats = NDArray[np.floating]
SIDE = 64
COMPONENTS = (60, 150, 300, 600, 1200)
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # penalty per training subject and leading component's variance
ATTRIBUTE_SCALE = 0.5  # deviations of the leading component that an attribute counts
CROSSED = 40  # leading components that may enter as products with the attributes, too


@dataclass(frozen=True)
class Inputs:
    """Of M subjects: pictures (M, SIDE^2) in [0, 1], attributes (M, A), points (M, N, 2)."""

    pictures: Floats
    attributes: Floats
    points: Floats

    @classmethod
    def of(cls, data: LandmarkDataset) -> Inputs:
        """Block averages of the pictures, and what goes with them."""
        stride = data.size // SIDE
        rows = [
            F.avg_pool2d(data.picture(i).float().mean(0, keepdim=True) / 255, stride).flatten()
            for i in range(len(data))
        ]
        return cls(torch.stack(rows).numpy(), data.attributes.numpy(), data.points.numpy())


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression; what was chosen: components, strength, whether products are among its inputs."""

    centre: Floats
    basis: Floats
    mean: Floats
    mean_points: Floats
    weights: Floats
    components: int
    strength: float
    crossed: bool

    def __call__(self, inputs: Inputs) -> Floats:
        """Points (M, N, 2)."""
        scores = (inputs.pictures - self.centre) @ self.basis
        rows = features(scores, inputs.attributes, self.crossed)
        return ((rows - self.mean) @ self.weights).reshape(len(rows), -1, 2) + self.mean_points


def features(scores: Floats, attributes: Floats, crossed: bool) -> Floats:
    """Inputs of the regression: scores (M, P), attributes (M, A), and with ``crossed`` their products."""
    scaled = ATTRIBUTE_SCALE * attributes
    parts = [scores, scaled]
    if crossed:
        parts.append((scores[:, :CROSSED, None] * scaled[:, None]).reshape(len(scores), -1))
    return np.hstack(parts)


def principal_axes(centred: Floats) -> Floats:
    """Directions of the rows (M, P) by falling variance, (P, K), the first scores of variance 1."""
    few = len(centred) < centred.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    positive = values > 1e-9 * values[0]
    vectors = vectors[:, positive]
    if few:
        vectors = centred.T @ vectors / np.sqrt(values[positive])
    return vectors / np.sqrt(values[0] / len(centred))


def fit_ridge(train: Inputs, valid: Inputs, corners: tuple[int, int]) -> Ridge:
    """The ridge regression whose error on the validation subjects is least, over all settings above."""
    centre = train.pictures.mean(0)
    centred = train.pictures - centre
    vectors = principal_axes(centred)
    truth = torch.from_numpy(valid.points)
    mean_points = train.points.mean(0)
    targets = (train.points - mean_points).reshape(len(train.points), -1)
    best: tuple[float, Ridge] | None = None
    for crossed in (False, True):
        for components in sorted({min(c, vectors.shape[1]) for c in COMPONENTS}):
            basis = vectors[:, :components]
            rows = features(centred @ basis, train.attributes, crossed)
            mean = rows.mean(0)
            rows = rows - mean
            gram, moments = rows.T @ rows, rows.T @ targets
            for strength in STRENGTHS:
                penalty = strength * len(rows) * np.eye(len(gram), dtype=gram.dtype)
                weights = np.linalg.solve(gram + penalty, moments)
                ridge = Ridge(centre, basis, mean, mean_points, weights, components, strength, crossed)
                error = float(nme(torch.from_numpy(ridge(valid)).to(truth), truth, corners).mean())
                if best is None or error < best[0]:
                    best = (error, ridge)
    assert best is not None
    return best[1]
