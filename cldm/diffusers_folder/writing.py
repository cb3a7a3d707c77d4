"""A checkpoint of ours as a diffusers folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cldm.branches import BRANCHES
from cldm.controlled import model_metadata
from cldm.diffusers_folder.card import model_card
from cldm.diffusers_folder.configs import VERSION, FolderError, check_expressible, part_configs
from cldm.diffusers_folder.keys import PREFIXES, their_keys, to_theirs
from cldm.diffusers_folder.reading import INDEX, METADATA, NOTES, REST
from cldm.diffusers_folder.schedulers import scheduler_config
from cldm.sampling import SamplingConfig
from ldm.autoencoder import GRAIN
from ldm.checkpoint import SD_OPTIONAL, write_state_dict
from ldm.latent_diffusion import ModelConfig
from ldm.text import vocabulary
from settings.reading import parse_command_line

FORMAT = "iccr-diff diffusers folder 1"
_MARGIN = 16 << 20  # bytes kept free on the disk
_FILES = {"text_encoder": "model.safetensors"}  # of the others: _FILE
_FILE = "diffusion_pytorch_model.safetensors"


@dataclass
class Exported:
    """What stands in the folder: tensors by part, the keys that were left out (an EMA copy and what the folder lacks).

    lacking: what of the model diffusers has no place for, some of "grain", "landmarks", "texture".
    """

    lacking: list[str] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    num_bytes: int = 0


def export_folder(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], cfg: ModelConfig, folder: Path
) -> Exported:
    """Write `folder` whole or not at all: what `from_pretrained` of diffusers' pipelines loads.

    Without `control_model.*` keys it is a folder for StableDiffusionPipeline, else for
    StableDiffusionControlNetPipeline. Tensors keep their dtype.

    Args:
        state: tensors by checkpoint key.
        metadata: of the checkpoint; kept in the folder, so that an import brings it back.
        cfg: the architecture.
        folder: must not exist, or be empty.

    Raises:
        FolderError: a setting or tensors that diffusers has no place for, a folder in use, too little disk space.
        CheckpointError: a failed write.
    """
    with_control = any(key.startswith(PREFIXES["controlnet"]) for key in state)
    check_expressible(cfg, with_control)
    check_unused(folder)
    state, metadata, cfg, lacking, left_out = _what_has_a_place(state, metadata, cfg, with_control)
    names = their_keys(cfg)
    if not with_control:
        del names["controlnet"]
    rest, averages = _beside_the_parts(state, names)
    sampling = recommended(metadata)
    tensors = {
        part: {theirs: to_theirs(part, theirs, state[ours]) for ours, theirs in keys.items()}
        for part, keys in names.items()
    }
    num_bytes = sum(value.nbytes for part in (*tensors.values(), rest) for value in part.values())
    _check_space(folder, num_bytes)

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        scheduler = scheduler_config(cfg.schedule, sampling)
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        configs = part_configs(cfg)
        for part, values in tensors.items():
            (temporary / part).mkdir()
            _write_json(temporary / part / "config.json", configs[part])
            write_state_dict(temporary / part / _FILES.get(part, _FILE), values, {"format": "pt"})
        _write_tokenizer(temporary / "tokenizer", cfg.cond_stage.max_length)
        _write_json(temporary / INDEX, model_index(with_control, scheduler["_class_name"]))
        (temporary / NOTES).mkdir()
        _write_json(temporary / NOTES / METADATA, {"format": FORMAT, "metadata": dict(metadata)})
        if rest:
            write_state_dict(temporary / NOTES / REST, rest, {})
        card = model_card(cfg, sampling, with_control, lacking)
        (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")
        if folder.is_dir():
            folder.rmdir()  # empty, as checked
        os.replace(temporary, folder)
    except OSError as error:
        raise FolderError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = {part: len(values) for part, values in tensors.items()}
    return Exported(lacking, counts, left_out + averages, num_bytes)


def _what_has_a_place(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], cfg: ModelConfig, with_control: bool
) -> tuple[Mapping[str, Tensor], Mapping[str, str], ModelConfig, list[str], list[str]]:
    """The model without its grain head and its ControlNet's branches; their names, and their keys.

    The head adds to what is decoded, the branches to the hint: without them all else draws as before. A base model,
    which has no control network yet, keeps the branches that its metadata plan for one.
    """
    planned = [name for name in ("landmarks", "texture") if getattr(cfg.control, name)]
    prefixes = {name: f"{BRANCHES}{name}." for name in planned if with_control}
    bare = cfg.with_(control=cfg.control.with_(landmarks=None, texture=None))
    if cfg.first_stage.grain:
        prefixes["grain"] = GRAIN
        cfg, bare = (
            one.with_(first_stage=one.first_stage.with_(grain=0, grain_exemplar=0)) for one in (cfg, bare)
        )
    if not prefixes:
        return state, metadata, bare, [], []
    if "config" in metadata:
        metadata = {**metadata, **model_metadata(bare if with_control else cfg)}
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(prefixes.values()))}
    left_out = [key for key in state if key not in kept]
    return kept, metadata, bare, list(prefixes), left_out


def check_unused(folder: Path) -> None:
    """Raises FolderError unless `folder` can be made: its parent is there, and it is not, or empty."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FolderError(f"{folder} is a file; expected the name of a folder to make")
    if folder.is_dir() and any(folder.iterdir()):
        raise FolderError(f"{folder} exists and is not empty; choose another name, or remove it first")
    if not folder.absolute().parent.is_dir():
        raise FolderError(
            f"{folder.parent} is not an existing folder; create it first (mkdir -p {folder.parent})"
        )


