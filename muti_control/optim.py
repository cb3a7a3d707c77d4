"""Settings of an optimizer."""

from __future__ import annotations

import math

from settings.base import Settings

SCHEDULES = ("constant", "cosine")


class OptimConfig(Settings):
    """AdamW with warm-up.

    lr: peak learning rate. warmup_steps: linear ramp up to it. schedule: after it, "constant" or "cosine" to
    ``final_lr_ratio`` of the peak at ``train.max_steps``. clip_norm: gradient norm limit, 0 for none.
    ema_decay: of the averaged weights that are validated and exported; it ramps up from (1 + n) / (10 + n).
    A discriminator's weights are not averaged.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 100
    schedule: str = "constant"
    final_lr_ratio: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def validate(self, averaged: bool = True) -> None:
        """Of the optimizer of a network whose weights are averaged, or not.

        Raises: ValueError naming the field, what was got and what is expected.
        """
        checks = [
            (0 < self.lr < math.inf, "lr", self.lr, "a positive finite number"),
            (0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more"),
            *(
                (0 <= getattr(self, key) < 1, key, getattr(self, key), "a number in [0, 1)")
                for key in ("beta1", "beta2", "ema_decay")
            ),
            (self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more"),
            (self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES)),
            (0 <= self.final_lr_ratio < math.inf, "final_lr_ratio", self.final_lr_ratio, "0 or more"),
            (self.clip_norm >= 0, "clip_norm", self.clip_norm, "0 (no limit) or more"),
            (
                averaged or not self.ema_decay,
                "ema_decay",
                self.ema_decay,
                "0: these weights are not averaged",
            ),
        ]
        for good, key, got, expected in checks:
            if not good:
                raise ValueError(f"{key}: got {got!r}, expected {expected}")
