"""Do texture exemplars and damaged skulls do what they should?

    python -m benchmarks.model.conditions cohort=cohort models={NAME: FILE, ...} [key=value ...]

``features`` looks at the texture features alone: which surface style they tell, that scrambled patches give the same,
and how little they tell of who it is. ``texture`` draws test subjects with an exemplar of their own style, with one of
another style and with none: how far does the measured style go along, and is it still the same person? ``partial``
draws them from skulls of which bone is missing: is the person still found, how far off are the points, and do
variants differ more where bone is missing? Judged by dlib and by benchmarks.cohort.style, which are in no loss and no
condition. Intervals are bootstrapped over subjects.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.model.conditions_drawing import Bench
from benchmarks.model.conditions_partial import measure_partial
from benchmarks.model.conditions_texture import measure_features, measure_texture
from cldm.record import write_json
from data.partial import REGIONS
from ldm.checkpoint import git_revision, sha256
from ldm.config import ConfigError, parse_command_line
from muti_control.training.pictures import write_grid

PARTS = ("features", "texture", "partial")


@dataclass
class ConditionsConfig:
    """What is measured.

    cohort: folder of `python -m data.cohort`. models: whole models by name; those without a texture branch leave
        ``texture`` out. landmark_weights: the network that reads skulls, for models with a landmark branch.
    parts: some of features, texture, partial. regions: of ``partial``.
    num: test subjects that are drawn; the gallery is the whole split. samples: variants of each in ``partial``.
    num_fitted: training faces that the read-outs of style are fitted on; also of ``features``.
    steps: of the sampler; 0: what the weights recommend.
    out: OUT.json and OUT_NAME.png. device, precision, batch_size: as for sample.py.
    """

    cohort: str = "cohort"
    models: dict[str, str] = field(default_factory=dict)
    landmark_weights: str = "models/demo/pipnet_skull.safetensors"
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    regions: list[str] = field(default_factory=lambda: list(REGIONS))
    num: int = 200
    samples: int = 4
    num_fitted: int = 400
    steps: int = 0
    seed: int = 0
    batch_size: int = 16
    resamples: int = 4000
    device: str = "auto"
    precision: str = "auto"
    out: str = "benchmarks/results/conditions"

    def check(self) -> None:
        """Raises: ConfigError naming the setting."""
        for name, least in (
            ("num", 4),
            ("samples", 2),
            ("num_fitted", 40),
            ("batch_size", 1),
            ("resamples", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name, known in (("parts", PARTS), ("regions", REGIONS)):
            if not set(getattr(self, name)) <= set(known) or not getattr(self, name):
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected some of {', '.join(known)}")
        if not self.models and self.parts != ["features"]:
            raise ConfigError("models: got none, expected {NAME: FILE, ...}; parts=[features] needs none")


def measure(cfg: ConditionsConfig) -> dict[str, Any]:
    """Draw, judge and write the pictures. Raises: ValueError for what cannot be measured."""
    cfg.check()
    bench = Bench.of(cfg.cohort, cfg.num, cfg.num_fitted, cfg.seed, cfg.resamples)
    found: dict[str, Any] = {"config": asdict(cfg), "git": git_revision(), "subjects": len(bench.cases)}
    if "features" in cfg.parts:
        found["features"] = measure_features(bench)
    found["models"] = {}
    for name, file in cfg.models.items():
        drawer = bench.drawer(
            Path(file), Path(cfg.landmark_weights), cfg.batch_size, cfg.device, cfg.precision
        )
        if cfg.steps:
            drawer.sampling.steps = cfg.steps
        results: dict[str, Any] = {"sha256": sha256(Path(file))}
        rows: list[torch.Tensor] = [bench.skulls(drawer.side)[:8], bench.truths(drawer.side)[:8]]
        titles = ["skull", "true face"]
        if "texture" in cfg.parts and drawer.model.cfg.control.texture is not None:
            results["texture"], shown = measure_texture(bench, drawer)
            rows, titles = [*rows, *shown.values()], [*titles, *shown]
        if "partial" in cfg.parts:
            drawer.sampling.grain = False  # of every face its own: it would count as spread
            results["partial"], shown = measure_partial(bench, drawer, cfg.regions, cfg.samples)
            rows, titles = [*rows, *shown.values()], [*titles, *shown]
        write_grid(Path(f"{cfg.out}_{name}.png"), rows)
        found["models"][name] = {**results, "rows of the picture": titles}
    return found


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code."""
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        print(f"{__doc__}\n{ConditionsConfig.__doc__}")
        return 0
    try:
        cfg = parse_command_line(ConditionsConfig, arguments)
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        found = measure(cfg)
    except (ValueError, OSError) as error:
        print(f"conditions: {error}", file=sys.stderr)
        return 2
    write_json(Path(f"{cfg.out}.json"), found)
    for title, values in lines_of(found):
        print(f"{title}: {values}")
    return 0


def lines_of(found: Any, title: str = "") -> list[tuple[str, Any]]:
    """All figures of a nested result, each with the way to it."""
    if isinstance(found, dict):
        skipped = ("config", "rows of the picture")
        return [
            line
            for key, value in found.items()
            if key not in skipped
            for line in lines_of(value, f"{title}, {key}" if title else str(key))
        ]
    return [(title, found)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
