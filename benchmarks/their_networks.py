"""The networks of diffusers and transformers around the tensors of one of our checkpoints.

The weights pass through diffusers' own converters; nothing of cldm.diffusers_folder is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.loaders import single_file_utils as convert
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.config import ModelConfig

NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (diffusers.UNet2DConditionModel, convert.convert_ldm_unet_checkpoint),
    "controlnet": (diffusers.ControlNetModel, convert.convert_controlnet_checkpoint),
    "vae": (diffusers.AutoencoderKL, convert.convert_ldm_vae_checkpoint),
}


def arguments_of(cfg: ModelConfig) -> dict[str, dict[str, Any]]:
    """Return the arguments of the libraries' networks, by part, for one of our architectures."""
    u, a, text = cfg.unet, cfg.first_stage, cfg.cond_stage
    levels = [i in u.attention_levels for i in range(len(u.channel_mult))]
    encoder = {
        "block_out_channels": tuple(u.model_channels * m for m in u.channel_mult),
        "down_block_types": tuple("CrossAttnDownBlock2D" if x else "DownBlock2D" for x in levels),
        "layers_per_block": u.num_res_blocks,
        "attention_head_dim": u.num_heads,  # diffusers' name for the number of heads
        "cross_attention_dim": u.context_dim,
        "norm_num_groups": u.norm_groups,
    }
    up = tuple("CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(levels))
    hint_widths = tuple(cfg.control.hint_widths[i] for i in (0, 2, 4, 6))
    return {
        "unet": encoder | {"up_block_types": up},
        "controlnet": encoder | {"conditioning_embedding_out_channels": hint_widths},
        "vae": {
            "block_out_channels": tuple(a.ch * m for m in a.ch_mult),
            "down_block_types": ("DownEncoderBlock2D",) * len(a.ch_mult),
            "up_block_types": ("UpDecoderBlock2D",) * len(a.ch_mult),
            "layers_per_block": a.num_res_blocks,
            "norm_num_groups": a.norm_groups,
            "scaling_factor": cfg.scale_factor,
        },
        "text_encoder": {
            "hidden_size": text.width,
            "intermediate_size": text.intermediate,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
        },
    }


def converted(part: str, state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors of one part under the libraries' names."""
    state = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    if part == "text_encoder":
        theirs = convert.convert_ldm_clip_checkpoint(state)
        return {key: value for key, value in theirs.items() if not key.endswith("position_ids")}
    config = arguments_of(cfg)[part] | {"class_embed_type": None, "addition_embed_type": None}
    return NETWORKS[part][1](state, config=config)


def network(part: str, weights: Mapping[str, Tensor], cfg: ModelConfig) -> nn.Module:
    """Return one part, frozen, around the tensors that :func:`converted` returned."""
    arguments = arguments_of(cfg)[part]
    if part == "text_encoder":
        net: nn.Module = CLIPTextModel(
            CLIPTextConfig(hidden_act="quick_gelu", eos_token_id=49407, **arguments)
        )
        inner = getattr(net, "text_model", net)  # transformers before 5 nests it
        inner.load_state_dict({key.removeprefix("text_model."): value for key, value in weights.items()})
    else:
        with torch.device("meta"):
            net = NETWORKS[part][0](**arguments)
        net.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)
