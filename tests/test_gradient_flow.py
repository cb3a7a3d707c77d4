"""Who learns from what: each stage's loss against every tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cldm.config import SamplingConfig
from ldm.config import ModelConfig
from ldm.schedule import eps_from_v, predict_x0, q_sample
from muti_control.training.build import build_stage
from muti_control.training.config import DataConfig, DiffusionStageConfig, ExperimentConfig, TrainConfig
from muti_control.training.stage import Stage
from muti_control.training.stages.base import DiffusionStage

ZERO_LAYERS = ("control_model.zero_convs.", "control_model.middle_block_out.")


@pytest.fixture
def stage_of(tiny_config: ModelConfig, make_pairs: Callable[..., Path]) -> Callable[..., Stage]:
    root = make_pairs(train=4, valid=2)

    def build(name: str, diffusion: DiffusionStageConfig | None = None) -> Stage:
        cfg = ExperimentConfig(
            stage=name,
            name=name,
            out=str(root / "runs"),
            model=tiny_config,
            data=DataConfig(root=str(root)),
            train=TrainConfig(batch_size=2, num_valid=2, precision="32-true"),
            diffusion=diffusion or DiffusionStageConfig(),
            sampling=SamplingConfig(control_scales=[1.0]),
        )
        return build_stage(cfg)

    return build


def perturb(stage: Stage) -> None:
    with torch.no_grad():
        for p in stage.net.parameters():
            p.add_(0.05 * torch.randn_like(p))


def gradients(stage: Stage) -> dict[str, torch.Tensor | None]:
    """Gradient of the stage's loss on a batch with both prompts kept and dropped."""
    batch = torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])
    stage.cfg.diffusion.prompt_dropout = 0.5
    stage.loss_of(batch)["loss"].backward()
    return {name: p.grad for name, p in stage.net.named_parameters()}


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("autoencoder", ("first_stage_model.",)),
        ("base", ("model.diffusion_model.", "cond_stage_model.")),
        ("control", ("control_model.",)),
    ],
)
def test_every_trained_tensor_learns_and_no_frozen_one(
    stage_of: Callable[[str], Stage], name: str, trained: tuple[str, ...]
) -> None:
    stage = stage_of(name)
    perturb(stage)
    for key, grad in gradients(stage).items():
        if key.startswith(trained):
            assert grad is not None, key
            assert torch.isfinite(grad).all(), key
            assert grad.abs().max() > 0, key
        else:
            assert grad is None, key


def test_a_fresh_control_network_learns_through_its_zero_layers_only(
    stage_of: Callable[[str], Stage],
) -> None:
    stage = stage_of("control")
    with torch.no_grad():  # the base is a trained one: its own zero layers are not zero any more
        for key, p in stage.net.named_parameters():
            if not key.startswith("control_model."):
                p.add_(0.05 * torch.randn_like(p))
    for key, grad in gradients(stage).items():
        if key.startswith(ZERO_LAYERS):
            assert grad is not None, key
            assert grad.abs().max() > 0, key
        else:
            assert grad is None or grad.abs().max() == 0, key


def test_a_fresh_control_network_changes_nothing(stage_of: Callable[[str], Stage]) -> None:
    net = stage_of("control").net
    with torch.no_grad():
        for key, p in net.named_parameters():
            if not key.startswith("control_model."):
                p.add_(0.05 * torch.randn_like(p))
        x = torch.randn(2, *net.cfg.latent_shape)
        t, context = torch.tensor([10, 700]), net.encode_text(["a face", ""])
        hint = net.encode_hint(torch.rand(2, 3, 64, 64))
        assert torch.equal(net.eps(x, t, context, hint), net.eps(x, t, context, None))


def test_gradient_checkpointing_changes_no_gradient(stage_of: Callable[[str], Stage]) -> None:
    stage = stage_of("control")
    perturb(stage)
    plain = gradients(stage)
    stage.net.zero_grad(set_to_none=True)
    stage.net.unet.cfg.gradient_checkpointing = True  # UNet and ControlNet share it
    for name, grad in gradients(stage).items():
        expected = plain[name]
        assert (grad is None) == (expected is None), name
        if grad is not None and expected is not None:
            assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("name", ["autoencoder", "control"])
def test_bf16_agrees_with_fp32(stage_of: Callable[[str], Stage], name: str) -> None:
    """The same loss within bf16's three digits, and finite gradients."""
    stage = stage_of(name)
    perturb(stage)
    batch = torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])
    exact = stage.loss_of(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = stage.loss_of(batch)["loss"]
    rough.backward()
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.02)
    assert all(
        torch.isfinite(p.grad).all() for p in stage.trained_parameters().values() if p.grad is not None
    )


def test_x0_weighting_is_the_error_of_the_clean_latent(stage_of: Callable[[str], Stage]) -> None:
    """w(t) (eps_hat - eps)^2 = (x0_hat - x0)^2 wherever the weight is below its limit."""
    stage = stage_of("base")
    assert isinstance(stage, DiffusionStage)
    assert torch.equal(stage.loss_weights(torch.tensor([0, 999])), torch.ones(2))
    stage.cfg.diffusion.loss_weighting = "x0"
    abar, t = stage.net.alphas_cumprod, torch.tensor([3, 200, 600, 999])
    x_0, eps, eps_hat = (torch.randn(4, 4, 2, 2) for _ in range(3))
    x_0_hat = predict_x0(q_sample(x_0, t, eps, abar), t, eps_hat, abar)
    weighted = stage.loss_weights(t) * (eps_hat - eps).square().flatten(1).mean(1)
    expected = (x_0_hat - x_0).square().flatten(1).mean(1)
    assert torch.allclose(weighted[:3], expected[:3], rtol=1e-3)
    assert float(stage.loss_weights(t)[3]) == stage.cfg.diffusion.max_loss_weight


def test_v_weighting_is_the_error_of_v(stage_of: Callable[[str], Stage]) -> None:
    stage = stage_of("base")
    assert isinstance(stage, DiffusionStage)
    stage.cfg.diffusion.loss_weighting = "v"
    abar, t = stage.net.alphas_cumprod, torch.tensor([3, 200, 600, 999])
    x_t, v, v_hat = (torch.randn(4, 4, 2, 2) for _ in range(3))
    errors = eps_from_v(x_t, t, v_hat, abar) - eps_from_v(x_t, t, v, abar)
    weighted = stage.loss_weights(t) * errors.square().flatten(1).mean(1)
    assert torch.allclose(weighted, (v_hat - v).square().flatten(1).mean(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("unlocked", "parts"),
    [
        ("decoder", ("model.diffusion_model.output_blocks.", "model.diffusion_model.out.")),
        ("all", ("model.diffusion_model.",)),
    ],
)
def test_what_is_unlocked_learns_with_the_control_network(
    stage_of: Callable[..., Stage], unlocked: str, parts: tuple[str, ...]
) -> None:
    stage = stage_of("control", DiffusionStageConfig(unlocked=unlocked))
    perturb(stage)
    trained = ("control_model.", *parts)
    found = gradients(stage)
    assert {name for name, grad in found.items() if grad is not None} == {
        name for name in found if name.startswith(trained)
    }
    assert all(grad.abs().max() > 0 for grad in found.values() if grad is not None)


def test_where_every_condition_is_left_out_only_the_unet_learns(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of("control", DiffusionStageConfig(unlocked="all", control_dropout=1.0))
    perturb(stage)
    for name, grad in gradients(stage).items():
        learns = name.startswith("model.diffusion_model.")
        assert (grad is not None and bool(grad.any())) == learns, name
