"""How near each sampler comes to the converged solution, by its number of steps.

    python -m benchmarks.sampling.samplers [key=value ...]

From the same first noise, without further noise (eta 0), every solver of the probability-flow ODE tends to the same
picture. The reference is UniPC with many steps; the figure is the mean absolute difference from it, in grey levels of
255. It says how well a solver solves, not how good the pictures are: for that, `python evaluate.py` with
`sampling.sampler=...`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor
from tqdm import tqdm

from benchmarks.results_file import append_section, run, table
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.sampling import reconstruct
from data.biometrics import prompt
from data.cases import cases_of
from data.manifest import read_manifest
from ldm.device import choose_device
from muti_control.sampling.draw import read_skulls
from muti_control.sampling.prepare import recommended_sampling
from settings.base import Settings
from settings.reading import parse_command_line

WAYS = (
    ("ddim", "trailing"),
    ("ddim", "karras"),
    ("dpmpp_2m", "trailing"),
    ("dpmpp_2m", "karras"),
    ("unipc", "karras"),
)


Steps = Annotated[int, Field(ge=1, le=999)]


class SamplersConfig(Settings):
    """What is compared."""

    weights: str = "models/demo/iccr_demo.safetensors"
    """Checkpoint of the model."""
    manifest: str = "data/split_data/test.json"
    """List of the skulls."""
    num: PositiveInt = 6
    """Skulls, the first of the list."""
    steps: Annotated[list[Steps], Field(min_length=1)] = [10, 20, 50]
    """Numbers of steps to try."""
    reference_steps: Steps = 400
    """Steps of the solution that counts as converged."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


def differences(
    model: ControlledLatentDiffusion, cfg: SamplersConfig, sampling: SamplingConfig
) -> dict[tuple[str, str], list[float]]:
    """Return the mean absolute difference from the reference in grey levels, for every way and number of steps."""
    records = read_manifest(cfg.manifest)[: cfg.num]
    skulls = read_skulls([(case, 0, 0) for case in cases_of(records)], model.cfg.image_size)
    prompts = [prompt(record.biometrics) for record in records]

    def draw(sampler: str, spacing: str, steps: int) -> Tensor:
        how = sampling.with_(sampler=sampler, spacing=spacing, steps=steps, eta=0.0)
        return reconstruct(model, skulls, prompts, range(len(records)), how)

    reference = draw("unipc", "karras", cfg.reference_steps)
    return {
        way: [255 * float((draw(*way, steps) - reference).abs().mean()) for steps in cfg.steps]
        for way in tqdm(WAYS, desc="samplers", file=sys.stderr, dynamic_ncols=True)
    }


def measure(cfg: SamplersConfig, arguments: Sequence[str]) -> None:
    """Print the table, and append it to RESULTS.md where that is set."""
    device = choose_device(cfg.device)
    read_manifest(cfg.manifest)
    model, metadata = load_model(cfg.weights, device=device)
    recommended = recommended_sampling(metadata, model.cfg.unet.num_control_outputs)
    sampling = parse_command_line(SamplingConfig, [], base=recommended, base_name="settings in the weights")
    errors = differences(model, cfg, sampling)
    rows = [[*way, *(f"{value:.2f}" for value in values)] for way, values in errors.items()]
    body = (
        f"Mean absolute difference from {cfg.reference_steps} steps of UniPC, in grey levels of 255, eta 0, "
        f"{cfg.num} skulls of {cfg.manifest}:\n\n"
        + table(["sampler", "spacing", *(f"{steps} steps" for steps in cfg.steps)], rows)
    )
    print(body)
    if cfg.append:
        command = " ".join(["python -m benchmarks.sampling.samplers", *arguments])
        append_section("Samplers: how near the converged solution", command, device, body)


def main(arguments: Sequence[str]) -> int:
    return run("sampling.samplers", SamplersConfig, arguments, lambda cfg: measure(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
