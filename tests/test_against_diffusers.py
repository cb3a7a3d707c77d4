"""Our networks and sampler against diffusers' with the same weights, fp32, at tiny width.

The weights travel through diffusers' own single-file converters, so the key names are checked with them.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor, nn

from cldm.controlled import ControlledLatentDiffusion
from cldm.ddim import sample_ddim
from cldm.spacing import spaced_timesteps
from ldm.config import AutoencoderConfig, ControlConfig, ModelConfig, TextConfig, UNetConfig

HINT_WIDTHS = [8, 8, 12, 12, 16, 16, 24]
# diffusers lists one width per resolution of the hint encoder; the public layout doubles all but the last.
HINT_BLOCKS = (8, 12, 16, 24)


@pytest.fixture(scope="module")
def model() -> ControlledLatentDiffusion:
    torch.manual_seed(0)
    cfg = ModelConfig(
        image_size=64,
        unet=UNetConfig(
            model_channels=32,
            channel_mult=[1, 2, 2],
            num_res_blocks=2,
            attention_levels=[0, 1],
            num_heads=4,
            context_dim=24,
            norm_groups=8,
        ),
        first_stage=AutoencoderConfig(ch=16, ch_mult=[1, 2, 2, 2], num_res_blocks=2, norm_groups=8),
        cond_stage=TextConfig(width=24, layers=1, heads=2, intermediate=16),
        control=ControlConfig(hint_widths=HINT_WIDTHS),
    )
    net = ControlledLatentDiffusion(cfg)
    with torch.no_grad():  # zero-initialised layers would hide what lies behind them
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval().requires_grad_(False)


UNET_ARGS = {
    "in_channels": 4,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 4,  # diffusers' name for the number of heads
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def filled(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def their_unet(model: ControlledLatentDiffusion) -> nn.Module:
    net = diffusers.UNet2DConditionModel(
        **UNET_ARGS, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    )
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    return filled(net, convert_ldm_unet_checkpoint(model.state_dict(), config=config))


@pytest.fixture(scope="module")
def their_control(model: ControlledLatentDiffusion) -> nn.Module:
    net = diffusers.ControlNetModel(**UNET_ARGS, conditioning_embedding_out_channels=HINT_BLOCKS)
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    return filled(net, convert_controlnet_checkpoint(model.state_dict(), config=config))


@pytest.fixture(scope="module")
def their_vae(model: ControlledLatentDiffusion) -> nn.Module:
    net = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=2,
        norm_num_groups=8,
    )
    config = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return filled(net, convert_ldm_vae_checkpoint(model.state_dict(), config=config))


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, 4, 8, 8, generator=g),
        "t": torch.tensor([37, 812]),
        "context": torch.randn(2, 77, 24, generator=g),
        "skull": torch.rand(2, 3, 64, 64, generator=g),
        "picture": torch.rand(2, 3, 64, 64, generator=g) * 2 - 1,
    }


def test_unet(model: ControlledLatentDiffusion, their_unet: nn.Module, inputs: dict[str, Tensor]) -> None:
    ours = model.unet(inputs["x"], inputs["t"], inputs["context"])
    theirs = their_unet(inputs["x"], inputs["t"], inputs["context"]).sample
    assert relative(ours, theirs) < 1e-4


def test_control_and_unet(
    model: ControlledLatentDiffusion,
    their_unet: nn.Module,
    their_control: nn.Module,
    inputs: dict[str, Tensor],
) -> None:
    x, t, context, skull = (inputs[k] for k in ("x", "t", "context", "skull"))
    num = model.cfg.unet.num_control_outputs
    scales = [0.5 + 0.1 * i for i in range(num)]
    ours = model.eps(x, t, context, model.encode_hint(skull), scales)
    down, mid = their_control(x, t, context, skull, return_dict=False)
    down = [r * s for r, s in zip(down, scales[:-1], strict=True)]
    theirs = their_unet(
        x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid * scales[-1]
    ).sample
    assert relative(ours, theirs) < 1e-4
    unconditioned = model.eps(x, t, context, None)
    assert relative(unconditioned, theirs) > 1e-2  # the comparison above is one of a control that acts


def test_autoencoder(
    model: ControlledLatentDiffusion, their_vae: nn.Module, inputs: dict[str, Tensor]
) -> None:
    posterior = model.first_stage_model.encode(inputs["picture"])
    theirs = their_vae.encode(inputs["picture"]).latent_dist
    assert relative(posterior.mean, theirs.mean) < 1e-4
    assert relative(posterior.logvar, theirs.logvar) < 1e-4
    assert relative(posterior.kl(), theirs.kl()) < 1e-4
    assert relative(model.first_stage_model.decode(inputs["x"]), their_vae.decode(inputs["x"]).sample) < 1e-4


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_trajectory(
    model: ControlledLatentDiffusion, their_unet: nn.Module, inputs: dict[str, Tensor], spacing: str
) -> None:
    scheduler = diffusers.DDIMScheduler(
        **SCHEDULE, steps_offset=1 if spacing == "leading" else 0, timestep_spacing=spacing
    )
    scheduler.set_timesteps(10)
    steps = spaced_timesteps(10, spacing)
    assert steps.tolist() == scheduler.timesteps.tolist()
    context = inputs["context"]
    trajectory: list[Tensor] = []

    def eps_fn(x: Tensor, t: Tensor, i: int) -> Tensor:
        trajectory.append(x)
        return model.unet(x, t, context)

    trajectory.append(sample_ddim(eps_fn, inputs["x"], steps, model.alphas_cumprod, eta=0.0))
    theirs = inputs["x"]
    for i, t in enumerate(scheduler.timesteps):
        assert relative(trajectory[i], theirs) < 1e-3
        theirs = scheduler.step(their_unet(theirs, t, context).sample, t, theirs, eta=0.0).prev_sample
    assert relative(trajectory[-1], theirs) < 1e-3


def test_noisy_ddim_step(model: ControlledLatentDiffusion, inputs: dict[str, Tensor]) -> None:
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, steps_offset=1)
    scheduler.set_timesteps(20)
    x, eps, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    ours = sample_ddim(lambda *_: eps, x, [601, 551], model.alphas_cumprod, eta=1.0, randn=lambda: noise)
    theirs = scheduler.step(eps, 601, x, eta=1.0, variance_noise=noise).prev_sample
    abar = model.alphas_cumprod
    # Our second and last step goes to step 0; undo nothing, just repeat it from theirs.
    sigma2 = (1 - abar[0]) / (1 - abar[551]) * (1 - abar[551] / abar[0])
    x_0 = (theirs - (1 - abar[551]).sqrt() * eps) / abar[551].sqrt()
    theirs = abar[0].sqrt() * x_0 + (1 - abar[0] - sigma2).clamp(min=0).sqrt() * eps + sigma2.sqrt() * noise
    assert relative(ours, theirs) < 1e-4
