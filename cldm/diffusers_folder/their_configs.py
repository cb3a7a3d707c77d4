"""A ModelConfig from the JSON files of a diffusers folder; everything that our networks are not is refused by name.

Source: the constructor arguments of the classes in diffusers 0.36 and transformers 4.56, and their defaults,
which hold where a file leaves one out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cldm.diffusers_folder.configs import PREDICTION_TYPES, VOCABULARY, FolderError
from ldm.autoencoder import AutoencoderConfig
from ldm.latent_diffusion import ControlConfig, ModelConfig
from ldm.schedule import ScheduleConfig
from ldm.text import TextConfig
from ldm.unet import UNetConfig

# What our networks are, where theirs have a choice. A value that is not listed does not matter to the result.
_SAME_ENCODER: dict[str, Any] = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
}
_SAME_UNET: dict[str, Any] = _SAME_ENCODER | {
    "center_input_sample": False,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
_SAME_CONTROL: dict[str, Any] = _SAME_ENCODER | {
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
_SAME_VAE: dict[str, Any] = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_SAME_TEXT: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "vocab_size": VOCABULARY}
_SAME_SCHEDULE: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


def refuse_other_models(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises FolderError that names the model family, if these configs are of one that is not Stable Diffusion 1.x.

    Args:
        parts: JSON content by part, "model_index" among them; parts may be missing.
    """
    index, unet = parts.get("model_index", {}), parts.get("unet", {})
    text = parts.get("text_encoder", {})
    found = ""
    if (
        _has(index, "text_encoder_2")
        or "XL" in str(index.get("_class_name"))
        or unet.get("addition_embed_type")
    ):
        found = "Stable Diffusion XL, which has a second text encoder"
    elif _has(index, "transformer"):
        found = f"a {index.get('_class_name', 'model')}, whose denoiser is a transformer and no UNet"
    elif unet.get("in_channels") == 9:
        found = "an inpainting model, whose UNet reads 9 channels"
    elif text.get("hidden_act") == "gelu" or _varied(unet.get("attention_head_dim")):
        found = f"Stable Diffusion 2, whose text embedding is {unet.get('cross_attention_dim')} wide"
    if found:
        raise FolderError(f"it is {found}; expected Stable Diffusion 1.x or a model of the same kind")


def _has(index: Mapping[str, Any], part: str) -> bool:
    """Whether a model index names a class for the part; [null, null] stands for none."""
    return part in index and index[part] != [None, None]


