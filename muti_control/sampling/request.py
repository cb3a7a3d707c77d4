"""What can be checked of a command line before the networks' libraries are loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data.cases import Case, attributes_of, find_cases
from data.ct.as_skull import is_scan
from data.images import ImageError, picture_size
from ldm.foreign import our_network
from muti_control.case.calibration import Calibration, calibration_path
from muti_control.case.repeat import check_beside_repeat, repeated_settings
from muti_control.sampling.config import DEMO_WEIGHTS, SampleConfig
from settings.messages import ConfigError
from settings.parsing import ContentError, parse_json
from settings.reading import from_json, parse_command_line

ROOT = Path(__file__).resolve().parent.parent.parent
_OPENED = 20  # pictures
DEMO_SKULLS = "data/split_data/test.json"


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
    network = our_network(_header(weights)[0])
    if network is not None:
        raise ConfigError(
            f"weights: {weights}: this is {network}; expected a Stable Diffusion 1.5 model with a control network"
        )
    if cfg.out is not None and Path(cfg.out).exists() and not Path(cfg.out).is_dir():
        raise ConfigError(f"out: {cfg.out} is a file; give a folder")
    if cfg.skull is not None and is_scan(Path(cfg.skull)):
        cases = [Case("scan", None, None, attributes=attributes_of(cfg.person))]
    else:
        cases = find_cases(cfg.skull or shipped(DEMO_SKULLS), cfg.person, cfg.images_dir, cfg.limit)
    check_ethnicities(cases, _trained_ethnicities(weights))
    for case in cases[:_OPENED]:
        try:
            if case.skull_path is not None:
                picture_size(case.skull_path)
        except ImageError as error:
            raise ConfigError(f"skull: {error}") from error
    return cfg


def check_ethnicities(cases: Sequence[Case], trained: Sequence[str]) -> None:
    """Raise ValueError for the misspelling of an ethnicity that the weights were trained on."""
    known = {word.lower(): word for word in trained}
    for word in sorted({case.attributes.ethnicity for case in cases} - {None}):
        near = get_close_matches(word.lower(), known, 1, cutoff=0.75)
        if word.lower() not in known and near:
            raise ValueError(
                f"ethnicity: got {word!r}, did you mean {known[near[0]]}? These weights know "
                f"{', '.join(trained)}; unknown draws faces across these"
            )


def _trained_ethnicities(weights: Path) -> Sequence[str]:
    """Return those that the calibration of weights counts; none where it is absent, or damaged: its loading says so."""
    _, metadata = _header(calibration_path(weights))
    with suppress(ValueError):
        return from_json(Calibration, metadata["calibration"]).population.ethnicities if metadata else ()
    return ()


def _header(path: Path) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the keys and the metadata of a safetensors file; nothing of another file, which is judged when loaded."""
    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError):
        return (), {}


def recommended_in_help(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the weights recommend of sampling, for ``--help``; nothing where they cannot be read."""
    _, metadata = _header(shipped(str(settings["weights"] or DEMO_WEIGHTS)))
    with suppress(ContentError):
        return {"sampling": parse_json(metadata.get("sampling", "{}"), "weights", dict[str, Any])}
    return {}


def _without_weights(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    if settings["repeat"] is not None:
        return repeated_settings(str(settings["repeat"]))
    return {"sampling": {"eta": 0}}  # fits every sampler


def shipped(name: str) -> Path:
    """Return the path of the user's file, or of one that comes with this program, from any working folder."""
    return Path(name) if Path(name).exists() or not (ROOT / name).exists() else ROOT / name
