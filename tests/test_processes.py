"""Several processes share one run: they write the files of one process, and none waits for a process that ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from PIL import Image

import muti_control.distributed as distributed
import sample
from muti_control.distributed import ProcessError, Team, find_team
from muti_control.sampling import draw

CPU = torch.device("cpu")
ROOT = Path(sample.__file__).parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signal masks are of POSIX")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test runs as part of somebody's torchrun or srun, and two cores can be had."""
    monkeypatch.setattr(distributed, "_num_cores", lambda: 2)
    with patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)):  # gives back what Lightning sets
        for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
            os.environ.pop(name, None)
        yield


@pytest.mark.parametrize(
    ("device", "sizes"),
    [
        ("cpu", {"1": 1, "auto": 1, "2": 2, "0": None, "-1": None, "two": None, "3": None}),
        ("cuda", {"auto": 4, "3": 3, "5": None}),
        ("cuda:1", {"auto": 1, "2": None}),
        ("mps", {"2": None}),
    ],
)
def test_devices_gives_the_number_of_processes_or_an_error(
    monkeypatch: pytest.MonkeyPatch, device: str, sizes: dict[str, int | None]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for devices, size in sizes.items():
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
        (ProcessError("the process that started this one is gone"), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_a_process_other_than_the_first_reports_its_own_errors_alone(
    command: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    message: str,
) -> None:
    monkeypatch.setattr(Team, "join", lambda _: None)
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(draw, "reconstruct_cases", Mock(side_effect=error))
    assert sample.main(command("out=nowhere")[2:]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert capsys.readouterr() == ("", message)


# ---------------------------------------------------------------- whole runs
@pytest.fixture
def command(weights: Path, make_pairs: Callable[..., Path]) -> Callable[..., list[str]]:
    """Return the command of a run of four skulls in batches of two."""
    manifest = make_pairs(test=4) / "split_data/test.json"
    common = [f"weights={weights}", f"skull={manifest}", "batch_size=2", "device=cpu", "precision=fp32"]
    return lambda *more, program=sample.__file__: [sys.executable, str(program), *common, *map(str, more)]


@pytest.fixture
def run(command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run sample.py in the test's process, which launches the other one by the command line."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", command(*more)[1:])
        return sample.main(sys.argv[1:])

    yield run
    if dist.is_initialized():  # after a lost process, as at the end of the program
        dist.destroy_process_group()


def test_two_processes_give_the_files_of_one(
    run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(f"out={one}") == 0
    capfd.readouterr()
    assert run(f"out={two}", "devices=2") == 0
    output, errors = capfd.readouterr()
    assert "sample.py" not in errors
    assert output.count("4 faces in") == output.count("3 steps on 2 x cpu") == 1
    pictures = sorted(path.name for path in one.glob("*.png"))
    assert len(pictures) == 5 and sorted(path.name for path in two.glob("*.png")) == pictures
    for name in pictures:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    record = json.loads((two / "record.json").read_text())
    assert record["finished"] is True and record["environment"]["processes"] == 2
    assert all(face["sha256"] for case in record["cases"] for face in case["faces"])


LOST = """
import os, signal, sys
if "LOCAL_RANK" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
import sample
sys.exit(sample.main(sys.argv[1:]))
"""


def test_a_process_that_is_killed_before_it_joins_ends_the_run(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "lost.py").write_text(LOST)
    out = tmp_path / "o"
    program = command(f"out={out}", "devices=2", program=tmp_path / "lost.py")
    done = subprocess.run(program, capture_output=True, text=True, timeout=400, cwd=ROOT, check=False)
    assert done.stderr == "sample.py: process 2 of 2 was killed by SIGKILL; nothing was written\n"
    assert done.returncode == 2
    assert not out.exists()


@pytest.mark.parametrize("how", ["killed", "ctrl-c"])
def test_a_run_that_loses_a_process_or_is_stopped_ends_at_once_with_whole_faces(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    out, check = tmp_path / "o", Team.check
    others: set[int] = set()

    def stop_and_check(team: Team) -> None:
        others.update(child.pid for child in team._children)
        if len(list(out.glob("test_*.png"))) >= 4 and how == "ctrl-c":
            signal.raise_signal(signal.SIGINT)
        elif len(list(out.glob("test_*.png"))) >= 4:  # as by a machine out of memory
            os.kill(min(others), signal.SIGKILL)
        check(team)

    monkeypatch.setattr(Team, "check", stop_and_check)
    code, why = (2, "process 2 of 2 was killed by SIGKILL") if how == "killed" else (130, "interrupted")
    assert run(f"out={out}", "devices=2", "num_samples=90") == code
    ending = f"sample.py: {why}; the faces so far are in {out}; resume=true continues\n"
    assert capfd.readouterr().err == ending
    (other,) = others
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)
    assert json.loads((out / "record.json").read_text())["finished"] is False
    faces = list(out.glob("test_*.png"))
    assert 4 <= len(faces) < 360
    for face in faces:
        with Image.open(face) as image:
            image.load()
    assert how == "killed" or not list(out.glob(".*.tmp"))
