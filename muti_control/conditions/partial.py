"""Skulls with bone missing, as an augmentation: so that a damaged skull still gives a face."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.partial import DRAWN, holds_skull, missing_bone
from muti_control.conditions.config import PartialSkullConfig


def with_missing_bone(skulls: Tensor, cfg: PartialSkullConfig, generator: torch.Generator) -> Tensor:
    """Return skull pictures (B, 3, H, W) in [0, 1], a share of them with one region black.

    Which, and how the edges run, is drawn from ``generator`` alone, always as much for any share.
    A picture that holds no skull to take bone from stays as it is.
    """
    num = len(skulls)
    chosen = torch.rand(num, generator=generator) < cfg.share
    regions = torch.randint(len(cfg.regions), (num,), generator=generator)
    seeds = torch.randint(2**31, (num,), generator=generator)
    if not chosen.any():
        return skulls
    bone = (skulls.amax(1) > DRAWN).cpu().numpy()  # (B, H, W)
    away = np.zeros_like(bone)
    for i in torch.nonzero(chosen).flatten().tolist():
        if holds_skull(bone[i]):
            away[i] = missing_bone(bone[i], cfg.regions[int(regions[i])], int(seeds[i]))
    black = torch.from_numpy(away).to(skulls.device)[:, None]  # (B, 1, H, W)
    return torch.where(black, torch.zeros_like(skulls), skulls)
