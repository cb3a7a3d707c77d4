"""evaluate.py from the command line to metrics.json, on tiny pictures whose answer is known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from muti_control.evaluation.report.words import findings
from muti_control.evaluation.results.results import Evaluation
from muti_control.evaluation.results.results_file import read_results, to_json

SMALL = ("recognisers=[picture]", "device=cpu", "precision=fp32", "bootstrap=200", "name=run", "num_probes=0")


@pytest.fixture
def data(make_pairs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random pairs, and an empty folder to work in."""
    root = make_pairs(train=9, valid=4, test=6)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


@pytest.fixture
def run(data: Path) -> Callable[..., Evaluation]:
    """Evaluates and reads the results: run("faces=...") -> Evaluation."""

    def call(*more: str, name: str = "run") -> Evaluation:
        assert evaluate.main([f"data.root={data}", *SMALL, *more, f"name={name}"]) == 0
        return read_results(Path("results") / name)

    return call


def rank1(evaluation: Evaluation, method: str) -> float:
    return evaluation.method(method).identification["picture"].rank1.value


def true_faces(data: Path, names: str = "test_{}.png") -> Path:
    """The true faces of the test split, as made by a perfect method."""
    folder = Path("made")
    folder.mkdir()
    for i in range(6):
        shutil.copy(data / f"pairedCS/craniofacial/test_{i}.png", folder / names.format(i))
    return folder


def test_true_faces_rank_first_beside_baselines_and_ceilings(data, run, capsys):
    lines = [json.loads(line) for line in (data / "split_data/test.json").read_text().splitlines()]
    faces = data / "pairedCS/craniofacial"
    for name, others in (("ceiling", lines), ("ceiling_neutral", lines[1:] + lines[:1])):
        (faces / name).mkdir()
        for line, other in zip(lines, others, strict=True):  # the true faces, and those of others
            shutil.copy(faces / other["target"], faces / name / line["target"])
        rows = [json.dumps(line | {"target": f"{name}/{line['target']}"}) for line in lines]
        (data / f"split_data/{name}.json").write_text("\n".join(rows))
    evaluation = run(f"faces={true_faces(data)}")
    assert [rank1(evaluation, name) for name in ("folder", "ceiling", "ceiling_neutral")] == [1, 1, 0]
    assert rank1(evaluation, "permuted") < 1
    text = " ".join(findings(evaluation))
    assert "in the true surface style: rank-1 100.0 %" in text and "reaches 100 % of it" in text
    assert "neutral" not in text  # no share of nothing
    assert {m.name for m in evaluation.methods} >= {"ridge", "nearest", "group_mean", "mean_face"}
    assert "faces from elsewhere" in capsys.readouterr().out
    reasons = {part.name: part.reason for part in evaluation.not_run}
    assert "weights=FILE" in reasons["model"] and "views=1" in reasons["turned"]
    pictures = [picture for case in evaluation.cases for picture in case.pictures]
    assert {p.role for p in pictures} >= {"skull", "reconstruction", "truth"}
    assert {Image.open(Path("results/run") / p.path).size for p in pictures} == {(64, 64)}


def test_names_from_elsewhere_need_a_mapping_only(data, run):
    folder = true_faces(data, "face-{}-final.png")
    for shift, expected in ((0, 1), (1, 0)):
        rows = [f"face-{(i + shift) % 6}-final.png,test{i}" for i in range(6)]
        Path("whose.csv").write_text("\n".join(["picture,probe", *rows]))
        assert rank1(run(f"faces={folder}", "mapping=whose.csv", name=f"by{shift}"), "folder") == expected


def test_a_constant_picture_knows_nothing(data, run):
    Path("grey").mkdir()
    for i in range(18):
        Image.fromarray(np.full((64, 64), 90, np.uint8)).save(f"grey/test_{i // 3}_{i % 3}.png")
    evaluation = run("faces=grey")
    ranks = evaluation.method("folder").identification["picture"].ranks
    assert sorted(ranks) == [1, 2, 3, 4, 5, 6]  # one picture: one order of the gallery
    (diversity,) = evaluation.diversity
    assert diversity.draws == 3 and diversity.measures["change"].figure.value == 0


def resize(path: str, side: int) -> Callable[[Path], None]:
    return lambda data: Image.new("L", (side, side)).save(data / path)


def truncate(data: Path) -> None:
    picture = data / "pairedCS/craniofacial/train_3.png"
    picture.write_bytes(picture.read_bytes()[:60])


def mapping(text: str) -> Callable[[Path], object]:
    return lambda data: Path("whose.csv").write_text(text)


MAPPED = "faces=made mapping=whose.csv"


