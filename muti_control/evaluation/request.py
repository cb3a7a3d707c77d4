"""What can be checked of a command line before the networks' libraries are loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.containers import container
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.sweep import expand
from settings.messages import ConfigError
from settings.reading import parse_command_line

DEFAULT = Path(__file__).resolve().parent.parent.parent / "configs" / "evaluate" / "quick.yaml"


def with_preset(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the YAML file that a command line names, or else the default preset, and the arguments with it."""
    file = next((Path(a) for a in arguments if "=" not in a and a.endswith((".yaml", ".yml"))), None)
    return (file, list(arguments)) if file is not None else (DEFAULT, [str(DEFAULT), *arguments])


def check_request(arguments: Sequence[str]) -> EvaluateConfig:
    """Check settings and paths.

    Returns:
        The settings without what the weights recommend.

    Raises:
        ValueError: what cannot be used; the message says what to do.
    """
    cfg = expand(parse_command_line(EvaluateConfig, with_preset(arguments)[1], file_key="faces"))
    manifest = Path(cfg.data.root) / "split_data" / f"{cfg.split}.json"
    if not manifest.is_file():
        raise ConfigError(
            f"data.root: {manifest} not found. Give data.root=FOLDER of your own pairs, or make the synthetic cohort "
            "first: python -m data.cohort cohort num_subjects=5000 seed=1 valid_subjects=250 test_subjects=500 "
            "ceiling=true"
        )
    for file in (cfg.weights, *cfg.models.values(), cfg.pix2pix):
        if file is not None:
            container(Path(file))
    return cfg
