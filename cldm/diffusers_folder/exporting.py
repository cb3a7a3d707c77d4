"""A checkpoint of ours as a diffusers folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cldm.branches import BRANCHES, UNTRAINED, untrained_branches, untrained_metadata
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from cldm.diffusers_folder.card import model_card
from cldm.diffusers_folder.configs import CLASSES, FolderError, check_expressible, settings_of
from cldm.diffusers_folder.keys import PREFIXES, their_keys, to_theirs
from cldm.diffusers_folder.sampler import scheduler_for
from ldm.autoencoder import GRAIN
from ldm.checkpoint import SD_OPTIONAL, match_keys, write_state_dict
from ldm.config import ModelConfig
from ldm.latent_diffusion import LatentDiffusion
from ldm.text import BOS_TOKEN, EOS_TOKEN, vocabulary
from settings.parsing import parse_json
from settings.reading import parse_command_line

NOTES = "iccr_diff"  # folder inside an exported one, for all that diffusers has no place for
METADATA, REST = "metadata.json", "rest.safetensors"
FORMAT = "iccr-diff diffusers folder 1"


@dataclass
class Exported:
    """The content of a new folder.

    lacking: what diffusers has no place for, some of "grain", "landmarks", "texture".
    parts: number of tensors by part. left_out: checkpoint keys that are not in the folder.
    """

    lacking: list[str]
    parts: dict[str, int]
    left_out: list[str]


def export_folder(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], cfg: ModelConfig, folder: Path
) -> Exported:
    """Write ``folder`` whole or not at all, as ``from_pretrained`` of diffusers' pipelines loads it.

    Without ``control_model.*`` keys it is a folder for StableDiffusionPipeline, else for
    StableDiffusionControlNetPipeline. Tensors keep their dtype.

    Args:
        state: tensors by checkpoint key.
        metadata: of the checkpoint; kept in the folder, so that an import brings it back.
        cfg: the architecture.
        folder: must not exist, or be empty.

    Raises:
        FolderError: a setting or tensors that diffusers has no place for, a folder in use, or a failed write.
        CheckpointError: weights that do not fit the architecture.
    """
    with_control = any(key.startswith(PREFIXES["controlnet"]) for key in state)
    check_expressible(cfg, with_control)
    check_unused(folder)
    lacking = _without_a_place(cfg, with_control)
    placeable = {key: value for key, value in state.items() if not key.startswith(tuple(lacking.values()))}
    bare = cfg.with_(
        control=cfg.control.with_(landmarks=None, texture=None),
        first_stage=cfg.first_stage.with_(grain=0, grain_exemplar=0),
    )
    if lacking and "config" in metadata:
        untrained = untrained_branches(metadata) - lacking.keys()
        metadata = {key: value for key, value in metadata.items() if key != UNTRAINED}
        # A base model keeps the branches that are planned for its control network.
        written = bare if with_control else bare.with_(control=cfg.control)
        metadata |= model_metadata(written) | untrained_metadata(untrained)
    with torch.device("meta"):
        model = (ControlledLatentDiffusion if with_control else LatentDiffusion)(bare)
    match_keys(model, placeable, allow_missing=SD_OPTIONAL, allow_unexpected=SD_OPTIONAL)
    names = {part: keys for part, keys in their_keys(bare).items() if with_control or part != "controlnet"}
    placed = {ours for keys in names.values() for ours in keys}
    rest = {key: value for key, value in placeable.items() if key not in placed and "model_ema." not in key}
    tensors = {
        part: {theirs: to_theirs(part, theirs, placeable[ours]) for ours, theirs in keys.items()}
        for part, keys in names.items()
    }
    sampling = recommended(metadata)

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _write_pipeline(temporary, bare, tensors, sampling)
        (temporary / NOTES).mkdir()
        notes = {"format": FORMAT, "metadata": dict(metadata)}
        (temporary / NOTES / METADATA).write_text(json.dumps(notes, indent=2), encoding="utf-8")
        if rest:
            write_state_dict(temporary / NOTES / REST, rest, {})
        card = model_card(bare, sampling, with_control, lacking)
        (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")
        if folder.is_dir():
            folder.rmdir()  # empty, as checked
        os.replace(temporary, folder)
    except OSError as error:
        raise FolderError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = {part: len(values) for part, values in tensors.items()}
    return Exported(list(lacking), counts, [key for key in state if key not in placed and key not in rest])


def check_unused(folder: Path) -> None:
    """Raise FolderError unless ``folder`` can be made: its parent exists, and it does not, or is empty."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FolderError(f"{folder} is a file; expected the name of a folder to make")
    if folder.is_dir() and any(folder.iterdir()):
        raise FolderError(f"{folder} exists and is not empty; choose another name, or remove it first")
    if not folder.absolute().parent.is_dir():
        raise FolderError(
            f"{folder.parent} is not an existing folder; create it first (mkdir -p {folder.parent})"
        )


