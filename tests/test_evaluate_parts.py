"""The parts of an evaluation, on arrays whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from muti_control.evaluation.ood import Density, OddityError, nearest_distances, score_skulls

RNG_SEED = 3


def test_the_density_agrees_with_the_covariance_it_stands_for():
    rng = np.random.default_rng(RNG_SEED)
    rows = rng.normal(size=(400, 12)) * np.array([5, 3, 2, *[0.5] * 9])
    density = Density.fit(rows, num=3)
    covariance = density.axes.T @ np.diag(density.variances - density.noise) @ density.axes
    covariance += density.noise * np.eye(12)
    other = rng.normal(size=(5, 12)) * 4
    centred = other - rows.mean(axis=0)
    expected = np.sqrt((centred @ np.linalg.inv(covariance) * centred).sum(axis=1) / 12)
    np.testing.assert_allclose(density.distances(other), expected, rtol=1e-9)
    assert 0.9 < density.distances(rows).mean() < 1.05  # about 1 for its own


def test_strange_skulls_score_high_and_usual_ones_as_the_training_skulls_do():
    rng = np.random.default_rng(RNG_SEED)
    mixing = rng.normal(size=(6, 40))

    def skulls(num: int) -> np.ndarray:
        return rng.normal(size=(num, 6)) @ mixing + 0.1 * rng.normal(size=(num, 40))

    train = skulls(300)
    subjects = [f"s{i // 2}" for i in range(300)]
    usual, found = score_skulls(skulls(300), train, subjects)
    assert (usual > found.threshold).mean() < 0.05
    assert sum(found.reference) == pytest.approx(1) and len(found.edges) == len(found.reference) + 1
    strange, _ = score_skulls(skulls(20) + 3, train, subjects)  # off the plane of all others
    assert strange.min() > found.threshold
    twin, _ = score_skulls(train[:3], train, subjects)
    assert nearest_distances(train[:3], train).max() < 1e-6 and twin.max() < strange.min()
    with pytest.raises(OddityError, match="needs 20"):
        score_skulls(usual, train[:10], subjects[:10])
