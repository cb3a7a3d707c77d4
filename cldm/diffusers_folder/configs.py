"""The JSON files of a diffusers folder from a ModelConfig.

Source: the constructor arguments of the classes in diffusers 0.36 and transformers 4.56.
"""

from __future__ import annotations

from typing import Any

from ldm.latent_diffusion import ModelConfig
from ldm.text import TextConfig
from ldm.unet import UNetConfig

VERSION = "0.36.0"  # of diffusers: what the files are written for
VOCABULARY = 49408  # tokens of CLIP
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}  # ours: theirs


class FolderError(ValueError):
    """A folder that cannot be read or written as asked; the message says what to do about it."""


def check_expressible(cfg: ModelConfig, with_control: bool = True) -> None:
    """Raises FolderError, naming the setting, for a model that diffusers' classes cannot be configured to be."""
    hint = list(cfg.control.hint_widths)
    problems = []
    for name, mults in (
        ("unet.channel_mult", cfg.unet.channel_mult),
        ("first_stage.ch_mult", cfg.first_stage.ch_mult),
    ):
        if mults[0] != 1:
            problems.append(
                f"{name}={list(mults)} (there, the first convolution is as wide as the first level: expected 1 first)"
            )
    if with_control and (len(hint) != 7 or hint[0] != hint[1] or hint[2] != hint[3] or hint[4] != hint[5]):
        problems.append(
            f"control.hint_widths={hint} (there, the convolutions but the last stand in pairs: "
            "expected a, a, b, b, c, c, d)"
        )
    if cfg.cond_stage.vocab_size != VOCABULARY:
        problems.append(
            f"cond_stage.vocab_size={cfg.cond_stage.vocab_size} (CLIP's tokenizer has {VOCABULARY})"
        )
    if problems:
        raise FolderError(f"diffusers has no setting for {'; '.join(problems)}")


def part_configs(cfg: ModelConfig) -> dict[str, dict[str, Any]]:
    """What stands in the config.json of each part of the folder."""
    return {
        "unet": _unet(cfg),
        "vae": _vae(cfg),
        "text_encoder": _text_encoder(cfg.cond_stage),
        "controlnet": _controlnet(cfg),
    }


def _encoder(cfg: UNetConfig) -> dict[str, Any]:
    """What the configs of UNet and ControlNet have in common."""
    levels = range(len(cfg.channel_mult))
    return {
        "_diffusers_version": VERSION,
        "in_channels": cfg.in_channels,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": [
            "CrossAttnDownBlock2D" if level in cfg.attention_levels else "DownBlock2D" for level in levels
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": [cfg.model_channels * mult for mult in cfg.channel_mult],
        "layers_per_block": cfg.num_res_blocks,
        "act_fn": "silu",
        "norm_num_groups": cfg.norm_groups,
        "norm_eps": 1e-5,
        "cross_attention_dim": cfg.context_dim,
        "transformer_layers_per_block": cfg.transformer_depth,
        "attention_head_dim": cfg.num_heads,  # the name is theirs; what it sets is the number of heads
        "use_linear_projection": False,
    }


def _unet(cfg: ModelConfig) -> dict[str, Any]:
    levels = reversed(range(len(cfg.unet.channel_mult)))
    return {
        "_class_name": "UNet2DConditionModel",
        **_encoder(cfg.unet),
        "out_channels": cfg.unet.out_channels,
        "sample_size": cfg.latent_shape[1],
        "up_block_types": [
            "CrossAttnUpBlock2D" if level in cfg.unet.attention_levels else "UpBlock2D" for level in levels
        ],
    }


def _controlnet(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "_class_name": "ControlNetModel",
        **_encoder(cfg.unet),
        "conditioning_channels": cfg.control.hint_channels,
        "conditioning_embedding_out_channels": list(cfg.control.hint_widths)[0::2],
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }


def _vae(cfg: ModelConfig) -> dict[str, Any]:
    vae = cfg.first_stage
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "in_channels": vae.in_channels,
        "out_channels": vae.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.ch_mult),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.ch_mult),
        "block_out_channels": [vae.ch * mult for mult in vae.ch_mult],
        "layers_per_block": vae.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": vae.z_channels,
        "norm_num_groups": vae.norm_groups,
        "sample_size": cfg.image_size,
        "scaling_factor": cfg.scale_factor,
    }


def _text_encoder(cfg: TextConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.intermediate,
        "projection_dim": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "max_position_embeddings": cfg.max_length,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "bos_token_id": cfg.vocab_size - 2,
        "eos_token_id": cfg.vocab_size - 1,
        "pad_token_id": cfg.vocab_size - 1,
    }