def _varied(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(set(map(str, value))) > 1


def _require(part: str, config: Mapping[str, Any], same: Mapping[str, Any]) -> None:
    for key, wanted in same.items():
        got = config.get(key, wanted)
        if got != wanted and not (wanted is None and got is False):
            raise FolderError(f"{part}: {key} is {got!r}, but our network is built for {wanted!r} only")


def _count(part: str, config: Mapping[str, Any], key: str, default: int, most: int = 1 << 16) -> int:
    """A whole number of 1..most, or the one that all entries of a list are."""
    value = config.get(key, default)
    if isinstance(value, list) and value and not _varied(value):
        value = value[0]
    if isinstance(value, list):
        raise FolderError(f"{part}: {key} is {value!r}, but our network has one number for all levels")
    if type(value) is not int or not 1 <= value <= most:
        raise FolderError(f"{part}: {key} is {value!r}, expected a whole number of 1..{most}")
    return value


def _positive(part: str, config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise FolderError(f"{part}: {key} is {value!r}, expected a positive number")
    return float(value)


def _words(part: str, config: Mapping[str, Any], key: str, default: Sequence[str]) -> list[str]:
    """A short list of words."""
    value = config.get(key, list(default))
    if not isinstance(value, list) or not 1 <= len(value) <= 16 or not all(isinstance(v, str) for v in value):
        raise FolderError(f"{part}: {key} is {value!r}, expected a list of words")
    return value


def _widths(part: str, config: Mapping[str, Any], key: str, default: Sequence[int]) -> list[int]:
    """A short list of whole numbers of 1..65536."""
    value = config.get(key, list(default))
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 16
        or not all(type(entry) is int and 0 < entry <= 1 << 16 for entry in value)
    ):
        raise FolderError(f"{part}: {key} is {value!r}, expected a list of whole numbers above 0")
    return value


def _levels(part: str, config: Mapping[str, Any], default: Sequence[int]) -> tuple[int, list[int]]:
    """The first level's width and each level's relative to it."""
    widths = _widths(part, config, "block_out_channels", default)
    if any(width % widths[0] for width in widths):
        raise FolderError(f"{part}: block_out_channels is {widths}, expected multiples of the first")
    return widths[0], [width // widths[0] for width in widths]


def unet_config(part: str, config: Mapping[str, Any]) -> UNetConfig:
    """The UNet that a `unet` or `controlnet` config describes.

    Raises:
        FolderError: it has a setting that our network has not.
    """
    control = part == "controlnet"
    _require(part, config, _SAME_CONTROL if control else _SAME_UNET)
    width, mults = _levels(part, config, (320, 640, 1280, 1280))
    attention = [True] * (len(mults) - 1) + [False]
    for key, plain, with_text, backwards in (
        ("down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", False),
        ("up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", True),
    ):
        if control and backwards:
            continue
        default = [with_text if a else plain for a in attention]
        blocks = _words(part, config, key, default[::-1] if backwards else default)
        if len(blocks) != len(mults) or any(block not in (plain, with_text) for block in blocks):
            raise FolderError(f"{part}: {key} is {blocks}, expected {len(mults)} of {plain} and {with_text}")
        found = [block == with_text for block in (reversed(blocks) if backwards else blocks)]
        if backwards and found != attention:
            raise FolderError(f"{part}: {key} is not the mirror image of down_block_types: {blocks}")
        attention = found
    heads = "attention_head_dim" if config.get("num_attention_heads") is None else "num_attention_heads"
    channels = _count(part, config, "in_channels", 4)
    return UNetConfig(
        in_channels=channels,
        out_channels=channels if control else _count(part, config, "out_channels", 4),
        model_channels=width,
        channel_mult=mults,
        num_res_blocks=_count(part, config, "layers_per_block", 2, 16),
        attention_levels=[level for level, has in enumerate(attention) if has],
        num_heads=_count(part, config, heads, 8),
        transformer_depth=_count(part, config, "transformer_layers_per_block", 1, 16),
        context_dim=_count(part, config, "cross_attention_dim", 1280),
        norm_groups=_count(part, config, "norm_num_groups", 32),
    )


def control_config(config: Mapping[str, Any]) -> ControlConfig:
    """The hint encoder that a `controlnet` config describes. Raises FolderError for one that is not ours."""
    widths = _widths("controlnet", config, "conditioning_embedding_out_channels", (16, 32, 96, 256))
    if len(widths) != 4:
        raise FolderError(
            f"controlnet: conditioning_embedding_out_channels is {widths!r}, expected four widths"
        )
    a, b, c, d = widths
    return ControlConfig(
        hint_channels=_count("controlnet", config, "conditioning_channels", 3),
        hint_widths=[a, a, b, b, c, c, d],
    )


def model_config(parts: Mapping[str, Mapping[str, Any]], image_size: int | None = None) -> ModelConfig:
    """The model that the configs of a folder describe.

    Args:
        parts: JSON content of "unet", "vae", "text_encoder" and, where there are any, "scheduler", "controlnet".
        image_size: side of the pictures, px; what the UNet's config says if None.

    Raises:
        FolderError: another kind of model, or a setting that our networks have not.
        ValueError: parts that do not fit together.
    """
    refuse_other_models(parts)
    unet = unet_config("unet", parts["unet"])
    first_stage, scale_factor = _first_stage(parts["vae"])
    if image_size is None:
        known = parts["unet"].get("sample_size") is not None
        side = _count("unet", parts["unet"] if known else {}, "sample_size", 64)
        image_size = side * first_stage.downscale
    cfg = ModelConfig(
        image_size=image_size,
        scale_factor=scale_factor,
        unet=unet,
        first_stage=first_stage,
        cond_stage=_cond_stage(parts["text_encoder"]),
        schedule=_schedule(parts["scheduler"]) if "scheduler" in parts else ScheduleConfig(),
    )
    if "controlnet" in parts:
        check_same_encoder(unet_config("controlnet", parts["controlnet"]), unet)
        cfg.control = control_config(parts["controlnet"])
    cfg.validate()
    return cfg


def check_same_encoder(control: UNetConfig, unet: UNetConfig) -> None:
    """Raises FolderError unless a ControlNet of the one fits the other."""
    for name, value in vars(control).items():
        if name not in ("out_channels", "gradient_checkpointing") and value != getattr(unet, name):
            raise FolderError(
                f"the ControlNet's {name} is {value}, the UNet's {getattr(unet, name)}: it was made for another model"
            )


def _first_stage(config: Mapping[str, Any]) -> tuple[AutoencoderConfig, float]:
    _require("vae", config, _SAME_VAE)
    width, mults = _levels("vae", config, (64,))
    for key, wanted in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        blocks = _words("vae", config, key, [wanted])
        if set(blocks) != {wanted}:
            raise FolderError(f"vae: {key} is {blocks}, expected {wanted} only")
    channels, given = (_count("vae", config, key, 3) for key in ("in_channels", "out_channels"))
    if channels != given:
        raise FolderError(f"vae: it reads pictures of {channels} channels and gives pictures of {given}")
    first_stage = AutoencoderConfig(
        in_channels=channels,
        ch=width,
        ch_mult=mults,
        num_res_blocks=_count("vae", config, "layers_per_block", 1, 16),
        z_channels=_count("vae", config, "latent_channels", 4),
        norm_groups=_count("vae", config, "norm_num_groups", 32),
    )
    return first_stage, _positive("vae", config, "scaling_factor", 0.18215)


def _cond_stage(config: Mapping[str, Any]) -> TextConfig:
    _require("text_encoder", config, _SAME_TEXT)
    return TextConfig(
        vocab_size=VOCABULARY,
        width=_count("text_encoder", config, "hidden_size", 512),
        layers=_count("text_encoder", config, "num_hidden_layers", 12, 128),
        heads=_count("text_encoder", config, "num_attention_heads", 8),
        max_length=_count("text_encoder", config, "max_position_embeddings", 77),
        intermediate=_count("text_encoder", config, "intermediate_size", 2048),
    )


def _schedule(config: Mapping[str, Any]) -> ScheduleConfig:
    _require("scheduler", config, _SAME_SCHEDULE)
    kind = config.get("beta_schedule", "linear")
    if kind != "scaled_linear":
        raise FolderError(f"scheduler: beta_schedule is {kind!r}, but ours is 'scaled_linear' only")
    predicted = config.get("prediction_type", "epsilon")
    known = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    if predicted not in known:
        raise FolderError(
            f"scheduler: prediction_type is {predicted!r}, but ours are {' and '.join(known)} only"
        )
    return ScheduleConfig(
        prediction=known[predicted],
        num_timesteps=_count("scheduler", config, "num_train_timesteps", 1000),
        linear_start=_positive("scheduler", config, "beta_start", 0.0001),
        linear_end=_positive("scheduler", config, "beta_end", 0.02),
    )
