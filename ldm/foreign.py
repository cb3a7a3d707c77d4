"""Names for checkpoints that do not fit: files that look like Stable Diffusion 1.5 and are something else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

UNET, CONTROL = "model.diffusion_model.", "control_model."
MODEL_PARTS = (UNET, "first_stage_model.", "cond_stage_model.")
_SD15_CONTEXT, _SD2_CONTEXT = 768, 1024
_IMPORT = "python -m cldm.diffusers_folder import FOLDER OUT reads its folder"
_OURS = (  # how keys begin -> what such a file is; the first that fits
    (("net.model.", "net.first_stage_model.", "net.control_model."),
     "a training checkpoint of this program, which holds the trained part only (net.* keys): use the model.safetensors "
     "that the finished run exports"),
    (("cls_layer.",), "a landmark network (PIPNet)"),
    (("tell.",), "a Pix2Pix generator"),
    (("log_scale",), "a matching network of skulls and faces"),
    (("scale0_layer0.",), "a discriminator (PatchGAN)"),
)  # fmt: skip
_NAMES = (  # the same of public files. Source: their key names
    (("difference",), "the difference of a control network from its base ('difference' key), not the network"),
    (("conditioner.",), "Stable Diffusion XL (conditioner.* keys)"),
    ((UNET + "label_emb.",), "Stable Diffusion XL (label_emb.* keys)"),
    ((UNET + "joint_blocks.", UNET + "double_blocks.", "double_blocks."),
     "Stable Diffusion 3 or Flux (a transformer, not a UNet)"),
    (("controlnet_cond_embedding.", "controlnet_down_blocks."),
     f"a control network as a diffusers export, controlnet_* keys ({_IMPORT})"),
    (("down_blocks.", "unet.down_blocks."), f"a diffusers export, down_blocks.* keys ({_IMPORT})"),
)  # fmt: skip
_DECODER = ("conv_in.", "blocks.", "conv_out.")  # all that the keys of a guidance decoder begin with
_VARIANTS = {  # channels that enter the first convolution -> what such a model is for
    5: "depth-to-image",
    8: "InstructPix2Pix",
    9: "inpainting",
}


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of a model by its keys and shapes, as "Stable Diffusion XL (conditioner.* keys)".

    None: unknown, a Stable Diffusion 1.5 model, or a control network for one. Source: the key names of public files.
    """
    return _by_names(state) or _by_shapes(state)


def our_network(keys: Collection[str]) -> str | None:
    """Return what a file of this program is by its keys, if it is no whole model; None: another file."""
    if keys and all(key.startswith(_DECODER) for key in keys):
        return "a small decoder for guidance"
    return next((name for starts, name in _OURS if any(key.startswith(starts) for key in keys)), None)


def _by_names(state: Mapping[str, Tensor]) -> str | None:
    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in state)

    if has("model_ema.diffusion_model") and not has(UNET):
        return (
            "a file with the averages of a training alone (model_ema.* keys): use the one of the same model that has "
            "model.diffusion_model.* keys"
        )
    if ours := our_network(state):
        return ours
    for starts, name in _NAMES:
        if has(*starts):
            return name
    if any("lora_" in key for key in state):
        return "a LoRA (lora_* keys), which only changes another model"
    if not has(UNET, CONTROL):
        return _part(has("encoder.conv_in.", "first_stage_model."), has("text_model.", "cond_stage_model."))
    return None


def _part(autoencoder: bool, text_encoder: bool) -> str | None:
    parts = ["an autoencoder"] * autoencoder + ["a text encoder"] * text_encoder
    return " and ".join(parts) + " without a UNet" if parts else None


def _by_shapes(state: Mapping[str, Tensor]) -> str | None:
    context = {v.shape[1] for k, v in state.items() if k.endswith("attn2.to_k.weight") and v.ndim == 2}
    is_sd2 = any(key.startswith("cond_stage_model.model.") for key in state) or context == {_SD2_CONTEXT}
    name = f"Stable Diffusion 2 (text width {_SD2_CONTEXT} where 1.5 has {_SD15_CONTEXT})" if is_sd2 else None
    for prefix in (UNET, CONTROL):
        first = state.get(prefix + "input_blocks.0.0.weight")
        if first is not None and first.ndim == 4 and first.shape[1] in _VARIANTS:
            kind = f"{_VARIANTS[first.shape[1]]} model ({first.shape[1]} input channels where the plain one has 4)"
            return f"the {kind} of {name}" if name else f"an {kind}".replace("an d", "a d")
    return name