def model_index(with_control: bool, scheduler: str) -> dict[str, Any]:
    """Which class each part is of. The safety checker is left out: it is no part of these models."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionControlNetPipeline" if with_control else "StableDiffusionPipeline",
        "_diffusers_version": VERSION,
        "requires_safety_checker": False,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    return index | ({"controlnet": ["diffusers", "ControlNetModel"]} if with_control else {})


def _beside_the_parts(
    state: Mapping[str, Tensor], names: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors no part holds: those to keep beside them (buffers), and the names of those to leave out (EMA).

    Raises:
        FolderError: keys missing, or unknown ones, which may matter to the result.
    """
    known = {ours for keys in names.values() for ours in keys}
    optional = re.compile("|".join(SD_OPTIONAL))
    missing = [key for key in known if key not in state]
    extra = [key for key in state if key not in known]
    unknown = [key for key in extra if not optional.search(key)]
    problems = [
        f"{len(keys)} {kind} ({min(keys)}{', ...' if len(keys) > 1 else ''})"
        for kind, keys in (("missing", missing), ("unknown", unknown))
        if keys
    ]
    if problems:
        raise FolderError(
            f"its weights do not have the expected architecture: {'; '.join(problems)}; "
            "name the right model with config=YAML"
        )
    left_out = [key for key in extra if key.startswith("model_ema.")]
    return {key: state[key] for key in extra if key not in left_out}, left_out


def recommended(metadata: Mapping[str, str]) -> SamplingConfig | None:
    """The sampler settings a checkpoint recommends, None if it does not. Raises FolderError if they are none."""
    if "sampling" not in metadata:
        return None
    try:
        settings = json.loads(metadata["sampling"])
        if not isinstance(settings, dict):
            raise ValueError(f"got {settings!r}, expected a JSON object")
        sampling = parse_command_line(SamplingConfig, [], base=settings, base_name="sampling")
        sampling.validate()
    except ValueError as error:
        raise FolderError(f"its metadata entry 'sampling' cannot be used: {error}") from error
    return sampling


def _check_space(folder: Path, num_bytes: int) -> None:
    parent = folder.absolute().parent
    free = shutil.disk_usage(parent).free
    if num_bytes + _MARGIN > free:
        raise FolderError(
            f"{folder} needs {num_bytes / 2**20:.0f} MiB, but {parent} has {free / 2**20:.0f} MiB free; "
            "make room there or write elsewhere"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _write_tokenizer(folder: Path, max_length: int) -> None:
    """CLIP's tokenizer, padding with the end token as SD1.5's does, from the vocabulary bundled with open_clip."""
    tokens, merges = vocabulary()
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": eos}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8", newline="\n")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": max_length,
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            **special,
        },
    )
