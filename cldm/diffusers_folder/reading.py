"""Reading a diffusers folder: its JSON files, and each part's weights in whichever of the usual files they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from cldm.diffusers_folder.configs import FolderError
from cldm.diffusers_folder.keys import PREFIXES, current_key, to_ours
from ldm.checkpoint import read_state_dict
from ldm.latent_diffusion import ModelConfig

INDEX = "model_index.json"
NOTES = "iccr_diff"  # folder inside an exported one: what diffusers has no place for
METADATA, REST = "metadata.json", "rest.safetensors"

_STEMS = {"text_encoder": ("model", "pytorch_model")}  # of the others: _STEM
_STEM = ("diffusion_pytorch_model",)


@dataclass
class Weights:
    """One part's tensors by our keys, and the files they came from, relative to the folder."""

    state: dict[str, Tensor]
    files: list[str]
    rest: dict[str, Tensor]  # tensors that mean nothing (position_ids)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file. Raises FolderError unless it is there and holds an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise FolderError(f"{path} holds a {type(content).__name__}, expected settings")
    return content


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """JSON content by part: what `configs.model_config` reads.

    Raises:
        FolderError: not a folder, or not one of a whole model in diffusers' layout.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise FolderError(f"{folder} {kind}; expected a folder in diffusers' layout")
    parts: dict[str, dict[str, Any]] = {}
    if (folder / INDEX).is_file():
        parts["model_index"] = read_json(folder / INDEX)
    for part, name in (
        ("unet", "config.json"),
        ("vae", "config.json"),
        ("text_encoder", "config.json"),
        ("scheduler", "scheduler_config.json"),
        ("controlnet", "config.json"),
    ):
        if (folder / part / name).is_file():
            parts[part] = read_json(folder / part / name)
    return parts


def lone_control(folder: Path) -> dict[str, Any] | None:
    """The config of a folder that is a single ControlNet, None for any other."""
    if (folder / INDEX).is_file() or not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "ControlNetModel":
        raise FolderError(
            f"{folder} is a single {config.get('_class_name', 'part of unknown class')}; "
            f"expected a whole model (with {INDEX}) or a ControlNetModel"
        )
    return config


def read_part(
    folder: Path,
    part: str,
    cfg: ModelConfig,
    names: Mapping[str, str],
    variant: str | None = None,
) -> Weights:
    """The tensors of one part by our keys, mapped from disk.

    Args:
        folder: where the part's own files are.
        names: our key -> key in the file, of `keys.their_keys`.
        variant: prefer the files of this variant ("fp16", "non_ema").

    Raises:
        FolderError: no weights, several variants and none chosen, or weights that do not fit the config.
        CheckpointError: a file that cannot be read.
    """
    files = _weight_files(folder, part, variant)
    found: dict[str, Tensor] = {}
    for file in files:
        for key, value in read_state_dict(file)[0].items():
            current = current_key(part, key)
            if current in found:
                raise FolderError(f"{folder} holds {current} twice, the second time in {file.name}")
            found[current] = value
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in ControlledLatentDiffusion(cfg).state_dict().items()}
    rest = {
        PREFIXES[part] + key: found.pop(key) for key in list(found) if key.endswith("embeddings.position_ids")
    }
    missing = [theirs for theirs in names.values() if theirs not in found]
    unknown = sorted(set(found) - set(names.values()))
    state = {ours: to_ours(found[theirs], shapes[ours]) for ours, theirs in names.items() if theirs in found}
    mismatched = [key for key, value in state.items() if value.shape != shapes[key]]
    problems = []
    if mismatched:
        key = mismatched[0]
        shape = f"{names[key]} is {list(found[names[key]].shape)}, expected {list(shapes[key])}"
        problems.append(f"{len(mismatched)} of another shape ({shape})")
    for kind, keys in (("missing", missing), ("unknown", unknown)):
        if keys:
            problems.append(f"{len(keys)} {kind} ({keys[0]}{', ...' if len(keys) > 1 else ''})")
    if problems:
        raise FolderError(
            f"the weights of {folder} do not fit its config.json: {'; '.join(problems)}; download both again"
        )
    return Weights(state, [file.name for file in files], rest)


def _weight_files(folder: Path, part: str, variant: str | None) -> list[Path]:
    """The files of one part's weights: one, or the shards that an index lists."""
    stems = _STEMS.get(part, _STEM)
    for wanted in (variant, None) if variant else (None,):
        if files := _files_of(folder, stems, wanted):
            return files
    others = _variants(folder, stems)
    if len(others) == 1:
        return _files_of(folder, stems, others[0])
    if others:
        raise FolderError(
            f"{folder} holds the weights as {' and as '.join(others)}; choose with variant={others[0]}"
        )
    raise FolderError(
        f"{folder} holds no weights; expected {stems[0]}.safetensors or {stems[-1]}.bin, whole or in shards"
    )


def _files_of(folder: Path, stems: tuple[str, ...], variant: str | None) -> list[Path]:
    middle = f".{variant}" if variant else ""
    for ending in ("safetensors", "bin"):
        for stem in stems:
            whole = folder / f"{stem}{middle}.{ending}"
            if whole.is_file():
                return [whole]
            for index in (f"{stem}.{ending}.index{middle}.json", f"{stem}{middle}.{ending}.index.json"):
                if (folder / index).is_file():
                    return _shards(folder / index)
    return []


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    names = sorted(set(listed.values())) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise FolderError(f"{index} has no weight_map that names files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FolderError(
            f"{index.parent} lacks {missing[0]}, one of {len(names)} files that {index.name} lists; download it"
        )
    return [index.parent / name for name in names]


def _variants(folder: Path, stems: tuple[str, ...]) -> list[str]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    pattern = re.compile(
        rf"(?:{'|'.join(stems)})(?:\.(?:safetensors|bin)\.index\.(?!json)(\w+)\.json|\.(\w+)\.(?:safetensors|bin)(?:\.index\.json)?)"
    )
    found = (pattern.fullmatch(name) for name in names)
    return sorted({match[1] or match[2] for match in found if match})
