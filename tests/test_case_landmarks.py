"""sample.py with landmarks: read off the skull, edited and given back, refused where they do not fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from landmark_pairs import write_landmark_model
from PIL import Image

import sample
from data.cases import Case
from data.landmarks import LandmarksError, point_name, read_landmarks
from ldm.checkpoint import sha256
from muti_control.case.log import read_log
from muti_control.case.verify import verify
from muti_control.conditions.case_landmarks import given_landmarks, lie_in_prepared, write_landmarks
from muti_control.networks.pipnet.meanface import flip_table
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling import request

NUM = 6
OTHER_SIDE = {"right": "left", "left": "right"}
PERSON = ["sex=female", "age=40", "ethnicity=Asian", "body_mass=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors with a branch that matters, pipnet.safetensors, and two skulls: one square, one wide."""
    root = tmp_path_factory.mktemp("landmarks")
    reader = write_landmark_model(root, NUM)
    LandmarkReader(reader.net, reader.mean, role="face").save(root / "face_reader.safetensors")
    rng = np.random.default_rng(1)
    (root / "skulls").mkdir()
    for name, shape in (("a", (64, 64)), ("b", (48, 80))):
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(root / "skulls" / f"{name}.png")
    return root


def run(folder: Path, out: Path, *more: str) -> int:
    common = [f"weights={folder}/model.safetensors", f"skull={folder}/skulls", "precision=fp32", *PERSON]
    return sample.main([*common, f"out={out}", *more])


def face(out: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(out / f"{name}_0.png")).astype(float)


def test_points_are_read_edited_and_given_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, moved = tmp_path / "first", tmp_path / "again", tmp_path / "moved"
    reader = f"landmark_weights={folder}/pipnet.safetensors"
    assert run(folder, first, reader) == 0
    marks = {name: json.loads((first / f"{name}_landmarks.json").read_text()) for name in "ab"}
    assert [point["number"] for point in marks["b"]["points"]] == list(range(NUM))
    lines = (first / "b_landmarks.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if "number" in line] == marks["b"]["points"]
    assert marks["a"]["source"] == "read off the skull" and marks["a"]["file"] == "pipnet.safetensors"
    assert Image.open(first / "b_landmarks.png").size == (1536, 798)
    record = json.loads((first / "record.json").read_text())
    assert record["finished"] and record["cases"][0]["landmarks"]["source"] == "read off the skull"

    assert run(folder, again, f"landmarks={first}") == 0  # as it was written: the same but for the rounding
    for name in "ab":
        assert np.abs(face(first, name) - face(again, name)).max() <= 2
    rows = marks["a"]["points"]
    first_form = {"points": [[row["x"], row["y"]] for row in rows]}
    first_form["confidence"] = [row["confidence"] for row in rows]
    for point in marks["b"]["points"]:
        point["y"] += 3
    marks["b"]["points"][4]["x"] += 30
    (first / "a_landmarks.json").write_text(json.dumps(first_form))
    (first / "b_landmarks.json").write_text(json.dumps(marks["b"]))
    capsys.readouterr()
    assert run(folder, moved, f"landmarks={first}") == 0
    assert np.abs(face(again, "a") - face(moved, "a")).max() == 0
    assert np.abs(face(again, "b") - face(moved, "b")).max() > 2
    note = next(line for line in capsys.readouterr().out.splitlines() if "b_landmarks.json" in line)
    (edited,) = (
        e["details"]["landmarks"] for e in read_log(first).entries if e["action"] == "landmarks edited"
    )
    own = read_log(moved).entries[0]["details"]["landmarks"]
    assert edited == own and [entry["file"] for entry in edited] == ["a_landmarks.json", "b_landmarks.json"]
    assert edited[1]["sha256"] == sha256(first / "b_landmarks.json") != edited[1]["before"]
    assert verify(first).differences == []
    rows = json.loads((moved / "b_landmarks.json").read_text())["points"]
    assert [row["before"] for row in rows] == [point["before"] for point in marks["b"]["points"]]
    assert [row["y"] - row["before"][1] for row in rows] == pytest.approx(
        [3] * NUM
    )  # of the network's reading
    assert "6 points were edited" in note and "point 4" in note and "30.1 px from where it was" in note
    record = json.loads((moved / "record.json").read_text())
    assert (
        "point 4" in record["cases"][1]["landmarks"]["note"] and "note" not in record["cases"][0]["landmarks"]
    )


def test_points_of_a_prepared_picture_are_not_laid_on_the_skull_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    skull = folder / "skulls/b.png"
    case = Case("b", skull, None, prepared=(folder / "skulls/a.png").read_bytes())  # 64 x 64 px
    source = given_landmarks(_points(tmp_path, [[10.0, 20.0]] * NUM), [case], NUM)
    write_landmarks(tmp_path, case, source, folder / "skulls/a.png", 64)
    head = json.loads((tmp_path / "b_landmarks.json").read_text())
    assert head["prepared"] and (head["width"], head["height"]) == (64, 64)
    assert lie_in_prepared(tmp_path, case) and not lie_in_prepared(folder / "skulls", case)
    again = given_landmarks(tmp_path, [case], NUM)
    np.testing.assert_allclose(again.points["b"], source.points["b"])
    with pytest.raises(LandmarksError, match=r"skull=b_prepared\.png"):
        given_landmarks(tmp_path, [replace(case, prepared=None)], NUM)


def _points(folder: Path, points: list[list[float]]) -> Path:
    (folder / "points.json").write_text(json.dumps({"points": points}))
    return folder / "points.json"


def test_the_106_points_have_names_of_the_persons_sides() -> None:
    names = [point_name(number, 106) for number in range(106)]
    assert len({name for name, _ in names}) == 106
    points = np.mean([read_landmarks(file)[0] for file in Path("data/pairedCS/landmarks").glob("*.json")], 0)
    for number, other in enumerate(flip_table(points / 256)):
        name, group = names[number]
        assert names[other] == (re.sub("right|left", lambda side: OTHER_SIDE[side[0]], name), group)
        if name.endswith("right"):  # of the person: at the left of the picture
            assert points[number, 0] < points[other, 0]
    assert names[16] == ("menton", "jaw") and points[16, 1] == points[:, 1].max()


def test_none_and_a_missing_network_draw_alike_and_the_latter_is_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, tmp_path / "none", "landmarks=none") == 0
    assert "landmark network" not in capsys.readouterr().out
    assert run(folder, tmp_path / "auto", "landmark_weights=nowhere.safetensors") == 2  # the user named it
    assert "landmark_weights: nowhere.safetensors not found" in capsys.readouterr().err
    assert not (tmp_path / "auto").exists()
    monkeypatch.setattr(request, "ROOT", tmp_path)  # where none is shipped
    monkeypatch.chdir(tmp_path)
    assert run(folder, tmp_path / "auto") == 0
    assert "no landmark network at models/demo/pipnet_skull" in capsys.readouterr().out
    guided = ["spgd.mode=spgd", f"spgd.face_landmark_weights={folder}/face_reader.safetensors"]
    assert run(folder, tmp_path / "guided", *guided) == 2  # by landmarks it needs the network, or points
    assert "spgd.target=PATH the points" in capsys.readouterr().err
    assert np.array_equal(face(tmp_path / "none", "a"), face(tmp_path / "auto", "a"))
    assert not list((tmp_path / "auto").glob("*landmarks*"))


