"""evaluate.py from the command line to metrics.json, on tiny pictures whose answer is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from muti_control.evaluation.report.words import findings
from muti_control.evaluation.results.results import Evaluation
from muti_control.evaluation.results.results_file import read_results, to_json

SMALL = ("recognisers=[picture]", "device=cpu", "precision=fp32", "bootstrap=200", "name=run", "num=0")


@pytest.fixture
def data(make_pairs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random pairs in ``pairs``, and an empty folder to work in."""
    root = make_pairs(train=9, valid=4, test=6)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


@pytest.fixture
def run(data: Path) -> Callable[..., Evaluation]:
    """Evaluates and reads the results: run("faces=...") -> Evaluation."""

    def call(*more: str) -> Evaluation:
        assert evaluate.main([f"data.root={data}", *SMALL, *more]) == 0
        return read_results(Path("results/run"))

    return call


def rank1(evaluation: Evaluation, method: str, recogniser: str = "picture") -> float:
    found = evaluation.method(method)
    assert found is not None, method
    return found.identification[recogniser].rank1.value


def true_faces(data: Path, folder: Path, names: list[str] | None = None) -> Path:
    """The true faces of the test split, as made by a perfect method."""
    folder.mkdir()
    for i in range(6):
        name = f"test_{i}.png" if names is None else names[i]
        shutil.copy(data / "pairedCS/craniofacial" / f"test_{i}.png", folder / name)
    return folder


def test_each_ceiling_is_judged_by_its_own_faces(data, run):
    lines = [json.loads(line) for line in (data / "split_data/test.json").read_text().splitlines()]
    faces = data / "pairedCS/craniofacial"
    for name, shown in (
        ("ceiling", lines),
        ("ceiling_neutral", lines[1:] + lines[:1]),
    ):  # true, and another's
        (faces / name).mkdir()
        for line, other in zip(lines, shown, strict=True):
            shutil.copy(faces / other["target"], faces / name / line["target"])
        named = [{**line, "target": f"{name}/{line['target']}"} for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in named)
        (data / f"split_data/{name}.json").write_text(text, encoding="utf-8")
    evaluation = run(f"faces={true_faces(data, Path('made'))}")
    assert (rank1(evaluation, "ceiling"), rank1(evaluation, "ceiling_neutral")) == (1, 0)
    told = " ".join(findings(evaluation))
    assert "in the true surface style: rank-1 100.0 %" in told and "reaches 100 % of it" in told
    assert "neutral" not in told  # no share of nothing


def test_true_faces_are_found_and_baselines_stand_beside_them(data, run, capsys):
    evaluation = run(f"faces={true_faces(data, Path('made'))}")
    assert rank1(evaluation, "folder") == 1
    assert {m.name for m in evaluation.methods} >= {"folder", "ridge", "nearest", "group_mean", "mean_face"}
    assert "faces from elsewhere" in capsys.readouterr().out
    assert any("gallery has 6 faces" in remark for remark in evaluation.protocol.remarks)
    reasons = {left.name: left.reason for left in evaluation.not_run}
    assert "weights=FILE" in reasons["model"] and "ceiling=true" in reasons["ceiling"]
    assert "neutral" in reasons["ceiling_neutral"]
    assert {p.role for case in evaluation.cases for p in case.pictures} >= {
        "skull",
        "reconstruction",
        "truth",
    }
    for case in evaluation.cases:
        for picture in case.pictures:
            assert Image.open(Path("results/run") / picture.path).size == (64, 64)


