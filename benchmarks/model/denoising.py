"""How far off is the clean latent that a model makes out of a noised one, at each step and for whom?

    python -m benchmarks.model.denoising data.root=COHORT 'weights=[FILE, ...]' [key=value ...]

One noised latent of each person and step, the same for every file; the mean squared error of the clean latent that
the predicted noise implies (the latent's variance is about 1). Beside a person's own skull and landmarks stand those
of the next person in the list, and neither. Training people beside validation people show how much was learnt by
heart; the noisiest step shows what the model knows of a face by skull and text alone. No sampler, no guidance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import append_section, machine, table
from cldm.conditions import Conditions, encode
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.record import check_creatable, write_json
from data.cases import cases_of
from data.manifest import Record, read_manifest
from data.paired import PairedDataset
from ldm.checkpoint import sha256
from ldm.config import ConfigError, parse_command_line
from ldm.device import choose_device, choose_precision
from ldm.schedule import predict_x0, q_sample
from muti_control.conditions.case_landmarks import CaseLandmarks, choose_landmarks

SHOWN = ("own", "another's", "none")


@dataclass
class DataPart:
    """root: folder with ``pairedCS/`` and ``split_data/``. splits: names of its lists, without .json."""

    root: str = "cohort"
    splits: list[str] = field(default_factory=lambda: ["train", "valid"])


@dataclass
class DenoisingConfig:
    """What is measured.

    weights: whole models by file name. landmark_weights: the network that reads skulls. steps: of noise.
    num: at most so many people of each list. device, precision, batch_size: as for sample.py. out: JSON file.
    append: add the table to benchmarks/RESULTS.md.
    """

    weights: list[str] = field(default_factory=lambda: ["models/demo/iccr_demo.safetensors"])
    landmark_weights: str = "models/demo/pipnet_skull.safetensors"
    data: DataPart = field(default_factory=DataPart)
    steps: list[int] = field(default_factory=lambda: [999, 800, 600, 400, 200])
    num: int = 100
    seed: int = 0
    batch_size: int = 20
    device: str = "auto"
    precision: str = "auto"
    out: str = "benchmarks/results/denoising.json"
    append: bool = False

    def validate(self) -> None:
        """Raises ConfigError naming the setting."""
        for name, least in (("num", 2), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name, values in (
            ("weights", self.weights),
            ("steps", self.steps),
            ("data.splits", self.data.splits),
        ):
            if not values:
                raise ConfigError(f"{name}: got an empty list, expected at least one")
        if min(self.steps) < 0:
            raise ConfigError(f"steps: got {self.steps}, expected numbers from 0")


@torch.no_grad()
def errors(
    model: ControlledLatentDiffusion,
    reader: CaseLandmarks | None,
    records: Sequence[Record],
    cfg: DenoisingConfig,
) -> dict[str, dict[int, list[float]]]:
    """The error of each person, by what the model is shown and by step."""
    pairs, cases = PairedDataset(list(records), size=model.cfg.image_size), cases_of(records)
    found: dict[str, dict[int, list[float]]] = {name: {t: [] for t in cfg.steps} for name in SHOWN}
    generator = torch.Generator().manual_seed(cfg.seed)

    def conditions(rows: Sequence[int]) -> Conditions:
        skulls = torch.stack([pairs.skull(i) for i in rows])
        landmarks = None if reader is None else reader.of([cases[i] for i in rows], skulls)
        return Conditions(skulls, None, landmarks, None)

    for first in range(0, len(records), cfg.batch_size):
        rows = range(first, min(first + cfg.batch_size, len(records)))
        num = len(rows)
        faces = torch.stack([pairs.face(i) for i in rows]).to(model.device, model.dtype)
        z = model.encode_first_stage(faces, sample=False).float()
        others = [(i + 1) % len(records) for i in rows]
        given = {
            name: None if shown is None else encode(model, shown, num, *faces.shape[-2:]).acting()
            for name, shown in zip(SHOWN, (conditions(rows), conditions(others), None), strict=True)
        }
        text = model.project_text(model.encode_text([pairs.prompt(i) for i in rows]))
        for t in cfg.steps:
            steps = torch.full((num,), t, device=model.device)
            noise = torch.randn(z.shape, generator=generator).to(model.device)
            x_t = q_sample(z, steps, noise, model.alphas_cumprod)
            for name, acting in given.items():
                if acting is None:
                    eps = model.eps(x_t, steps, text, None)
                else:
                    eps = model.eps(x_t, steps, text, acting.hint, None, acting.texture, acting.active)
                x_0 = predict_x0(x_t, steps, eps.float(), model.alphas_cumprod)
                found[name][t] += (x_0 - z).square().flatten(1).mean(1).tolist()
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error over people."""
    array = np.asarray(values)
    return {"mean": float(array.mean()), "standard error": float(array.std(ddof=1) / len(array) ** 0.5)}


def measure(cfg: DenoisingConfig, device: torch.device) -> list[dict[str, Any]]:
    """One entry for each file and list. Raises: ValueError for what cannot be measured."""
    lists = {
        name: read_manifest(Path(cfg.data.root) / "split_data" / f"{name}.json")[: cfg.num]
        for name in cfg.data.splits
    }
    for name, records in lists.items():
        if len(records) < 2:
            raise ConfigError(f"data.splits: {name} lists one pair, expected at least two to exchange skulls")
    runs = []
    for file in cfg.weights:
        model, _ = load_model(file, device=device, dtype=choose_precision(cfg.precision, device))
        last = model.cfg.schedule.num_timesteps - 1
        if max(cfg.steps) > last:
            raise ConfigError(f"steps: got {max(cfg.steps)}, but {file} has steps 0 to {last}")
        for split, records in lists.items():
            reader, lacking = choose_landmarks("auto", Path(cfg.landmark_weights), cases_of(records), model)
            if lacking is not None:
                raise ConfigError(lacking)
            found = errors(model, reader, records, cfg)
            figures = {name: {t: summary(v) for t, v in by_step.items()} for name, by_step in found.items()}
            runs.append({"weights": file, "sha256": sha256(Path(file)), "list": split, "errors": figures})
    return runs


def rows_of(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each file, list and kind of condition."""
    return [
        [Path(run["weights"]).name, run["list"], name]
        + [f"{one['mean']:.4f} ± {one['standard error']:.4f}" for one in by_step.values()]
        for run in runs
        for name, by_step in run["errors"].items()
    ]


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, or 2 for what cannot be measured."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"{__doc__}\n{DenoisingConfig.__doc__}")
        return 0
    try:
        cfg = parse_command_line(DenoisingConfig, argv)
        cfg.validate()
        check_creatable(Path(cfg.out).parent)
        device = choose_device(cfg.device)
        runs = measure(cfg, device)
    except (ValueError, OSError) as error:
        print(f"benchmarks.model.denoising: {error}", file=sys.stderr)
        return 2
    text = table(
        ["weights", "people", "skull and landmarks", *(f"t = {t}" for t in cfg.steps)], rows_of(runs)
    )
    print(f"{machine(device)}; at most {cfg.num} people of each list; mean ± standard error\n\n{text}")
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(cfg.out), {"config": asdict(cfg), "runs": runs})
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.denoising", *argv])
        append_section("Error of the clean latent by step", command, device, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
