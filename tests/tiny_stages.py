"""Stages of a few weights for the tests of the engine, and the settings of small runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cldm.config import SamplingConfig
from muti_control.optim import OptimConfig
from muti_control.training.config import DataConfig, ExperimentConfig, TrainConfig
from muti_control.training.optimizers import Turn
from muti_control.training.run import build_trainer
from muti_control.training.stage import Stage

NUM_ITEMS = 12


class Vectors(Dataset[dict[str, Any]]):
    """Twelve vectors; the first five have a gate of 1, the others of 0."""

    def __init__(self) -> None:
        self.x = torch.randn(NUM_ITEMS, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "gate": float(index < 5), "index": index}


def make_experiment(stage: str, root: Path, train: dict[str, Any], **more: Any) -> ExperimentConfig:
    """Return the settings of a run in ``root``/runs/tiny, in fp32 on the CPU; ``train`` and ``more`` add to them."""
    common = {"batch_size": 2, "num_valid": 2, "precision": "fp32", "device": "cpu"}
    sampling = SamplingConfig(steps=2, control_scales=[1.0])
    parts = {"name": "tiny", "out": str(root / "runs"), "sampling": sampling}
    parts |= {"data": DataConfig(root=str(root)), "train": TrainConfig(**common | train)}
    return ExperimentConfig(stage=stage, **parts | more)


def make_config(out: Path, name: str, **train: Any) -> ExperimentConfig:
    """Return the settings of a run that neither validates nor saves before its end, unless ``train`` says so.

    Its ``init`` is never read: the stages here bring their own networks.
    """
    optim = OptimConfig(lr=3e-2, warmup_steps=3, schedule="cosine", clip_norm=0.5, ema_decay=0.6)
    steps = {"max_steps": 7, "val_every": 1000, "save_every": 1000} | train
    return make_experiment("base", out, steps, name=name, out=str(out), init="none", optim=optim)


def small_net(seed: int, out: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, out))


class Scored(Stage):
    """Validates by its own error on the items."""

    monitor, monitor_mode = "valid/error", "min"

    def __init__(self, cfg: ExperimentConfig, net: nn.Module, data: Dataset[Any] | None = None) -> None:
        data = data or Vectors()
        super().__init__(cfg, net, data, data, ("",))

    def copy_of(self, x: Tensor) -> Tensor:
        return self.net(x)

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        errors = (self.copy_of(batch["x"]) - batch["x"]).square().mean(1)
        self.keep("errors", batch["index"].tolist(), errors.tolist())

    def validation_scores(self) -> dict[str, float]:
        errors = self.gather("errors")
        assert len(errors) == NUM_ITEMS
        return {"valid/error": sum(errors) / len(errors)}


class Plain(Scored):
    """One network that copies its input."""

    def __init__(self, cfg: ExperimentConfig, data: Dataset[Any] | None = None) -> None:
        super().__init__(cfg, small_net(1), data)

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": (self.net(batch["x"]) - batch["x"]).square().mean()}


JUDGE = OptimConfig(lr=1e-2, warmup_steps=0, schedule="cosine", clip_norm=0.1, weight_decay=0.2)


def gan_loss(turn: str, net: nn.Module, judge: nn.Module, x: Tensor) -> Tensor:
    """LSGAN; the judge's loss is not cut off from the generator, so that only the engine keeps them apart."""
    fake = net(x)
    if turn == "judge":
        return (judge(x) - 1).square().mean() + judge(fake).square().mean()
    return (fake - x).square().mean() + 0.3 * (judge(fake) - 1).square().mean()


class Gan(Scored):
    """A generator and a judge that has its turn at every second step only."""

    def __init__(self, cfg: ExperimentConfig) -> None:
        super().__init__(cfg, small_net(1))
        self.judge = small_net(2, out=1)
        self.gradients: list[tuple[str, bool, bool]] = []

    def turns(self) -> list[Turn]:
        judge = dict(self.judge.named_parameters(prefix="judge"))
        return [*super().turns(), Turn("judge", judge, JUDGE, every=2)]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        if self.between_steps:  # the first micro-batch: whose gradients are there already?
            own, other = (self.net, self.judge) if turn == "net" else (self.judge, self.net)
            self.gradients.append(
                (turn, has_gradients(own), any(p.requires_grad for p in other.parameters()))
            )
        return {"loss": gan_loss(turn, self.net, self.judge, batch["x"])}


def has_gradients(module: nn.Module) -> bool:
    return any(p.grad is not None for p in module.parameters())


class Gated(Scored):
    """Half of the network is used for gated samples only, and not at all in a batch without any."""

    leaves_unused = True

    def __init__(self, cfg: ExperimentConfig) -> None:
        super().__init__(cfg, nn.ModuleDict({"all": small_net(1), "gated": small_net(2)}))
        self.unused = 0

    def copy_of(self, x: Tensor) -> Tensor:
        return self.net["all"](x)  # type: ignore[index]

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        x, gate = batch["x"], batch["gate"]
        loss = (self.copy_of(x) - x).square().mean()
        if not gate.any():
            self.unused += 1
            return {"loss": loss}
        errors = (self.net["gated"](x) - x.flip(1)).square().mean(1)
        return {"loss": loss + (gate.float() * errors).sum() / len(x)}


def train_gated(out: Path, name: str, batch_size: int, accumulate: int) -> Gated:
    """Six steps with a validation after the third, on as many processes as torchrun started."""
    cfg = make_config(
        out, name, max_steps=6, batch_size=batch_size, accumulate=accumulate, val_every=3, log_every=1
    )
    stage = Gated(cfg)
    trainer, _ = build_trainer(cfg, stage)
    trainer.fit(stage)
    return stage