def test_names_from_elsewhere_need_a_mapping_only(data, run):
    folder = true_faces(data, Path("made"), [f"face-{i}-final.png" for i in range(6)])
    rows = [f"test{i},face-{i}-final.png" for i in range(6)]
    Path("whose.csv").write_text("\n".join(["picture,probe", *[",".join(r.split(",")[::-1]) for r in rows]]))
    assert rank1(run(f"faces={folder}", "mapping=whose.csv"), "folder") == 1
    swapped = [rows[(i + 1) % 6].split(",")[1] for i in range(6)]
    Path("whose.csv").write_text("\n".join(["probe,picture", *[f"test{i},{swapped[i]}" for i in range(6)]]))
    assert rank1(run(f"faces={folder}", "mapping=whose.csv", "overwrite=true"), "folder") == 0


def test_permuted_labels_and_a_constant_picture_know_nothing(data, run):
    grey = Path("grey")
    grey.mkdir()
    for i in range(6):
        for k in range(3):
            Image.fromarray(np.full((64, 64), 90, np.uint8)).save(grey / f"test_{i}_{k}.png")
    evaluation = run(f"faces={grey}")
    ranks = evaluation.method("folder").identification["picture"].ranks
    assert sorted(ranks) == [1, 2, 3, 4, 5, 6]  # one picture: one order of the gallery
    (diversity,) = evaluation.diversity
    assert diversity.draws == 3 and diversity.measures["change"].figure.value == 0
    perfect = run(f"faces={true_faces(data, Path('made'))}", "overwrite=true")
    assert rank1(perfect, "folder") == 1 and rank1(perfect, "permuted") < 1


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ("nonsense=1", "nonsense: "),
        ("faces=nowhere", "faces: nowhere"),
        ("faces=.", "lacks 6 of 6 probes"),
        ("mapping=whose.csv", "mapping: "),
        ("methods=[model]", "weights=FILE"),
        ("methods=[best]", "methods: "),
        ("weights=none.safetensors", "none.safetensors: "),
        ("data.root=nowhere", "data.root: nowhere"),
        ("split=nothing", "nothing.json"),
        ("recognisers=[eye]", "recognisers"),
        ("size=100", "size: "),
        ("rectangle=[0.5,0.1,0.2,0.9]", "rectangle: "),
        ("resume=true overwrite=true", "resume"),
        ("cache=.", "cache: "),
    ],
)
def test_refused_with_one_message(data, capsys, arguments, key):
    assert evaluate.main([f"data.root={data}", *SMALL, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert key in error and error.startswith("evaluate.py: ") and error.count("\n") == 1
    assert not Path("results/run").exists()


def test_people_in_training_and_test_are_refused(data, capsys):
    lines = (data / "split_data/train.json").read_text()
    (data / "split_data/test.json").write_text(lines)
    assert evaluate.main([f"data.root={data}", *SMALL]) == 2
    assert "is in train as well" in capsys.readouterr().err
    assert not Path("results").exists()


def test_pictures_that_are_missing_or_differ_in_size_are_named(data, capsys):
    folder = true_faces(data, Path("made"))
    (folder / "test_4.png").unlink()
    assert evaluate.main([f"data.root={data}", *SMALL, f"faces={folder}"]) == 2
    assert "lacks 1 of 6 probes" in (error := capsys.readouterr().err) and "test4" in error
    Image.new("L", (80, 80)).save(folder / "test_4.png")
    assert evaluate.main([f"data.root={data}", *SMALL, f"faces={folder}"]) == 2
    assert "test_4.png (80 x 80)" in capsys.readouterr().err
    Image.new("L", (128, 128)).save(data / "pairedCS/craniofacial/test_2.png")
    assert evaluate.main([f"data.root={data}", *SMALL]) == 2
    assert "test_2.png (128 x 128)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,file\na,b", "must name probe and picture"),
        ("probe,picture\ntest0,../test_0.png", "line 2: no file"),
        ("probe,picture\ntest0,none.png", "line 2: no file"),
        ("probe,picture\ntest0,test_0.png", "lacks 5 of 6"),
        ("", "must name probe and picture"),
    ],
)
def test_a_bad_mapping_is_told(data, capsys, text, message):
    folder = true_faces(data, Path("made"))
    Path("whose.csv").write_text(text)
    assert evaluate.main([f"data.root={data}", *SMALL, f"faces={folder}", "mapping=whose.csv"]) == 2
    assert message in capsys.readouterr().err


