"""Picture grids and the picture metrics that choose checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from data.images import write_png


def write_grid(path: Path, rows: list[Tensor]) -> np.ndarray:
    """Write rows of pictures, each (N, 3, H, W) in [0, 1], as one PNG; returns it, (H', W', 3) uint8."""
    strips = [torch.cat(list(row.float().cpu().clamp(0, 1)), dim=2) for row in rows]  # each (3, H, N W)
    grid = (torch.cat(strips, dim=1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid, None)
    return grid


def log_picture(loggers: Iterable[Any], name: str, picture: np.ndarray, step: int) -> None:
    """Give a picture (H, W, 3) uint8 to the loggers that keep pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture])


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of pictures (B, C, H, W) in [0, 1], one value per sample (B,)."""
    mse = (x.float() - y.float()).square().flatten(1).mean(1)
    return -10 * mse.clamp(min=1e-10).log10()


def small_grey(x: Tensor, size: int = 32) -> Tensor:
    """Return pictures (B, 3, H, W) as (B, size * size), grey, averaged over areas."""
    return F.adaptive_avg_pool2d(x.float().mean(1, keepdim=True), size).flatten(1)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the energy distance of two sets of vectors (N, D), (M, D): 0 only if they are distributed alike.

    2 E|x - y| - E|x - x'| - E|y - y'|, the pairs within a set without a vector and itself; per sqrt(D).
    Source: Szekely & Rizzo 2013, doi 10.1016/j.jspi.2013.03.018.
    """
    n, m = len(x), len(y)
    cross = torch.cdist(x, y).mean()
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return (2 * cross - within) / x.shape[1] ** 0.5


def rank_one(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the share of queries (N, D) whose nearest vector of the gallery (N, D) is the one of the same index."""
    nearest = torch.cdist(queries, gallery).argmin(1)
    return (nearest == torch.arange(len(queries), device=nearest.device)).float().mean()
