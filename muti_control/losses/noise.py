"""The noise loss of a diffusion model, and its weights over t."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def noise_loss(eps_hat: Tensor, eps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return L_noise = mean of w(t) (eps_hat - eps)^2, and the same error without weights, two scalars.

    eps_hat, eps: predicted and true noise, (B, z, h, w). weights: w(t) of each sample, (B,).

    Source: arXiv 2006.11239, eq. 14 (w = 1, t uniform).
    """
    errors = F.mse_loss(eps_hat, eps, reduction="none").flatten(1).mean(1)  # (B,)
    return (weights * errors).mean(), errors.detach().mean()


def noise_weights(t: Tensor, alphas_cumprod: Tensor, weighting: str, limit: float) -> Tensor:
    """Return w(t), (B,) float32, for steps t (B,).

    weighting: "eps": 1. "x0": 1 / SNR(t), at most ``limit``, which makes the loss the error of the clean latent.
    "v": 1 / abar(t), which makes it the error of v.

    Source: arXiv 2202.00512, section 4.
    """
    if weighting == "eps":
        return torch.ones(len(t), device=t.device)
    abar = alphas_cumprod[t].float()
    if weighting == "v":
        return 1 / abar
    return ((1 - abar) / abar).clamp(max=limit)
