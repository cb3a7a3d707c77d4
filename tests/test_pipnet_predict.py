"""muti_control.training.predict_landmarks: one network's landmarks of whole lists, for the landmark branch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from landmark_pairs import LAYOUT, write_landmark_model, write_landmark_pairs

from data.landmarks import PredictedLandmarks, landmark_fractions
from data.manifest import read_manifest
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training import predict_landmarks as predict
from muti_control.training.predict_landmarks import error_of


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    root = write_landmark_pairs(tmp_path, side=64, train=5, valid=3)
    write_landmark_model(root, len(LAYOUT), ("Asian", "African"))
    weights = f"weights={root}/pipnet.safetensors"
    return [weights, f"data.root={root}", f"out={root}/p.npz", "eye_corners=[0,3]"]


def test_every_pair_gets_what_sampling_would_read(given: list[str], tmp_path: Path, capsys) -> None:
    assert predict.main([*given, "size=64", "batch_size=2"]) == 0
    found = PredictedLandmarks.read(tmp_path / "p.npz")
    records = [r for name in ("train", "valid") for r in read_manifest(tmp_path / f"split_data/{name}.json")]
    assert found.rows_of(records).tolist() == list(range(8))
    said = capsys.readouterr()
    assert "train.json: 5 skulls read, error" in said.out and "landmarks.predicted=[" in said.out
    # Biometrics matter: the same skulls, all of one body mass, are read otherwise.
    for name in ("train", "valid"):
        path = tmp_path / f"split_data/{name}.json"
        lines = [json.loads(line) | {"body_mass": "1"} for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps(line) for line in lines))
    assert predict.main([*given, "size=64"]) == 0
    other = PredictedLandmarks.read(tmp_path / "p.npz")
    moved = np.abs(other.points - found.points).max((1, 2)) > 1e-6
    masses = [r.biometrics.body_mass for r in records]
    assert moved.tolist() == [mass != 1 for mass in masses]


def test_the_error_is_that_of_the_known_points(tmp_path: Path) -> None:
    records = read_manifest(write_landmark_pairs(tmp_path, side=64, test=4) / "split_data/test.json")
    truth = np.stack([landmark_fractions(r)[0] for r in records])
    assert error_of(truth, records, (0, 3)) == 0
    away = truth + np.array([0.01, 0], np.float32)
    unit = np.linalg.norm(truth[:, 0] - truth[:, 3], axis=-1)
    assert error_of(away, records, (0, 3)) == pytest.approx((0.01 / unit).mean(), rel=1e-4)


def test_learnt_by_heart_is_told(given: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(predict, "predict", lambda cfg: [0.005, 0.015])
    assert predict.main(given) == 0
    assert "by heart" in capsys.readouterr().err
    monkeypatch.setattr(predict, "predict", lambda cfg: [0.0145, 0.0143])
    assert predict.main(given) == 0
    assert not capsys.readouterr().err


def test_what_cannot_be_is_told_and_nothing_is_written(given: list[str], tmp_path: Path, capsys) -> None:
    net = LandmarkReader.load(tmp_path / "pipnet.safetensors")
    LandmarkReader(net.net, net.mean, role="face").save(tmp_path / "face.safetensors")
    for setting, message in (
        (f"weights={tmp_path}/face.safetensors", "weights: "),
        ("out=points.txt", "out: got"),
        (f"eye_corners=[0,{len(LAYOUT)}]", f"eye_corners: got [0, {len(LAYOUT)}]"),
        (f"out={tmp_path}/no/p.npz", "out: got"),
        ("data.valid=nobody.json", "nobody.json"),
    ):
        assert predict.main([*given, setting]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "p.npz").exists()
