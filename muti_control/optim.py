"""Settings of an optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from settings.base import Settings, expect

BelowOne = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Settings):
    """AdamW with warm-up."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    beta1: BelowOne = 0.9
    """Decay of the gradient's mean."""
    beta2: BelowOne = 0.999
    """Decay of the gradient's square."""
    warmup_steps: NonNegativeInt = 100
    """Steps in which the rate rises linearly to lr."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The rate after that; cosine falls to final_lr_ratio."""
    final_lr_ratio: NonNegativeFloat = 0.05
    """Last rate of the cosine, as a share of lr."""
    clip_norm: NonNegativeFloat = 1.0
    """Limit of the gradient's norm; 0 means none."""
    ema_decay: BelowOne = 0.999
    """Decay of the averaged weights, which are exported; less at first."""

    def expect_not_averaged(self, key: str) -> None:
        """Refuse settings, at ``key``, that average the weights of a discriminator."""
        expect(self.ema_decay == 0, f"{key}.ema_decay", self.ema_decay, "0: these weights are not averaged")

    def odd(self, max_steps: int, key: str) -> list[str]:
        """Return a warning for each value that is legal and hardly meant; ``key`` is where these settings are."""
        sentences = []
        if self.warmup_steps >= max_steps:
            sentences.append(
                f"{key}.warmup_steps={self.warmup_steps} is not below train.max_steps={max_steps}: the learning "
                f"rate never reaches {key}.lr; try {max(1, max_steps // 20)}"
            )
        if self.lr > 0.01:
            sentences.append(f"{key}.lr={self.lr:g} is large for AdamW: 1e-5 to 1e-3 is usual")
        if (window := 1 / (1 - self.ema_decay)) > max_steps:
            sentences.append(
                f"{key}.ema_decay={self.ema_decay:g} averages over about {window:.0f} steps, more than "
                f"train.max_steps={max_steps}: the exported weights lag behind; try {1 - 10 / max(20, max_steps):.4g}"
            )
        return sentences
