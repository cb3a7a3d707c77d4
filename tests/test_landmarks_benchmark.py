"""The benchmark of the landmark networks: ridge finds what is linear, and the command line."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.model import landmarks
from benchmarks.model.ridge_landmarks import Inputs, fit_ridge
from data.partial import REGIONS
from muti_control.networks.config import PipNetConfig
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from tests.landmark_pairs import LAYOUT, write_landmark_pairs


def test_ridge_finds_a_linear_relation_and_nothing_where_there_is_none():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 3))
    pictures = hidden @ rng.normal(size=(3, 200)) + 0.01 * rng.normal(size=(300, 200))
    attributes = rng.normal(size=(300, 2))
    points = 0.5 + 0.02 * (np.hstack([hidden, attributes]) @ rng.normal(size=(5, 24))).reshape(300, 12, 2)
    points[:, 1, 0] += 0.3  # the corners of the eyes lie apart

    def part(rows: slice, mixed: bool = False) -> Inputs:
        order = rng.permutation(300)[rows] if mixed else np.arange(300)[rows]
        return Inputs(pictures[rows], attributes[rows], points[order])

    def error(ridge, inputs: Inputs) -> float:
        return float(np.abs(ridge(inputs) - inputs.points).mean())

    train, valid, test = (part(rows) for rows in (slice(200), slice(200, 250), slice(250, 300)))
    spread = float(np.abs(test.points - train.points.mean(0)).mean())
    assert error(fit_ridge(train, valid, (0, 1)), test) < 0.05 * spread
    unrelated = fit_ridge(part(slice(200), mixed=True), part(slice(200, 250), mixed=True), (0, 1))
    assert error(unrelated, test) > 0.9 * spread


def test_figures_and_pictures_are_written(tmp_path, capsys):
    root = write_landmark_pairs(tmp_path / "set", train=14, valid=4, test=12)
    for role, ethnicities in (("face", None), ("skull", ["African", "Asian"])):
        size = {"num_landmarks": 12, "num_neighbours": 4, "image_size": 64, "width": 0.125}
        net = PipNet(PipNetConfig(**size, ethnicities=ethnicities))
        LandmarkReader(net, LAYOUT, role).save(tmp_path / f"{role}.safetensors")
    arguments = [f"data.root={root}", f"out={tmp_path / 'r' / 'landmarks'}", "resamples=100"]
    arguments += [f"{role}={tmp_path / f'{role}.safetensors'}" for role in ("face", "skull")]
    assert landmarks.main([*arguments, "eye_corners=[0,3]"]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "r/landmarks.json").read_text())
    assert result["num"] == 12 and result["nme"]["mean face"]["mean"] < result["nme"]["face: network"]["mean"]
    assert {path.name for path in (tmp_path / "r").glob("*.png")} == {
        "landmarks_ced.png", "landmarks_faces.png", "landmarks_skulls.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "ridge minus network" in printed
    assert all(f"| skull without {region}: network | " in printed for region in REGIONS)
