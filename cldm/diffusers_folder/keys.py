"""Parameter names of each part: ours (those of the public checkpoints) -> those of a diffusers folder.

Only names differ, except that some 1x1 convolutions are linear layers there. Source: the module names of
`UNet2DConditionModel`, `ControlNetModel` and `AutoencoderKL` in diffusers and of `CLIPTextModel` in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from ldm.config import ModelConfig, UNetConfig

PREFIXES = {  # of our keys, by the folder's part
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
    "controlnet": "control_model.",
}

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {
    "nin_shortcut": "conv_shortcut"
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def their_keys(cfg: ModelConfig) -> dict[str, dict[str, str]]:
    """Return, for each part of `PREFIXES`, our key (whole, with its prefix) -> the key in that part's weights file.

    These are the parameters of a `ControlledLatentDiffusion`, without the schedule's buffers.
    """
    modules = {
        "unet": _unet_modules(cfg.unet),
        "vae": _vae_modules(cfg),
        "text_encoder": {"text_model": "text_model"},
        "controlnet": _control_modules(cfg.unet),
    }
    with torch.device("meta"):
        ours = ControlledLatentDiffusion(cfg).state_dict()
    return {
        part: {
            key: _renamed(key.removeprefix(prefix), modules[part]) for key in ours if key.startswith(prefix)
        }
        for part, prefix in PREFIXES.items()
    }


def _renamed(key: str, modules: Mapping[str, str]) -> str:
    """`key` with the longest of the module paths it starts with replaced."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        if module in modules:
            return ".".join([modules[module], *parts[end:]])
    raise AssertionError(f"{key} has no name in diffusers")


def _inner(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{inner}": f"{theirs}.{outer}" for inner, outer in names.items()}


def _encoder_modules(cfg: UNetConfig) -> dict[str, str]:
    """What UNet and ControlNet have in common: time embedding, way down, middle."""
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
    }
    names |= _inner("middle_block.0", "mid_block.resnets.0", _RESNET)
    names |= _inner("middle_block.2", "mid_block.resnets.1", _RESNET)
    number = 1
    for level in range(len(cfg.channel_mult)):
        for i in range(cfg.num_res_blocks):
            names |= _inner(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{i}", _RESNET)
            names[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{i}"
            number += 1
        names[f"input_blocks.{number}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        number += 1
    return names


def _unet_modules(cfg: UNetConfig) -> dict[str, str]:
    names = _encoder_modules(cfg) | {"out.0": "conv_norm_out", "out.2": "conv_out"}
    number = 0
    for up in range(len(cfg.channel_mult)):
        for i in range(cfg.num_res_blocks + 1):
            names |= _inner(f"output_blocks.{number}.0", f"up_blocks.{up}.resnets.{i}", _RESNET)
            names[f"output_blocks.{number}.1"] = f"up_blocks.{up}.attentions.{i}"
            # The convolution of an Upsample follows the attention, or stands where there is none in its place.
            for place in (1, 2):
                names[f"output_blocks.{number}.{place}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
            number += 1
    return names


def _control_modules(cfg: UNetConfig) -> dict[str, str]:
    names = _encoder_modules(cfg)
    hint = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    names |= {f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(hint)}
    names |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(cfg.num_control_outputs - 1)}
    return names | {"middle_block_out.0": "controlnet_mid_block"}


def _vae_modules(cfg: ModelConfig) -> dict[str, str]:
    num_levels, num_blocks = len(cfg.first_stage.ch_mult), cfg.first_stage.num_res_blocks
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        names |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        names[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        names |= _inner(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", _VAE_RESNET)
        names |= _inner(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", _VAE_RESNET)
        names |= _inner(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _VAE_ATTENTION)
    for level in range(num_levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{num_levels - 1 - level}"
        for i in range(num_blocks):
            names |= _inner(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", _VAE_RESNET)
        for i in range(num_blocks + 1):
            names |= _inner(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", _VAE_RESNET)
        names[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        names[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
    return names


def to_theirs(part: str, their_key: str, value: Tensor) -> Tensor:
    """Return our tensor in the shape that diffusers expects: linear layers in the VAE's attention."""
    if part == "vae" and ".attentions." in their_key and value.ndim == 4:
        return value.flatten(1)  # (C, C, 1, 1) -> (C, C)
    return value


def to_ours(part: str, their_key: str, value: Tensor) -> Tensor:
    """Return a tensor of diffusers in our shape: 1x1 convolutions in the VAE's attention."""
    if part == "vae" and ".attentions." in their_key and value.ndim == 2:
        return value[..., None, None]  # (C, C) -> (C, C, 1, 1)
    return value
