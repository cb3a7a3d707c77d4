"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Ema:
    """float32 averages of ``tensors``, by name. Lightning's WeightAveraging would copy the frozen SD1.5 as well.

    Update number n uses the decay min(decay, (1 + n) / (10 + n)), so that early averages follow quickly.

    Args:
        tensors: parameters (and running statistics) to follow. decay: its limit, in [0, 1).
        device: where the averages are; None: beside the tensors.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], decay: float, device: torch.device | None = None
    ) -> None:
        self.decay, self.device = decay, device
        self.num_updates = 0
        self.average = {
            name: x.detach().float().to(device or x.device).clone() for name, x in tensors.items()
        }

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Move the averages to the devices of the tensors, unless they have a device of their own."""
        self.average = {name: x.to(self.device or tensors[name].device) for name, x in self.average.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Move every average towards its tensor."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        values = [tensors[name].detach().to(x.device, torch.float32) for name, x in self.average.items()]
        torch._foreach_lerp_(list(self.average.values()), values, 1 - decay)

    @contextmanager
    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block the tensors hold their averages; afterwards their own values again."""
        own = {name: x.detach().clone() for name, x in tensors.items()}
        try:
            _copy(self.average, tensors)
            yield
        finally:
            _copy(own, tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return averages and count, as plain tensors and numbers."""
        return {"num_updates": self.num_updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.num_updates = int(state["num_updates"])
        self.average = {name: state["average"][name].to(x.device) for name, x in self.average.items()}


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, x in tensors.items():
        x.copy_(values[name])
