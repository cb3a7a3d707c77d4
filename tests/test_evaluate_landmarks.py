"""evaluate.py and landmarks: what a model with a landmark branch is shown, and that each skull brings its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from landmark_pairs import LAYOUT, write_landmark_model, write_landmark_pairs
from PIL import Image

import evaluate
from data.landmarks import landmark_fractions
from data.manifest import read_manifest
from muti_control.evaluation.results.results_file import read_results

SMALL = (
    "recognisers=[picture]",
    "device=cpu",
    "precision=fp32",
    "bootstrap=50",
    "num=3",
    "samples=1",
    "sampling.steps=2",
)
ALSO = ("edited=0", "told=0", "methods=[model,shuffled]")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with landmarks, and a tiny model with a branch for as many."""
    root = write_landmark_pairs(tmp_path_factory.mktemp("data"), side=64, train=6, valid=4, test=6)
    write_landmark_model(root, len(LAYOUT), ("Asian", "African"))
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def call(name: str, *more: str) -> int:
        paths = (f"data.root={root}", f"weights={root}/model.safetensors", f"name={name}")
        return evaluate.main([*paths, f"landmark_weights={root}/pipnet.safetensors", *SMALL, *ALSO, *more])

    return call


def faces(name: str) -> np.ndarray:
    paths = sorted(Path(f"results/{name}/faces/model_own").glob("test_*_0.png"))
    assert len(paths) == 3
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in paths])


def test_each_choice_draws_other_faces_and_is_told(root: Path, run: Callable[..., int]) -> None:
    for choice in ("auto", "none", "known"):
        assert run(choice, f"landmarks={choice}") == 0
    auto, none, known = (faces(choice) for choice in ("auto", "none", "known"))
    assert (auto != none).any() and (known != none).any() and (auto != known).any()
    told = {
        c: " ".join(read_results(Path("results") / c).protocol.remarks) for c in ("auto", "none", "known")
    }
    assert "read off the skull" in told["auto"] and "which nobody has" in told["known"]
    assert "landmarks" not in told["none"]


def test_the_skull_of_another_brings_the_landmarks_of_another(root: Path, run: Callable[..., int]) -> None:
    assert run("known", "landmarks=known") == 0
    record = json.loads(Path("results/known/faces/model_shuffled/record.json").read_text())
    people = {r.source: r for s in ("train", "test") for r in read_manifest(root / f"split_data/{s}.json")}
    swapped = 0
    for case in record["cases"]:
        donor = people[Path(case["skull"]["path"]).name]
        written = Path("results/known/faces/model_shuffled") / f"{case['name']}_landmarks.json"
        points = np.array(json.loads(written.read_text())["points"])
        np.testing.assert_allclose((points + 0.5) / 64, landmark_fractions(donor)[0], atol=0.02 / 64 + 1e-4)
        swapped += donor.source != f"{case['name']}.png"
    assert swapped == len(record["cases"]) > 0


def test_a_missing_network_is_told_before_anything_is_drawn(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("lacking", "landmark_weights=nowhere.safetensors") == 2
    said = capsys.readouterr().err
    assert "landmark_weights: nowhere.safetensors not found" in said and "landmarks=none" in said
    assert not Path("results/lacking").exists()
    assert run("bad", "landmarks=perhaps") == 2
    assert "expected one of auto, none, known" in capsys.readouterr().err
