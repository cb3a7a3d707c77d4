"""Skulls with bone missing, as an augmentation: so that a damaged skull still gives a face."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cldm.branches import Landmarks
from data.partial import DRAWN, missing_bone
from muti_control.config import PartialSkullConfig


def with_missing_bone(
    skulls: Tensor, cfg: PartialSkullConfig, generator: torch.Generator, known: Landmarks | None = None
) -> Tensor:
    """Skull pictures (B, 3, H, W) in [0, 1], a share of them with one region black.

    Which, and how the edges run, is drawn from ``generator`` alone, always as much for any share.

    Args:
        known: landmarks of the faces, where there are any; they say where chin and middle are.
    """
    num, _, height, width = skulls.shape
    chosen = torch.rand(num, generator=generator) < cfg.share
    regions = torch.randint(len(cfg.regions), (num,), generator=generator)
    seeds = torch.randint(2**31, (num,), generator=generator)
    if not chosen.any():
        return skulls
    drawn = (skulls.amax(1) > DRAWN).cpu().numpy()  # (B, H, W)
    away = np.zeros_like(drawn)
    for i in torch.nonzero(chosen).flatten().tolist():
        if drawn[i].any():
            points = None
            if known is not None and known.present[i]:
                points = known.points[i].numpy() * np.array([width, height], np.float32)
            away[i] = missing_bone(drawn[i], cfg.regions[int(regions[i])], int(seeds[i]), points)
    black = torch.from_numpy(away).to(skulls.device)[:, None]  # (B, 1, H, W)
    return torch.where(black, torch.zeros_like(skulls), skulls)
