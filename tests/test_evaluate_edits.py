"""Edits whose truth the data have: which there are, what reads them, and their part of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from evaluate import main
from muti_control.evaluation.methods.controls import find_edits
from muti_control.evaluation.methods.faces import read_grey
from muti_control.evaluation.plan import make_plan
from muti_control.evaluation.results.results_file import read_results
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import FACE_LANDMARKS, SKULL_LANDMARKS


@pytest.fixture
def root(make_pairs):
    """Pairs with true faces at another age or body mass for the first two: ages 20, 20, 50, body mass 4."""
    root = make_pairs(train=9, valid=4, test=3)
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


def test_edits_and_what_reads_them(root):
    plan = make_plan([f"data.root={root}", "num_probes=0", "recognisers=[dlib, picture]", "methods=[ridge]"])
    edits = {edit.name: edit for edit in find_edits(plan.inputs.probes, plan.inputs.variants, 5)}
    # one level lighter, or two things at once, is none of them
    assert set(edits) == {"age_up", "body_mass_down"}
    assert {i: r.biometrics.age for i, r in edits["age_up"].variants.items()} == {0: 48}
    assert {i: r.biometrics.body_mass for i, r in edits["body_mass_down"].variants.items()} == {0: 2}
    assert not find_edits(plan.inputs.probes, plan.inputs.variants, 0)

    network, dlib = plan.readers
    assert (network.eye.name, dlib.eye.name) == ("network", "dlib") and "pipnet_face" in network.space
    assert any(file.path.endswith("pipnet_face.safetensors") for file in plan.files)
    face = read_grey(ROOT / "data/pairedCS/craniofacial/s00000.png", 256)
    points = network.points(network.eye.look(face)[None])[0]
    reader = LandmarkReader.load(ROOT / FACE_LANDMARKS)
    small = torch.from_numpy(face / 255).float().expand(1, 3, -1, -1)
    small = F.interpolate(small, (reader.net.cfg.image_size,) * 2, mode="bilinear", antialias=True)
    np.testing.assert_allclose(points, reader(small)[0][0] * 256, atol=1e-3)
    plain = ["recognisers=[picture]", "methods=[ridge]", f"data.root={root}", "num_probes=0"]
    assert not make_plan([*plain, "edited=0"]).readers
    with pytest.raises(ValueError, match=r"face_landmark_weights: nowhere.safetensors not found.*null"):
        make_plan([*plain, "face_landmark_weights=nowhere.safetensors"])
    with pytest.raises(ValueError, match="reads skulls, expected a network that reads faces"):
        make_plan([*plain, f"face_landmark_weights={SKULL_LANDMARKS}"])


def test_edits_of_each_method_and_of_true_faces_through_the_autoencoder(root, weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [
        f"data.root={root}",
        "num_probes=0",
        "recognisers=[picture]",
        "sampling.steps=1",
        "bootstrap=50",
    ]
    more = ["name=run", f"weights={weights}", "methods=[model, ridge, autoencoder]", "precision=fp32"]
    assert main([*arguments, *more]) == 0
    results = read_results(Path("results/run"))
    edits = {(edit.method, edit.name) for edit in results.edits if "pipnet_face" in edit.space}
    methods, names = ("model", "ridge", "autoencoder"), ("age_up", "body_mass_down")
    assert edits == {(method, name) for method in methods for name in names} and len(results.edits) == len(
        edits
    )
    assert {edit.method for edit in results.edits if edit.pictures} == {"model", "ridge"}
    report = Path("results/run/report.html").read_text()
    assert "lost in measuring" in report and "true faces through the autoencoder make" in report
    assert main([*arguments, "name=bare", "methods=[ridge]", "face_landmark_weights=null"]) == 0
    bare = read_results(Path("results/bare"))
    reasons = [part.reason for part in bare.not_run if part.name.startswith("edit ")]
    assert not bare.edits and all("nothing reads the faces" in reason for reason in reasons) and reasons
