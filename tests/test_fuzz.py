"""The campaign of hostile input notices every broken promise, and repeats a try by its number."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz import programs, scans
from benchmarks.fuzz.inputs import Sound
from benchmarks.fuzz.sandbox import OUTSIDE, Try, run

Main = Callable[[list[str]], int | None]


def refuses(_arguments: list[str]) -> int:
    print("key: got 3, expected 4", file=sys.stderr)
    return 2


def leaves_a_file(arguments: list[str]) -> int:
    Path("left").touch()
    return refuses(arguments)


def changes_its_input(_arguments: list[str]) -> int:
    Path("in.txt").write_text("other", encoding="utf-8")
    return 0


def reads_outside(arguments: list[str]) -> int:
    (Path("..") / OUTSIDE).open("rb").close()
    return refuses(arguments)


def takes_memory(_arguments: list[str]) -> int:
    return len(bytearray(7_000_000_000)) and 0


def fails(_arguments: list[str]) -> int:
    raise KeyError("x")


def says_nothing(_arguments: list[str]) -> int:
    return 2


@pytest.mark.parametrize(
    ("main", "expected", "first"),
    [
        (refuses, "refused", None),
        (refuses, "accepted", "refused, but sound"),
        (leaves_a_file, "either", "left behind"),
        (changes_its_input, "either", "an input was changed"),
        (lambda _: 0, "refused", "accepted in silence"),
        (lambda _: 7, "either", "exit code 7"),
        (reads_outside, "either", "opened"),
        (takes_memory, "either", "traceback"),
        (fails, "either", "traceback"),
        (says_nothing, "either", "ended without a word"),
    ],
)
def test_a_broken_promise_is_noticed(main: Main, expected: str, first: str | None, tmp_path: Path) -> None:
    trial = Try("kind", "program", [], {"in.txt": "text"}, expected)
    wrong = run(trial, main, tmp_path / "try")
    assert [text[: len(first or "")] for text in wrong] == ([] if first is None else [first])
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_is_kept_whole_on_a_full_disk(tmp_path: Path) -> None:
    def overwrites(arguments: list[str]) -> int:
        Path("out/old").unlink()
        try:
            Path("out/new").write_bytes(bytes(1000))
        except OSError:
            Path("out/new").unlink()
            return refuses(arguments)
        return 0

    trial = Try("kind", "program", [], {"out/old": "text"}, disk=100, replaced="out/")
    assert [text.split(":")[0] for text in run(trial, overwrites, tmp_path)] == [
        "an earlier result is lost or mixed"
    ]
    trial.disk = None
    assert run(trial, overwrites, tmp_path) == []


def test_a_try_is_repeated_by_its_number() -> None:
    sound = Sound.make()
    sound.result = {"record.json": b"{}", "log.jsonl": b"{}\n", "face.png": sound.face}

    def make(number: int) -> list[tuple[str, list[str], list[str]]]:
        trials = [maker(random.Random(number), sound) for maker in (*programs.MAKERS, *scans.MAKERS)]
        return [(one.kind, list(one.arguments), sorted(one.files)) for one in trials]

    assert make(3) == make(3) != make(4)
