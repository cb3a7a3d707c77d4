"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Ema:
    """float32 averages of ``tensors``, by name.

    Update number n uses the decay min(decay, (1 + n) / (10 + n)), so that early averages follow quickly.

    Args:
        tensors: parameters (and running statistics) to follow. decay: its limit, in [0, 1).
        device: where the averages live; None: beside the tensors.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], decay: float, device: torch.device | None = None
    ) -> None:
        self.decay, self.device = decay, device
        self.num_updates = 0
        self.average = {name: self._own(x.detach().float(), x).clone() for name, x in tensors.items()}
        self.swapped_out: dict[str, Tensor] = {}  # the tensors' own values while the averages stand in

    def _own(self, value: Tensor, beside: Tensor) -> Tensor:
        return value.to(self.device or beside.device)

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Move the averages to where the tensors have gone, unless they have a device of their own."""
        self.average = {name: self._own(value, tensors[name]) for name, value in self.average.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Move every average towards its tensor."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = list(self.average.values())
        values = [
            tensors[name].detach().to(average.device, torch.float32) for name, average in self.average.items()
        ]
        torch._foreach_lerp_(averages, values, 1 - decay)

    def swap_in(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the averages into the tensors and keep what they held."""
        if self.swapped_out:
            raise RuntimeError("the averages are in the parameters already")
        self.swapped_out = {name: x.detach().clone() for name, x in tensors.items()}
        self._copy(self.average, tensors)

    def swap_out(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the tensors their own values back."""
        self._copy(self.swapped_out, tensors)
        self.swapped_out = {}

    @contextmanager
    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block the tensors hold their averages; afterwards their own values again."""
        self.swap_in(tensors)
        try:
            yield
        finally:
            self.swap_out(tensors)

    @staticmethod
    @torch.no_grad()
    def _copy(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        for name, x in tensors.items():
            x.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Averages and count, as plain tensors and numbers."""
        return {"num_updates": self.num_updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: it is of other parameters.
        """
        average = state["average"]
        if set(average) != set(self.average):
            raise ValueError(
                "the checkpoint's averages are of other parameters: was the model config changed?"
            )
        self.num_updates = int(state["num_updates"])
        self.average = {name: value.to(self.average[name].device) for name, value in average.items()}
