"""Compare a training that is killed again and again with one that is not.

    python -m benchmarks.training.kill_resume [key=value ...]

Trains a tiny base stage on the shipped pairs, on the CPU in fp32: once undisturbed, once ended at random moments by
SIGKILL and SIGTERM and started again by the same command. Compares every logged loss and validation score and the
exported weights, and reads every checkpoint that a signal left behind. Exit code 1 if anything differs, is lost or
cannot be read.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks.results_file import machine, run, table
from ldm.checkpoint import read_state_dict
from ldm.containers import load_pickle
from settings.base import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
SAVE_EVERY = 7
CONFIG = """
stage: base
train: {batch_size: 2, accumulate: 2, val_every: 40, log_every: 1, num_valid: 4, num_threads: 1, precision: fp32,
  device: cpu}
optim: {warmup_steps: 10, schedule: cosine, ema_decay: 0.9}
sampling: {steps: 2, control_scales: [1.0]}
model:
  image_size: 64
  unet: {model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1, attention_levels: [1], num_heads: 2,
    context_dim: 16, norm_groups: 4}
  first_stage: {ch: 8, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, norm_groups: 4}
  cond_stage: {width: 16, layers: 1, heads: 2, intermediate: 16}
"""


class KillConfig(Settings):
    """The trial: a run is killed and continued at random moments. One signal in five comes while the program
    starts."""

    kills: int = 10
    """Number of SIGKILL."""
    terms: int = 5
    """Number of SIGTERM."""
    steps: int = 400
    """Steps of the run. With too few it ends before all signals are sent, which is a failure."""
    reach: int = 20
    """A signal comes 1 to so many steps after a start, and a random part of a step."""
    seed: int = 0
    """Seed of the moments."""


@dataclass(frozen=True)
class Start:
    """One start of the disturbed run: the signal that ended it, its exit code and what was left behind.

    begun: step it went on from. logged: last step in its log. saved: step of ``last.ckpt`` afterwards.
    """

    name: str
    code: int
    begun: int
    logged: int
    saved: int


FORKS = multiprocessing.get_context("forkserver")  # a fork of a process with PyTorch starts at once
FORKS.set_forkserver_preload(["train", "muti_control.training.run"])


def start(arguments: list[str], output: Path) -> BaseProcess:
    """Start ``train.py`` in a process of its own; its output goes to a file."""
    process = FORKS.Process(target=_train, args=(arguments, str(output)))
    process.start()
    return process


def _train(arguments: list[str], output: str) -> None:
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(train.main(arguments))


def exit_code(process: BaseProcess) -> int:
    """Wait for the end of a process; return its exit code, negative for a signal. Raises: RuntimeError: 10 minutes."""
    process.join(600)
    if process.exitcode is None:
        process.kill()
        raise RuntimeError("train.py did not end within ten minutes")
    return process.exitcode


def arguments_of(folder: Path, name: str, steps: int) -> list[str]:
    """Return the arguments of ``train.py`` to start and to continue a run, with its config written."""
    config = folder / "tiny.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    run = [f"name={name}", f"data.root={ROOT / 'data'}", f"out={folder / 'runs'}"]
    return [str(config), *run, f"train.max_steps={steps}", f"train.save_every={SAVE_EVERY}"]


def read_logs(run: Path) -> list[list[dict[str, str]]]:
    """Return the rows of every start's log, in order, without a row that a kill cut short."""
    logs = sorted(run.glob("csv/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    starts = []
    for path in logs:
        with path.open(encoding="utf-8", newline="") as file:
            whole = [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]
        starts.append(list(csv.DictReader(whole)))
    return starts


def compared(run: Path) -> list[dict[tuple[int, str], str]]:
    """Return every loss, gradient norm and score by (step, name), as logged, for each start: these must be the same."""
    return [
        {
            (int(row["step"]), key): value
            for row in rows
            for key, value in row.items()
            if value and key and key.startswith(("train/", "valid/"))
        }
        for rows in read_logs(run)
    ]


def saved_step(run: Path) -> int:
    """Return the step of ``last.ckpt``, 0 without one. Raises: CheckpointError: it or one beside it is damaged."""
    steps = {"last.ckpt": 0}
    for path in (run / "checkpoints").glob("*.ckpt"):
        steps[path.name] = int(load_pickle(path)["updates"])
    return steps["last.ckpt"]


def shoot(process: BaseProcess, log: Path, signum: int, num_steps: int, delay: float) -> int:
    """Send a signal ``delay`` seconds after ``num_steps`` logged steps (0: after the start); return the exit code."""
    deadline = time.monotonic() + 600
    while num_steps and process.exitcode is None and time.monotonic() < deadline:
        if log.is_file() and log.read_bytes().count(b"\n") > num_steps:  # the first line has the names
            break
        time.sleep(0.005)
    time.sleep(delay)
    if process.exitcode is None and process.pid is not None:
        os.kill(process.pid, signum)
    return exit_code(process)


def disturb(cfg: KillConfig, folder: Path) -> tuple[list[Start], list[str]]:
    """Send all signals, then let the run end; return every start and every problem."""
    rng = random.Random(cfg.seed)
    signals = [signal.SIGKILL] * cfg.kills + [signal.SIGTERM] * cfg.terms
    rng.shuffle(signals)
    run, arguments = folder / "runs" / "disturbed", arguments_of(folder, "disturbed", cfg.steps)
    output = folder / "output.txt"
    starts: list[Start] = []
    problems: list[str] = []
    begun = 0
    for number, signum in enumerate(signals, 1):
        before = len(read_logs(run))
        early = number % 5 == 0
        moment = (0, rng.uniform(0, 5)) if early else (rng.randint(1, cfg.reach), rng.uniform(0, 0.05))
        code = shoot(
            start(arguments, output), run / "csv" / f"version_{before}" / "metrics.csv", signum, *moment
        )
        saved = saved_step(run)
        logs = read_logs(run)
        last_row = logs[-1][-1] if len(logs) > before and logs[-1] else None
        logged = begun if last_row is None else int(last_row["step"]) + 1
        starts.append(Start(signum.name, code, begun, logged, saved))
        problems += [f"start {number}: {text}" for text in judge(starts[-1], output.read_text())]
        if code in (0, 1, 2):
            break
        begun = saved
    if exit_code(start(arguments, output)) != 0:
        problems.append(f"the last start failed: {output.read_text()[-2000:]}")
    return starts, problems


def judge(start: Start, output: str) -> list[str]:
    """Return the problems of a start that a signal ended."""
    expected = {"SIGKILL": (-signal.SIGKILL,), "SIGTERM": (-signal.SIGTERM, 128 + signal.SIGTERM)}[start.name]
    problems = []
    if start.code not in expected:
        problems.append(f"{start.name} gave exit code {start.code}: {output[-500:]}")
    if start.saved < start.begun:
        problems.append(f"went back from step {start.begun} to {start.saved}")
    if start.code == 128 + signal.SIGTERM and start.saved < start.logged:
        problems.append(f"SIGTERM at step {start.logged} saved step {start.saved} only")
    if start.logged - start.saved > SAVE_EVERY:  # the save that is due at that step may have been under way
        problems.append(f"step {start.logged} was reached and only step {start.saved} is left")
    return problems


def compare(cfg: KillConfig, folder: Path) -> tuple[list[Start], list[str], int]:
    """Do the trial in ``folder``; return all starts, all problems, and the number of compared values."""
    output = folder / "undisturbed.txt"
    arguments = arguments_of(folder, "undisturbed", cfg.steps)
    if exit_code(start(arguments, output)) != 0:
        return [], [f"the undisturbed run failed: {output.read_text()[-2000:]}"], 0
    starts, problems = disturb(cfg, folder)
    if len(starts) < cfg.kills + cfg.terms:
        problems.append(f"the run ended after {len(starts)} signals: give a larger steps=")
    (expected,) = compared(folder / "runs" / "undisturbed")
    logs = compared(folder / "runs" / "disturbed")
    together: dict[Any, str] = {}
    for log in logs:
        for key, value in log.items():
            if expected.get(key) != value:
                problems.append(f"step {key[0]} {key[1]}: {value}, undisturbed {expected.get(key)}")
        together |= log
    lost = {key for key in expected if key not in together and key[1] not in ("train/skipped",)}
    hidden = sorted({step for step, _ in lost})
    if len(hidden) > len(starts):  # a kill may take one line of a step that a checkpoint already has
        problems.append(f"no log of the steps {hidden}")
    one, other = (
        read_state_dict(folder / "runs" / n / "model.safetensors")[0] for n in ("undisturbed", "disturbed")
    )
    problems += [f"exported {name} differs" for name in one if not torch.equal(one[name], other[name])]
    return starts, problems, sum(map(len, logs))


def work(cfg: KillConfig) -> int:
    """Do the trial and print every start and problem; return 1 if there is a problem."""
    with tempfile.TemporaryDirectory() as folder:
        starts, problems, num_values = compare(cfg, Path(folder))
    rows = [[str(value) for value in (n, *astuple(start))] for n, start in enumerate(starts, 1)]
    print(machine(torch.device("cpu")))
    print(table(["start", "ended by", "exit code", "went on from step", "reached", "last.ckpt"], rows))
    print(f"{num_values} logged values compared with the undisturbed run's; {len(problems)} problems")
    print("\n".join(problems))
    return 1 if problems else 0


def main(arguments: Sequence[str]) -> int:
    return run("training.kill_resume", KillConfig, arguments, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
