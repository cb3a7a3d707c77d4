"""How good landmarks are: normalised mean error and its cumulative distribution."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The outer corners of the eyes in the layouts that are in use: 68 (300-W), 98 (WFLW), 106 (JD-landmark, LaPa).
OUTER_EYE_CORNERS = {68: (36, 45), 98: (60, 72), 106: (66, 79)}
CED_LIMIT = 0.08  # where the area under the CED curve ends
CED_STEPS = 400


def eye_corners(num_landmarks: int, given: tuple[int, int] | None = None) -> tuple[int, int]:
    """The two points whose distance is the unit of the error.

    Raises:
        ValueError: not given for a layout that is not known, or not two points of it.
    """
    pair = given if given is not None else OUTER_EYE_CORNERS.get(num_landmarks)
    if pair is None:
        raise ValueError(
            f"pipnet.eye_corners: needed for {num_landmarks} landmarks; give the indices of the outer eye corners, "
            "such as pipnet.eye_corners=[36,45]"
        )
    if pair[0] == pair[1] or not all(0 <= i < num_landmarks for i in pair):
        raise ValueError(
            f"pipnet.eye_corners: got {list(pair)}, expected two different indices below {num_landmarks}"
        )
    return pair


def point_errors(points: Tensor, truth: Tensor, corners: tuple[int, int]) -> Tensor:
    """Distance of each point (B, N, 2) from the truth, over the distance of the true outer eye corners: (B, N)."""
    unit = (truth[:, corners[0]] - truth[:, corners[1]]).norm(dim=-1)  # (B,)
    return (points - truth).norm(dim=-1) / unit[:, None]


def nme(points: Tensor, truth: Tensor, corners: tuple[int, int]) -> Tensor:
    """Normalised mean error of each picture (B,), a fraction: inter-ocular, outer corners."""
    return point_errors(points, truth, corners).mean(1)


def ced(errors: Tensor | NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative error distribution: limits from 0 to 8 %, and the share of pictures within each."""
    values = np.sort(np.asarray(torch.as_tensor(errors).double()))
    limits = np.linspace(0, CED_LIMIT, CED_STEPS + 1)
    return limits, np.searchsorted(values, limits, side="right") / max(1, len(values))


def ced_area(errors: Tensor | NDArray[np.floating]) -> float:
    """Area under the CED curve up to 8 %, as a share of the most there could be; higher is better."""
    limits, share = ced(errors)
    return float(np.trapezoid(share, limits) / CED_LIMIT)
