"""Does preparing a skull picture help? Faces of altered skulls against the face of the unaltered one.

    python -m benchmarks.model.preparing data.root=COHORT [key=value ...]

The skulls are of test people, with their own attributes; all faces of a person have one seed. A figure is the mean
grey-level distance of two faces in levels of 255, over the picture; its interval (95 %) is a bootstrap over people.
Rows of comparison: another seed, and the skull of the next person with the same attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from tqdm import tqdm

from benchmarks.results_file import append_section, run, table
from data.biometrics import Attributes
from data.images import read_image
from data.manifest import read_manifest
from muti_control.case.calibrate import DataSettings, spread_evenly
from muti_control.case.planted import moved, on_background
from muti_control.evaluation.results.statistics import bootstrap_interval
from muti_control.sampling.config import DEMO_WEIGHTS
from muti_control.sampling.reconstructor import Reconstructor
from settings.base import Settings

KINDS = {
    "shifted by 10 px": lambda p: moved(p, right=10),
    "turned by 5 degrees": lambda p: moved(p, angle=5),
    "turned by 10 degrees": lambda p: moved(p, angle=10),
    "turned by 20 degrees": lambda p: moved(p, angle=20),
    "scaled by 0.92": lambda p: moved(p, scale=0.92),
    "scaled by 1.08": lambda p: moved(p, scale=1.08),
    "white background": lambda p: on_background(p, 1.0),
    "inverted": lambda p: 1 - p,
}


class PreparingConfig(Settings):
    """What is measured.

    weights: with their calibration. data.root: of the test list. people: how many, evenly over the list.
    steps: of the sampler. append: add the table to benchmarks/RESULTS.md.
    """

    weights: str = DEMO_WEIGHTS
    data: DataSettings = DataSettings(root="cohort")
    people: PositiveInt = 40
    steps: PositiveInt = 6
    device: str = "auto"
    append: bool = False


def work(cfg: PreparingConfig, arguments: Sequence[str]) -> None:
    """Draw the faces, print the table, and append it to RESULTS.md where that is set."""
    records = spread_evenly(read_manifest(Path(cfg.data.root, "split_data/test.json")), cfg.people)
    reconstructor = Reconstructor.load(cfg.weights, cfg.device)
    skulls = [read_image(record.skull_path)[0] for record in records]
    distances: dict[str, dict[str, list[float]]] = {}
    for k, record in enumerate(tqdm(records, unit="person", disable=None)):
        draw = partial(_face, reconstructor, Attributes(**vars(record.biometrics)), cfg.steps)
        own = draw(skulls[k])
        others = {
            kind: {prepare: draw(change(skulls[k]), prepare) for prepare in ("off", "auto")}
            for kind, change in KINDS.items()
        }
        others["another seed"] = {"off": draw(skulls[k], seed=1)}
        others["the next person's skull"] = {"off": draw(skulls[(k + 1) % len(skulls)])}
        for kind, faces in others.items():
            for prepare, other in faces.items():
                of_kind = distances.setdefault(kind, {}).setdefault(prepare, [])
                of_kind.append(float(np.abs(other - own).mean()))
    header = ["skull", "prepare=off", "prepare=auto", "auto less off"]
    text = table(header, [[kind, *_cells(by)] for kind, by in distances.items()])
    print(text)
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.preparing", *arguments])
        append_section("Preparing a skull", command, torch.device("cpu"), text)


def _face(
    reconstructor: Reconstructor,
    attributes: Attributes,
    steps: int,
    skull: NDArray[np.float32],
    prepare: str = "off",
    seed: int = 0,
) -> NDArray[np.float32]:
    drawn = reconstructor.reconstruct(
        skull, attributes, 1, seed, sampling={"steps": steps}, prepare=prepare, force=True
    )
    return drawn.faces[0].astype(np.float32)


def _cells(by: dict[str, list[float]]) -> list[str]:
    columns = [np.array(values) for values in by.values()]
    columns += [columns[1] - columns[0]] if len(columns) > 1 else []
    cells = []
    for values in columns:
        low, high = bootstrap_interval(values, np.random.default_rng(0))
        cells.append(f"{values.mean():.1f} [{low:.1f}, {high:.1f}]")
    return cells + [""] * (3 - len(cells))


def main(arguments: Sequence[str]) -> int:
    return run("model.preparing", PreparingConfig, arguments or ["--help"], lambda cfg: work(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
