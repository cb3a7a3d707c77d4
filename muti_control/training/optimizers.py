"""The optimizers of a stage: what each trains, how often, at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muti_control.optim import OptimConfig


def learning_rate_factor(step: int, cfg: OptimConfig, max_steps: int) -> float:
    """Return the factor on the learning rate at an optimizer's own step: linear warm-up, then constant or cosine."""
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, max_steps - cfg.warmup_steps))
    cosine = 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
    return cfg.final_lr_ratio + (1 - cfg.final_lr_ratio) * cosine


@dataclass(frozen=True)
class Turn:
    """One optimizer and what it trains.

    name: in logs and for ``Stage.turn_loss``. parameters: by their names in the stage.
    every: it has its turn at the run's steps 0, every, 2 every, ...; its schedule counts those turns alone.
    key: where ``optim`` stands in the config.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    optim: OptimConfig
    every: int = 1
    key: str = "optim"

    def due(self, step: int) -> bool:
        """Return whether it has its turn at the run's step ``step`` (from 0)."""
        return step % self.every == 0

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW without decay of norms and biases. :meth:`set_rate` sets the learning rates."""
        parameters = list(self.parameters.values())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)  # one kernel for all tensors
        return torch.optim.AdamW(
            groups, lr=self.optim.lr, betas=(self.optim.beta1, self.optim.beta2), fused=fused
        )

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, max_steps: int) -> float:
        """Set and return the learning rate at the run's step ``step``; it depends on nothing else."""
        factor = learning_rate_factor(step // self.every, self.optim, math.ceil(max_steps / self.every))
        for group in optimizer.param_groups:
            group["lr"] = self.optim.lr * factor
        return self.optim.lr * factor

    def clip(self) -> Tensor:
        """Scale the gradients down to ``optim.clip_norm`` (0: leave them); return their norm before, a scalar."""
        limit = self.optim.clip_norm or math.inf
        return nn.utils.clip_grad_norm_(self.parameters.values(), limit)
