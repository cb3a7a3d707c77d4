"""The engine's steps: several optimizers, accumulation, clipping, scaling, several processes, what is skipped."""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

from muti_control.optim import OptimConfig
from muti_control.training.config import ExperimentConfig
from muti_control.training.optimizers import Turn
from muti_control.training.run import build_trainer, layout
from muti_control.training.seeded_batches import EndlessBatches
from muti_control.training.stage import Stage
from tests.tiny_stages import (
    JUDGE,
    NUM_ITEMS,
    Gan,
    Plain,
    Vectors,
    gan_loss,
    make_config,
    small_net,
    train_gated,
)

ROOT = Path(__file__).resolve().parent.parent


def fit(stage: Stage) -> Stage:
    trainer, _ = build_trainer(stage.cfg, stage)
    trainer.fit(stage)
    return stage


def rate(optim: OptimConfig, turn: int, num_turns: int) -> float:
    """Warm-up, then half a cosine to final_lr_ratio of the peak."""
    if turn < optim.warmup_steps:
        return optim.lr * (turn + 1) / optim.warmup_steps
    part = (turn - optim.warmup_steps) / (num_turns - optim.warmup_steps)
    low = optim.lr * optim.final_lr_ratio
    return low + (optim.lr - low) * (1 + math.cos(math.pi * part)) / 2


def plain_gan(
    steps: int, batch_size: int, accumulate: int, optim: OptimConfig
) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The same training as a loop: generator, judge, averages of the generator."""
    nets = {"net": small_net(1), "judge": small_net(2, out=1)}
    settings, every = {"net": optim, "judge": JUDGE}, {"net": 1, "judge": 2}
    optimizers = {
        who: torch.optim.AdamW(
            [
                {"params": [p for p in nets[who].parameters() if p.ndim > 1], "weight_decay": s.weight_decay},
                {"params": [p for p in nets[who].parameters() if p.ndim == 1], "weight_decay": 0.0},
            ],
            betas=(s.beta1, s.beta2),
            fused=False,
        )
        for who, s in settings.items()
    }
    average = {name: p.detach().clone() for name, p in nets["net"].named_parameters()}
    batches = iter(EndlessBatches(NUM_ITEMS, batch_size, seed=0))
    data = Vectors().x
    for step in range(steps):
        micro = [data[next(batches)] for _ in range(accumulate)]
        players = [who for who in nets if step % every[who] == 0]
        gradients = {}
        for who in players:
            loss = sum(gan_loss(who, nets["net"], nets["judge"], x) for x in micro) / accumulate
            gradients[who] = torch.autograd.grad(loss, list(nets[who].parameters()))
        for who in players:
            norm = torch.sqrt(sum((g**2).sum() for g in gradients[who]))
            for p, g in zip(nets[who].parameters(), gradients[who], strict=True):
                p.grad = g * min(1.0, settings[who].clip_norm / float(norm))
            for group in optimizers[who].param_groups:
                group["lr"] = rate(settings[who], step // every[who], math.ceil(steps / every[who]))
            optimizers[who].step()
        decay = min(optim.ema_decay, (2 + step) / (11 + step))
        for name, p in nets["net"].named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    return nets["net"], nets["judge"], average


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_optimizers_equal_a_plain_loop(tmp_path: Path, accumulate: int) -> None:
    """Weights and averages after seven steps, with accumulation, clipping, schedules and a period of two."""
    stage = Gan(make_config(tmp_path, "gan", accumulate=accumulate))
    start = small_net(1)
    fit(stage)
    net, judge, average = plain_gan(7, 2, accumulate, stage.cfg.optim)
    for ours, plain in ((stage.net, net), (stage.judge, judge)):
        for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), name
    assert not torch.allclose(stage.net[0].weight, start[0].weight, atol=1e-2)
    for name, value in stage.ema.average.items():
        assert torch.allclose(value, average[name], rtol=1e-4, atol=1e-6), name
    assert not any(name.startswith("judge") for name in stage.ema.average)
    # At each step's beginning nobody has a gradient, and nobody can give one to the other.
    assert [turn for turn, _, _ in stage.seen] == ["net", "judge", "net"] * 3 + ["net", "judge"]
    assert not any(own or other for _, own, other in stage.seen)


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Sick(Plain):
        sick = range(2, 4)

        def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            scalars = super().loss_of(batch)
            return {"loss": scalars["loss"] * float("nan")} if self.updates in self.sick else scalars

    stage = fit(Sick(make_config(tmp_path, "sick", max_steps=6, log_every=1)))
    assert (stage.updates, stage.skipped, stage.skipped_in_a_row) == (6, 2, 0)
    assert stage.ema.num_updates == 4
    assert all(torch.isfinite(p).all() for p in stage.parameters())
    message = capsys.readouterr().err
    assert message.count("optim.lr") == 1
    with (tmp_path / "sick/csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train/skipped"] for row in rows] == ["0.0", "0.0", "1.0", "2.0", "2.0", "2.0"]
    assert rows[2]["train/loss"] == "nan"
    hopeless = Sick(make_config(tmp_path, "hopeless", max_steps=30))
    hopeless.sick = range(5, 30)
    with pytest.raises(FloatingPointError, match=r"optim\.lr"):
        fit(hopeless)


def fit_scaled(cfg: ExperimentConfig, scale: float) -> tuple[Stage, torch.amp.GradScaler, Path]:
    """A run in fp16 on the CPU, its gradients scaled; returns the path of its last checkpoint too."""
    stage = Plain(cfg)
    trainer, save_last = build_trainer(cfg, stage)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer.fit(stage)
    return stage, scaler, save_last.path


def test_scaled_gradients_are_unscaled_before_they_are_clipped(tmp_path: Path) -> None:
    plain = fit(Plain(make_config(tmp_path, "plain")))
    stage, _, _ = fit_scaled(make_config(tmp_path, "scaled"), 2.0**6)
    assert stage.skipped == 0
    for (name, p), q in zip(stage.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=5e-3), name
    norms = [float(s.scalars["train/gradient_norm"]) for s in (stage, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=0.03)


def test_a_scaler_finds_its_scale(tmp_path: Path) -> None:
    """The first gradients overflow: those steps are skipped, the others train; the scale is saved."""
    stage, scaler, last = fit_scaled(make_config(tmp_path, "scaled", max_steps=20), 2.0**20)
    assert stage.skipped > 0
    assert scaler.get_scale() == 2.0 ** (20 - stage.skipped)
    assert stage.ema.num_updates == 20 - stage.skipped
    assert torch.load(last, weights_only=True)["MixedPrecision"]["scale"] == scaler.get_scale()
    x = Vectors().x
    with torch.no_grad():
        trained, fresh = (float(s.loss_of({"x": x})["loss"]) for s in (stage, Plain(stage.cfg)))
    assert trained < 0.8 * fresh


def test_two_processes_take_the_steps_of_one(tmp_path: Path, make_tiny_run: Callable[..., list[str]]) -> None:
    """Under torchrun: gates that differ between ranks, then train.py as a whole."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.tiny_stages", str(tmp_path), *make_tiny_run(4, "train.val_every=2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Both write into one pipe: their lines may run together.
    unused = dict(re.findall(r"rank (\d): (\d+) of 12 batches without a gate", done.stdout))
    assert set(unused) == {"0", "1"} and len(set(unused.values())) == 2, done.stdout  # not the same ones
    stage = train_gated(tmp_path, "single", batch_size=2, accumulate=2)
    joint, single = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        for name in ("joint", "single")
    )
    assert (joint["world_size"], single["world_size"]) == (2, 1)
    for name, value in single["state_dict"].items():
        assert torch.allclose(joint["state_dict"][name], value, rtol=1e-5, atol=1e-7), name
    assert stage.unused < 12
    logs = [
        list(csv.DictReader((tmp_path / n / "csv/version_0/metrics.csv").open())) for n in ("joint", "single")
    ]
    for key in ("train/loss", "valid/error"):
        ours, expected = ([float(row[key]) for row in log if row.get(key)] for log in logs)
        assert ours == pytest.approx(expected, rel=1e-4), key
    assert len(list((tmp_path / "joint/checkpoints").glob("best-*.ckpt"))) == 2
    assert "2 processes" in done.stdout
    assert done.stdout.count("finished; exported step 4") == 1


