"""A diffusers folder as a checkpoint of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion, model_config_from_metadata, model_metadata
from cldm.diffusers_folder.configs import (
    CLASSES,
    FolderError,
    check_same,
    control_config,
    model_config,
    refuse_other_models,
    settings_of,
)
from cldm.diffusers_folder.exporting import METADATA, NOTES, REST
from cldm.diffusers_folder.keys import PREFIXES, their_keys, to_ours
from ldm.checkpoint import SD_OPTIONAL, git_revision, match_keys, read_state_dict
from ldm.config import ModelConfig
from ldm.schedule import schedule_buffers
from settings import parsing
from settings.parsing import ContentError

INDEX = "model_index.json"
CONTROL = PREFIXES["controlnet"]
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|(?:pytorch_)?model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)


@dataclass
class Imported:
    """The content of a checkpoint, its architecture, and lines for the user."""

    state: dict[str, Tensor]
    metadata: dict[str, str]
    cfg: ModelConfig
    log: list[str]


def import_folder(folder: Path, variant: str | None = None, image_size: int | None = None) -> Imported:
    """Read a whole model.

    Args:
        folder: with unet/, vae/, text_encoder/ and maybe controlnet/ and scheduler/.
        variant: prefer the weights of this variant ("fp16").
        image_size: side of the pictures in px, to override the folder's.

    Raises:
        FolderError: another model family, or a folder that is incomplete or does not fit its own configs.
        CheckpointError: a weights file that cannot be read.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder} is not an existing folder; expected one in diffusers' layout")
    files = {part: f"{part}/config.json" for part in CLASSES}
    files |= {"model_index": INDEX, "scheduler": "scheduler/scheduler_config.json"}
    configs = {part: read_json(folder / name) for part, name in files.items() if (folder / name).is_file()}
    refuse_other_models(configs)
    if missing := [part for part in ("unet", "vae", "text_encoder") if part not in configs]:
        raise FolderError(
            f"it has no {missing[0]}/config.json; expected a folder with unet/, vae/, text_encoder/"
        )
    cfg = model_config(configs, image_size)
    log = []
    if "scheduler" not in configs:
        log.append("note: no scheduler/: the noise schedule is taken to be Stable Diffusion 1.5's")
    state: dict[str, Tensor] = {}
    for part, names in their_keys(cfg).items():
        if part in configs:
            weights = read_part(folder / part, part, names, variant)
            state |= weights
            log.append(_line(part, weights))
    metadata, rest = _notes(folder, cfg, log)
    return Imported(state | rest, metadata, cfg, log)


def import_control(
    folder: Path,
    base: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    cfg: ModelConfig,
    variant: str | None,
) -> Imported:
    """Return a base model with the control network of a folder that is a single ControlNet.

    Args:
        base: tensors by checkpoint key; a control network among them is left out.
        metadata, cfg: of the base.

    Raises:
        FolderError: the ControlNet was made for another model, or does not fit its own config.
        CheckpointError: the base does not fit its config, or a file cannot be read.
    """
    config = read_json(folder / "config.json")
    cfg = cfg.with_(control=control_config(config))
    check_same("controlnet", config, cfg)
    weights = read_part(folder, "controlnet", their_keys(cfg)["controlnet"], variant)
    own = {key: value for key, value in base.items() if not key.startswith((CONTROL, "model_ema."))}
    state = {"logvar": torch.zeros(cfg.schedule.num_timesteps), **own, **weights}
    with torch.device("meta"):
        model = ControlledLatentDiffusion(cfg)
    match_keys(model, state, allow_missing=SD_OPTIONAL, allow_unexpected=SD_OPTIONAL)
    log = [_line("controlnet", weights)]
    if any(key.startswith(CONTROL) for key in base):
        log.append("note: the base's own control network is replaced")
    origin = {"sampling": "sampling", "step": "base_step"}  # entry of the base -> entry of the result
    notes = {new: metadata[old] for old, new in origin.items() if old in metadata}
    about = {"control": folder.resolve().name, "git": git_revision()}
    return Imported(state, {**notes, **model_metadata(cfg), **about}, cfg, log)


def is_lone_control(folder: Path) -> bool:
    """Return whether a folder is a single ControlNet. Raises: FolderError: it is another single network."""
    if (folder / INDEX).is_file() or not (folder / "config.json").is_file():
        return False
    name = read_json(folder / "config.json").get("_class_name")
    if name != "ControlNetModel":
        raise FolderError(
            f"{folder} is a single {name}; expected a whole model (with {INDEX}) or a ControlNetModel"
        )
    return True


