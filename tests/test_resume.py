"""A run that broke off is continued to the same faces; another run, or a damaged one, is not mistaken for it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import muti_control.sampling.draw as reconstruction
import sample
from data.images import write_png
from muti_control.case.log import read_log
from muti_control.case.verify import verify
from muti_control.record import LOCK, LOG
from muti_control.sampling import outputs

COMMON = ("num_samples=2", "batch_size=3", "device=cpu", "precision=fp32", "seed=4")


@pytest.fixture
def run(
    weights: Path, make_pairs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Calls sample.main for five skulls of two faces each, in batches of three, in an empty folder."""
    manifest = make_pairs(test=5) / "split_data/test.json"
    monkeypatch.setattr(outputs, "PANEL", 64)  # their size is of no interest here
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda *more: sample.main([f"weights={weights}", f"skull={manifest}", *COMMON, *more])


@pytest.fixture
def broken_off(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Breaks a run into results/test off before its third batch; the names of the faces it has by then."""
    draw, calls = reconstruction.draw_faces, iter(range(9))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "draw_faces", interrupted)
        assert run() == 130
    faces = sorted(path.name for path in Path("results/test").glob("test_?_?.png"))
    assert len(faces) == 6
    return faces


def same_files(a: Path, b: Path) -> None:
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    for path in a.glob("*.png"):
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name


def test_a_continued_run_gives_the_files_of_one_that_never_stopped(
    run: Callable[..., int], broken_off: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    there = Path("results/test")
    (there / broken_off[1]).unlink()  # of a batch of which the rest is there
    (there / f".{broken_off[1]}.0123abcd.tmp").write_bytes(b"half a pictu")
    kept = {name: (there / name).stat().st_mtime_ns for name in broken_off if (there / name).exists()}
    before = json.loads((there / "record.json").read_text())
    assert run("resume=true") == 0
    assert "continuing results/test: 5 faces are there already" in capsys.readouterr().out
    assert {name: (there / name).stat().st_mtime_ns for name in kept} == kept
    record = json.loads((there / "record.json").read_text())
    assert record["finished"] is True
    assert verify(there).differences == []
    actions = [entry["action"] for entry in read_log(there).entries]
    assert actions == ["drawing begun", "drawing broken off", "drawing resumed", "faces drawn"]
    assert record["earlier_runs"] == [
        {"date": before["date"], "environment": before["environment"], "faces_kept": 5}
    ]
    assert run("out=whole") == 0
    same_files(there, Path("whole"))


def test_resume_begins_where_there_is_nothing_adds_samples_and_changes_no_face_of_a_finished_run(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("resume=true", "num_samples=1", "out=o") == 0
    assert "continuing" not in capsys.readouterr().out
    assert run("resume=true", "out=o") == 0
    first = {path.name: path.read_bytes() for path in Path("o").glob("*.png")}
    assert len(first) == 10 + 1 + 5 * 3  # faces, sheet, and mean, spread and overlay of each skull
    monkeypatch.setattr(reconstruction, "draw_faces", None)  # nothing is left to draw
    assert run("resume=true", "out=o") == 0
    assert {path.name: path.read_bytes() for path in Path("o").glob("*.png")} == first
    assert json.loads(Path("o/record.json").read_text())["finished"] is True


def test_without_out_the_latest_folder_is_continued(run: Callable[..., int], broken_off: list[str]) -> None:
    assert run("sampling.steps=1") == 0  # results/test-2
    (Path("results/test-2") / broken_off[0]).unlink()
    assert run("resume=true", "sampling.steps=1") == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["test", "test-2"]
    assert (Path("results/test-2") / broken_off[0]).is_file()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=5", "seed 4, now it is 5"),
        ("sampling.eta=0.5", "sampling.eta 1.0, now it is 0.5"),
        ("age=80", "prompt 3D face scan,"),
        ("precision=bf16", "environment.precision float32"),
        ("num_samples=1", "(test_0_1.png)"),
        ("limit=2", "(test_1_0.png)"),
        ("another skull", "test_0_0.png was drawn with skull.sha256"),
        ("no text", "test_0_0.png is no whole face"),
        ("torn", "test_0_0.png is no whole face"),
        ("no cases", "record.json lacks"),
        ("no record", "holds no record.json"),
    ],
)
def test_another_run_and_damage_are_not_continued(
    run: Callable[..., int],
    broken_off: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    key: str,
) -> None:
    there = Path("results/test")
    face, record = there / broken_off[0], there / "record.json"
    if change == "another skull":
        Image.new("L", (64, 64), 80).save(tmp_path / "pairedCS/skull/test_0.png")
    elif change == "no text":
        write_png(face, np.zeros((64, 64, 3), "uint8"))
    elif change == "torn":
        face.write_bytes(face.read_bytes()[:-200])
    elif change == "no cases":
        record.write_text(record.read_text().replace('"cases"', '"case"'))
    elif change == "no record":
        record.write_text("{")
    before = {path: path.read_bytes() for path in there.iterdir()}
    assert run("resume=true", *([change] if "=" in change else [])) == 2
    error = capsys.readouterr().err
    assert key in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in there.iterdir()} == before


@pytest.mark.parametrize("last_words", ["contact_sheet.png", "test_2_1.png", "record.json"])
def test_an_overwriting_run_that_meets_a_full_disk_leaves_the_earlier_one(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    last_words: str,
) -> None:
    assert run("out=o") == 0
    before = results_in("o")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == last_words:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert run("out=o", "overwrite=true", "seed=9", "num_samples=3") == 2
    message = capsys.readouterr().err
    assert "No space left on device" in message and last_words in message
    assert results_in("o") == before and verify(Path("o")).differences == []
    assert read_log(Path("o")).entries[-1]["action"] == "drawing broken off"
    monkeypatch.setattr(os, "replace", replace)
    assert run("out=o", "overwrite=true", "seed=9") == 0
    assert results_in("o").keys() == before.keys() and verify(Path("o")).differences == []


def results_in(folder: str) -> dict[str, bytes]:
    """Return all files but the log, which tells of every run."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name not in (LOG, LOCK)}
