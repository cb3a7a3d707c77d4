"""Guidance as wrappers around an ``eps_fn``: the sampler never learns of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cldm.ddim import EpsFn

CondEps = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]
"""(x_t, t, context, hint, step index i) -> predicted noise."""


def classifier_free(
    cond_eps: CondEps,
    context: Tensor,
    uncond_context: Tensor,
    hint: Tensor | None,
    guidance_scale: float,
) -> EpsFn:
    """eps_u + s (eps_c - eps_u), both branches in one batch. Source: arXiv 2207.12598 eq. 6 (s = 1 + w).

    context, uncond_context: (B, M, C). The hint (B, ch, h, w) stands in both branches: guidance sharpens what
    the text says, not the skull. With s = 1 only the conditional branch is computed.
    """
    if guidance_scale == 1.0:
        return lambda x_t, t, i: cond_eps(x_t, t, context, hint, i)
    both = torch.cat([uncond_context, context])  # (2B, M, C)
    both_hint = None if hint is None else torch.cat([hint, hint])

    def eps_fn(x_t: Tensor, t: Tensor, i: int) -> Tensor:
        eps = cond_eps(torch.cat([x_t, x_t]), torch.cat([t, t]), both, both_hint, i)  # (2B, ...)
        eps_u, eps_c = eps.float().chunk(2)
        return eps_u + guidance_scale * (eps_c - eps_u)

    return eps_fn
