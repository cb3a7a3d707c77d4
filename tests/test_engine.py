"""The engine's steps: several optimizers, accumulation, clipping, scaling, several processes, what is skipped."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

from muti_control.optim import OptimConfig
from muti_control.training.config import ExperimentConfig
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
    assert [turn for turn, _, _ in stage.gradients] == ["net", "judge", "net"] * 3 + ["net", "judge"]
    assert not any(own or other for _, own, other in stage.gradients)


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Sick(Plain):
        sick = range(2, 4)

        def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            scalars = super().loss_of(batch)
            return {"loss": scalars["loss"] * float("nan")} if self.updates in self.sick else scalars

    stage = fit(Sick(make_config(tmp_path, "sick", max_steps=6)))
    assert (stage.updates, stage.skipped, stage.skipped_in_a_row) == (6, 2, 0)
    assert stage.ema.num_updates == 4
    assert all(torch.isfinite(p).all() for p in stage.parameters())
    assert capsys.readouterr().err.count("optim.lr") == 1
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


def test_processes_are_counted_as_they_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert (layout(1), layout(3)) == ((1, 1), (3, 1))
    for name, value in {"TASKS": "8", "NODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_STEP_NUM_{name}", value)
    assert layout(1) == layout(4) == (4, 2)
    with pytest.raises(ValueError, match=r"^train\.devices: got 3"):
        layout(3)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
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


def test_odd_settings_give_warnings() -> None:
    assert OptimConfig().odd(10_000, "optim") == []
    warnings = OptimConfig(lr=0.1, warmup_steps=100, ema_decay=0.999).odd(100, "optim")
    assert [text.split("=")[0] for text in warnings] == ["optim.warmup_steps", "optim.lr", "optim.ema_decay"]
