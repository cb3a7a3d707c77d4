"""evaluate.py, landmarks and guidance: the report says what a model gets of the true face; controls do not get it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from landmark_pairs import LAYOUT, write_landmark_model, write_landmark_pairs
from PIL import Image

import evaluate
from data.landmarks import landmark_fractions, read_landmarks
from data.manifest import read_manifest
from ldm.checkpoint import sha256
from muti_control.evaluation.plan import make_plan
from muti_control.evaluation.production import make_faces
from tests.test_spgd_runs import tiny_reader

SMALL = [
    "recognisers=[picture]",
    "device=cpu",
    "precision=fp32",
    "num_probes=3",
    "num_samples=1",
    "sampling.steps=2",
]
BARE = ("edited=0", "told=0", "methods=[model,shuffled]")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pairs with landmarks, each test subject also at another body mass; a model with a branch; the networks."""
    root = write_landmark_pairs(tmp_path_factory.mktemp("data"), side=64, train=6, valid=4, test=6)
    write_landmark_model(root, len(LAYOUT), ("Asian", "African"))
    tiny_reader().save(root / "face.safetensors")
    lines = [json.loads(line) for line in (root / "split_data/test.json").read_text().splitlines()]
    for line in lines:
        mass = int(line["body_mass"])
        line |= {"body_mass": str(mass + 2 if mass < 4 else mass - 2), "changed": ["body_mass"]}
    (root / "split_data/variants.json").write_text("\n".join(map(json.dumps, lines)))
    (root / "given").mkdir()
    for path in (root / "pairedCS/landmarks").glob("test_*.json"):
        shutil.copy(path, root / "given" / f"{path.stem}_landmarks.json")
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def donors(root):
    """Skull picture's name -> its person, of all who may lend a skull."""
    return {r.source: r for s in ("train", "test") for r in read_manifest(root / f"split_data/{s}.json")}


def arguments(root, *more: str) -> list[str]:
    networks = (
        f"landmark_weights={root}/pipnet.safetensors",
        f"spgd.face_landmark_weights={root}/face.safetensors",
    )
    return [f"data.root={root}", f"weights={root}/model.safetensors", "name=run", *networks, *SMALL, *more]


def run(root, *more: str, name: str = "run") -> str:
    """Draw the faces of an evaluation; return the remarks for its report."""
    plan = make_plan(arguments(root, *more))
    make_faces(plan, Path("results") / name)
    return " ".join(plan.inputs.remarks)


def record_of(purpose: str, name: str = "run"):
    return json.loads(Path(f"results/{name}/faces/model_{purpose}/record.json").read_text())


def test_each_choice_of_landmarks_draws_other_faces(root, donors):
    remarks = {
        choice: run(root, *BARE, f"landmarks={choice}", name=choice) for choice in ("auto", "none", "known")
    }
    assert "read off the skull" in remarks["auto"] and "which nobody has" in remarks["known"]
    assert "landmarks" not in remarks["none"]
    paths = [sorted(Path(f"results/{choice}/faces/model_own").glob("test_*_0.png")) for choice in remarks]
    auto, none, known = (np.stack([np.asarray(Image.open(path)) for path in own]) for own in paths)
    assert (auto != none).any() and (known != none).any() and (auto != known).any()
    # the skull of another brings the landmarks of another
    for case in record_of("shuffled", "known")["cases"]:
        donor = donors[case["skull"]["file"]]
        assert donor.source != f"{case['name']}.png"
        points = Path(f"results/known/faces/model_shuffled/{case['name']}_landmarks.json")
        points, _ = read_landmarks(points)
        np.testing.assert_allclose((points + 0.5) / 64, landmark_fractions(donor)[0], atol=0.06 / 64)


def test_with_true_targets_the_control_gets_its_donors(root, donors):
    remarks = run(root, "methods=[model,shuffled]", "told=0", "spgd.mode=plain", "spgd.target=true")
    assert "of the true face, which nobody has in practice" in remarks and "No edits of model" in remarks
    assert not list(Path("results/run/faces").glob("model_body_mass*"))
    for case in record_of("own")["cases"]:
        assert case["spgd_target"]["file"] == f"{case['name']}.json"
    for case in record_of("shuffled")["cases"]:
        donor = donors[case["skull"]["file"]]
        assert donor.landmarks_path.stem != case["name"]
        assert case["spgd_target"]["file"] == donor.landmarks_path.name
        assert case["spgd_target"]["sha256"] == sha256(donor.landmarks_path)
        assert case["true_face"]["file"] == donor.face_path.name


def test_targets_in_files_leave_the_control_unguided(root):
    remarks = run(root, *BARE, "spgd.mode=plain", f"spgd.target={root}/given")
    assert "(those of given)" in remarks and "another's skull are not guided" in remarks
    assert record_of("own")["spgd"]["mode"] == "plain" and record_of("shuffled")["spgd"] is None


def test_a_donor_without_true_landmarks_is_an_error(root, tmp_path, capsys):
    other = tmp_path / "data"
    shutil.copytree(root, other)
    probes = {r.subject for r in make_plan(arguments(root)).inputs.probes}  # three of six people
    for split, own in (("test", probes), ("train", ())):
        path = other / f"split_data/{split}.json"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        bare = [{k: v for k, v in x.items() if k != "landmarks" or x["subject"] in own} for x in lines]
        path.write_text("\n".join(map(json.dumps, bare)))
    more = ("spgd.mode=plain", "spgd.target=true", "landmarks=none")
    assert evaluate.main(arguments(other, *more)) == 2
    assert "has no known landmarks" in capsys.readouterr().err
    make_plan(arguments(other, *more, "methods=[model]"))  # nobody lends a skull


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("landmark_weights=nowhere.safetensors",), "landmark_weights: nowhere.safetensors"),
        (("spgd.mode=spgd", "spgd.end=0.2", "sampling.steps=4"), "model: spgd: no step is guided"),
    ],
)
def test_what_cannot_act_is_an_error_before_anything_is_written(root, capsys, more, key):
    assert evaluate.main(arguments(root, *more)) == 2
    assert key in capsys.readouterr().err and not Path("results").exists()


@pytest.mark.parametrize(
    ("more", "pinned", "networks"),
    [
        (("landmarks=auto",), False, ["pipnet"]),
        (("landmarks=none",), False, []),
        (("landmarks=known",), True, []),
        (("landmarks=known", "spgd.mode=plain"), True, ["face"]),
        (("spgd.mode=plain", "spgd.target=true", "spgd.landmarks=0"), False, ["pipnet"]),
        (("landmarks=none", "spgd.mode=plain", "spgd.target=true"), True, ["face"]),
        (("landmarks=none", "spgd.target=true"), False, []),
        (("landmarks=none", "spgd.mode=plain", "spgd.scale=0"), False, []),
    ],
)
def test_fixed_points_exclude_edits_and_networks_are_among_the_files(root, more, pinned, networks):
    plan = make_plan(arguments(root, *more, "face_landmark_weights=null"))
    remarks = plan.inputs.remarks
    assert list(plan.pinned) == ["model"] * pinned
    assert any("No edits of model" in remark for remark in remarks) == pinned
    paths = [root / f"{name}.safetensors" for name in ("model", *networks)]
    assert {file.path: file.sha256 for file in plan.files} == {str(path): sha256(path) for path in paths}
    idle = "model is not guided: spgd.mode=plain, but spgd.scale is 0." in remarks
    assert idle == ("spgd.scale=0" in more)
