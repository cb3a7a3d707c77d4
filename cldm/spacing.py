"""Which of the training steps a sampler visits."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from cldm.config import Spacing

SPACINGS = get_args(Spacing)
KARRAS_RHO = 7.0


def spaced_timesteps(
    num_steps: int, spacing: str, num_timesteps: int = 1000, alphas_cumprod: Tensor | None = None
) -> np.ndarray:
    """The steps t to visit, descending, int64 (num_steps,), all different.

    leading: multiples of T // n, plus one (SD1.x). trailing: from T - 1 down in even strides.
    midmany: ICCR-Diff's, dense around the middle of the process. karras: dense towards the picture, evenly spaced in
    sigma^(1/7) between the schedule's ends (arXiv 2206.00364 eq. 5, sigma = sqrt(1 / abar - 1)); needs
    ``alphas_cumprod`` (num_timesteps,). Where the last two would visit a step twice, the later visit moves to the
    next free step.

    Raises:
        ValueError: unknown spacing, not 1 <= num_steps < num_timesteps, or karras without a schedule.
    """
    if not 1 <= num_steps < num_timesteps:
        raise ValueError(f"steps: got {num_steps}, expected 1..{num_timesteps - 1}")
    if spacing == "leading":
        t = np.arange(num_steps) * (num_timesteps // num_steps) + 1
    elif spacing == "trailing":
        t = np.round(num_timesteps - np.arange(num_steps) * (num_timesteps / num_steps))[::-1] - 1
    elif spacing == "midmany":
        t = _midmany(num_steps, num_timesteps)
    elif spacing == "karras":
        if alphas_cumprod is None or len(alphas_cumprod) != num_timesteps:
            raise ValueError(f"spacing: karras needs the alphas_cumprod of all {num_timesteps} steps")
        t = _karras(num_steps, alphas_cumprod)
    else:
        raise ValueError(f"spacing: got {spacing!r}, expected one of {', '.join(SPACINGS)}")
    return t.astype(np.int64)[::-1].copy()


def _midmany(num_steps: int, num_timesteps: int) -> np.ndarray:
    if num_steps == 1:
        return np.array([num_timesteps - 1])
    gaps = np.abs(np.arange(num_steps) / (num_steps - 1) - 0.5) ** 0.7
    t = ((num_timesteps - 2) * np.cumsum(gaps / gaps.sum())).astype(np.int64) + 1
    return _distinct(t, num_timesteps)


def _karras(num_steps: int, alphas_cumprod: Tensor) -> np.ndarray:
    abar = alphas_cumprod.to("cpu", torch.float64).numpy()
    log_sigmas = 0.5 * np.log((1 - abar) / abar)  # (T,) ascending
    if num_steps == 1:
        return np.array([len(abar) - 1])
    ends = np.exp(log_sigmas[[0, -1]] / KARRAS_RHO)
    log_targets = KARRAS_RHO * np.log(np.linspace(ends[0], ends[1], num_steps))  # log sigma, ascending
    t = np.round(np.interp(log_targets, log_sigmas, np.arange(len(abar)))).astype(np.int64)
    return _distinct(t, len(abar))


def _distinct(t: np.ndarray, num_timesteps: int) -> np.ndarray:
    """Ascending steps without repeats: pushed up, and what runs off the end back down."""
    for i in range(1, len(t)):
        t[i] = max(t[i], t[i - 1] + 1)
    for i in range(len(t) - 1, -1, -1):
        t[i] = min(t[i], num_timesteps - len(t) + i)
    return t
