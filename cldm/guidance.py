"""Classifier-free guidance as wrappers around an ``eps_fn``; the sampler does not know of it."""

from __future__ import annotations

import torch
from torch import Tensor

from cldm.ddim import EpsFn


def classifier_free(eps_both: EpsFn, guidance_scale: float) -> EpsFn:
    """eps_u + s (eps_c - eps_u), both branches in one batch. Source: arXiv 2207.12598 eq. 6 (s = 1 + w).

    eps_both: takes every sample twice, (2B, ...), and predicts the first half without the condition, the second half
    with it. What counts as the condition is its choice. The result is float32.
    """

    def eps_fn(x_t: Tensor, t: Tensor, i: int) -> Tensor:
        eps_u, eps_c = eps_both(torch.cat([x_t, x_t]), torch.cat([t, t]), i).float().chunk(2)
        return eps_u + guidance_scale * (eps_c - eps_u)

    return eps_fn


def classifier_free_apart(eps_without: EpsFn, eps_with: EpsFn, guidance_scale: float) -> EpsFn:
    """The same with a function for each branch, such as the base model alone and the controlled model."""

    def eps_fn(x_t: Tensor, t: Tensor, i: int) -> Tensor:
        eps_u, eps_c = eps_without(x_t, t, i).float(), eps_with(x_t, t, i).float()
        return eps_u + guidance_scale * (eps_c - eps_u)

    return eps_fn
