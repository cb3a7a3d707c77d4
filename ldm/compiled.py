"""torch.compile, block by block."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ldm.attention import BasicTransformerBlock
from ldm.autoencoder import ResnetBlock
from ldm.unet import ResBlock

REPEATED = (ResBlock, BasicTransformerBlock, ResnetBlock)
SHAPES_PER_BLOCK = (
    256  # widths x resolutions x batch sizes that may be compiled before torch gives up and runs eagerly
)


def check_compiler() -> None:
    """Raises: ValueError if there is no C++ compiler, without which torch.compile fails in the middle of the run."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"compile: needs a C++ compiler, and {' and '.join(wanted)} cannot be found; install one "
            "(Debian, Ubuntu: apt install g++), or leave compile out"
        )


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the repeated blocks of ``model`` in place and return how many; parameter names stay as they are.

    The blocks are compiled instead of the whole network because they are few and repeat: one compilation serves all
    blocks of the same shape, which takes a fraction of the time for nearly the same speed. Each batch size is
    compiled when it first comes (for its exact shapes, which is what is fast) and kept.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_PER_BLOCK)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 4 * SHAPES_PER_BLOCK
    )
    blocks = [module for module in model.modules() if isinstance(module, REPEATED)]
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)
