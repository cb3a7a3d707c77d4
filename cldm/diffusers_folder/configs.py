"""A ModelConfig as the settings of the libraries' classes, and back.

Source: the constructor arguments of the classes of diffusers and of transformers' CLIPTextConfig.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.config import ControlConfig, ModelConfig
from settings.base import Settings
from settings.reading import parse_command_line

CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "controlnet": ControlNetModel,
}
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}  # ours: theirs
VOCABULARY = 49408  # tokens of CLIP
_BLOCKS = {  # our name: theirs, of the settings that differ by their names alone
    "in_channels": "in_channels",
    "num_res_blocks": "layers_per_block",
    "norm_groups": "norm_num_groups",
}
_ENCODER = _BLOCKS | {
    "context_dim": "cross_attention_dim",
    "transformer_depth": "transformer_layers_per_block",
    "num_heads": "attention_head_dim",  # in spite of its name
}
_UNET = _ENCODER | {"out_channels": "out_channels"}
_VAE = _BLOCKS | {"z_channels": "latent_channels"}
_TEXT = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "intermediate": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "max_length": "max_position_embeddings",
}
_SCHEDULE = {
    "num_timesteps": "num_train_timesteps",
    "linear_start": "beta_start",
    "linear_end": "beta_end",
}
_WITHOUT_EFFECT = {  # on a trained network of our kind, or read in another way
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "attention_head_dim",
    "dropout",
    "force_upcast",
    "num_attention_heads",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
    "sample_size",
    "upcast_attention",
}


class FolderError(ValueError):
    """A folder that cannot be read or written as asked; the message says what to do about it."""


def settings_of(cfg: ModelConfig) -> dict[str, dict[str, Any]]:
    """Return the constructor arguments of each part's class, where they are not the default, and the schedule's."""
    unet, vae = cfg.unet, cfg.first_stage
    with_text = [level in unet.attention_levels for level in range(len(unet.channel_mult))]
    blocks = {
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in with_text],
        "block_out_channels": [unet.model_channels * mult for mult in unet.channel_mult],
    }
    return {
        "unet": {
            **_renamed(unet, _UNET),
            **blocks,
            "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(with_text)],
            "sample_size": cfg.latent_shape[1],
        },
        "controlnet": {
            **_renamed(unet, _ENCODER),
            **blocks,
            "conditioning_channels": cfg.control.hint_channels,
            "conditioning_embedding_out_channels": list(cfg.control.hint_widths)[0::2],
        },
        "vae": {
            **_renamed(vae, _VAE),
            "out_channels": vae.in_channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.ch_mult),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.ch_mult),
            "block_out_channels": [vae.ch * mult for mult in vae.ch_mult],
            "sample_size": cfg.image_size,
            "scaling_factor": cfg.scale_factor,
        },
        "text_encoder": {
            **_renamed(cfg.cond_stage, _TEXT),
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "scheduler": {
            **_renamed(cfg.schedule, _SCHEDULE),
            "beta_schedule": "scaled_linear",
            "trained_betas": None,
            "prediction_type": PREDICTION_TYPES[cfg.schedule.prediction],
        },
    }


def check_expressible(cfg: ModelConfig, with_control: bool = True) -> None:
    """Raise FolderError, naming the setting, for a model that diffusers' classes cannot be configured to be."""
    mults = {"unet.channel_mult": cfg.unet.channel_mult, "first_stage.ch_mult": cfg.first_stage.ch_mult}
    problems = [f"{name}={mult} (expected 1 first)" for name, mult in mults.items() if mult[0] != 1]
    hint = cfg.control.hint_widths
    if with_control and (len(hint) != 7 or hint[0:6:2] != hint[1:6:2]):
        problems.append(f"control.hint_widths={hint} (expected pairs and one, as in a, a, b, b, c, c, d)")
    if cfg.cond_stage.vocab_size != VOCABULARY:
        problems.append(f"cond_stage.vocab_size={cfg.cond_stage.vocab_size} (CLIP's has {VOCABULARY})")
    if problems:
        raise FolderError(f"diffusers has no setting for {'; '.join(problems)}")


