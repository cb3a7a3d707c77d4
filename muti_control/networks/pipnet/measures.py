"""How good landmarks are: normalised mean error and its cumulative distribution; points drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# The outer corners of the eyes in the layouts that are in use: 68 (300-W), 98 (WFLW), 106 (JD-landmark, LaPa).
OUTER_EYE_CORNERS = {68: (36, 45), 98: (60, 72), 106: (66, 79)}
CED_LIMIT = 0.08  # where the area under the CED curve ends
CED_STEPS = 400
POINT_COLOUR = (1.0, 0.25, 0.2)
TRUE_COLOUR = (0.2, 1.0, 0.35)


def eye_corners(num_landmarks: int, choice: Sequence[int] | None = None) -> tuple[int, int]:
    """Return the two points whose distance is the unit of the error.

    Raises:
        ValueError: no ``choice`` for an unknown layout, or not two points of it.
    """
    pair: Sequence[int] | None = choice if choice is not None else OUTER_EYE_CORNERS.get(num_landmarks)
    if pair is None:
        raise ValueError(
            f"pipnet.eye_corners: needed for {num_landmarks} landmarks; give the indices of the outer eye corners, "
            "such as pipnet.eye_corners=[36,45]"
        )
    if pair[0] == pair[1] or not all(0 <= i < num_landmarks for i in pair):
        raise ValueError(
            f"pipnet.eye_corners: got {list(pair)}, expected two different indices below {num_landmarks}"
        )
    return pair[0], pair[1]


def nme(points: Tensor, truth: Tensor, corners: tuple[int, int]) -> Tensor:
    """Return the normalised mean error of each picture, (B,), a fraction.

    points, truth: (B, N, 2). The unit is the distance of the true outer eye corners.
    """
    unit = (truth[:, corners[0]] - truth[:, corners[1]]).norm(dim=-1)  # (B,)
    return ((points - truth).norm(dim=-1) / unit[:, None]).mean(1)


def ced(errors: Tensor | NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cumulative error distribution: limits from 0 to 8 %, and the share of pictures within each."""
    values = np.sort(np.asarray(torch.as_tensor(errors).double()))
    limits = np.linspace(0, CED_LIMIT, CED_STEPS + 1)
    return limits, np.searchsorted(values, limits, side="right") / max(1, len(values))


def ced_area(errors: Tensor | NDArray[np.floating]) -> float:
    """Return the area under the CED curve up to 8 %, as a share of the most there could be; higher is better."""
    limits, share = ced(errors)
    return float(np.trapezoid(share, limits) / CED_LIMIT)


def draw_points(pictures: Tensor, points: Tensor, truth: Tensor | None = None, side: int = 512) -> Tensor:
    """Return pictures (B, 3, H, W) in [0, 1] enlarged to ``side`` px, with points (B, N, 2), fractions, in red.

    ``truth`` (B, N, 2) lies below them in green. Points outside of the picture are left out.
    """
    canvas = F.interpolate(pictures.float().cpu(), (side, side), mode="bilinear", align_corners=False)
    canvas = canvas.contiguous().clone()
    if truth is not None:
        _dots(canvas, truth, TRUE_COLOUR)
    _dots(canvas, points, POINT_COLOUR)
    return canvas


def _dots(canvas: Tensor, points: Tensor, colour: tuple[float, float, float]) -> None:
    """Paint a dot of 3 x 3 px at each point, in place."""
    side = canvas.shape[-1]
    places = (points.detach().float().cpu() * side).floor().long()  # (B, N, 2)
    around = torch.tensor([(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)])
    places = (places[:, :, None] + around).flatten(1, 2)  # (B, 9 N, 2)
    for picture, where in zip(canvas, places, strict=True):
        x, y = where[((where >= 0) & (where < side)).all(1)].T
        picture[:, y, x] = torch.tensor(colour)[:, None]
