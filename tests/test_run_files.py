"""Files of a run: checkpoints are written whole and the best ones kept; signals stop it; a slow loader is named."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import train
from benchmarks.training import kill_resume
from benchmarks.training.kill_resume import KillConfig
from muti_control.training import loop
from muti_control.training.checkpoints import FORMAT, BestCheckpoints, WholeFiles, read_run
from muti_control.training.loop import SaveLast
from muti_control.training.run import build_trainer
from settings.messages import ConfigError
from tests.tiny_stages import Plain, Vectors, make_config

ROOT = Path(__file__).resolve().parent.parent
CONTENT = {"fingerprint": {}, "state_dict": {}, "ema": {}, "format": FORMAT}


def save(folder: Path, updates: int) -> None:
    WholeFiles().save_checkpoint(CONTENT | {"updates": updates, "x": torch.zeros(1000)}, folder / "last.ckpt")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def fit(stage: Plain) -> SaveLast:
    trainer, save_last = build_trainer(stage.cfg, stage)
    trainer.fit(stage, ckpt_path=save_last.path if save_last.path.is_file() else None, weights_only=True)
    return save_last


def updates_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["updates"]


def resumed(folder: Path) -> tuple[str, int] | None:
    run = read_run(folder)
    return None if run is None else (run[0].name, run[1]["updates"])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resumed(tmp_path) is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert resumed(tmp_path) == ("last.ckpt", 2) and capsys.readouterr().err == ""
    cut(tmp_path / "last.ckpt")
    assert resumed(tmp_path) == ("previous.ckpt", 1) and "last.ckpt" in capsys.readouterr().err
    cut(tmp_path / "previous.ckpt")
    with pytest.raises(ConfigError, match=r"last\.ckpt.*name=NEW"):
        read_run(tmp_path)


@pytest.mark.parametrize(("often", "steps"), [({"save_every": 2}, (2, 4)), ({"save_minutes": 1e-9}, (3, 4))])
def test_the_checkpoint_before_the_last_is_kept(
    tmp_path: Path, often: dict[str, float], steps: tuple[int, int]
) -> None:
    folder = fit(Plain(make_config(tmp_path, "run", max_steps=4, **often))).path.parent
    assert tuple(updates_of(folder / name) for name in ("previous.ckpt", "last.ckpt")) == steps


def test_without_hard_links_the_last_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert resumed(tmp_path) == ("last.ckpt", 2)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(OSError, match=r"last\.ckpt"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert resumed(tmp_path) == ("last.ckpt", 1)
    assert not (tmp_path / ".last.ckpt.tmp").exists()


@pytest.mark.parametrize(("mode", "steps"), [("min", [40, 20]), ("max", [30, 10])])
def test_the_best_validations_are_kept(tmp_path: Path, mode: str, steps: list[int]) -> None:
    best = BestCheckpoints(tmp_path, "valid/x", mode, keep=2)
    assert best.read_best() is None
    for step, score in [(10, 3.0), (20, 2.0), (30, 4.0), (20, 2.0), (40, 1.0), (50, float("nan"))]:
        best.offer(step, score, {"updates": step})
    assert [entry["step"] for entry in best.entries()] == steps
    files = [f"best-{step:07d}.ckpt" for step in steps]
    assert sorted(path.name for path in tmp_path.glob("best-*")) == sorted(files)
    assert best.read_best() == {"updates": steps[0]}
    cut(tmp_path / files[0])
    assert best.read_best() == {"updates": steps[1]}
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(ConfigError, match=r"best\.json"):
        best.entries()


def test_a_signal_that_comes_while_processes_agree_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took their answers before it came: it counts one step later."""

    def late(trainer: pl.Trainer, *numbers: int) -> list[int]:
        answer = list(numbers)
        if stage.updates == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    stage = Plain(make_config(tmp_path, "run", max_steps=9))
    monkeypatch.setattr(loop, "largest", late)
    save_last = fit(stage)
    assert save_last.stopped and save_last.signal == signal.SIGTERM and stage.updates == 4


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_exit_codes_say_what_stopped_it(
    make_tiny_run: Callable[..., list[str]], tmp_path: Path, signum: int, code: int
) -> None:
    """As a process of its own: a run that is stopped leaves no finished model; the same command ends it."""
    command = make_tiny_run(4000, "train.log_every=1")
    run = tmp_path / "pairs/runs/tiny"
    process = kill_resume.start(command, tmp_path / "output.txt")
    log = run / "csv/version_0/metrics.csv"
    assert kill_resume.shoot(process, log, signum, num_steps=2, delay=0.0) == code
    step = updates_of(run / "checkpoints/last.ckpt")
    output = (tmp_path / "output.txt").read_text()
    assert f"step {step} of 4000" in output and signal.Signals(signum).name in output
    assert not (run / "model.safetensors").exists()
    assert train.main([*command, f"train.max_steps={step + 1}"]) == 0
    assert (run / "model.safetensors").is_file()


def test_an_older_checkpoint_names_the_commit_that_reads_it(tmp_path: Path) -> None:
    torch.save({name: x for name, x in CONTENT.items() if name != "format"}, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match="62346ae"):
        read_run(tmp_path)


def test_a_run_that_is_shot_down_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """The short version of benchmarks/training/kill_resume.py: one SIGKILL."""
    starts, problems, num_values = kill_resume.compare(
        KillConfig(kills=1, terms=0, steps=42, reach=8), tmp_path
    )
    assert problems == []
    assert sorted(start.code for start in starts) == [-9]
    assert num_values >= 42 * 4
    assert starts[-1].saved > 0  # it went on from somewhere


def test_a_signal_breaks_a_validation_off_and_the_resumed_run_makes_it(tmp_path: Path) -> None:
    class Slow(Plain):
        send = True

        def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
            super().validate_batch(batch, batch_idx)
            if batch_idx == 1 and self.send:
                os.kill(os.getpid(), signal.SIGTERM)

    cfg, unbroken = (make_config(tmp_path, name, max_steps=4, val_every=2) for name in ("run", "unbroken"))
    save_last = fit(Slow(cfg))
    folder = save_last.path.parent
    saved = torch.load(save_last.path, weights_only=True)
    assert save_last.stopped and (saved["updates"], saved["validated"]) == (2, 0)
    assert not list(folder.glob("best-*"))
    again = Slow(cfg)
    again.send = False
    fit(again)
    other = fit(Plain(unbroken)).path.parent
    for name in ("best-0000002.ckpt", "best-0000004.ckpt"):
        ours, expected = (torch.load(path / name, weights_only=True)["scores"] for path in (folder, other))
        assert ours == expected


def test_a_slow_loader_gives_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class SlowVectors(Vectors):
        def __getitem__(self, index: int) -> dict[str, Any]:
            time.sleep(0.002)
            return super().__getitem__(index)

    fit(Plain(make_config(tmp_path, "run", max_steps=210), SlowVectors()))
    assert capsys.readouterr().err.count("data.num_workers") == 1
