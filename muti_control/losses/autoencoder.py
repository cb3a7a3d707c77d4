"""Losses of the autoencoder beside the error by pixels: edges, roughness of the surface, the weight of realism."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_RATIO = 1e4  # of two gradients' norms


def edge_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference of the finite differences, in x and in y, of pictures (B, C, H, W)."""
    dx = (x.diff(dim=3) - y.diff(dim=3)).abs().mean()
    dy = (x.diff(dim=2) - y.diff(dim=2)).abs().mean()
    return dx + dy


def surface_energies(
    pictures: Tensor, window: int = 16, levels: int = 3, floor: float = 0.01
) -> list[Tensor]:
    """Return how rough a surface is at each place, in each direction, on each scale, whatever its grains look like.

    pictures: (B, C, H, W) in [-1, 1]. window: side in px of the places, which overlap by half.
    levels: scales, each half the size of the one before. floor: differences below it count as none.

    Returns:
        For each scale the logarithm of the root mean square difference of neighbours, horizontal and vertical,
        (B, 2, H', W') float32.
    """
    grey = pictures.float().mean(1, keepdim=True)  # (B, 1, H, W)
    energies = []
    for level in range(levels):
        side = max(2, window >> level)
        across, down = F.pad(grey.diff(dim=3), (0, 1)), F.pad(grey.diff(dim=2), (0, 0, 0, 1))
        squares = torch.cat([across, down], dim=1).square()
        energies.append(0.5 * (F.avg_pool2d(squares, side, side // 2) + floor**2).log())
        grey = F.avg_pool2d(grey, 2)
    return energies


def texture_loss(x: Tensor, y: Tensor, window: int = 16) -> Tensor:
    """Return the mean absolute difference of the :func:`surface_energies` of (B, C, H, W) pictures in [-1, 1].

    No latent holds grain and noise grain for grain; an error by pixels alone is smallest where they are wiped out. This
    one is smallest where the picture has as much of them as the true one.
    """
    pairs = zip(surface_energies(x, window), surface_energies(y, window), strict=True)
    return torch.stack([(a - b).abs().mean() for a, b in pairs]).mean()


def gradient_ratio(loss: Tensor, other: Tensor, last: Tensor) -> Tensor:
    """Return the norm of the gradient of ``loss`` on a layer's weights ``last`` divided by that of ``other``, a scalar.

    With it as its weight, ``other`` pulls as hard as ``loss`` does. Source: arXiv 2012.09841, eq. 7.
    """
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (loss, other)]
    return (norms[0] / (norms[1] + 1e-8)).clamp(max=MAX_RATIO).detach()
