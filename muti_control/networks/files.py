"""Files of the small networks: weights as safetensors, the architecture in the metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoint import CheckpointError, load_strict, match_keys, write_state_dict

Net = TypeVar("Net", bound=nn.Module)


def save_network(
    path: Path, net: nn.Module, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights, those of floating point in ``dtype``, with ``metadata``. Raises: CheckpointError."""
    state = {n: x.to(dtype) if x.is_floating_point() else x for n, x in net.state_dict().items()}
    write_state_dict(path, state, dict(metadata))


def load_frozen(
    make: Callable[[], Net], state: Mapping[str, Tensor], allow_unexpected: tuple[str, ...] = ()
) -> Net:
    """Load the weights strictly; return the network frozen, in evaluation mode, fp32.

    ``make`` builds it, at first without memory: a file may claim any architecture. Raises: CheckpointError.
    """
    with torch.device("meta"):
        match_keys(make(), state, allow_unexpected=allow_unexpected)
    net = make()
    load_strict(net, as_fp32(state), allow_unexpected=allow_unexpected)
    return net.eval().requires_grad_(False)


def as_fp32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, those of floating point in fp32."""
    return {n: x.float() if x.is_floating_point() else x for n, x in state.items()}


@contextmanager
def usable_as(kind: str, path: str | Path) -> Iterator[None]:
    """Turn any ValueError or TypeError into a CheckpointError that names the file and the ``kind`` of network."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no {kind} that can be used: {error}") from error