def model_config(parts: Mapping[str, Mapping[str, Any]], image_size: int | None = None) -> ModelConfig:
    """Return the model that the JSON files of a folder describe; what they leave out has the libraries' defaults.

    Args:
        parts: content of "unet", "vae", "text_encoder" and, where there are any, "scheduler", "controlnet".
        image_size: side of the pictures, px; what the UNet's config says if None.

    Raises:
        FolderError: a setting that our networks do not have.
        ConfigError: a value of another type or out of range, or parts that do not fit together.
    """
    unet, vae, text = (_complete(part, parts[part]) for part in ("unet", "vae", "text_encoder"))
    width, mults = _levels("unet", unet)
    ch, ch_mult = _levels("vae", vae)
    blocks = unet["down_block_types"] if isinstance(unet["down_block_types"], list) else []
    unet["attention_head_dim"] = unet["num_attention_heads"] or unet["attention_head_dim"]
    levels = {
        "model_channels": width,
        "channel_mult": mults,
        "attention_levels": [k for k, block in enumerate(blocks) if block == "CrossAttnDownBlock2D"],
    }
    content: dict[str, Any] = {
        "image_size": image_size or (unet["sample_size"] or 64) * 2 ** (len(ch_mult) - 1),
        "scale_factor": vae["scaling_factor"],
        "unet": {ours: unet[theirs] for ours, theirs in _UNET.items()} | levels,
        "first_stage": {ours: vae[theirs] for ours, theirs in _VAE.items()} | {"ch": ch, "ch_mult": ch_mult},
        "cond_stage": {ours: text[theirs] for ours, theirs in _TEXT.items()} | {"vocab_size": VOCABULARY},
    }
    if "scheduler" in parts:
        schedule = _complete("scheduler", parts["scheduler"])
        ours = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
        if (kind := schedule["prediction_type"]) not in ours:
            raise FolderError(f"scheduler: prediction_type is {kind!r}, expected {' or '.join(ours)}")
        content["schedule"] = {key: schedule[theirs] for key, theirs in _SCHEDULE.items()}
        content["schedule"]["prediction"] = ours[kind]
    cfg = parse_command_line(ModelConfig, [], base=content, base_name="by its JSON files")
    if "controlnet" in parts:
        cfg.control = control_config(parts["controlnet"])
    for part, config in parts.items():
        check_same(part, config, cfg)
    return cfg


def control_config(config: Mapping[str, Any]) -> ControlConfig:
    """Return the hint encoder that a ControlNet's config describes. Raises: FolderError: it is not of our kind."""
    complete = _complete("controlnet", config)
    widths = complete["conditioning_embedding_out_channels"]
    if not isinstance(widths, list) or len(widths) != 4 or any(type(width) is not int for width in widths):
        raise FolderError(
            f"controlnet: conditioning_embedding_out_channels is {widths!r}, expected four whole numbers"
        )
    a, b, c, d = widths
    content = {"hint_channels": complete["conditioning_channels"], "hint_widths": [a, a, b, b, c, c, d]}
    return parse_command_line(ControlConfig, [], base=content, base_name="controlnet")


def check_same(part: str, config: Mapping[str, Any], cfg: ModelConfig) -> None:
    """Raise FolderError, naming the setting, unless a part's config describes what ``cfg`` does."""
    ours = settings_of(cfg).get(part)
    if ours is None:
        return
    expected = _complete(part, ours)
    got = _complete(part, config)
    for key in ours if part in ("text_encoder", "scheduler") else expected:
        if key not in _WITHOUT_EFFECT and (got[key] or None) != (expected[key] or None):
            raise FolderError(
                f"{part}: {key} is {got[key]!r}, expected {expected[key]!r} as our networks have it"
            )


def refuse_other_models(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise FolderError that names the model family, if these configs are not of Stable Diffusion 1.x.

    Args:
        parts: JSON content by part, "model_index" among them; parts may be missing.
    """
    index, unet = parts.get("model_index", {}), parts.get("unet", {})
    name = str(index.get("_class_name"))
    kinds = {
        "Stable Diffusion XL": "XL" in name or "text_encoder_2" in index or unet.get("addition_embed_type"),
        f"a {name}, whose denoiser is a transformer": "transformer" in index,
        "an inpainting model": unet.get("in_channels") == 9,
        "Stable Diffusion 2": parts.get("text_encoder", {}).get("hidden_act") == "gelu",
        "a model with several ControlNets (import one of its folders alone, with base=CHECKPOINT)": (
            "MultiControlNetModel" in str(index.get("controlnet"))
        ),
    }
    if kind := next((kind for kind, applies in kinds.items() if applies), None):
        raise FolderError(f"it is {kind}; expected Stable Diffusion 1.x or a model of the same kind")


def _renamed(part: Settings, names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(part, ours) for ours, theirs in names.items()}


def _complete(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class; a list of equal numbers becomes that number."""
    if part == "text_encoder":
        complete = {**CLIPTextConfig().to_dict(), **config}
    else:
        arguments = inspect.signature(CLASSES.get(part, DDIMScheduler).__init__).parameters
        complete = {
            key: config.get(key, argument.default)
            for key, argument in arguments.items()
            if key not in ("self", "kwargs")
        }
    uniform = {
        "layers_per_block",
        "transformer_layers_per_block",
        "attention_head_dim",
        "num_attention_heads",
    }
    uniform |= {"down_block_types", "up_block_types"} if part == "vae" else set()
    for key, value in complete.items():
        if isinstance(value, tuple | list):
            same = key in uniform and value and all(entry == value[0] for entry in value)
            complete[key] = value[0] if same else list(value)
    return complete


def _levels(part: str, config: Mapping[str, Any]) -> tuple[int, list[int]]:
    """The first level's width and each level's relative to it."""
    widths = config["block_out_channels"]
    if not isinstance(widths, list) or not all(type(width) is int and width > 0 for width in widths):
        raise FolderError(f"{part}: block_out_channels is {widths!r}, expected whole numbers above 0")
    return widths[0], [width // widths[0] for width in widths]
