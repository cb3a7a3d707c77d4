"""The SLURM job script, with stand-ins for srun and scontrol."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "configs" / "sd15" / "slurm.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def submit(tmp_path: Path, status: int, **environment: str) -> tuple[int, list[str], str]:
    """Exit status, the calls of srun and scontrol, and the messages, when the training ends with ``status``."""
    calls = tmp_path / "calls"
    calls.touch()
    for name, code in (("srun", status), ("scontrol", 0)):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/bash\necho {name} "$@" >> "$CALLS"\nexit {code}\n', encoding="utf-8")
        stand_in.chmod(0o755)
    variables = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls)}
    variables = os.environ | variables | {"SLURM_JOB_ID": "77", "PYTHON": sys.executable} | environment
    command = ["bash", str(SCRIPT), "data.root=a folder", "train.seed=1"]
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=30)
    return ended.returncode, calls.read_text(encoding="utf-8").splitlines(), ended.stdout + ended.stderr


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (138, True), (143, False), (1, False)])
def test_only_a_run_that_saved_in_time_is_queued_again(tmp_path: Path, status: int, again: bool) -> None:
    code, calls, _ = submit(tmp_path, status)
    assert code == status
    assert calls[0].endswith("train.py configs/sd15/control.yaml data.root=a folder train.seed=1")
    assert calls[1:] == (["scontrol requeue 77"] if again else [])


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    code, calls, messages = submit(tmp_path, 0, PYTHON="nowhere/python")
    assert code == 2 and not calls and "nowhere/python" in messages


def test_the_job_is_warned_and_one_task_has_one_gpu() -> None:
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in SCRIPT.read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    signal, seconds = options["signal"].split("@")
    assert signal == "USR1" and int(seconds) >= 120  # not B:USR1, which would reach the script alone
    assert options["ntasks-per-node"] == options["gpus-per-node"]
