"""What the maps should be for given points, and how far they are from it.

Source: PIPNet, arXiv 2003.03771, equations 1 to 4, with the weights of its release.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.networks.pipnet.network import Maps

SCORE_WEIGHT = 10.0
OFFSET_WEIGHT = 1.0
NEIGHBOUR_WEIGHT = 1.0


def target_cells(points: Tensor, grid: int) -> Tensor:
    """The cell (row * grid + column) that holds each point (B, N, 2) in [0, 1]; (B, N). Outside: the nearest one."""
    cell = (points * grid).floor().clamp(0, grid - 1).long()
    return cell[..., 1] * grid + cell[..., 0]


def losses(maps: Maps, points: Tensor, nearest: Tensor) -> dict[str, Tensor]:
    """The three losses and their weighted sum ``loss``.

    Args:
        points: (B, N, 2), fractions of the picture.
        nearest: (N, K) of ``meanface.neighbours``.

    Returns:
        ``score``: mean square over all cells. ``offset``, ``neighbour``: mean absolute error in cells at the cell
        that holds the point, of x plus that of y.
    """
    batch, num, grid = maps.score.shape[:3]
    k = nearest.shape[1]
    cell = target_cells(points, grid)  # (B, N)
    wanted = F.one_hot(cell, grid * grid).to(torch.float32)  # (B, N, G^2)
    score = F.mse_loss(maps.score.flatten(2).float(), wanted)
    corner = torch.stack([cell % grid, cell // grid], 2).to(points.dtype)  # (B, N, 2)

    own = torch.stack([maps.x, maps.y], 4).flatten(2, 3).float()  # (B, N, G^2, 2)
    at = cell[..., None, None].expand(-1, -1, 1, 2)
    offset = (own.gather(2, at)[:, :, 0] - (points * grid - corner)).abs().mean((0, 1)).sum()

    others = torch.stack([maps.nb_x, maps.nb_y], 4).view(batch, num, k, grid * grid, 2).float()
    at = cell[:, :, None, None, None].expand(-1, -1, k, 1, 2)
    wanted_others = points[:, nearest] * grid - corner[:, :, None]  # (B, N, K, 2)
    neighbour = (others.gather(3, at)[:, :, :, 0] - wanted_others).abs().mean((0, 1, 2)).sum()

    total = SCORE_WEIGHT * score + OFFSET_WEIGHT * offset + NEIGHBOUR_WEIGHT * neighbour
    return {"loss": total, "score": score, "offset": offset, "neighbour": neighbour}
