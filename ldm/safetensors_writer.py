"""Writes safetensors tensor by tensor, so that a file larger than the memory can be made from mapped weights.

The library's own writer refuses tensors that share memory (copying them costs a control network's 1.4 GiB), and
its older versions copy everything at once. Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # bytes: the header ends at a multiple


def write_safetensors(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], to_cpu: Callable[[Tensor], Tensor]
) -> None:
    """Write one file, plainly (the caller sees to it that it is whole).

    Args:
        path: the file; it is replaced.
        state: tensors by key.
        metadata: strings by name.
        to_cpu: gives a tensor's numbers as a contiguous one on the CPU; called for one tensor at a time.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: a tensor has no numbers to write, or is of a type the format does not have.
    """
    for key, value in state.items():
        if value.dtype not in _NAMES:
            raise RuntimeError(f"{key} is of type {value.dtype}, which safetensors does not have")
    # The widest types first keep every tensor aligned to its own width.
    order = sorted(state, key=lambda key: (-state[key].element_size(), key))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in order:
        value, begin = state[key], end
        end += value.numel() * value.element_size()
        header[key] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key in order:
            if state[key].numel():
                file.write(to_cpu(state[key]).reshape(-1).view(torch.uint8).numpy().data)
