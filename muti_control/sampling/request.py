"""What can be checked of a command line before the networks' libraries are loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.cases import PersonInput, find_cases
from data.ct.as_skull import is_scan
from data.images import ImageError, picture_size
from muti_control.case.repeat import check_beside_repeat, repeated_settings
from muti_control.sampling.config import SampleConfig
from settings.messages import ConfigError
from settings.reading import parse_command_line

ROOT = Path(__file__).resolve().parent.parent.parent
_OPENED = 20  # pictures


def check_request(arguments: Sequence[str]) -> SampleConfig:
    """Check settings, paths and the first pictures.

    Returns:
        The settings without what the weights recommend.

    Raises:
        ValueError: what cannot be used; the message says what to do.
    """
    cfg = parse_command_line(SampleConfig, arguments, base=_without_weights, file_key="skull")
    if cfg.repeat is not None:
        check_beside_repeat(arguments)
    weights = shipped(cfg.weights)
    if (weights / "model_index.json").is_file():
        raise ConfigError(
            f"weights: {weights} is a folder of diffusers, expected a file; python -m cldm.diffusers_folder import "
            f"{weights} NEW.safetensors makes one"
        )
    if not weights.is_file():
        kind = "is a folder, expected a file" if weights.is_dir() else "does not exist"
        raise ConfigError(f"weights: {weights} {kind}; leave the setting out for the demo's model")
    if cfg.out is not None and Path(cfg.out).exists() and not Path(cfg.out).is_dir():
        raise ConfigError(f"out: {cfg.out} is a file; give a folder")
    if cfg.skull is not None and not is_scan(Path(cfg.skull)):
        person = PersonInput(cfg.sex, cfg.age, cfg.ethnicity, cfg.body_mass)
        for case in find_cases(cfg.skull, person, cfg.images_dir, cfg.limit)[:_OPENED]:
            try:
                if case.skull_path is not None:
                    picture_size(case.skull_path)
            except ImageError as error:
                raise ConfigError(f"skull: {error}") from error
    return cfg


def _without_weights(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    if settings["repeat"] is not None:
        return repeated_settings(str(settings["repeat"]))
    return {"sampling": {"eta": 0}}  # fits every sampler


def shipped(name: str) -> Path:
    """Return the path of the user's file, or of one that comes with this program, from any working folder."""
    return Path(name) if Path(name).exists() or not (ROOT / name).exists() else ROOT / name
