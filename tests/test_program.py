"""How programs end: signals, a standard output that closes or fills up, one run in a folder, and full disks."""

from __future__ import annotations

import errno
import io
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_hostile import ENTRY, ROOT

from data.files import ASIDE, replacing, replacing_result, set_aside
from data.workers import alone

ERRORS = {BrokenPipeError(errno.EPIPE, "closed"): 141, OSError(errno.ENOSPC, "full"): 2}
WORK = """
import pathlib, sys, time
from settings.program import Program
with Program("work", "stopped; half is kept") as end:
    print("the first line", flush=True)
    {}
    pathlib.Path(sys.argv[1]).write_text("whole")
    print("done")
sys.exit(end.status)
"""


def start(code: str, *arguments: object, **streams: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **streams)


@pytest.mark.parametrize(("error", "status"), ERRORS.items(), ids=("closed", "full"))
@pytest.mark.parametrize("name", [name for name in ENTRY if name != "folders"])
def test_every_program_outlives_its_output(name, error, status, monkeypatch, capsys):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stdout", Broken())
    assert ENTRY[name][0](["--help"]) == status
    text = capsys.readouterr().err
    assert text.startswith(ENTRY[name][1]) if status == 2 else text == ""


@pytest.mark.parametrize(
    ("sink", "status", "message"),
    [
        ("pipe", 141, ""),
        ("/dev/full", 2, "work: standard output could not be written (No space left on device)"),
    ],
)
def test_a_result_is_whole_though_nobody_reads_the_output(tmp_path, sink, status, message):
    code, out = WORK.format("time.sleep(0.3); print('x' * 70000)"), tmp_path / "out"
    if sink == "pipe":
        process = start(code, out)
        assert process.stdout is not None and process.stdout.readline() == "the first line\n"
        process.stdout.close()
    else:
        with open(sink, "w") as full:
            process = start(code, out, stdout=full)
    assert process.stderr is not None
    text = process.stderr.read()
    assert (process.wait(), out.read_text()) == (status, "whole")
    assert text.startswith(message) and text.count("\n") == (status == 2)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_program_says_what_is_kept(tmp_path, signum, status):
    process = start(WORK.format("time.sleep(60)"), tmp_path / "out")
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signum)
    assert process.communicate(timeout=30)[1] == "work: stopped; half is kept\n"
    assert process.returncode == status


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("raise ValueError('one\\ntwo')", "work: one two\n"),
        ("raise MemoryError", "work: out of memory"),
        ("raise RuntimeError('not enough memory: you tried to allocate memory')", "work: out of memory"),
        (
            "end.place = 'out'; pathlib.Path('/dev/full').write_text('x')",
            "work: out: No space left on device",
        ),
        ("pathlib.Path('/nope').read_text()", "work: /nope: No such file or directory\n"),
        ("import json; json.loads('[' * 10**6)", "work: an input is nested too deeply"),
        ("1 / 0", "Traceback"),  # a fault of the program is not hidden
    ],
)
def test_errors_are_one_message(tmp_path, fault, part):
    process = start(WORK.format(fault), tmp_path / "out")
    text = process.communicate()[1]
    assert part in text and process.returncode == (1 if "Traceback" in part else 2), text


def test_one_run_in_a_folder_and_a_dead_one_never_blocks(tmp_path):
    """A killed run's forked children may live on for a while: the lock is gone all the same."""
    record = tmp_path / "ct.json"
    record.touch()
    hold = "import os, sys, time; from pathlib import Path; from data.workers import alone\n"
    hold += "with alone(Path(sys.argv[1])):\n    os.fork() and print('locked', flush=True); time.sleep(5)"
    process = start(hold, record)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=f"process {process.pid}"), alone(record):
        pass
    process.kill()
    process.wait()
    with alone(record):
        pass


def test_a_second_training_in_a_folder_is_refused(make_tiny_run, capsys):
    import train
    from muti_control.training.checkpoints import LOCK
    from muti_control.training.config import ExperimentConfig
    from muti_control.training.run import prepare
    from settings.reading import parse_command_line

    command = make_tiny_run(1)
    run = prepare(parse_command_line(ExperimentConfig, command))
    with run:
        before = sorted(run.cfg.run_dir.rglob("*"))
        assert train.main(command) == 2
        assert f"process {os.getpid()}" in capsys.readouterr().err
        assert sorted(run.cfg.run_dir.rglob("*")) == before
    assert (run.cfg.run_dir / LOCK).is_file()
    with prepare(run.cfg):  # free again
        pass


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


OLD, NEW = (
    {"a.png": b"old a", "b.png": b"old b", "record.json": b"old"},
    {"a.png": b"new a", "record.json": b"new"},
)


def replace_in(folder: Path, stop: Callable[[str], None], **more: bool) -> None:
    with replacing_result(folder, [*OLD], [*NEW], "record.json", **more):
        for name, content in NEW.items():
            stop(name)
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        stop("end")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["rename", "replace", "mkdir", "write_bytes"])
@pytest.mark.parametrize("begun", ["old", "nothing", "kept by a killed run"])
def test_a_result_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, begun, function, error):
    """Whichever call of the file system fails first: the folder is exactly the old or exactly the new result."""
    outcomes = set()
    owner: object = os if function == "replace" else Path
    original = getattr(owner, function)
    for number in range(12):
        folder = tmp_path / str(number)
        if begun != "nothing":
            folder.mkdir()
            for name, content in OLD.items():
                (folder / name).write_bytes(content)
        if begun == "kept by a killed run":
            set_aside(folder, [*OLD], "record.json")
            (folder / "a.png").write_bytes(b"half")
        before = contents(folder)
        calls = itertools.count(-number)

        def failing(*arguments: object, calls: Iterator[int] = calls, **more: object) -> object:
            if next(calls) == 0:
                raise error
            return original(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(owner, function, failing)
            with suppress(OSError, KeyboardInterrupt):
                replace_in(folder, lambda _: None)
        after = contents(folder)
        outcomes.add(after == NEW)
        if next(calls) > 0 and after not in (
            before,
            OLD,
            NEW,
        ):  # the last move, which drops the old result, failed
            assert after == NEW | {f"{ASIDE}/{name}": content for name, content in OLD.items()}
            assert function == "rename"
    assert outcomes == {False, True} or begun == "nothing"


def test_a_stopped_run_that_can_be_resumed_keeps_both_results(tmp_path):
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)

    def stop(name: str) -> None:
        if name == "record.json":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_in(tmp_path, stop, resumable=True)
    aside = {f"{ASIDE}/{name}": content for name, content in OLD.items()}
    assert contents(tmp_path) == {"a.png": b"new a"} | aside
    replace_in(tmp_path, lambda _: None)
    assert contents(tmp_path) == NEW


def test_an_error_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"a\.png'$"), replacing(tmp_path / "a.png"):
        Path("/dev/full").write_bytes(b"x")
    assert contents(tmp_path) == {}
