"""Files of a run: checkpoints written whole, found again, kept by their score; stopping by signals; the pace."""

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
from muti_control.training.run import build_trainer
from settings.messages import ConfigError
from tests.tiny_stages import Plain, Vectors, make_config

ROOT = Path(__file__).resolve().parent.parent
CONTENT = {"fingerprint": {}, "state_dict": {}, "ema": {}, "format": FORMAT}


def save(folder: Path, updates: int) -> None:
    WholeFiles().save_checkpoint(CONTENT | {"updates": updates, "x": torch.zeros(1000)}, folder / "last.ckpt")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_run(tmp_path) is None
    for updates in (1, 2, 3):
        save(tmp_path, updates)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    found = read_run(tmp_path)
    assert found is not None and found[1]["updates"] == 3
    assert capsys.readouterr().err == ""
    cut(tmp_path / "last.ckpt")
    found = read_run(tmp_path)
    assert found is not None and (found[0].name, found[1]["updates"]) == ("previous.ckpt", 2)
    told = capsys.readouterr().err
    assert "last.ckpt" in told and "going on from" in told and "of step 2" in told
    (tmp_path / "last.ckpt").unlink()
    assert read_run(tmp_path) is not None
    assert "of step 2" in capsys.readouterr().err
    cut(tmp_path / "previous.ckpt")
    with pytest.raises(ConfigError, match=r"previous\.ckpt.*name=NEW"):
        read_run(tmp_path)


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "run", max_steps=4, save_every=2)
    stage = Plain(cfg)
    trainer, _ = build_trainer(cfg, stage)
    trainer.fit(stage)
    folder = cfg.run_dir / "checkpoints"
    steps = {p.name: torch.load(p, weights_only=True)["updates"] for p in folder.glob("*.ckpt")}
    assert steps == {"last.ckpt": 4, "previous.ckpt": 2}
    without_links = folder / "elsewhere"
    without_links.mkdir()
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # a file system without hard links: no previous, but a whole last
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        save(without_links, 1)
        save(without_links, 2)
    found = read_run(without_links)
    assert found is not None and found[1]["updates"] == 2


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(OSError, match=r"last\.ckpt could not be written .* is whole\. Make room"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    found = read_run(tmp_path)
    assert found is not None and found[1]["updates"] == 1
    assert not (tmp_path / ".last.ckpt.tmp").exists()


@pytest.mark.parametrize(("mode", "kept"), [("min", [40, 20]), ("max", [30, 10])])
def test_the_best_validations_are_kept(tmp_path: Path, mode: str, kept: list[int]) -> None:
    best = BestCheckpoints(tmp_path, "valid/x", mode, keep=2)
    assert best.read_best() is None
    for step, score in [(10, 3.0), (20, 2.0), (30, 4.0), (20, 2.0), (40, 1.0), (50, float("nan"))]:
        best.offer(step, score, {"updates": step, "ema": {}, "scores": {"valid/x": score}})
    assert [entry["step"] for entry in best.entries()] == kept
    assert sorted(path.name for path in tmp_path.glob("best-*")) == [
        f"best-{s:07d}.ckpt" for s in sorted(kept)
    ]
    content = best.read_best()
    assert content is not None and content["updates"] == kept[0]
    cut(tmp_path / f"best-{kept[0]:07d}.ckpt")
    content = best.read_best()
    assert content is not None and content["updates"] == kept[1]
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(ConfigError, match=r"best\.json"):
        best.entries()


class Send(pl.Callback):
    """Sends this process a signal after one micro-batch."""

    def __init__(self, micro_batch: int, signum: int) -> None:
        self.countdown, self.signum = micro_batch, signum

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_save_between_steps_and_stop(tmp_path: Path, signum: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cfg = make_config(tmp_path, "run", max_steps=9, accumulate=2)
    stage = Plain(cfg)
    trainer, save_last = build_trainer(cfg, stage)
    trainer.callbacks.insert(0, Send(5, signum))  # in the middle of the third step
    trainer.fit(stage)
    assert save_last.stopped and save_last.signal == signum
    assert torch.load(save_last.path, weights_only=True)["updates"] == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_comes_while_processes_agree_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took their answers before it came: it counts one step later."""

    def late(trainer: pl.Trainer, *numbers: int) -> list[int]:
        answer = list(numbers)
        if stage.updates == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    cfg = make_config(tmp_path, "run", max_steps=9)
    stage = Plain(cfg)
    trainer, save_last = build_trainer(cfg, stage)
    monkeypatch.setattr(loop, "largest", late)
    trainer.fit(stage)
    assert save_last.stopped and save_last.signal == signal.SIGTERM
    assert stage.updates == 4


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
    step = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["updates"]
    told = (tmp_path / "output.txt").read_text()
    assert f"stopped at step {step} of 4000" in told and signal.Signals(signum).name in told
    assert not (run / "model.safetensors").exists()
    assert train.main([*command, f"train.max_steps={step + 1}"]) == 0
    assert (run / "model.safetensors").is_file()


def test_an_older_checkpoint_names_the_commit_that_reads_it(
    make_tiny_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = make_tiny_run(2)
    run = Path(command[0]).parent / "pairs/runs/tiny"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(
        {k: v for k, v in CONTENT.items() if k != "format"} | {"updates": 1}, run / "checkpoints/last.ckpt"
    )
    assert train.main(command) == 2
    assert "62346ae" in capsys.readouterr().err


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

    cfg = make_config(tmp_path, "run", max_steps=4, val_every=2)
    stage = Slow(cfg)
    trainer, save_last = build_trainer(cfg, stage)
    trainer.fit(stage)
    assert save_last.stopped
    saved = torch.load(save_last.path, weights_only=True)
    assert (saved["updates"], saved["validated"]) == (2, 0)
    assert not list(save_last.path.parent.glob("best-*"))
    again = Slow(cfg)
    again.send = False
    trainer, _ = build_trainer(cfg, again)
    trainer.fit(again, ckpt_path=str(save_last.path), weights_only=True)
    names = sorted(path.name for path in save_last.path.parent.glob("best-*"))
    assert names == ["best-0000002.ckpt", "best-0000004.ckpt"]
    unbroken = Plain(make_config(tmp_path, "unbroken", max_steps=4, val_every=2))
    trainer, _ = build_trainer(unbroken.cfg, unbroken)
    trainer.fit(unbroken)
    for name in names:
        ours, expected = (
            torch.load(tmp_path / run / "checkpoints" / name, weights_only=True)["scores"]
            for run in ("run", "unbroken")
        )
        assert ours == expected


def test_a_checkpoint_is_due_by_time_too(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "run", max_steps=3, save_minutes=1e-9)
    stage = Plain(cfg)
    trainer, save_last = build_trainer(cfg, stage)
    trainer.fit(stage)
    assert torch.load(save_last.path.with_name("previous.ckpt"), weights_only=True)["updates"] == 2


def test_a_slow_loader_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class SlowVectors(Vectors):
        def __getitem__(self, index: int) -> dict[str, Any]:
            time.sleep(0.002)
            return super().__getitem__(index)

    cfg = make_config(tmp_path, "run", max_steps=210)
    stage = Plain(cfg, SlowVectors())
    build_trainer(cfg, stage)[0].fit(stage)
    assert stage.updates == 210
    assert capsys.readouterr().err.count("data.num_workers") == 1