def recommended(metadata: Mapping[str, str]) -> SamplingConfig | None:
    """Return the sampler settings that a checkpoint recommends, if any. Raises: FolderError: they are not valid."""
    if "sampling" not in metadata:
        return None
    try:
        content = parse_json(metadata["sampling"], "sampling", dict[str, Any])
        sampling = parse_command_line(SamplingConfig, [], base=content, base_name="sampling")
    except ValueError as error:
        raise FolderError(f"its metadata entry 'sampling' cannot be used: {error}") from error
    return sampling


def _without_a_place(cfg: ModelConfig, with_control: bool) -> dict[str, str]:
    """What diffusers has no place for: names, and how the checkpoint keys begin.

    The grain head adds to the decoded picture, the branches to the hint: without them all else draws as before.
    """
    branches = [name for name in ("landmarks", "texture") if getattr(cfg.control, name) and with_control]
    prefixes = {name: f"{BRANCHES}{name}." for name in branches}
    return prefixes | ({"grain": GRAIN} if cfg.first_stage.grain else {})


def _write_pipeline(
    folder: Path, cfg: ModelConfig, tensors: Mapping[str, dict[str, Tensor]], sampling: SamplingConfig | None
) -> None:
    """Write the pipeline of these parts by the libraries' own ``save_pretrained``."""
    settings = settings_of(cfg)
    parts: dict[str, Any] = {}
    for part, state in tensors.items():
        with torch.device("meta"):
            if part == "text_encoder":
                more: dict[str, Any] = {"projection_dim": cfg.cond_stage.width, "bos_token_id": BOS_TOKEN}
                more |= {"eos_token_id": EOS_TOKEN, "pad_token_id": EOS_TOKEN}
                net = CLIPTextModel(CLIPTextConfig(**settings[part], **more))
                if not hasattr(net, "text_model"):  # transformers 5
                    state = {key.removeprefix("text_model."): value for key, value in state.items()}
            else:
                net = CLASSES[part](**settings[part])
        net.load_state_dict(state, assign=True)
        parts[part] = net
    _write_vocabulary(folder / "tokenizer", cfg.cond_stage.max_length)
    pipeline_class: Any = (
        diffusers.StableDiffusionControlNetPipeline
        if "controlnet" in parts
        else diffusers.StableDiffusionPipeline
    )
    pipeline_class(
        **parts,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        scheduler=scheduler_for(settings["scheduler"], sampling),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    # transformers 4 reads the text encoder with the level `text_model.` only, transformers 5 writes it without.
    write_state_dict(folder / "text_encoder" / "model.safetensors", tensors["text_encoder"], {"format": "pt"})


def _write_vocabulary(folder: Path, max_length: int) -> None:
    """Write CLIP's tokenizer, from open_clip's vocabulary; it pads with the end token as SD1.5's does."""
    tokens, merges = vocabulary()
    end = "<|endoftext|>"
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "do_lower_case": True,
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), end),
    }
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""])
    folder.mkdir(parents=True)
    for name, text in (
        ("vocab.json", json.dumps(tokens, ensure_ascii=False)),
        ("merges.txt", lines),
        ("tokenizer_config.json", json.dumps(config)),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
