"""What the frozen UNet costs in training: no gradients of its weights, none of its encoder half, and half precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from ldm.config import ModelConfig


@pytest.fixture
def model(tiny_config: ModelConfig) -> ControlledLatentDiffusion:
    model = ControlledLatentDiffusion(tiny_config).requires_grad_(False)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    model.control_model.requires_grad_(True)
    return model


def gradients(model: ControlledLatentDiffusion, autocast: bool = False) -> dict[str, Tensor]:
    """Of a noise loss, at the control network; fixed inputs."""
    g = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 2, 4, 8, 8, generator=g)
    skull, context = torch.rand(2, 3, 64, 64, generator=g), torch.randn(2, 77, 16, generator=g)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        eps_hat = model.eps(x, torch.tensor([300, 700]), context, model.encode_hint(skull))
        F.mse_loss(eps_hat.float(), eps).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(model: ControlledLatentDiffusion) -> int:
    """Size of the activations that the forward pass keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = model.unet(torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 77, 16))
        out.mean()
    return sum(saved.values())


def test_the_frozen_encoder_keeps_nothing_and_a_learning_one_learns(model: ControlledLatentDiffusion) -> None:
    assert saved_bytes(model) == 0
    assert set(gradients(model)) == {
        f"control_model.{name}" for name, _ in model.control_model.named_parameters()
    }
    model.unet.requires_grad_(True)
    assert saved_bytes(model) > 0
    assert "model.diffusion_model.input_blocks.0.0.weight" in gradients(model)
    model.requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)  # as guidance asks
    model.unet(x, torch.tensor([5]), torch.randn(1, 77, 16)).sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_recomputing_changes_no_gradient(model: ControlledLatentDiffusion) -> None:
    stored = gradients(model)
    model.unet.recomputes = model.control_model.recomputes = True
    recomputed = gradients(model)
    assert stored.keys() == recomputed.keys()
    assert all(torch.equal(stored[name], recomputed[name]) for name in stored)


def test_the_frozen_unet_in_half_precision_gives_nearly_the_same_gradients(
    model: ControlledLatentDiffusion,
) -> None:
    exact = gradients(model)
    autocast = gradients(model, autocast=True)
    model.model.to(torch.bfloat16)
    half = gradients(model, autocast=True)

    def error(other: dict[str, Tensor]) -> float:
        differences = sum(float((other[n] - exact[n]).square().sum()) for n in exact)
        return (differences / sum(float(g.square().sum()) for g in exact.values())) ** 0.5

    assert all(g.dtype == torch.float32 for g in half.values())
    assert 0 < error(half) < 0.05
    assert error(half) < 2 * error(autocast)
