"""The input check and the preparation, on the skulls and the calibration that come with the repository."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.biometrics import Biometrics
from data.images import read_image
from data.partial import remove_bone
from ldm.checkpoint import sha256
from muti_control.case.calibrate import make_reference
from muti_control.case.calibration import load_calibration
from muti_control.case.check import check_skull
from muti_control.case.measure import measure
from muti_control.case.planted import PLANTED, cropped, lit, moved, on_background
from muti_control.case.prepare import checked_skull

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "models/demo/iccr_demo.safetensors"


@pytest.fixture(scope="module")
def calibration():
    return load_calibration(WEIGHTS, sha256(WEIGHTS))


@pytest.fixture(scope="module")
def skulls() -> dict[str, np.ndarray]:
    """Skulls of test people, by name."""
    lines = (ROOT / "data/split_data/test.json").read_text().splitlines()
    names = [json.loads(line)["source"] for line in lines]
    return {name: read_image(ROOT / "data/pairedCS/skull" / name)[0] for name in names[:6]}


@pytest.fixture(scope="module")
def skull(skulls) -> np.ndarray:
    return next(iter(skulls.values()))


def test_a_sound_skull_has_no_finding_and_is_not_touched(skulls, calibration):
    for picture in skulls.values():
        result = checked_skull(picture, calibration)
        assert (result.check.level, result.check.findings, result.done) == ("ok", (), ())
        assert result.picture is picture


@pytest.mark.parametrize("kind", PLANTED)
def test_each_planted_kind_is_found(kind, skulls, calibration):
    finding, change = PLANTED[kind]
    for name, picture in list(skulls.items())[:2]:
        result = check_skull(change(picture, name).astype(np.float32), calibration)
        assert finding in result.names and result.level in ("warning", "stop")


def test_what_is_no_skull_stops(calibration):
    square = np.zeros((256, 256, 3), np.float32)
    square[80:180, 80:180, 0] = 1
    noise = np.random.default_rng(0).random((256, 256, 3)).astype(np.float32)
    disc = cv2.circle(np.zeros_like(square), (128, 128), 80, (1, 1, 1), -1)
    face = read_image(sorted((ROOT / "data/pairedCS/craniofacial").glob("*.png"))[0])[0]
    for picture in (square, noise, disc, face, np.zeros_like(square), np.full_like(square, 0.7)):
        result = checked_skull(picture, calibration)
        assert result.check.level == "stop" and result.picture is picture
        assert "no_skull" in result.check.names


@pytest.mark.parametrize("part", ["vault", "left", "right"])
def test_a_skull_without_a_part_is_drawn_with_a_warning(part, skulls, calibration):
    """It says which part, and nothing moves: what is left cannot tell place and size."""
    for picture in [*skulls.values()][:3]:
        result = checked_skull(remove_bone(picture, part, 1), calibration)
        assert (result.check.level, result.done) == ("warning", ())
        assert any(f.name == "unlike" and part in f.text for f in result.check.findings)


def test_the_open_scan_has_no_mandible(calibration):
    result = check_skull(read_image(ROOT / "data/ct/open_ct_skull.png")[0], calibration)
    assert result.level == "warning" and "no_mandible" in result.names


def test_turn_scale_and_place_are_measured(skull, calibration):
    own = measure(skull.mean(2), calibration.arrays)
    other = measure(moved(skull, 10, 0.9, -12, 8).mean(2), calibration.arrays)
    assert own.angle - other.angle == pytest.approx(10, abs=0.3)
    assert other.scale / own.scale == pytest.approx(0.9, abs=0.01)
    assert (other.right - own.right, other.down - own.down) == pytest.approx((-12, 8), abs=1.5)


@pytest.mark.parametrize(
    ("change", "closer"),
    [
        (lambda p: moved(p, right=10), 0.1),
        (lambda p: moved(p, angle=20), 0.4),
        (lambda p: on_background(p, 1.0), 0.1),
        (lambda p: 1 - p, 0.1),
    ],
)
def test_what_can_be_mended_is_mended(change, closer, skull, calibration):
    """The prepared picture is much nearer to the sound one than the altered one, and it says what was done."""
    altered = change(skull).astype(np.float32)
    result = checked_skull(altered, calibration)
    assert result.done and result.check.level == "ok" and result.before.level == "warning"
    assert np.abs(result.picture - skull).mean() < closer * np.abs(altered - skull).mean()
    assert result.record()["prepared"] == list(result.done) and result.record()["findings_before"]
    assert checked_skull(altered, calibration, prepare=False).picture is altered


def test_what_cannot_be_mended_stays_a_finding(skull, calibration):
    assert "cropped" in checked_skull(cropped(skull, "top"), calibration).check.names
    assert "lit" in checked_skull(lit(skull), calibration).check.names


def test_people_whom_the_weights_never_saw_are_named(skull, calibration):
    for person in (Biometrics("male", 3, "Asian", 4), Biometrics("male", 40, "Martian", 4)):
        assert check_skull(skull, calibration, person).names == {"outside_training"}
    assert not check_skull(skull, calibration, Biometrics("male", 40, "Asian", 4)).names


def test_without_a_calibration_background_and_cut_are_still_found(skull):
    assert check_skull(on_background(skull, 0.5), None).names == {"background"}
    assert check_skull(cropped(skull, "left"), None).names == {"cropped"}
    empty = check_skull(np.zeros_like(skull), None)
    assert empty.names == {"no_skull"} and empty.level == "warning"  # without a reference nobody is stopped


def test_a_reference_is_the_mean_of_skulls_laid_over_each_other(skull):
    """Shifted copies of one skull give that skull, sharp."""
    arrays = make_reference([moved(skull, right=d).mean(2) for d in (-8, 0, 8)], [])
    assert measure(skull.mean(2), arrays).fit > 0.995
