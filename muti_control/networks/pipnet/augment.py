"""Augmentation of a whole batch at once: one warp, one blur, one change of grey levels, one patch.

All numbers are drawn on the CPU from the generator that is passed in, so a batch depends on nothing else.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.networks.config import AugmentConfig


def augment(
    pictures: Tensor,
    points: Tensor,
    cfg: AugmentConfig,
    flip_table: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Changed pictures (B, C, H, W) in [0, 1] and where their points (B, N, 2), fractions, lie now.

    Args:
        flip_table: (N,) of ``meanface.flip_table``; None: no picture is mirrored.
    """
    pictures, points = _warp(pictures, points, cfg, flip_table, generator)
    pictures = _blur(pictures, cfg.blur * pictures.shape[-1] / 256, generator)
    pictures = _occlude(pictures, cfg, generator)
    return _regrade(pictures, cfg, generator), points


def _uniform(
    batch: int, generator: torch.Generator, like: Tensor, low: float = -1.0, high: float = 1.0
) -> Tensor:
    return (torch.rand(batch, generator=generator) * (high - low) + low).to(like)


def _warp(
    pictures: Tensor,
    points: Tensor,
    cfg: AugmentConfig,
    flip_table: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    b = len(pictures)
    angle = _uniform(b, generator, points) * math.radians(cfg.rotate)
    factor = torch.exp2(_uniform(b, generator, points) * cfg.scale)
    shift = torch.stack([_uniform(b, generator, points) for _ in "xy"], 1) * 2 * cfg.translate
    mirrored = _uniform(b, generator, points, 0.0, 1.0) < (cfg.flip if flip_table is not None else 0.0)
    sign = torch.where(mirrored, -1.0, 1.0).to(points)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    # forward, in [-1, 1] about the centre: mirror, then turn and scale, then shift
    forward = torch.stack(
        [torch.stack([cos * sign, -sin], 1), torch.stack([sin * sign, cos], 1)], 1
    )  # (B, 2, 2)
    backward = torch.linalg.inv(forward)
    theta = torch.cat([backward, -backward @ shift[:, :, None]], 2)  # where each new pixel comes from
    grid = F.affine_grid(theta.to(pictures.dtype), list(pictures.shape), align_corners=False)
    warped = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    moved = (torch.einsum("bij,bnj->bni", forward, points * 2 - 1) + shift[:, None] + 1) / 2
    if flip_table is not None:
        moved = torch.where(mirrored[:, None, None], moved[:, flip_table], moved)
    return warped, moved


def _blur(pictures: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur of each picture by its own deviation, px; half of them stay as they are."""
    b, channels, height, width = pictures.shape
    drawn = _uniform(b, generator, pictures)
    if most <= 0 or not bool((drawn > 0).any()):
        return pictures
    chosen = (drawn > 0).nonzero()[:, 0]
    sigma = (drawn[chosen] * most).clamp(min=1e-3)
    radius = max(1, math.ceil(2.5 * most))
    x = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (b C, 2 r + 1)
    planes = pictures[chosen].reshape(1, -1, height, width)
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=planes.shape[1])
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=planes.shape[1])
    return pictures.index_copy(0, chosen, planes.view(-1, channels, height, width))


def _occlude(pictures: Tensor, cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """A flat patch of any grey somewhere on some of the pictures."""
    b, _, height, width = pictures.shape
    hidden = _uniform(b, generator, pictures, 0.0, 1.0) < cfg.occlude
    half = torch.stack([_uniform(b, generator, pictures, 0.1, 1.0) for _ in "xy"], 1) * cfg.occlude_size / 2
    centre = torch.stack([_uniform(b, generator, pictures, 0.0, 1.0) for _ in "xy"], 1)
    grey = _uniform(b, generator, pictures, 0.0, 1.0)
    x = (torch.arange(width, device=pictures.device) + 0.5) / width
    y = (torch.arange(height, device=pictures.device) + 0.5) / height
    across = (x - centre[:, :1]).abs() < half[:, :1]  # (B, W)
    down = (y - centre[:, 1:]).abs() < half[:, 1:]  # (B, H)
    patch = hidden[:, None, None] & down[:, :, None] & across[:, None, :]  # (B, H, W)
    return torch.where(patch[:, None], grey[:, None, None, None], pictures)


def _regrade(pictures: Tensor, cfg: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Contrast about the middle grey, brightness and grain; the black background stays black but for the grain."""
    b = len(pictures)
    factor = torch.exp2(_uniform(b, generator, pictures) * cfg.contrast)[:, None, None, None]
    light = (_uniform(b, generator, pictures) * cfg.brightness)[:, None, None, None]
    changed = torch.where(pictures > 0, (pictures - 0.5) * factor + 0.5 + light, pictures)
    if cfg.noise > 0:
        grain = torch.randn(pictures.shape[0], 1, *pictures.shape[2:], generator=generator).to(pictures)
        level = (_uniform(b, generator, pictures, 0.0, 1.0) * cfg.noise)[:, None, None, None]
        changed = changed + grain * level
    return changed.clamp(0, 1)
