"""Edits whose truth is known: which there are, what they are read with, and how the report tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluate import main
from muti_control.evaluation.methods.edits import find_edits
from muti_control.evaluation.methods.faces import read_grey
from muti_control.evaluation.plan import ROOT, make_plan
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.inputs import InputError, read_inputs
from muti_control.evaluation.results.results_file import read_results
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import FACE_LANDMARKS, SKULL_LANDMARKS
from settings.reading import parse_command_line


def with_variants(root: Path) -> Path:
    """True faces at another age or body mass for the first two of a test split: ages 20, 20, 50, body mass 4."""
    own = [json.loads(line) for line in (root / "split_data/test.json").read_text().splitlines()]
    lines = [own[0], own[1]]
    for person, number, changes in (
        (0, 1, {"age": 48, "changed": ["age"]}),
        (0, 2, {"age": 90, "changed": ["age"]}),
        (0, 0, {"body_mass": "2", "changed": ["body_mass"]}),
        (1, 2, {"body_mass": "3", "changed": ["body_mass"]}),
        (1, 0, {"age": 45, "body_mass": "2", "changed": ["age", "body_mass"]}),
    ):
        lines.append(own[person] | {"target": f"train_{number}.png"} | changes)
    (root / "split_data/variants.json").write_text("\n".join(map(json.dumps, lines)))
    return root


def test_edits_are_those_whose_truth_the_data_hold(make_pairs):
    root = with_variants(make_pairs(train=3, valid=2, test=3))
    config = parse_command_line(EvaluateConfig, [f"data.root={root}", "num=0"])
    inputs = read_inputs(config)
    found = {edit.name: edit for edit in find_edits(inputs.probes, inputs.variants, 5)}
    assert set(found) == {
        "age_up",
        "body_mass_down",
    }  # one level lighter, or two things at once, is none of them
    assert {i: r.biometrics.age for i, r in found["age_up"].variants.items()} == {0: 48}
    assert {i: r.biometrics.body_mass for i, r in found["body_mass_down"].variants.items()} == {0: 2}
    assert not find_edits(inputs.probes, inputs.variants, 0)


def test_edits_are_read_by_the_landmark_network_and_by_dlib(make_pairs):
    root = with_variants(make_pairs(train=3, valid=2, test=3))
    plan = make_plan([f"data.root={root}", "num=0", "recognisers=[dlib, picture]", "methods=[ridge]"])
    assert [reader.eye.name for reader in plan.readers] == ["network", "dlib"]
    assert "pipnet_face.safetensors" in plan.readers[0].space
    assert any(file.path.endswith("pipnet_face.safetensors") for file in plan.files)
    network = next(reader for reader in plan.readers if reader.eye.name == "network")
    face = read_grey(ROOT / "data/pairedCS/craniofacial/s00000.png", 256)
    points = network.points(network.eye.look(face)[None])[0]
    reader = LandmarkReader.load(ROOT / FACE_LANDMARKS)
    side = reader.net.cfg.image_size
    small = torch.from_numpy(face / 255).float().expand(1, 3, -1, -1)
    expected = reader(F.interpolate(small, (side, side), mode="bilinear", antialias=True))[0][0] * 256
    assert points.shape == (106, 2) and np.abs(points - expected.numpy()).max() < 1e-3
    plain = ["recognisers=[picture]", "methods=[ridge]", f"data.root={root}", "num=0"]
    assert not make_plan([*plain, "face_landmark_weights=null"]).readers
    assert not make_plan([*plain, "edited=0"]).readers
    with pytest.raises(InputError, match=r"face_landmark_weights: nowhere.safetensors not found.*null"):
        make_plan([*plain, "face_landmark_weights=nowhere.safetensors"])
    with pytest.raises(ValueError, match="reads skulls, expected a network that reads faces"):
        make_plan([*plain, f"face_landmark_weights={SKULL_LANDMARKS}"])


def test_edits_by_every_reader_and_of_true_faces_through_the_autoencoder(
    make_pairs, weights, monkeypatch, tmp_path
):
    root = with_variants(make_pairs(train=9, valid=4, test=3))
    monkeypatch.chdir(tmp_path)
    arguments = [
        f"data.root={root}",
        "num=0",
        "recognisers=[picture]",
        "name=run",
        "sampling.steps=1",
        "bootstrap=50",
    ]
    assert main([*arguments, f"weights={weights}", "methods=[model, ridge, autoencoder]"]) == 0
    found = read_results(Path("results/run"))
    by_network = {(edit.method, edit.name) for edit in found.edits if "pipnet_face" in edit.space}
    methods, names = ("model", "ridge", "autoencoder"), ("age_up", "body_mass_down")
    assert by_network == {(method, name) for method in methods for name in names}
    assert len(found.edits) == len(by_network)
    assert {edit.method for edit in found.edits if edit.pictures} == {"model", "ridge"}
    report = Path("results/run/report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "what they lack of 100 % is lost in measuring" in report
    assert "true faces through the autoencoder make" in report
    assert main([*arguments, "name=bare", "methods=[ridge]", "face_landmark_weights=null"]) == 0
    bare = read_results(Path("results/bare"))
    assert not bare.edits
    assert {left.reason for left in bare.not_run if left.name.startswith("edit ")} == {
        "nothing reads the faces: give face_landmark_weights=FILE, or dlib among the recognisers"
    }
