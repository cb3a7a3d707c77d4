"""evaluate.py, landmarks and guidance: what a model is shown of the true face is told, and controls do not get it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from landmark_pairs import LAYOUT, write_landmark_model, write_landmark_pairs
from PIL import Image

import evaluate
from data.landmarks import landmark_fractions
from data.manifest import read_manifest
from ldm.checkpoint import sha256
from muti_control.evaluation.plan import make_plan
from muti_control.evaluation.results.results_file import read_results
from tests.test_spgd_runs import tiny_reader

SMALL = (
    "recognisers=[picture]",
    "device=cpu",
    "precision=fp32",
    "bootstrap=50",
    "num=3",
    "samples=1",
    "sampling.steps=2",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def arguments(root: Path, *more: str) -> list[str]:
    networks = (
        f"landmark_weights={root}/pipnet.safetensors",
        f"spgd.face_landmark_weights={root}/face.safetensors",
    )
    paths = (f"data.root={root}", f"weights={root}/model.safetensors", "name=run")
    return [*paths, *networks, *SMALL, *more]


def record_of(purpose: str) -> dict[str, Any]:
    return json.loads(Path(f"results/run/faces/model_{purpose}/record.json").read_text())


def faces(name: str) -> np.ndarray:
    paths = sorted(Path(f"results/{name}/faces/model_own").glob("test_*_0.png"))
    assert len(paths) == 3
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in paths])


ALSO = ("edited=0", "told=0", "methods=[model,shuffled]")


def test_each_choice_of_landmarks_draws_other_faces_and_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for choice in ("auto", "none", "known"):
        assert evaluate.main(arguments(root, *ALSO, f"landmarks={choice}", f"name={choice}")) == 0
    auto, none, known = (faces(choice) for choice in ("auto", "none", "known"))
    assert (auto != none).any() and (known != none).any() and (auto != known).any()
    told = {
        c: " ".join(read_results(Path("results") / c).protocol.remarks) for c in ("auto", "none", "known")
    }
    assert "read off the skull" in told["auto"] and "which nobody has" in told["known"]
    assert "landmarks" not in told["none"]
    people = {r.source: r for s in ("train", "test") for r in read_manifest(root / f"split_data/{s}.json")}
    shuffled = Path("results/known/faces/model_shuffled")
    cases = json.loads((shuffled / "record.json").read_text())["cases"]
    for case in cases:  # the skull of another brings the landmarks of another
        donor = people[Path(case["skull"]["path"]).name]
        assert donor.source != f"{case['name']}.png"
        points = np.array(json.loads((shuffled / f"{case['name']}_landmarks.json").read_text())["points"])
        np.testing.assert_allclose((points + 0.5) / 64, landmark_fractions(donor)[0], atol=0.02 / 64 + 1e-4)
    assert cases


def test_a_missing_network_is_told_before_anything_is_drawn(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(arguments(root, *ALSO, "landmark_weights=nowhere.safetensors")) == 2
    assert "landmark_weights: nowhere.safetensors" in capsys.readouterr().err
    assert not Path("results/run").exists()


def test_true_targets_are_told_and_the_control_gets_its_donors(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("methods=[model,shuffled]", "told=0", "spgd.mode=plain", "spgd.target=true")
    assert evaluate.main(arguments(root, *more)) == 0
    found = read_results(Path("results/run"))
    told = " ".join(found.protocol.remarks)
    assert "of the true face, which nobody has in practice" in told
    assert "No edits of model" in told and not found.edits
    assert not list(Path("results/run/faces").glob("model_body_mass*"))
    people = {r.source: r for s in ("train", "test") for r in read_manifest(root / f"split_data/{s}.json")}
    for case in record_of("own")["cases"]:
        assert case["spgd_target"]["file"] == f"{case['name']}.json"
    swapped = record_of("shuffled")["cases"]
    assert swapped
    for case in swapped:
        donor = people[Path(case["skull"]["path"]).name]
        assert donor.landmarks_path is not None and donor.landmarks_path.stem != case["name"]
        assert case["spgd_target"]["file"] == donor.landmarks_path.name
        assert case["spgd_target"]["sha256"] == sha256(donor.landmarks_path)
        assert case["true_face"]["path"] == str(donor.face_path)


def test_given_targets_leave_the_control_unguided_and_it_is_said(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("methods=[model,shuffled]", "told=0", "spgd.mode=plain", f"spgd.target={root}/given")
    assert evaluate.main(arguments(root, *more)) == 0
    told = " ".join(read_results(Path("results/run")).protocol.remarks)
    assert "(those of given)" in told and "another's skull are not guided" in told
    assert record_of("own")["spgd"]["mode"] == "plain"
    assert record_of("shuffled")["spgd"] is None


def test_a_donor_without_true_landmarks_is_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "data"
    shutil.copytree(root, other)
    path = other / "split_data/test.json"  # of six people three are probes
    probes = {r.subject for r in make_plan(arguments(root)).inputs.probes}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    bare = [{k: v for k, v in x.items() if k != "landmarks" or x["subject"] in probes} for x in lines]
    path.write_text("\n".join(map(json.dumps, bare)))
    train = other / "split_data/train.json"
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    train.write_text("\n".join(json.dumps({k: v for k, v in x.items() if k != "landmarks"}) for x in lines))
    more = ("spgd.mode=plain", "spgd.target=true", "landmarks=none")
    assert evaluate.main(arguments(other, *more)) == 2
    assert "has no known landmarks" in capsys.readouterr().err
    assert not Path("results/run").exists()
    make_plan(arguments(other, *more, "methods=[model]"))  # nobody lends a skull


@pytest.mark.parametrize(
    ("more", "pinned"),
    [
        (("landmarks=known",), True),
        (("landmarks=auto",), False),
        (("spgd.mode=plain", "spgd.target=true"), True),
        (("spgd.mode=plain", "spgd.target=true", "spgd.landmarks=0"), False),
        (("spgd.target=true",), False),
    ],
)
def test_points_that_no_edit_moves_are_not_asked_for_edits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], pinned: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(arguments(root, *more))
    assert list(plan.pinned) == (["model"] if pinned else [])
    assert any("No edits of model" in remark for remark in plan.inputs.remarks) == pinned


def test_the_networks_behind_a_face_are_among_its_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    skull, face = root / "pipnet.safetensors", root / "face.safetensors"
    for more, wanted in (
        (("landmarks=auto",), {skull}),
        (("landmarks=none",), set()),
        (("landmarks=known", "spgd.mode=plain"), {face}),
        (("landmarks=auto", "spgd.mode=plain", "spgd.landmarks=0"), {skull}),
    ):
        plan = make_plan(arguments(root, *more, "edited=0"))  # nor the network that reads edits
        found = {file.path: file.sha256 for file in plan.files}
        weights = root / "model.safetensors"
        assert found == {str(path): sha256(path) for path in (weights, *wanted)}


def test_an_edit_without_a_true_change_is_not_measured(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(arguments(root, "methods=[model]", "told=0", "landmarks=auto")) == 0
    assert list(Path("results/run/faces").glob("model_body_mass*"))
    reasons = [left.reason for left in read_results(Path("results/run")).not_run]
    assert any(
        "no true face changed in landmarks by" in reason for reason in reasons
    )  # the very same pictures


def test_guidance_that_cannot_act_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    window = ("spgd.mode=spgd", "spgd.end=0.2", "sampling.steps=4")
    assert evaluate.main(arguments(root, *window)) == 2
    told = capsys.readouterr().err
    assert "model: spgd: no step is guided by start=0, end=0.2, every=1 at 4" in told
    assert told.count("\n") == 1 and not Path("results").exists()
    plan = make_plan(arguments(root, "spgd.mode=plain", "spgd.scale=0", "sampling.steps=4"))
    assert "model is not guided: spgd.mode=plain, but spgd.scale is 0." in plan.inputs.remarks
    assert not any(remark.startswith("Guided") for remark in plan.inputs.remarks)
