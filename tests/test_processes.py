"""Several processes at one run: the same files as one, and no process that is gone keeps the others waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import muti_control.distributed as distributed
import sample
from muti_control.distributed import ProcessError, Team, find_team

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signal masks are of POSIX")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test runs as part of somebody's torchrun or srun, and two cores can be had."""
    for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(distributed, "_num_cores", lambda: 2)


@pytest.mark.parametrize(
    ("devices", "device", "size"),
    [
        ("1", "cpu", 1),
        ("auto", "cpu", 1),
        ("2", "cpu", 2),
        ("auto", "cuda", 4),
        ("3", "cuda", 3),
        ("auto", "cuda:1", 1),
        ("0", "cpu", None),
        ("-1", "cpu", None),
        ("two", "cpu", None),
        ("3", "cpu", None),
        ("5", "cuda", None),
        ("2", "cuda:1", None),
        ("2", "mps", None),
    ],
)
def test_devices_gives_the_number_of_processes_or_an_error(
    monkeypatch: pytest.MonkeyPatch, devices: str, device: str, size: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    if size is None:
        with pytest.raises(ValueError, match=r"^devices: "):
            find_team(devices, torch.device(device))
    else:
        team = find_team(devices, torch.device(device))
        assert (team.size, team.rank, team.is_first) == (size, 0, True)


PLACE = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "4"}
SRUN |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "faces"}


@pytest.mark.parametrize("variables", [PLACE, SRUN], ids=["torchrun", "srun"])
def test_processes_that_run_already_are_joined(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    joined: list[Team] = []
    monkeypatch.setattr(Team, "join", lambda team: joined.append(team))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    team = find_team("1", torch.device("cuda"))
    assert joined == [team]
    assert (team.rank, team.size, team.local_rank, team.num_machines) == (3, 4, 1, 2)
    assert team.device(torch.device("cuda")) == torch.device("cuda:1")
    assert team.device(CPU) == CPU
    with pytest.raises(ValueError, match=r"^devices: "):
        find_team("3", torch.device("cuda"))


def test_slurm_counts_tasks_of_a_step_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert find_team("1", CPU).size == 1  # a batch script is one process
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ValueError, match=r"^srun: .*--ntasks-per-node=4"):
        find_team("1", CPU)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_every_item_falls_to_exactly_one_process(size: int) -> None:
    shares = [Team(rank, size).share(range(20)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_whose_parent_is_gone_ends() -> None:
    Team(1, 2).check()
    with pytest.raises(ProcessError):
        Team(1, 2, _parent=os.getppid() + 1).check()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("disk gone"), "sample.py: process 2 of 2: disk gone\n"),
        (torch.OutOfMemoryError(), "sample.py: process 2 of 2: out of GPU memory; try batch_size=1\n"),
        (ProcessError("the process that started this one is gone"), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_a_process_other_than_the_first_reports_its_own_errors_alone(
    command: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: BaseException,
    message: str,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(Team, "join", lambda _: None)
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sample, "reconstruct_cases", fail)
    code = 130 if isinstance(error, KeyboardInterrupt) else 2
    assert sample.main(command(f"out={tmp_path / 'o'}")[2:]) == code
    assert capsys.readouterr() == ("", message)


# ---------------------------------------------------------------- whole runs
@pytest.fixture
def command(weights: Path, make_pairs: Callable[..., Path]) -> Callable[..., list[str]]:
    """A run of nine skulls in batches of two, and what else it is given."""
    manifest = make_pairs(test=9) / "split_data/test.json"

    def build(*more: object, start: tuple[str, ...] = (sys.executable,)) -> list[str]:
        common = [f"weights={weights}", f"skull={manifest}", "batch_size=2", "device=cpu"]
        return [*start, sample.__file__, *common, *map(str, more)]

    return build


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts a program, and sees to it that neither it nor what it started is left."""
    running: list[subprocess.Popen[str]] = []

    def begin(command: list[str]) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, **pipes))
        return running[-1]

    yield begin
    for program in running:
        for child in children_of(program.pid):
            os.kill(child, signal.SIGKILL)
        program.kill()
        program.communicate()


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def wait_for(what: Callable[[], bool], program: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def same_pictures(a: Path, b: Path) -> None:
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    assert sum(name.startswith("test_") for name in names) == 9
    for name in names:
        if name.endswith(".png"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("how", ["devices=2", "torchrun"])
def test_two_processes_give_the_files_of_one(
    command: Callable[..., list[str]], start: Callable[..., subprocess.Popen[str]], tmp_path: Path, how: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert sample.main(command(f"out={one}")[2:]) == 0
    if how == "torchrun":
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        program = start(command(f"out={two}", start=torchrun))
    else:
        program = start(command(f"out={two}", "devices=2"))
    told, errors = program.communicate(timeout=400)
    assert program.returncode == 0, errors
    assert "sample.py" not in errors
    assert told.count("9 faces in") == told.count("9 skulls, 1 face each: 3 steps on 2 x cpu") == 1
    same_pictures(one, two)
    record = json.loads((two / "record.json").read_text())
    assert record["finished"] is True
    assert record["environment"]["processes"] == 2
    assert [face["sha256"] for case in record["cases"] for face in case["faces"]]


LONG = ("num_samples=40", "sampling.steps=30")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux tells of a process's children there")
@pytest.mark.parametrize("how", ["killed", "ctrl-c"])
def test_a_run_that_loses_a_process_or_is_stopped_ends_at_once_and_whole(
    command: Callable[..., list[str]], start: Callable[..., subprocess.Popen[str]], tmp_path: Path, how: str
) -> None:
    out = tmp_path / "o"
    program = start(command(f"out={out}", "devices=2", *LONG))
    wait_for(lambda: len(list(out.glob("test_*.png"))) >= 4, program)
    (other,) = children_of(program.pid)
    if how == "killed":  # as by a machine out of memory
        os.kill(other, signal.SIGKILL)
        code, why = 2, "process 2 of 2 was killed by SIGKILL"
    else:
        program.send_signal(signal.SIGINT)
        code, why = 130, "interrupted"
    told = program.communicate(timeout=120)[1]
    assert told == f"sample.py: {why}; the faces so far are in {out}; resume=true continues\n"
    assert program.returncode == code
    assert not Path(f"/proc/{other}").exists()
    assert json.loads((out / "record.json").read_text())["finished"] is False
    faces = list(out.glob("test_*.png"))
    assert 4 <= len(faces) < 360
    for face in faces:
        with Image.open(face) as image:
            image.load()
    assert how == "killed" or not list(out.glob(".*"))
