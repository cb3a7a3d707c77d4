"""The noise schedule of Stable Diffusion 1.x, and the formulas between x_0, x_t, eps and v.

Notation: ``x_0`` clean latent, ``x_t`` noised latent, ``eps`` the noise, ``abar_t`` = ``alphas_cumprod[t]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.config import ScheduleConfig


def scaled_linear_betas(cfg: ScheduleConfig) -> Tensor:
    """Return the betas (T,), float64, linear in sqrt(beta). Source: the public Stable Diffusion 1.x configuration."""
    roots = torch.linspace(
        cfg.linear_start**0.5, cfg.linear_end**0.5, cfg.num_timesteps, dtype=torch.float64, device="cpu"
    )
    return roots**2


def schedule_buffers(cfg: ScheduleConfig) -> dict[str, Tensor]:
    """Return the twelve float32 buffers (T,) of a public SD1.x checkpoint, by their public names.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4 (q(x_t|x_0)) and eqs. 6-7 (the posterior).
    """
    betas = scaled_linear_betas(cfg)
    abar = torch.cumprod(1 - betas, 0)
    abar_prev = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    posterior_variance = betas * (1 - abar_prev) / (1 - abar)
    buffers = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": abar_prev,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * abar_prev.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - abar_prev) * (1 - betas).sqrt() / (1 - abar),
    }
    return {name: value.float() for name, value in buffers.items()}


def _roots(alphas_cumprod: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast against ``like`` (B, ...).

    They are computed in float32 and then cast: in bf16, 1 - abar_0 would be 0.
    """
    abar = alphas_cumprod[t].float().reshape(-1, *[1] * (like.ndim - 1))
    return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)


def q_sample(x_0: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; t (B,) int64. Source: arXiv 2006.11239 eq. 4."""
    signal, noise = _roots(alphas_cumprod, t, x_0)
    return signal * x_0 + noise * eps


def predict_x0(x_t: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return the clean latent that a noise estimate implies: (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
    signal, noise = _roots(alphas_cumprod, t, x_t)
    return (x_t - noise * eps) / signal


def eps_from_v(x_t: Tensor, t: Tensor, v: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return the noise that belongs to v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, in float32.

    It is sqrt(1 - abar_t) x_t + sqrt(abar_t) v. Source: arXiv 2202.00512 section 4.
    """
    x_t = x_t.float()
    signal, noise = _roots(alphas_cumprod, t, x_t)
    return noise * x_t + signal * v.float()
