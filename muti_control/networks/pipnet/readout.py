"""From the maps to points: PIPNet's neighbour regression, and a version with a gradient; the losses of the maps.

Coordinates are fractions of the picture: 0 is the left (upper) edge of the first pixel, 1 the right (lower) edge of the
last, so that ``px = fraction * size - 0.5`` counts pixel centres from 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.networks.pipnet.network import Maps

SCORE_WEIGHT = 10.0  # of the losses, as in the release
OFFSET_WEIGHT = 1.0
NEIGHBOUR_WEIGHT = 1.0
MIN_TEMPERATURE = 20.0


def read_points(maps: Maps, reverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (B, N, 2) as fractions of the picture and confidences (B, N) in [0, 1].

    Each point is where its score peaks, moved by the offsets there, averaged with what the points that have it as
    a neighbour predict. The peak is chosen by argmax: no gradient tells it to move to another cell.

    Args:
        reverse: (N, L) of ``meanface.reverse_index``.
    """
    score = maps.score.flatten(2).float()  # (B, N, G^2)
    confidence, peak = score.max(2)
    points = _points_at(maps, peak[..., None], torch.ones_like(confidence)[..., None], reverse)
    return points, confidence.clamp(0, 1)


def soft_points(maps: Maps, reverse: Tensor, temperature: float = MIN_TEMPERATURE) -> tuple[Tensor, Tensor]:
    """Return the same with a gradient to scores and offsets: the 3 x 3 cells about the peak weigh softmax(score * T).

    Scores are regressed to 0 and 1, not logits; a softmax over the whole map would be tens of pixels off. With T >= 20
    a cell that scores 0 weighs less than 3e-9 beside one that scores 1, so the points are those of ``read_points``
    wherever the peak is clear.

    Raises:
        ValueError: a temperature below 20.
    """
    if temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"temperature: got {temperature}, expected at least {MIN_TEMPERATURE:g}: scores are 0 to 1"
        )
    grid = maps.score.shape[-1]
    score = maps.score.flatten(2).float()  # (B, N, G^2)
    confidence, peak = score.max(2)
    steps = torch.tensor([-1, 0, 1], device=peak.device)
    row = (peak // grid)[..., None, None] + steps[:, None]  # (B, N, 3, 1)
    column = (peak % grid)[..., None, None] + steps[None, :]  # (B, N, 1, 3)
    inside = ((row >= 0) & (row < grid) & (column >= 0) & (column < grid)).flatten(2)  # (B, N, 9)
    cells = (row.clamp(0, grid - 1) * grid + column.clamp(0, grid - 1)).flatten(2)  # (B, N, 9)
    logits = (score.gather(2, cells) * temperature).masked_fill(~inside, float("-inf"))
    return _points_at(maps, cells, F.softmax(logits, dim=2), reverse), confidence.clamp(0, 1)


def _points_at(maps: Maps, cells: Tensor, weights: Tensor, reverse: Tensor) -> Tensor:
    """Return the points (B, N, 2) read at ``cells`` (B, N, W) with ``weights`` (B, N, W)."""
    batch, num, height, width = maps.score.shape
    k = maps.nb_x.shape[1] // num
    corner = torch.stack([cells % width, cells // width]).float()  # (2, B, N, W)
    own = torch.stack([maps.x, maps.y]).flatten(3).float()  # (2, B, N, G^2)
    own = ((own.gather(3, cells.expand(2, -1, -1, -1)) + corner) * weights).sum(3)  # (2, B, N)
    of_others = torch.stack([maps.nb_x, maps.nb_y]).view(2, batch, num, k, height * width).float()
    places = cells[:, :, None].expand(2, batch, num, k, cells.shape[2])
    votes = (of_others.gather(4, places) + corner[:, :, :, None]) * weights[:, :, None]
    votes = votes.sum(4).flatten(2)[..., reverse.clamp(min=0)]  # (2, B, N, L)
    votes = torch.where(reverse >= 0, votes, own[..., None])
    merged = torch.cat([own[..., None], votes], 3).mean(3)  # (2, B, N)
    return torch.stack([merged[0] / width, merged[1] / height], 2)


def losses(maps: Maps, points: Tensor, nearest: Tensor) -> dict[str, Tensor]:
    """Return PIPNet's three losses and their weighted sum ``loss``.

    Args:
        points: (B, N, 2), fractions of the picture.
        nearest: (N, K) of ``meanface.neighbours``.

    Returns:
        ``score``: mean square over all cells. ``offset``, ``neighbour``: mean absolute error in cells at the cell
        that holds the point, of x plus that of y.

    Source: arXiv 2003.03771, equations 1 to 4.
    """
    batch, num, grid = maps.score.shape[:3]
    k = nearest.shape[1]
    places = (points * grid).floor().clamp(0, grid - 1).long()  # outside of the picture: the nearest cell
    cell = places[..., 1] * grid + places[..., 0]  # (B, N)
    target = F.one_hot(cell, grid * grid).to(torch.float32)  # (B, N, G^2)
    score = F.mse_loss(maps.score.flatten(2).float(), target)
    corner = places.to(points.dtype)  # (B, N, 2)

    own = torch.stack([maps.x, maps.y], 4).flatten(2, 3).float()  # (B, N, G^2, 2)
    at = cell[..., None, None].expand(-1, -1, 1, 2)
    offset = (own.gather(2, at)[:, :, 0] - (points * grid - corner)).abs().mean((0, 1)).sum()

    others = torch.stack([maps.nb_x, maps.nb_y], 4).view(batch, num, k, grid * grid, 2).float()
    at = cell[:, :, None, None, None].expand(-1, -1, k, 1, 2)
    targets = points[:, nearest] * grid - corner[:, :, None]  # (B, N, K, 2)
    neighbour = (others.gather(3, at)[:, :, :, 0] - targets).abs().mean((0, 1, 2)).sum()

    total = SCORE_WEIGHT * score + OFFSET_WEIGHT * offset + NEIGHBOUR_WEIGHT * neighbour
    return {"loss": total, "score": score, "offset": offset, "neighbour": neighbour}
