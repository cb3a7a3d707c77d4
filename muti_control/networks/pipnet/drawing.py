"""Points drawn on pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

READ_COLOUR = (1.0, 0.25, 0.2)
TRUE_COLOUR = (0.2, 1.0, 0.35)


def draw_points(pictures: Tensor, points: Tensor, truth: Tensor | None = None, side: int = 512) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] enlarged to ``side`` px, with points (B, N, 2), fractions, drawn in red.

    Where ``truth`` (B, N, 2) is given, it is drawn below them in green. Points outside of the picture are left out.
    """
    canvas = F.interpolate(pictures.float().cpu(), (side, side), mode="bilinear", align_corners=False)
    canvas = canvas.contiguous().clone()
    if truth is not None:
        _dots(canvas, truth, TRUE_COLOUR)
    _dots(canvas, points, READ_COLOUR)
    return canvas


def _dots(canvas: Tensor, points: Tensor, colour: tuple[float, float, float]) -> None:
    """Paints a dot of 3 x 3 px at each point, in place."""
    side = canvas.shape[-1]
    places = (points.detach().float().cpu() * side).floor().long()  # (B, N, 2)
    around = torch.tensor([(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)])
    places = (places[:, :, None] + around).flatten(1, 2)  # (B, 9 N, 2)
    for picture, where in zip(canvas, places, strict=True):
        x, y = where[((where >= 0) & (where < side)).all(1)].T
        picture[:, y, x] = torch.tensor(colour)[:, None]
