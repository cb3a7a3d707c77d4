"""Gradient flow: the loss of each stage against every tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import ModelConfig, ScheduleConfig
from ldm.schedule import eps_from_v, predict_x0, q_sample, schedule_buffers
from muti_control.losses.noise import noise_loss, noise_weights
from muti_control.training.config import DiffusionStageConfig
from muti_control.training.run import build_stage
from muti_control.training.stage import Stage
from tests.tiny_stages import make_experiment

ZERO_LAYERS = ("control_model.zero_convs.", "control_model.middle_block_out.")


@pytest.fixture
def stage_of(tiny_config: ModelConfig, make_pairs: Callable[..., Path]) -> Callable[..., Stage]:
    """stage_of(name, ...): with fresh weights, all of them moved off zero but those that ``fresh`` begins."""
    root = make_pairs(train=4, valid=2)

    def build(name: str, fresh: str = "none", **diffusion: Any) -> Stage:
        cfg = make_experiment(name, root, {}, init="none", model=tiny_config)
        cfg.diffusion = DiffusionStageConfig(prompt_dropout=0.5, **diffusion)
        cfg.init = None  # fresh weights, which no config file may ask for in every stage
        stage = build_stage(cfg)
        with torch.no_grad():
            for key, p in stage.net.named_parameters():
                if not key.startswith(fresh):
                    p.add_(0.05 * torch.randn_like(p))
        return stage

    return build


def batch_of(stage: Stage) -> dict[str, Any]:
    return torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])


def gradients(stage: Stage) -> dict[str, torch.Tensor | None]:
    """Return the gradient of the stage's loss on a batch with both prompts kept and dropped."""
    stage.loss_of(batch_of(stage))["loss"].backward()
    return {name: p.grad for name, p in stage.net.named_parameters()}


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("name", "diffusion", "trained"),
    [
        ("autoencoder", {}, ("first_stage_model.",)),
        ("base", {}, (UNET, "cond_stage_model.")),
        ("control", {}, ("control_model.",)),
        ("control", {"unlocked": "decoder"}, ("control_model.", f"{UNET}output_blocks.", f"{UNET}out.")),
        ("control", {"unlocked": "all"}, ("control_model.", UNET)),
        ("control", {"unlocked": "all", "control_dropout": 1.0}, (UNET,)),  # no condition at all
    ],
)
def test_every_trained_tensor_learns_and_no_frozen_one(
    stage_of: Callable[..., Stage], name: str, diffusion: dict[str, Any], trained: tuple[str, ...]
) -> None:
    for key, grad in gradients(stage_of(name, **diffusion)).items():
        if key.startswith(trained):
            assert grad is not None and torch.isfinite(grad).all() and grad.abs().max() > 0, key
        else:
            assert grad is None or not grad.any(), key


def test_a_fresh_control_network_learns_through_its_zero_layers_only(stage_of: Callable[..., Stage]) -> None:
    for key, grad in gradients(stage_of("control", fresh="control_model.")).items():
        learns = grad is not None and bool(grad.any())
        assert learns == key.startswith(ZERO_LAYERS), key


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
