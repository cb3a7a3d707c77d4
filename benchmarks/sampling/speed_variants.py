"""The ways of computing one guided step that benchmarks.sampling.speed compares, all on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion, restore_buffers
from cldm.ddim import EpsFn, sample_ddim
from cldm.guidance import classifier_free
from cldm.spacing import spaced_timesteps
from ldm.compiled import compile_blocks
from ldm.latent_diffusion import ModelConfig

PIPELINE_STEPS = "leading"  # SD1.5's spacing: what diffusers' DDIM scheduler visits too


@dataclass(frozen=True)
class Inputs:
    """One batch: skulls (B, 3, H, W) in [0, 1], noise (B, 4, h, w), text with and without the prompt (B, 77, C)."""

    skulls: Tensor
    noise: Tensor
    context: Tensor
    uncond: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """On a device; the noise stays float32."""
        return Inputs(
            self.skulls.to(device, dtype),
            self.noise.to(device),
            self.context.to(device, dtype),
            self.uncond.to(device, dtype),
        )

    @property
    def num(self) -> int:
        return len(self.noise)


def random_model(cfg: ModelConfig, seed: int = 0) -> ControlledLatentDiffusion:
    """A model with random weights, zero layers included: speed does not depend on what they are."""
    torch.manual_seed(seed)
    model = ControlledLatentDiffusion(cfg).eval().requires_grad_(False)
    for p in model.parameters():
        if not p.any():
            p.normal_(std=0.02)
    return model


@dataclass(frozen=True)
class Variant:
    """A way of computing.

    eps: (inputs, t) -> one denoiser evaluation without guidance and control.
    guided: (inputs) -> a function of x_t and t that does one step's two branches, after what is done once per sampling.
    sample: (inputs, steps, guidance_scale) -> pictures (B, 3, H, W), DDIM with eta 0.
    """

    name: str
    eps: Callable[[Inputs, Tensor], Tensor]
    guided: Callable[[Inputs], EpsFn]
    sample: Callable[[Inputs, int, float], Tensor]


def ours(model: ControlledLatentDiffusion, name: str, compiled: str = "no") -> Variant:
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

    def sample(inputs: Inputs, steps: int, scale: float) -> Tensor:
        timesteps = spaced_timesteps(steps, PIPELINE_STEPS)
        latents = sample_ddim(guided(inputs, scale), inputs.noise, timesteps, model.alphas_cumprod)
        return model.decode(latents.to(model.dtype)).float().clamp(-1, 1)

    return Variant(name, lambda inputs, t: run(inputs.noise, t, inputs.context, None), guided, sample)


def as_the_original(model: ControlledLatentDiffusion, name: str) -> Variant:
    """The published code's way on our classes: the two branches one after the other, and the hint at every step."""

    def guided(inputs: Inputs, scale: float = 7.5) -> EpsFn:
        def eps_fn(x_t: Tensor, t: Tensor, i: int) -> Tensor:
            eps_c = model.eps(x_t, t, inputs.context, model.encode_hint(inputs.skulls)).float()
            eps_u = model.eps(x_t, t, inputs.uncond, model.encode_hint(inputs.skulls)).float()
            return eps_u + scale * (eps_c - eps_u)

        return eps_fn

    def sample(inputs: Inputs, steps: int, scale: float) -> Tensor:
        timesteps = spaced_timesteps(steps, PIPELINE_STEPS)
        latents = sample_ddim(guided(inputs, scale), inputs.noise, timesteps, model.alphas_cumprod)
        return model.decode(latents.to(model.dtype)).float().clamp(-1, 1)

    return Variant(name, lambda inputs, t: model.eps(inputs.noise, t, inputs.context, None), guided, sample)


@dataclass(frozen=True)
class DiffusersParts:
    """Diffusers' networks with the weights of one of our models."""

    unet: Any
    control: Any
    vae: Any

    def pipeline(self) -> Any:
        """The pipeline of its documentation, without text encoder: the embeddings are given."""
        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        pipe: Any = diffusers.StableDiffusionControlNetPipeline(
            vae=self.vae,
            text_encoder=None,
            tokenizer=None,
            unet=self.unet,
            controlnet=self.control,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def diffusers_parts(model: ControlledLatentDiffusion) -> DiffusersParts:
    """Diffusers' networks around the tensors of ``model``, through diffusers' own converters of checkpoint keys."""
    u, a = model.cfg.unet, model.cfg.first_stage
    levels = range(len(u.channel_mult))
    down = tuple("CrossAttnDownBlock2D" if i in u.attention_levels else "DownBlock2D" for i in levels)
    up = tuple("CrossAttnUpBlock2D" if i in u.attention_levels else "UpBlock2D" for i in reversed(levels))
    shape = {
        "block_out_channels": tuple(u.model_channels * m for m in u.channel_mult),
        "layers_per_block": u.num_res_blocks,
        "attention_head_dim": u.num_heads,  # diffusers' name for the number of heads
        "cross_attention_dim": u.context_dim,
        "norm_num_groups": u.norm_groups,
        "down_block_types": down,
    }
    state = model.state_dict()
    convert = {"layers_per_block": u.num_res_blocks, "class_embed_type": None, "addition_embed_type": None}
    hint_blocks = tuple(model.cfg.control.hint_widths[i] for i in (0, 2, 4, 6))
    blocks = len(a.ch_mult)
    vae_types = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    with torch.device("meta"):
        unet: Any = diffusers.UNet2DConditionModel(**shape, up_block_types=up)
        control: Any = diffusers.ControlNetModel(**shape, conditioning_embedding_out_channels=hint_blocks)
        vae: Any = diffusers.AutoencoderKL(
            **vae_types,
            block_out_channels=tuple(a.ch * m for m in a.ch_mult),
            layers_per_block=a.num_res_blocks,
            norm_num_groups=a.norm_groups,
            scaling_factor=model.cfg.scale_factor,
        )
    for net, weights in (
        (unet, convert_ldm_unet_checkpoint(dict(state), config=convert)),
        (control, convert_controlnet_checkpoint(dict(state), config=convert)),
        (vae, convert_ldm_vae_checkpoint(dict(state), config=vae_types)),
    ):
        net.load_state_dict(weights, assign=True)
        net.eval().requires_grad_(False)
    return DiffusersParts(unet, control, vae)


def with_diffusers(parts: DiffusersParts, name: str, compiled: bool = False) -> Variant:
    """Diffusers. compiled: UNet and ControlNet by ``torch.compile(mode="max-autotune")``, as its documentation says."""
    unet, control = parts.unet, parts.control
    if compiled:
        unet = torch.compile(parts.unet, mode="max-autotune", fullgraph=True)
        control = torch.compile(parts.control, mode="max-autotune", fullgraph=True)
        parts = replace(parts, unet=unet, control=control)
    pipe = parts.pipeline()

    def guided(inputs: Inputs, scale: float = 7.5) -> EpsFn:
        both, image = torch.cat([inputs.uncond, inputs.context]), torch.cat([inputs.skulls, inputs.skulls])

        def eps_both(x: Tensor, t: Tensor, i: int) -> Tensor:
            x = x.to(both.dtype)
            down, mid = control(x, t, both, image, return_dict=False)
            return unet(
                x,
                t,
                both,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                return_dict=False,
            )[0]

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

    return Variant(name, eps, guided, sample)


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
