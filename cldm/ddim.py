"""DDIM as a pure step function and a loop around it.

Source: Song et al. 2020, arXiv 2010.02502, eq. 12 (the step) and eq. 16 (sigma).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

EpsFn = Callable[[Tensor, Tensor, int], Tensor]
"""(x_t (B, ...), t (B,), step index i) -> predicted noise (B, ...)."""

BeforeStep = Callable[[Tensor, Tensor, int], Tensor]
"""(x_t, t, i) -> x_t, called before the denoiser; whatever it needs of autograd, it switches on itself."""


def ddim_step(
    x_t: Tensor, eps: Tensor, abar_t: Tensor, abar_prev: Tensor, eta: float, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One DDIM update; returns (x_prev, x_0 estimate).

    abar_t, abar_prev: 0-d, cumulative alphas of this step and of the next one to visit;
    eta: 0 deterministic, 1 as noisy as DDPM; noise: like x_t, needed for eta > 0.

    Notation: paper's alpha_t is ``abar_t``.
      1. x_0     = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
      2. sigma   = eta sqrt((1 - abar_prev) / (1 - abar_t)) sqrt(1 - abar_t / abar_prev)
      3. x_prev  = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - sigma^2) eps + sigma noise
    """
    x_0 = (x_t - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()
    sigma = eta * ((1 - abar_prev) / (1 - abar_t)).sqrt() * (1 - abar_t / abar_prev).clamp(min=0).sqrt()
    x_prev = abar_prev.sqrt() * x_0 + (1 - abar_prev - sigma**2).clamp(min=0).sqrt() * eps
    if eta > 0:
        if noise is None:
            raise ValueError(f"ddim_step: eta={eta} needs noise")
        x_prev = x_prev + sigma * noise
    return x_prev, x_0


def sample_ddim(
    eps_fn: EpsFn,
    x_T: Tensor,
    timesteps: Sequence[int] | np.ndarray,
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    randn: Callable[[], Tensor] | None = None,
    before_step: BeforeStep | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Walk from x_T (B, ...) down the given timesteps; returns the final sample, shape of x_T.

    alphas_cumprod: (T,); after the last step the process is taken to be at ``alphas_cumprod[0]``, as SD1.x does.
    randn: draws one standard normal tensor like x_T, called once per step when eta > 0.
    progress: called as (steps done, steps in all).
    """
    if eta > 0 and randn is None:
        raise ValueError(f"sample_ddim: eta={eta} needs randn")
    steps = [int(t) for t in timesteps]
    abar = alphas_cumprod.to(x_T.device, torch.float32)
    x_t = x_T
    for i, t in enumerate(steps):
        t_batch = torch.full((x_t.shape[0],), t, device=x_t.device, dtype=torch.long)
        if before_step is not None:
            x_t = before_step(x_t, t_batch, i)
        eps = eps_fn(x_t, t_batch, i).to(x_t.dtype)
        abar_prev = abar[steps[i + 1]] if i + 1 < len(steps) else abar[0]
        noise = randn() if eta > 0 and randn is not None else None
        x_t, _ = ddim_step(x_t, eps, abar[t], abar_prev, eta, noise)
        if progress is not None:
            progress(i + 1, len(steps))
    return x_t
