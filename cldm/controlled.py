"""Latent diffusion with a ControlNet, and loading it from one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.branches import Landmarks, branches_among, fresh_branches, untrained_branches
from cldm.controlnet import ControlNet
from cldm.texture import Texture
from ldm.attention import Context, KeysValues
from ldm.autoencoder import fresh_grain
from ldm.checkpoint import SD_OPTIONAL, CheckpointError, load_strict, match_keys, read_state_dict
from ldm.config import ModelConfig
from ldm.device import preferred_layout
from ldm.foreign import CONTROL, MODEL_PARTS, recognise
from ldm.latent_diffusion import LatentDiffusion
from ldm.schedule import eps_from_v, schedule_buffers
from settings.parsing import ContentError, parse_json
from settings.reading import parse_command_line

_NAME_CONFIG = "name the model's YAML instead"
SD15_CONFIG = Path(__file__).resolve().parent.parent / "models" / "cldm_v15.yaml"


@dataclass(frozen=True)
class ProjectedText:
    """Keys and values of a text for the cross-attentions of the UNet and of the ControlNet. They do not depend on t."""

    unet: Sequence[KeysValues]
    control: Sequence[KeysValues]


class ControlledLatentDiffusion(LatentDiffusion):
    """Skull and text -> face. ``state_dict`` has the keys of a public ControlNet checkpoint."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.control_model = ControlNet(cfg.unet, cfg.control)
        self.untrained_branches: frozenset[str] = frozenset()
        # Unused here, but part of the public file (a per-step loss weight that training never changed).
        self.register_buffer("logvar", torch.zeros(cfg.schedule.num_timesteps))

    def has_trained(self, branch: str) -> bool:
        """Return whether the model has this branch (skull, landmarks or texture) and it has been trained."""
        there = branch == "skull" or branch in self.control_model.branches
        return there and branch not in self.untrained_branches

    def encode_hint(self, skull: Tensor) -> Tensor:
        """Skull pictures (B, 3, H, W) in [0, 1] -> hint (B, model_channels, H/8, W/8)."""
        return self.control_model.encode_hint(skull.to(self.dtype))

    def encode_landmarks(self, landmarks: Landmarks, height: int, width: int) -> Tensor:
        """Return the landmarks' addend to the hint of pictures of height x width px: (B, model_channels, H/8, W/8).

        Raises:
            ValueError: the model has no landmark branch, or one for another number of points.
        """
        f = self.cfg.first_stage.downscale
        return self.control_model.encode_landmarks(landmarks, height // f, width // f)

    def encode_texture(self, texture: Texture) -> Tensor:
        """Return the exemplars' addend to the control copy's time embedding: (B, 4 model_channels).

        Raises:
            ValueError: the model has no texture branch.
        """
        return self.control_model.encode_texture(texture)

    def no_hint(self, num: int, height: int, width: int) -> Tensor:
        """Return the hint of ``num`` pictures of height x width px without skull and landmarks: zeros."""
        f = self.cfg.first_stage.downscale
        shape = (num, self.cfg.unet.model_channels, height // f, width // f)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def project_text(self, context: Tensor) -> ProjectedText:
        """Text embeddings (B, 77, context_dim) -> their keys and values, which :meth:`eps` takes in their place."""
        return ProjectedText(self.unet.keys_values(context), self.control_model.keys_values(context))

    def eps(
        self,
        x_t: Tensor,
        t: Tensor,
        context: Tensor | ProjectedText,
        hint: Tensor | None,
        control_scales: Sequence[float] | None = None,
        texture: Tensor | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Return the predicted noise (B, 4, h, w); without a hint, that of the base model.

        x_t: (B, 4, h, w); t: (B,) steps; context: (B, 77, context_dim) or :meth:`project_text` of it;
        hint: of :meth:`encode_hint`;
        control_scales: one factor per residual (``cfg.unet.num_control_outputs`` of them), all 1 if None;
        texture: of :meth:`encode_texture`;
        active: (B,) bool: samples that have any condition; the others get the base model's noise. None: all have.
        """
        x = x_t.to(self.dtype)
        for_unet: Context = context.unet if isinstance(context, ProjectedText) else context.to(self.dtype)
        if hint is None:
            return self._as_eps(x_t, t, self._denoise(x, t, for_unet))
        for_control: Context = context.control if isinstance(context, ProjectedText) else context
        control = self.control_model(x, t, for_control, hint, texture)
        if control_scales is not None:
            control = [c * scale for c, scale in zip(control, control_scales, strict=True)]
        if active is not None:
            control = [torch.where(active[:, None, None, None], c, torch.zeros_like(c)) for c in control]
        return self._as_eps(x_t, t, self._denoise(x, t, for_unet, [c.to(self.dtype) for c in control]))

    def _as_eps(self, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The noise that an output of the UNet stands for."""
        if self.cfg.schedule.prediction == "eps":
            return output
        return eps_from_v(x_t, t, output, self.alphas_cumprod)

    def _denoise(
        self, x: Tensor, t: Tensor, context: Context, control: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The UNet's output. Half-precision weights compute in half precision, also within autocast, which would turn
        every normalisation into float32 and back.
        """
        if self.dtype == torch.float32:
            return self.unet(x, t, context, control)
        with torch.autocast(x.device.type, enabled=False):
            return self.unet(x, t, context, control)


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a ModelConfig from YAML.

    Raises:
        ValueError: the file is missing, or a key is unknown or of the wrong type (the message names it).
    """
    return parse_command_line(ModelConfig, [str(path)])


def model_config_from_metadata(metadata: dict[str, str]) -> ModelConfig | None:
    """Return the ModelConfig of a checkpoint of ours, or None for a file of another maker.

    Raises:
        ValueError: the entry is there but is no architecture.
    """
    if "config" not in metadata:
        return None
    try:
        base = parse_json(metadata["config"], "checkpoint metadata: 'config'", dict[str, Any])
    except ContentError as error:
        raise ValueError(f"{error}; {_NAME_CONFIG}") from error
    return parse_command_line(ModelConfig, [], base=base, base_name="checkpoint metadata")


def model_metadata(cfg: ModelConfig) -> dict[str, str]:
    """Return the metadata entries that :func:`model_config_from_metadata` reads back."""
    return {"format": "iccr-diff", "config": json.dumps(cfg.model_dump())}


def load_model(
    path: str | Path,
    config: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[ControlledLatentDiffusion, dict[str, str]]:
    """Build the model that a checkpoint file describes, and load its weights.

    Without ``config`` the architecture is the one in the file's metadata, or SD1.5's for a foreign file.
    The model comes in evaluation mode, in the memory layout that suits the device, with gradients switched off on its
    parameters.

    Raises:
        CheckpointError: missing or unreadable file, or weights that do not fit the architecture.
        ValueError: bad config.
    """
    state, metadata = read_state_dict(path)
    cfg = architecture_of(path, metadata, config)
    check_complete(path, state)
    fresh = fresh_branches(state, cfg)
    state |= fresh | fresh_grain(state, cfg.first_stage)
    model = check_fit(path, state, cfg)
    model.untrained_branches = untrained_branches(metadata) | branches_among(fresh)
    model = model.to(dtype).to_empty(device=device)  # only now memory is taken, and no more than is kept
    load_strict(model, state, allow_missing=SD_OPTIONAL, allow_unexpected=SD_OPTIONAL)
    model = model.to(memory_format=preferred_layout(torch.device(device), dtype))
    restore_buffers(model)
    return model.eval().requires_grad_(False), metadata


def architecture_of(
    path: str | Path, metadata: dict[str, str], config: str | Path | None = None
) -> ModelConfig:
    """Return the architecture of a checkpoint: ``config``, else its metadata's, else SD1.5's. Raises: ValueError."""
    cfg = load_model_config(config) if config is not None else model_config_of(path, metadata)
    return load_model_config(SD15_CONFIG) if cfg is None else cfg


def model_config_of(path: str | Path, metadata: dict[str, str]) -> ModelConfig | None:
    """Return :func:`model_config_from_metadata`; an error begins with the file's name."""
    try:
        return model_config_from_metadata(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_fit(
    path: str | Path,
    state: Mapping[str, Tensor],
    cfg: ModelConfig,
    allow_missing: Sequence[str] = SD_OPTIONAL,
) -> ControlledLatentDiffusion:
    """Return the model of ``cfg`` on the meta device, before any memory is taken, if ``state`` fits it.

    Raises:
        CheckpointError: it does not; the message names the kind of model that it is, if that is recognised.
    """
    with torch.device("meta"):
        model = ControlledLatentDiffusion(cfg)
    try:
        match_keys(model, state, allow_missing=allow_missing, allow_unexpected=SD_OPTIONAL)
    except CheckpointError as error:
        name = recognise(state)
        raise CheckpointError(f"{path}: " + (f"this is {name}; " if name else "") + str(error)) from error
    return model


def check_complete(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a base model or a control network alone; the message says how to join them."""
    has_control = any(key.startswith(CONTROL) for key in state)
    has_base = any(key.startswith(MODEL_PARTS) for key in state)
    name = recognise(state)
    if name and not (has_base and has_control):
        raise CheckpointError(
            f"{path}: this is {name}; expected a Stable Diffusion 1.5 model with a control network"
        )
    if not has_control:
        raise CheckpointError(
            f"{path} holds no control_model.* weights, so it cannot read a skull; "
            f"add a control network first: python tool_add_control.py {path} OUT"
        )
    if not has_base:
        raise CheckpointError(
            f"{path} holds a control network alone; join it with its base model first: "
            f"python tool_add_control.py BASE OUT control={path}"
        )


def restore_buffers(model: LatentDiffusion) -> None:
    """Recompute the schedule's buffers in float32, whatever the file held and the model was cast to."""
    for name, value in schedule_buffers(model.cfg.schedule).items():
        setattr(model, name, value.to(model.alphas_cumprod.device))
