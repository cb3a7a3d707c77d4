"""benchmarks.model.conditions: its read-outs and comparisons, on numbers whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.model.conditions import ConditionsConfig, lines_of, main
from benchmarks.model.conditions_drawing import Bench, Ridge
from benchmarks.model.conditions_partial import EYES, WHOLE, _compared, _errors
from benchmarks.model.conditions_texture import _scramble, _shift, _slopes
from cldm.texture import texture_features
from ldm.config import ConfigError


def bench() -> Bench:
    return Bench(Path(), [], [], [], seed=0, resamples=200)


def test_the_read_out_is_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (40, 5)), rng.normal(size=(40, 2))
    found = Ridge.fit(x, y, strength=7.0)(x)
    z = (x - x.mean(0)) / x.std(0)
    stacked = np.concatenate([z, 7.0**0.5 * np.eye(5)])  # ridge as least squares on more rows
    target = np.concatenate([y - y.mean(0), np.zeros((5, 2))])
    np.testing.assert_allclose(
        found, y.mean(0) + z @ np.linalg.lstsq(stacked, target, rcond=None)[0], atol=1e-6
    )


def test_a_face_that_follows_half_way_has_a_slope_of_a_half() -> None:
    rng = np.random.default_rng(1)
    asked = rng.normal(size=(300, 6))
    got = 0.5 * asked + 0.1 * rng.normal(size=asked.shape)
    for value in _slopes(bench(), asked, got).values():
        assert value["slope"] == pytest.approx(0.5, abs=0.03)
        assert value["interval"][0] < value["slope"] < value["interval"][1]
    for value in _slopes(bench(), asked, rng.normal(size=asked.shape)).values():
        assert abs(value["slope"]) < 0.2


def test_the_exchanged_exemplar_is_of_another_style() -> None:
    styles = ["a", "a", "b", "b", "b", "c"]
    shift = _shift(styles)
    assert all(styles[(i + k) % 6] != style for i, (k, style) in enumerate(zip(shift, styles, strict=True)))


def test_scrambling_moves_patches_and_keeps_features() -> None:
    patches = torch.rand(12, 16, 16)
    mixed = _scramble(patches, 0)
    assert not torch.equal(mixed, patches)
    torch.testing.assert_close(texture_features(mixed), texture_features(patches), atol=1e-4, rtol=0)


def test_spread_and_errors_are_told_apart_inside_and_outside() -> None:
    inside = np.zeros((3, 64, 64), bool)
    inside[:, :, 32:] = True
    whole = {"spread": np.full((3, 64, 64), 0.01), "errors": np.full((3, 68), 0.1)}
    spread = np.where(inside, 0.03, 0.015)
    points = np.full((3, 68, 2), 60.0)  # px of 256: on the left
    points[:, 34:, 0] = 200.0
    errors = np.full((3, 68), 0.1)
    errors[:, 34:] = 0.4
    found = _compared(bench(), whole, spread, errors, inside, np.ones_like(inside), points)
    assert found["spread inside"]["mean"] == pytest.approx(0.03)
    assert found["spread inside, whole skull"]["mean"] == pytest.approx(0.01)
    assert found["growth of the spread, inside over outside"]["mean"] == pytest.approx(2)
    assert found["error inside"]["mean"] == pytest.approx(0.4)
    assert found["error outside"]["mean"] == pytest.approx(0.1)
    assert found["error inside, whole skull"]["mean"] == pytest.approx(0.1)


def test_errors_are_in_distances_between_the_eyes() -> None:
    truths = np.zeros((1, 68, 2))
    truths[:, EYES[0], 0], truths[:, EYES[1], 0] = 100, 150
    lower = truths + np.array([0, 5])
    np.testing.assert_allclose(_errors(lower, truths), 0.1)


def test_figures_are_listed_with_the_way_to_them() -> None:
    found = {"config": {"x": 1}, "models": {"a": {WHOLE: 0.5, "rows of the picture": ["b"]}}}
    assert lines_of(found) == [("models, a, whole", 0.5)]


def test_what_cannot_be_measured_is_told(
    make_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = make_pairs(train=4, valid=2, test=4)
    out = tmp_path / "o" / "found"
    assert main([f"cohort={root}", "parts=[features]", f"out={out}"]) == 2
    assert "has no 'style' and 'texture'" in capsys.readouterr().err
    for changes, message in (
        ({"parts": ["nose"]}, "parts: got"),
        ({"num": 1}, "num: got 1"),
        ({"models": {}}, "models: got none"),
    ):
        with pytest.raises(ConfigError, match=message):
            ConditionsConfig(**changes).check()
