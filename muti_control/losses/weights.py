"""Weights of the picture losses: fixed, or measured by the gradient of each term on the control network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

NOISE = "noise"
FIRST = 8  # measurements of each term in a row, before the period begins
LONGEST_MEMORY = 0.9  # of the average over measurements; shorter while there are few of them


class LossWeights:
    """Averages the norms of the terms' gradients and computes the terms' weights.

    Args:
        targets: by term. ratio: ``targets`` are norms relative to that of the noise loss's gradient; else weights.
        every: steps between measurements; 0: none, for fixed weights.
    """

    def __init__(self, targets: Mapping[str, float], ratio: bool, every: int) -> None:
        self.targets, self.ratio, self.every = dict(targets), ratio, every
        self.norms: dict[str, float] = {}  # averages over the measurements
        self.counts: dict[str, int] = {}

    def due(self, step: int, micro: int = 0) -> bool:
        """Return whether the norms are measured at a step's micro-batch (both from 0)."""
        few = min((self.counts.get(name, 0) for name in self.targets), default=0) < FIRST
        return self.every > 0 and (few or (micro == 0 and step % self.every == 0))

    def measured(self, norms: Mapping[str, float]) -> None:
        """Add the norms of one step to the averages; a term without samples is missing or NaN."""
        for name, norm in norms.items():
            if not 0 <= norm < float("inf"):
                continue
            count = self.counts.get(name, 0)
            memory = min(LONGEST_MEMORY, count / (count + 1))
            self.norms[name] = memory * self.norms.get(name, 0.0) + (1 - memory) * norm
            self.counts[name] = count + 1

    def weights(self) -> dict[str, float]:
        """Return the weights by term; with ``ratio``, 0 for a term that was not measured yet."""
        if not self.ratio:
            return dict(self.targets)
        noise = self.norms.get(NOISE, 0.0)
        return {
            name: target * noise / self.norms[name] if self.norms.get(name, 0.0) > 0 else 0.0
            for name, target in self.targets.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, with which a resumed run has the same weights."""
        return {"norms": dict(self.norms), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.norms, self.counts = dict(state["norms"]), dict(state["counts"])


def gradient_norms(
    losses: Mapping[str, Tensor | None], parameters: Sequence[nn.Parameter]
) -> dict[str, float]:
    """Return the norm of each loss's gradient on all of ``parameters``; the graphs stay.

    With several processes, it is the mean over those that have the loss, the same on all; every process passes the same
    names, with None for a loss it has not.
    """
    device = parameters[0].device
    sums = torch.zeros(len(losses), 2, device=device)  # norms and how many have one
    for row, loss in zip(sums, losses.values(), strict=True):
        if loss is not None:
            with torch.autocast(device.type, enabled=False):
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            row[0] = nn.utils.get_total_norm([g for g in gradients if g is not None])
            row[1] = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return {
        name: total / count for name, (total, count) in zip(losses, sums.tolist(), strict=True) if count > 0
    }
