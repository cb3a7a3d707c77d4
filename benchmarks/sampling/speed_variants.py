"""The ways of computing one guided step that benchmarks.sampling.speed compares, all on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.their_networks import converted, network
from cldm.controlled import ControlledLatentDiffusion, restore_buffers
from cldm.ddim import EpsFn, sample_ddim
from cldm.guidance import classifier_free
from cldm.spacing import spaced_timesteps
from ldm.compiled import compile_blocks

PIPELINE_STEPS = "leading"  # SD1.5's spacing: what diffusers' DDIM scheduler visits too


@dataclass(frozen=True)
class Inputs:
    """One batch: skulls (B, 3, H, W) in [0, 1], noise (B, 4, h, w), text with and without the prompt (B, 77, C)."""

    skulls: Tensor
    noise: Tensor
    context: Tensor
    uncond: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return the batch on a device; the noise stays float32."""
        skulls, context, uncond = (x.to(device, dtype) for x in (self.skulls, self.context, self.uncond))
        return Inputs(skulls, self.noise.to(device), context, uncond)


@dataclass(frozen=True)
class Variant:
    """A way of computing.

    eps: (inputs, t) -> one denoiser evaluation without guidance and control.
    guided: (inputs) -> a function of x_t and t that does one step's two branches, after what is done once per sampling.
    sample: (inputs, steps, guidance_scale) -> pictures (B, 3, H, W), DDIM with eta 0.
    """

    eps: Callable[[Inputs, Tensor], Tensor]
    guided: Callable[[Inputs], EpsFn]
    sample: Callable[[Inputs, int, float], Tensor]


def sample_by(
    model: ControlledLatentDiffusion, guided: Callable[[Inputs, float], EpsFn]
) -> Callable[[Inputs, int, float], Tensor]:
    """Return our sampling with one of the guided steps: DDIM and decoding."""

    def sample(inputs: Inputs, steps: int, scale: float) -> Tensor:
        timesteps = spaced_timesteps(steps, PIPELINE_STEPS)
        latents = sample_ddim(guided(inputs, scale), inputs.noise, timesteps, model.alphas_cumprod)
        return model.decode(latents.to(model.dtype)).float().clamp(-1, 1)

    return sample


def ours(model: ControlledLatentDiffusion, compiled: str = "no") -> Variant:
    """This repository as ``cldm.sampling.reconstruct`` runs it. compiled: no, blocks or whole."""
    run = model.eps
    if compiled == "blocks":
        compile_blocks(model)
    elif compiled == "whole":
        run = torch.compile(model.eps, mode="max-autotune", dynamic=False)

    def guided(inputs: Inputs, scale: float = 7.5) -> EpsFn:
        hint = model.encode_hint(inputs.skulls)
        text, hint = model.project_text(torch.cat([inputs.uncond, inputs.context])), torch.cat([hint, hint])
        return classifier_free(lambda x, t, i: run(x, t, text, hint), scale)

    return Variant(
        lambda inputs, t: run(inputs.noise, t, inputs.context, None), guided, sample_by(model, guided)
    )


def as_the_original(model: ControlledLatentDiffusion) -> Variant:
    """The published code's way on our classes: the two branches one after the other, and the hint at every step."""

    def guided(inputs: Inputs, scale: float = 7.5) -> EpsFn:
        def eps_fn(x_t: Tensor, t: Tensor, i: int) -> Tensor:
            eps_c = model.eps(x_t, t, inputs.context, model.encode_hint(inputs.skulls)).float()
            eps_u = model.eps(x_t, t, inputs.uncond, model.encode_hint(inputs.skulls)).float()
            return eps_u + scale * (eps_c - eps_u)

        return eps_fn

    sample = sample_by(model, guided)
    return Variant(lambda inputs, t: model.eps(inputs.noise, t, inputs.context, None), guided, sample)


def pipeline(parts: dict[str, Any]) -> Any:
    """Return the pipeline of diffusers' documentation without a text encoder: it takes embeddings."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ends = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    scheduler = diffusers.DDIMScheduler(**betas, **ends)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe: Any = diffusers.StableDiffusionControlNetPipeline(
        **parts, **absent, scheduler=scheduler, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_diffusers(model: ControlledLatentDiffusion, compiled: bool = False) -> Variant:
    """Diffusers with the model's weights.

    compiled: UNet and ControlNet by ``torch.compile(mode="max-autotune")``, as its documentation says.
    """
    state, names = model.state_dict(), ("unet", "controlnet", "vae")
    parts: dict[str, Any] = {
        name: network(name, converted(name, state, model.cfg), model.cfg) for name in names
    }
    for name in names[:2] if compiled else ():
        parts[name] = torch.compile(parts[name], mode="max-autotune", fullgraph=True)
    unet, control, pipe = parts["unet"], parts["controlnet"], pipeline(parts)

    def guided(inputs: Inputs, scale: float = 7.5) -> EpsFn:
        both, image = torch.cat([inputs.uncond, inputs.context]), torch.cat([inputs.skulls, inputs.skulls])

        def eps_both(x: Tensor, t: Tensor, i: int) -> Tensor:
            x = x.to(both.dtype)
            down, mid = control(x, t, both, image, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return unet(x, t, both, **residuals, return_dict=False)[0]

        return classifier_free(eps_both, scale)

    def sample(inputs: Inputs, steps: int, scale: float) -> Tensor:
        pictures = pipe(
            image=inputs.skulls,
            prompt_embeds=inputs.context,
            negative_prompt_embeds=inputs.uncond,
            latents=inputs.noise.to(inputs.context.dtype),
            num_inference_steps=steps,
            guidance_scale=scale,
            eta=0.0,
            output_type="pt",
        ).images  # in [0, 1]
        return pictures.float() * 2 - 1

    def eps(inputs: Inputs, t: Tensor) -> Tensor:
        return unet(inputs.noise.to(inputs.context.dtype), t, inputs.context, return_dict=False)[0]

    return Variant(eps, guided, sample)


def in_layout(
    model: ControlledLatentDiffusion, dtype: torch.dtype, channels_last: bool, device: torch.device
) -> ControlledLatentDiffusion:
    """The model in a precision and memory layout on a device, its schedule in float32; a copy where they differ."""
    if (model.dtype, channels_last, model.device) == (dtype, False, device):
        return model
    with torch.device("meta"):
        twin = ControlledLatentDiffusion(model.cfg)
    twin = twin.to(dtype).to_empty(device=device)
    twin.load_state_dict(model.state_dict())
    restore_buffers(twin)
    twin = twin.to(memory_format=torch.channels_last) if channels_last else twin
    return twin.eval().requires_grad_(False)
