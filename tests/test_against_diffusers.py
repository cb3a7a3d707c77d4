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
from diffusers_folders import CFG
from diffusers_folders import model as model
from torch import Tensor, nn

from cldm.controlled import ControlledLatentDiffusion
from cldm.ddim import sample_ddim
from cldm.diffusers_folder.configs import CLASSES, settings_of
from cldm.spacing import spaced_timesteps

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def theirs_of(part: str, model: ControlledLatentDiffusion) -> nn.Module:
    """Return diffusers' network of a part with the model's weights, through diffusers' own converter."""
    convert = {
        "unet": convert_ldm_unet_checkpoint,
        "controlnet": convert_controlnet_checkpoint,
        "vae": convert_ldm_vae_checkpoint,
    }[part]
    config = {"class_embed_type": None, "addition_embed_type": None, **settings_of(CFG)[part]}
    net = CLASSES[part](**settings_of(CFG)[part])
    net.load_state_dict(convert(model.state_dict(), config=config))
    return net.eval().requires_grad_(False)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, 4, 8, 8, generator=g),
        "t": torch.tensor([37, 812]),
        "context": torch.randn(2, 77, CFG.unet.context_dim, generator=g),
        "skull": torch.rand(2, 3, 64, 64, generator=g),
        "picture": torch.rand(2, 3, 64, 64, generator=g) * 2 - 1,
    }


def test_control_and_unet(model: ControlledLatentDiffusion, inputs: dict[str, Tensor]) -> None:
    their_unet, their_control = theirs_of("unet", model), theirs_of("controlnet", model)
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


def test_autoencoder(model: ControlledLatentDiffusion, inputs: dict[str, Tensor]) -> None:
    their_vae = theirs_of("vae", model)
    posterior = model.first_stage_model.encode(inputs["picture"])
    theirs = their_vae.encode(inputs["picture"]).latent_dist
    assert relative(posterior.mean, theirs.mean) < 1e-4
    assert relative(posterior.logvar, theirs.logvar) < 1e-4
    assert relative(posterior.kl(), theirs.kl()) < 1e-4
    assert relative(model.first_stage_model.decode(inputs["x"]), their_vae.decode(inputs["x"]).sample) < 1e-4


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_trajectory(model: ControlledLatentDiffusion, inputs: dict[str, Tensor], spacing: str) -> None:
    their_unet = theirs_of("unet", model)
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