def test_an_ethnicity_is_accepted_in_any_case_and_an_unknown_one_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reader = tmp_path / "strange", f"landmark_weights={folder}/pipnet.safetensors"
    assert run(folder, tmp_path / "small", reader, "ethnicity=asian") == 0
    assert run(folder, out, reader, "ethnicity=Martian") == 2
    assert "'Martian', the landmark network knows Asian" in capsys.readouterr().err
    assert not out.exists()
    assert run(folder, out, reader, "ethnicity=Martian", "landmarks=none") == 0


def test_a_run_is_continued_with_its_own_landmarks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reader = tmp_path / "out", f"landmark_weights={folder}/pipnet.safetensors"
    assert run(folder, out, reader) == 0
    before = face(out, "a")
    (out / "a_0.png").unlink()
    assert run(folder, out, "resume=true", "landmarks=none") == 2
    assert "landmarks" in capsys.readouterr().err
    assert run(folder, out, "resume=true", reader) == 0
    assert np.array_equal(face(out, "a"), before) and (out / "a_landmarks.json").is_file()


def test_landmarks_that_do_not_fit_are_refused_and_nothing_is_written(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, out = tmp_path / "short.json", tmp_path / "out"
    short.write_text(json.dumps({"points": [[1, 2], [3, 4]]}))
    unsure = tmp_path / "unsure.json"
    unsure.write_text(json.dumps({"points": [[1, 2]] * NUM, "confidence": [2.0] * NUM}))
    one = f"skull={folder}/skulls/a.png"
    rows = [{"number": k, "name": f"n{k}", "x": 9.5, "y": 30.1} for k in range(NUM)]
    for name, changed, message in (
        ("nan", [rows[0] | {"x": float("nan")}, *rows[1:]], "x of point 0 (n0) is nan"),
        ("text", [*rows[:5], rows[5] | {"y": "12,5"}], "y of point 5 (n5) is '12,5'"),
        ("lost", [{"number": 0, "y": 3}, *rows[1:]], "x of point 0 is None"),
        ("twice", [*rows[:5], rows[4]], "point 4 stands there twice"),
        ("hole", [*rows[:2], *rows[3:]], "point 2 is missing"),
        ("end", rows[:5], "5 points, expected 6"),
        ("unnumbered", [*rows[:5], [3, 4]], "'number' of entry 6"),
        ("far", [rows[0] | {"x": 950}, *rows[1:]], "point 0 (point 0) lies at x 950.0"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"points": changed}))
        with pytest.raises(LandmarksError, match=re.escape(message)):
            given_landmarks(tmp_path / f"{name}.json", [Case("a", folder / "skulls/a.png", None)], NUM)
    for words, message in (
        ((f"landmarks={short}",), "one file for 2 skulls"),
        ((f"landmarks={tmp_path}",), "lacks 2 of 2 files, the first a_landmarks.json"),
        ((f"landmarks={short}", one), "2 points, expected 6, as this model has"),
        ((f"landmarks={unsure}", one), "expected 6 numbers from 0 to 1"),
        ((f"landmark_weights={folder}/face_reader.safetensors",), "off a face, expected 6 off a skull"),
        ((f"landmark_weights={folder}/model.safetensors",), "is no landmark network"),
        ((f"weights={weights}", f"landmarks={short}"), "landmarks="),
    ):
        assert run(folder, out, *words) == 2, words
        assert message in capsys.readouterr().err
        assert not out.exists()
