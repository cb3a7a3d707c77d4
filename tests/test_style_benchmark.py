"""What patches tell of a style: the statistics that benchmarks.cohort.style takes, and its regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.cohort.style import main, patch_statistics, ridge_r2


def test_patches_feel_grain_and_its_direction_and_no_slow_shading() -> None:
    rng = np.random.default_rng(0)
    y, x = np.indices((64, 64)) / 64
    shaded = 0.3 + 0.2 * x + 0.1 * y
    grain = 0.02 * rng.standard_normal((64, 64))
    stripes = 0.02 * np.sin(2 * np.pi * np.indices((64, 64))[0] / 4)
    smooth, rough, striped = (patch_statistics(shaded + part) for part in (0, grain, stripes))
    steeper = patch_statistics(0.2 + 0.5 * x + grain)
    assert (rough - smooth)[:18].min() > 3  # logarithms of mean squares, along y, then along x
    assert (striped - smooth)[0] > 3 and abs((striped - smooth)[9]) < 0.5
    assert np.abs(steeper - rough)[:18].max() < 0.5
    with pytest.raises(ValueError, match="no patch"):
        patch_statistics(np.eye(64))


def test_r2_is_of_the_half_that_was_not_fitted() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 5))
    y = np.stack([x @ [1, 2, 0, 0, -1] + 0.1 * rng.standard_normal(400), rng.standard_normal(400)], 1)
    known, unknown = ridge_r2(x, y)
    assert known > 0.99 and -0.2 < unknown < 0.05


def test_what_is_no_cohort_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "expected a cohort" in capsys.readouterr().err
