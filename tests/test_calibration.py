"""The file of the calibration: what it holds comes back, and other weights refuse it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_results import made_up

from data.biometrics import Biometrics
from ldm.checkpoint import sha256
from muti_control.case.calibrate import error_rates, main
from muti_control.case.calibration import (
    MAX_BYTES,
    Calibration,
    CalibrationError,
    Population,
    calibration_path,
    load_calibration,
)
from muti_control.case.coverage import coverage, spread_reference
from muti_control.case.planted import PLANTED

ROOT = Path(__file__).resolve().parent.parent

PEOPLE = [
    Biometrics("female", 20, "Asian", 1),
    Biometrics("female", 29.5, "Asian", 1),
    Biometrics("male", 70, "African", 5),
]


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        weights_sha256="ab" * 32,
        population=Population.of_people(PEOPLE),
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


def test_the_command_makes_a_file_for_any_weights(tmp_path, capsys):
    """Of pairs that come with the repository; a second run keeps what it is not asked for."""
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"any weights")
    (tmp_path / "split_data").mkdir()
    (tmp_path / "pairedCS").symlink_to(ROOT / "data/pairedCS")
    for name, num in (("train", 4), ("valid", 2), ("test", 2)):
        lines = (ROOT / f"data/split_data/{name}.json").read_text().splitlines(keepends=True)[:num]
        (tmp_path / f"split_data/{name}.json").write_text("".join(lines))
    args = [f"weights={weights}", f"data.root={tmp_path}"]
    assert main([*args, "planted=1"]) == 0
    digest = sha256(weights)
    made = load_calibration(weights, digest)
    assert made.population.table.sum() == 4 and made.check["sound_skulls"] == 2
    assert (
        set(made.check["found"]) == {*PLANTED, "a face"}
        and calibration_path(weights).stat().st_size < MAX_BYTES
    )
    assert main([*args, "planted=0"]) == 0
    assert load_calibration(weights, digest).limits == made.limits
    weights.write_bytes(b"other weights")
    with pytest.raises(CalibrationError, match="calibrate weights="):
        load_calibration(weights, sha256(weights))
    assert main([*args, "planted=0", f"evaluation={tmp_path}"]) == 2
    assert "calibrate: " in capsys.readouterr().err


def test_error_rates_are_those_of_these_weights_only(tmp_path):
    evaluation = made_up(tmp_path)
    digest = evaluation.subject.files[0].sha256
    rates = error_rates(evaluation, digest)
    model = next(method for method in evaluation.methods if method.kind == "model")
    for name, judged in model.identification.items():
        assert rates["rank1"][name]["all"] == vars(judged.rank1)
    with pytest.raises(CalibrationError, match="evaluate these first"):
        error_rates(evaluation, "0" * 64)


def test_ellipses_hold_nine_of_ten_true_points():
    """Drawn and true landmarks of one normal distribution each, another for every point."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.002, 0.02, (106, 2))
    centres = rng.uniform(0.2, 0.8, (400, 106, 2))
    drawn = [centre + spread * rng.standard_normal((8, 106, 2)) for centre in centres]
    true = centres + 2 * spread * rng.standard_normal(centres.shape)
    arrays, factor = spread_reference(drawn[:200], true[:200])
    records = [
        SimpleNamespace(biometrics=Biometrics(sex, age, "Asian", 4))
        for sex, age in zip(["male", "female"] * 100, [20, 40, 60, 80] * 50, strict=True)
    ]
    report = coverage(drawn[200:], true[200:], records, arrays, factor, 280 / 256)
    for share in (*report["held"].values(), *report["held_by_points"].values()):
        assert 0.88 < share["value"] < 0.92 and share["low"] <= share["value"] <= share["high"]
    assert set(report["held_by_points"]) == {"jaw", "brow", "nose", "eye", "mouth"}
    assert {"all", "male", "female", "14 to 29", "65 and over"} <= set(report["held"])
    assert arrays["spread_scale"].std() < 0.1
