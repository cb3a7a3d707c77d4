"""Compiling block by block: the same numbers, no other keys, nothing compiled twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import reconstruct
from ldm.compiled import check_compiler, compile_blocks
from ldm.config import ModelConfig

CFG = SamplingConfig(steps=2, spacing="trailing", eta=0.0, guidance_scale=2.0, control_scales=[1.0])


@pytest.fixture
def model(tiny_config: ModelConfig) -> ControlledLatentDiffusion:
    torch._dynamo.reset()
    return ControlledLatentDiffusion(tiny_config).eval().requires_grad_(False)


def faces(model: ControlledLatentDiffusion, num: int) -> Tensor:
    skulls = torch.rand(num, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return reconstruct(model, skulls, ["3D face scan"] * num, list(range(num)), CFG)


def test_a_batch_size_is_compiled_once(model: ControlledLatentDiffusion) -> None:
    before, keys = {num: faces(model, num) for num in (1, 3)}, list(model.state_dict())
    counter = CompileCounter()
    assert compile_blocks(model, backend=counter) > 10
    for num in (1, 3):  # the first of each size compiles
        assert torch.allclose(faces(model, num), before[num], atol=1e-6)
    compiled = counter.frame_count
    # fewer compilations than blocks and batch sizes: blocks of one shape share theirs
    blocks = sum(
        hasattr(m, "_compiled_call_impl") and m._compiled_call_impl is not None for m in model.modules()
    )
    assert 0 < compiled < 2 * blocks
    for num in (3, 1, 3):
        faces(model, num)
    assert counter.frame_count == compiled
    assert list(model.state_dict()) == keys


def test_a_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="no-such-compiler cannot be found; install one"):
        check_compiler()
