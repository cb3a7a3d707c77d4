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
# Widths x resolutions x batch sizes that may be compiled before torch gives up and runs eagerly.
SHAPES_PER_BLOCK = 256


def check_compiler() -> None:
    """Raise ValueError if there is no C++ compiler: without one torch.compile fails in the middle of the run."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise ValueError(
            f"compile: needs a C++ compiler, and {' and '.join(names)} cannot be found; install one "
            "(Debian, Ubuntu: apt install g++), or leave compile out"
        )


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the repeated blocks of ``model`` in place and return how many; parameter names stay as they are.

    Blocks are compiled in place of the whole network because they repeat: one compilation serves all blocks of the
    same shape, in a fraction of the time, and the speed is nearly the same. Each batch size is compiled for its exact
    shapes when it first comes, and kept.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_PER_BLOCK)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 4 * SHAPES_PER_BLOCK
    )
    blocks = [module for module in model.modules() if isinstance(module, REPEATED)]
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)
