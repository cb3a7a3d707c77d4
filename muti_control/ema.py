"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """float32 averages of ``parameters``, by name.

    Update number n uses the decay min(decay, (1 + n) / (10 + n)), so that early averages follow quickly.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.average = {name: p.detach().float().clone() for name, p in parameters.items()}
        self.swapped_out: dict[str, Tensor] = {}  # the parameters' own values while the averages stand in

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Move every average towards its parameter."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach().to(average), 1 - decay)

    def swap_in(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Put the averages into the parameters and keep what they held."""
        if self.swapped_out:
            raise RuntimeError("the averages are in the parameters already")
        self.swapped_out = {name: p.detach().clone() for name, p in parameters.items()}
        self._copy(self.average, parameters)

    def swap_out(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Give the parameters their own values back."""
        self._copy(self.swapped_out, parameters)
        self.swapped_out = {}

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Within the block the parameters hold their averages; afterwards their own values again."""
        self.swap_in(parameters)
        try:
            yield
        finally:
            self.swap_out(parameters)

    @staticmethod
    @torch.no_grad()
    def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        for name, p in parameters.items():
            p.copy_(values[name])

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
