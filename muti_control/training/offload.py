"""Frozen parts of a network that training does without, kept out of the accelerator's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Parked(nn.Module):
    """Stands in a network in the place of a frozen module, which rests on the CPU.

    Moving or casting the network does not reach the module, and its parameters are not the network's, but the
    network's ``state_dict`` still has them, under their own names.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # within a tuple: PyTorch does not count it as a part

    @property
    def module(self) -> Any:
        """What is parked."""
        return self._module[0]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self.module.state_dict(prefix=prefix, keep_vars=keep_vars))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}
        self.module.load_state_dict(own)


def park(owner: nn.Module, name: str) -> None:
    """Put a Parked in the place of the frozen module ``owner.name``."""
    owner.add_module(name, Parked(getattr(owner, name).to("cpu")))