@pytest.mark.parametrize(
    ("arguments", "key", "damage"),
    [
        ("faces=nowhere", "faces: nowhere", None),
        ("faces=.", "lacks 6 of 6 probes", None),
        ("mapping=whose.csv", "mapping: ", None),
        ("methods=[model]", "weights=FILE", None),
        ("weights=none.safetensors", "none.safetensors is missing", None),
        ("data.root=nowhere", "data.root: nowhere", None),
        ("split=nothing", "nothing.json", None),
        ("rectangle=[0.5,0.1,0.2,0.9]", "rectangle: ", None),
        ("cache=.", "cache: ", None),
        ("", "is in train", lambda d: shutil.copy(d / "split_data/train.json", d / "split_data/test.json")),
        ("", "train_3.png: ", truncate),
        ("", "test_2.png (128 x 128)", resize("pairedCS/craniofacial/test_2.png", 128)),
        ("faces=made", "test_4.png (80 x 80)", resize("work/made/test_4.png", 80)),
        ("faces=made", "lacks 1 of 6 probes", lambda _: Path("made/test_4.png").unlink()),
        (MAPPED, "probe,picture", mapping("subject,file\na,b")),
        (MAPPED, "line 2: no file", mapping("probe,picture\ntest0,../test_0.png")),
        (MAPPED, "lacks 5 of 6", mapping("probe,picture\ntest0,test_0.png")),
    ],
)
def test_refused_with_one_message_and_nothing_written(data, capsys, arguments, key, damage):
    true_faces(data)
    if damage is not None:
        damage(data)
    assert evaluate.main([f"data.root={data}", *SMALL, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert key in error and error.startswith("evaluate.py: ") and "Traceback" not in error
    assert not Path("results/run").exists()


def test_another_run_is_neither_continued_nor_overwritten_unasked(data, run, capsys):
    before = run()
    notes = Path("results/mine/notes.txt")
    notes.parent.mkdir()
    notes.write_text("keep")
    for more, message in (
        ([], "resume=true continues it"),
        (["resume=true", "seed=5"], "had seed 0, now it is 5"),
        (["name=mine", "overwrite=true"], "holds no run of evaluate.py"),
    ):
        assert evaluate.main([f"data.root={data}", *SMALL, *more]) == 2
        assert message in capsys.readouterr().err
    assert notes.read_text() == "keep"
    assert run("resume=true").methods == before.methods


# ---------------------------------------------------------------- a model of ours
OF_MODEL = ("num_samples=2", "covered=3", "told=2", "edited=2", "sampling.steps=2", "batch_size=4")


def test_a_model_stands_beside_its_controls(data, weights, run):
    evaluation = run(f"weights={weights}", *OF_MODEL)
    names = [method.name for method in evaluation.methods]
    assert names[:3] == ["model", "shuffled", "attributes"] and "autoencoder" in names
    assert len(evaluation.method("model").identification["picture"].ranks) == 6
    (coverage,) = [c for c in evaluation.coverage if c.within == 1]
    assert coverage.draws == 2 and set(coverage.curves) <= {"model", "shuffled"}
    changes = {(s.condition, s.change): s.measures["change"].figure.value for s in evaluation.sensitivity}
    assert len(changes) == 3 and min(changes.values()) > 0
    sampling = evaluation.protocol.sampling
    assert (sampling["steps"], sampling["guidance_scale"]) == (2, 2.0)  # as asked, as the weights recommend
    record = json.loads(Path("results/run/faces/model_own/record.json").read_text())
    assert record["finished"] and [c["faces"][0]["seed"] for c in record["cases"]] == list(range(6))


def without_clock(evaluation: Evaluation) -> dict:
    """Everything but when, how long and how it was called."""
    content = json.loads(json.dumps(to_json(evaluation)))
    for key in ("date", "seconds", "command", "title"):
        content.pop(key)
    for method in content["methods"]:
        method.pop("seconds")
    for key in ("name", "resume"):
        content["protocol"]["config"].pop(key)
    content["subject"].pop("name")
    return content


def test_a_killed_run_ends_as_an_undisturbed_one(data, weights, run, monkeypatch):
    monkeypatch.setattr(
        "muti_control.evaluation.run.write_report", lambda _: None
    )  # its figures take seconds
    arguments = (
        f"weights={weights}",
        "num_samples=1",
        "edited=0",
        "told=0",
        "methods=[model]",
        "num_probes=4",
    )
    arguments += ("batch_size=1", "sampling.steps=4")
    program = [sys.executable, evaluate.__file__, f"data.root={data}", *SMALL, *arguments, "name=killed"]
    faces = Path("results/killed/faces/model_own")
    with subprocess.Popen(program, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None and not list(faces.glob("test_*.png")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not Path("results/killed/metrics.json").exists()
    early = {path: path.stat().st_mtime_ns for path in faces.glob("test_*.png")}
    resumed, whole = run(*arguments, "resume=true", name="killed"), run(*arguments, name="whole")
    assert {path: path.stat().st_mtime_ns for path in early} == early  # what is there is kept
    assert without_clock(resumed) == without_clock(whole)
