"""Settings of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class OptimConfig:
    """AdamW with warm-up.

    lr: peak learning rate. warmup_steps: linear ramp up to it. schedule: after it, "constant" or "cosine" to
    ``final_lr_ratio`` of the peak at ``train.max_steps``. clip_norm: gradient norm limit, 0 for none.
    ema_decay: of the averaged weights that are validated and exported; it ramps up from (1 + n) / (10 + n).
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
