"""Who learns from what: each stage's loss against every tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cldm.config import SamplingConfig
from ldm.config import ModelConfig, ScheduleConfig
from ldm.schedule import eps_from_v, predict_x0, q_sample, schedule_buffers
from muti_control.losses.noise import noise_loss, noise_weights
from muti_control.training.config import DataConfig, DiffusionStageConfig, ExperimentConfig, TrainConfig
from muti_control.training.run import build_stage
from muti_control.training.stage import Stage

ZERO_LAYERS = ("control_model.zero_convs.", "control_model.middle_block_out.")


@pytest.fixture
def stage_of(tiny_config: ModelConfig, make_pairs: Callable[..., Path]) -> Callable[..., Stage]:
    root = make_pairs(train=4, valid=2)

    def build(name: str, diffusion: DiffusionStageConfig | None = None) -> Stage:
        cfg = ExperimentConfig(
            stage=name,
            name=name,
            out=str(root / "runs"),
            init="none",
            model=tiny_config,
            data=DataConfig(root=str(root)),
            train=TrainConfig(batch_size=2, num_valid=2, precision="32-true"),
            diffusion=diffusion or DiffusionStageConfig(),
            sampling=SamplingConfig(control_scales=[1.0]),
        )
        cfg.init = None  # fresh weights, which no config file may ask for in every stage
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


@pytest.mark.parametrize("weighting", ["eps", "x0", "v"])
def test_the_noise_loss_is_the_error_that_its_weighting_names(weighting: str) -> None:
    """w(t) (eps_hat - eps)^2 is (x0_hat - x0)^2, where the weight is below its limit, or (v_hat - v)^2."""
    abar, t = schedule_buffers(ScheduleConfig())["alphas_cumprod"], torch.tensor([3, 200, 600])
    x_0, eps, other = torch.randn(3, 3, 4, 2, 2)
    x_t = q_sample(x_0, t, eps, abar)
    eps_hat, expected = other, (other - eps).square()
    if weighting == "x0":
        expected = (predict_x0(x_t, t, eps_hat, abar) - x_0).square()
    elif weighting == "v":
        a = abar[t].view(-1, 1, 1, 1)
        expected = (other - (a.sqrt() * eps - (1 - a).sqrt() * x_0)).square()
        eps_hat = eps_from_v(x_t, t, other, abar)
    loss, unweighted = noise_loss(eps_hat, eps, noise_weights(t, abar, weighting, 25.0))
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert float(unweighted) == pytest.approx(float((eps_hat - eps).square().mean()), rel=1e-5)
    assert noise_weights(torch.tensor([999]), abar, "x0", 25.0).tolist() == [25.0]


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