def test_another_run_is_neither_continued_nor_overwritten_unasked(data, run, capsys):
    run()
    assert evaluate.main([f"data.root={data}", *SMALL]) == 2
    assert "resume=true continues it" in capsys.readouterr().err
    assert evaluate.main([f"data.root={data}", *SMALL, "resume=true", "seed=5"]) == 2
    assert "had seed 0, now it is 5" in capsys.readouterr().err
    Path("results/mine").mkdir()
    Path("results/mine/notes.txt").write_text("keep")
    assert evaluate.main([f"data.root={data}", *SMALL, "name=mine", "overwrite=true"]) == 2
    assert "holds no run of evaluate.py" in capsys.readouterr().err
    assert Path("results/mine/notes.txt").read_text() == "keep"
    before = json.loads(Path("results/run/metrics.json").read_text())
    run("resume=true")
    after = json.loads(Path("results/run/metrics.json").read_text())
    assert before["methods"] == after["methods"]


# ---------------------------------------------------------------- a model of ours
OF_MODEL = ("samples=2", "covered=3", "told=2", "edited=2", "sampling.steps=2", "batch_size=4")


def test_a_model_stands_beside_its_controls(data, weights, run):
    evaluation = run(f"weights={weights}", *OF_MODEL, "precision=bf16")
    names = [method.name for method in evaluation.methods]
    assert names[:3] == ["model", "shuffled", "attributes"] and "autoencoder" in names
    own = evaluation.method("model")
    assert len(own.identification["picture"].ranks) == 6
    (coverage,) = [c for c in evaluation.coverage if c.within == 1]
    assert coverage.draws == 2 and set(coverage.curves) <= {"model", "shuffled"}
    changed = {(s.condition, s.change): s.measures["change"].figure.value for s in evaluation.sensitivity}
    assert len(changed) == 3 and min(changed.values()) > 0
    assert (
        evaluation.protocol.sampling["steps"] == 2 and evaluation.protocol.sampling["guidance_scale"] == 2.0
    )
    record = json.loads(Path("results/run/faces/model_own/record.json").read_text())
    assert record["finished"] and [c["faces"][0]["seed"] for c in record["cases"]] == list(range(6))


def without_clock(evaluation: Evaluation) -> dict:
    """Everything but when, how long and how it was called."""
    content = json.loads(json.dumps(to_json(evaluation)))
    for key in ("date", "seconds", "command", "title"):
        content.pop(key)
    for method in content["methods"]:
        method.pop("seconds")
    for key in ("name", "resume", "cache", "overwrite"):
        content["protocol"]["config"].pop(key)
    content["subject"].pop("name")
    return content


def test_what_is_there_is_kept_and_the_rest_made_again(data, weights, run):
    arguments = (
        f"weights={weights}",
        *OF_MODEL,
        "samples=1",
        "methods=[model,shuffled,ridge]",
        "sampling.steps=1",
    )
    whole = run(*arguments)
    faces = sorted(Path("results/run/faces").rglob("test_*_0.png"))
    before = {path: path.read_bytes() for path in faces}
    Path("results/run/metrics.json").unlink()
    for path in faces[::3]:
        path.unlink()
    again = run(*arguments, "resume=true")
    assert {path: path.read_bytes() for path in faces} == before
    assert without_clock(again) == without_clock(whole)


def test_a_broken_training_picture_is_named_and_leaves_no_run(data, capsys):
    picture = data / "pairedCS/craniofacial/train_3.png"
    picture.write_bytes(picture.read_bytes()[:60])
    assert evaluate.main([f"data.root={data}", *SMALL]) == 2
    assert "train_3.png: cannot be read as a picture" in capsys.readouterr().err
    assert not Path("results/run").exists()