def read_part(folder: Path, part: str, names: Mapping[str, str], variant: str | None) -> dict[str, Tensor]:
    """Return the tensors of one part by our keys, read by the part's own class.

    Args:
        folder: where the part's own files are.
        names: our key -> key in the part, of :func:`their_keys`.
        variant: prefer the files of this variant ("fp16", "non_ema").

    Raises:
        FolderError: no weights, several variants and none chosen, or weights that do not fit the config.
        CheckpointError: a file that cannot be read.
    """
    variant, dtype = _choose_weights(folder, variant)
    options: dict[str, Any] = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    if part == "text_encoder":
        options = {"dtype": dtype}
    try:
        net, report = CLASSES[part].from_pretrained(
            folder, variant=variant, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FolderError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:400]}") from error
    problems = [
        f"{len(keys)} {kind} ({min(keys)}{', ...' if len(keys) > 1 else ''})"
        for kind in ("missing", "unexpected")
        if (keys := report[f"{kind}_keys"])
    ]
    if problems:
        raise FolderError(f"the weights of {folder} do not fit its config.json: {'; '.join(problems)}")
    state = net.state_dict()
    if part == "text_encoder" and not hasattr(net, "text_model"):  # transformers 5
        state = {f"text_model.{key}": value for key, value in state.items()}
    return {ours: to_ours(part, theirs, state[theirs]) for ours, theirs in names.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Raises: FolderError: it is not there, or does not hold an object."""
    try:
        return dict(parsing.read_json(path, dict[str, Any]))
    except ContentError as error:
        raise FolderError(str(error)) from error


def _choose_weights(folder: Path, preferred: str | None) -> tuple[str | None, torch.dtype]:
    """The variant of a part's weights to load, and the dtype that keeps their values."""
    files: dict[str | None, list[Path]] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if match := _WEIGHTS.fullmatch(path.name):
            files.setdefault(match[1], []).append(path)
    if not files:
        raise FolderError(
            f"{folder} holds no weights; expected .safetensors or .bin files, whole or in shards"
        )
    choices = [variant for variant in (preferred, None, *files) if variant in files]
    if choices[0] not in (preferred, None) and len(files) > 1:
        names = " and as ".join(map(str, files))
        raise FolderError(f"{folder} holds the weights as {names}; choose with variant={choices[0]}")
    paths = files[choices[0]]
    paths = [path for path in paths if path.suffix == ".safetensors"] or paths
    dtypes = {
        value.dtype
        for path in paths
        for value in read_state_dict(path)[0].values()
        if value.is_floating_point()
    }
    return choices[0], dtypes.pop() if len(dtypes) == 1 else torch.float32


def _line(part: str, state: Mapping[str, Tensor]) -> str:
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    return f"{part:<12}  {len(state):>4} tensors ({', '.join(dtypes)})"


def _notes(folder: Path, cfg: ModelConfig, log: list[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata of the checkpoint, and its tensors beside the parts (schedule, logvar).

    Both are those of the exported checkpoint, if the folder comes from here: its config may say more than the JSON
    files. Where they contradict each other, the JSON files are right.
    """
    fresh = {**model_metadata(cfg), "git": git_revision(), "diffusers_folder": folder.resolve().name}
    buffers = dict(schedule_buffers(cfg.schedule))
    with_control = (folder / "controlnet").is_dir()
    if not (folder / NOTES / METADATA).is_file():
        logvar = {"logvar": torch.zeros(cfg.schedule.num_timesteps)} if with_control else {}
        return fresh, buffers | logvar
    content = read_json(folder / NOTES / METADATA).get("metadata")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise FolderError(f"{folder / NOTES / METADATA} has no metadata of strings; remove {NOTES}/")
    rest: dict[str, Tensor] = {}
    if (folder / NOTES / REST).is_file():
        rest = read_state_dict(folder / NOTES / REST)[0]
        if foreign := [key for key in rest if not re.search("|".join(SD_OPTIONAL), key)]:
            raise FolderError(
                f"{folder / NOTES / REST} holds {foreign[0]}, which belongs to a part; remove {NOTES}/"
            )
    stored = model_config_from_metadata(content)
    if stored is None:  # exported from a file of another maker
        return content | fresh, rest
    parts = [part for part in settings_of(cfg) if with_control or part != "controlnet"]
    if all(settings_of(stored)[part] == settings_of(cfg)[part] for part in parts):
        return content | {"diffusers_folder": fresh["diffusers_folder"]}, rest
    log.append(f"note: the config in {NOTES}/{METADATA} is not that of the folder's parts; theirs is taken")
    return content | fresh, {key: value for key, value in rest.items() if key == "logvar"} | buffers
