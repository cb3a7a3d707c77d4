"""The file of the calibration: what it holds comes back, and other weights refuse it."""

from __future__ import annotations

import numpy as np
import pytest

from data.biometrics import Biometrics
from muti_control.case.calibration import (
    Calibration,
    CalibrationError,
    Population,
    calibration_path,
    load_calibration,
)

PEOPLE = [
    Biometrics("female", 20, "Asian", 1),
    Biometrics("female", 29.5, "Asian", 1),
    Biometrics("male", 70, "African", 5),
]


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        weights_sha256="ab" * 32,
        population=Population.of(PEOPLE),
        limits={"turned": 4.5},
        arrays={"mean": np.eye(3, dtype=np.float32)},
        spread_factor=1.5,
    )


def test_people_are_counted_by_sex_ethnicity_age_level_and_body_mass(calibration):
    population = calibration.population
    assert population.ethnicities == ["African", "Asian"] and population.ages == [20, 70]
    assert population.table.shape == (2, 2, 5, 5) and population.table.sum() == 3
    assert population.table[0, 1, 1, 0] == 2 and population.table[1, 0, 4, 4] == 1


def test_a_file_holds_what_was_saved(tmp_path, calibration):
    weights = tmp_path / "own.safetensors"
    assert load_calibration(weights, "ab" * 32) is None
    calibration.save(calibration_path(weights))
    loaded = load_calibration(weights, "ab" * 32)
    np.testing.assert_array_equal(loaded.arrays["mean"], np.eye(3))
    assert loaded.with_(arrays={}) == calibration.with_(arrays={})


def test_other_weights_and_damaged_files_are_refused_with_the_command(tmp_path, calibration):
    path = calibration_path(tmp_path / "own.safetensors")
    calibration.save(path)
    with pytest.raises(CalibrationError, match="calibrate weights="):
        load_calibration(tmp_path / "own.safetensors", "cd" * 32)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CalibrationError, match="calibrate weights="):
        load_calibration(tmp_path / "own.safetensors", "ab" * 32)
