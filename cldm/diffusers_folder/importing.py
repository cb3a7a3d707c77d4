"""A diffusers folder as a checkpoint of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion, model_config_from_metadata, model_metadata
from cldm.diffusers_folder.configs import FolderError
from cldm.diffusers_folder.keys import PREFIXES, their_keys
from cldm.diffusers_folder.reading import (
    INDEX,
    METADATA,
    NOTES,
    REST,
    Weights,
    lone_control,
    read_configs,
    read_json,
    read_part,
)
from cldm.diffusers_folder.their_configs import (
    check_same_encoder,
    control_config,
    model_config,
    refuse_other_models,
    unet_config,
)
from ldm.checkpoint import SD_OPTIONAL, git_revision, load_strict, read_state_dict
from ldm.latent_diffusion import ModelConfig
from ldm.schedule import schedule_buffers

CONTROL = PREFIXES["controlnet"]


@dataclass
class Imported:
    """A checkpoint's content, and what the user should be told about it."""

    state: dict[str, Tensor]
    metadata: dict[str, str]
    cfg: ModelConfig
    log: list[str]

    @property
    def has_control(self) -> bool:
        """Whether there is a control network."""
        return any(key.startswith(CONTROL) for key in self.state)


def import_folder(folder: Path, variant: str | None = None, image_size: int | None = None) -> Imported:
    """Read a whole model. Tensors are mapped from the disk and keep their dtype.

    Args:
        folder: with unet/, vae/, text_encoder/ and maybe controlnet/ and scheduler/.
        variant: prefer the weights of this variant ("fp16").
        image_size: side of the pictures in px, to override the folder's.

    Raises:
        FolderError: another model family, or a folder that is incomplete or does not fit its own configs.
        CheckpointError: a weights file that cannot be read.
    """
    configs = read_configs(folder)
    refuse_other_models(configs)
    missing = [part for part in ("unet", "vae", "text_encoder") if part not in configs]
    if missing:
        raise FolderError(
            f"it has no {missing[0]}/config.json; expected a folder with {INDEX}, unet/, vae/ and text_encoder/"
        )
    if "MultiControlNetModel" in str(configs.get("model_index", {}).get("controlnet")):
        raise FolderError("it has several ControlNets; import one of its folders alone, with base=CHECKPOINT")
    cfg = model_config(configs, image_size)
    log = []
    if "scheduler" not in configs:
        log.append("note: no scheduler/: the noise schedule is taken to be Stable Diffusion 1.5's")
    state: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for part, names in their_keys(cfg).items():
        if part in configs:
            weights = read_part(folder / part, part, cfg, names, variant)
            state |= weights.state
            rest |= weights.rest
            log.append(_line(part, weights))
    metadata, kept = _notes(folder, cfg, log)
    if kept is None:
        buffers = dict(schedule_buffers(cfg.schedule))
        if "controlnet" in configs:
            buffers["logvar"] = torch.zeros(cfg.schedule.num_timesteps)
        kept = buffers | rest
    return Imported(_in_order(state | kept, cfg), metadata, cfg, log)


def import_control(
    folder: Path,
    base: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    cfg: ModelConfig,
    variant: str | None,
) -> Imported:
    """A base model with the control network of a folder that is a single ControlNet.

    Args:
        base: tensors by checkpoint key; a control network among them is left out.
        metadata: of the base.
        cfg: of the base.

    Raises:
        FolderError: the ControlNet was made for another model, or does not fit its own config.
        CheckpointError: the base does not fit its config, or a file cannot be read.
    """
    config = lone_control(folder)
    assert config is not None
    check_same_encoder(unet_config("controlnet", config), cfg.unet)
    cfg = deepcopy(cfg)
    cfg.control = control_config(config)
    cfg.validate()
    weights = read_part(folder, "controlnet", cfg, their_keys(cfg)["controlnet"], variant)
    kept = {key: value for key, value in base.items() if not key.startswith((CONTROL, "model_ema."))}
    state = {**kept, **weights.state}
    state.setdefault("logvar", torch.zeros(cfg.schedule.num_timesteps))
    with torch.device("meta"):
        model = ControlledLatentDiffusion(cfg)
    load_strict(model, state, allow_missing=SD_OPTIONAL, allow_unexpected=SD_OPTIONAL, assign=True)
    log = [_line("controlnet", weights)]
    if any(key.startswith(CONTROL) for key in base):
        log.append("note: the base's own control network is replaced")
    notes = {key: metadata[key] for key in ("sampling",) if key in metadata}
    if "step" in metadata:
        notes["base_step"] = metadata["step"]
    about = {"control": folder.resolve().name, "git": git_revision()}
    return Imported(_in_order(state, cfg), {**notes, **model_metadata(cfg), **about}, cfg, log)


def _line(part: str, weights: Weights) -> str:
    files = weights.files[0] if len(weights.files) == 1 else f"{len(weights.files)} shards"
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in weights.state.values()})
    return f"{part:<12}  {len(weights.state):>4} tensors ({', '.join(dtypes)}) from {files}"


def _notes(folder: Path, cfg: ModelConfig, log: list[str]) -> tuple[dict[str, str], dict[str, Tensor] | None]:
    """Metadata of the checkpoint and, for a folder that was exported from here, the tensors kept beside the parts.

    The metadata is the exported checkpoint's, whose config may say more than the folder's JSON files; where the two
    contradict each other, the files have the word.
    """
    fresh = {**model_metadata(cfg), "git": git_revision(), "diffusers_folder": folder.resolve().name}
    if not (folder / NOTES / METADATA).is_file():
        return fresh, None
    content = read_json(folder / NOTES / METADATA).get("metadata")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise FolderError(
            f"{folder / NOTES / METADATA} has no metadata of strings; remove {NOTES}/ to go without"
        )
    kept: dict[str, Tensor] = {}
    if (folder / NOTES / REST).is_file():
        kept = read_state_dict(folder / NOTES / REST)[0]
        foreign = [key for key in kept if not re.search("|".join(SD_OPTIONAL), key)]
        if foreign:  # it would take the place of the part's own
            raise FolderError(
                f"{folder / NOTES / REST} holds {foreign[0]}, which belongs to a part; remove {NOTES}/"
            )
    stored = model_config_from_metadata(content)
    if stored is None:  # exported from a file of another maker
        return content | fresh, kept
    same = deepcopy(cfg)
    same.unet.gradient_checkpointing = stored.unet.gradient_checkpointing
    same.first_stage.gradient_checkpointing = stored.first_stage.gradient_checkpointing
    if not (folder / "controlnet").is_dir():
        same.control = stored.control
    if same == stored:
        return content | {"diffusers_folder": fresh["diffusers_folder"]}, kept
    log.append(f"note: the config in {NOTES}/{METADATA} is not that of the folder's parts; theirs is taken")
    return content | fresh, {key: value for key, value in kept.items() if key == "logvar"} | dict(
        schedule_buffers(cfg.schedule)
    )


def _in_order(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """The tensors in the order of the model's own state, others last."""
    with torch.device("meta"):
        order = [key for key in ControlledLatentDiffusion(cfg).state_dict() if key in state]
    return {key: state[key] for key in [*order, *(key for key in state if key not in set(order))]}