def test_processes_are_counted_as_they_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert layout(1) == (1, 1)
    assert layout(3) == (3, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert layout(1) == layout(4) == (4, 2)
    with pytest.raises(ValueError, match=r"train\.devices: got 3, but srun started 4"):
        layout(3)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert layout(1) == (2, 1)


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """As Lightning starts them: the second waits for the first, which is shot down."""
    child = (
        "import time; from muti_control.distributed import end_with_parent; end_with_parent(0.01); "
        "print('there', flush=True); time.sleep(20); print('still there')"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | {{'LOCAL_RANK': '1'}})\n"
        "time.sleep(60)"
    )
    environment = {k: v for k, v in os.environ.items() if "TORCHELASTIC" not in k and "SLURM" not in k}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.kill()
    assert process.stdout.read() == ""
    process.wait()


def test_odd_settings_are_told() -> None:
    assert OptimConfig().odd(10_000, "optim") == []
    told = " ".join(OptimConfig(lr=0.1, warmup_steps=100, ema_decay=0.999).odd(100, "optim"))
    assert all(word in told for word in ("warmup_steps=100", "optim.lr=0.1", "ema_decay=0.999", "try 0.9"))


def test_a_turn_counts_its_own_steps() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    turn = Turn("judge", {"p": p}, OptimConfig(lr=1.0, warmup_steps=4), every=5)
    assert list(itertools.compress(range(12), map(turn.due, range(12)))) == [0, 5, 10]
    optimizer = turn.make_optimizer()
    assert [turn.set_rate(optimizer, step, 100) for step in (0, 5, 10, 15, 20)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    p.grad = torch.full((2, 2), 3.0)
    assert float(turn.clip()) == pytest.approx(6.0)
    assert float(p.grad.norm()) == pytest.approx(1.0, rel=1e-4)
