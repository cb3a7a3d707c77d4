"""Does a real skull's own face come first? The rank of the own skull among others, towards the real face.

    python -m benchmarks.model.real_heads SCAN... data.root=COHORT people='["M,39,Caucasian,5"]' [key=value ...]

``data.ct`` draws each scan. Faces are reconstructed from its skull and from those of test people, all told the same
attributes, with the same seeds; then four judges compare them with the real face:

- dlib: distance of its recogniser's descriptors,
- shape: Procrustes distance of dlib's 68 points,
- landmarks: mean distance of the points that our face network reads, mm, centroids laid over each other,
- picture: 1 less the correlation of the grey levels, blurred by 2 px, where the cohort's camera has the face.

Real faces lie apart from drawn ones, so only the rank among skulls counts: 1 is best. It is that of the mean over the
seeds; beside it the range of single seeds' ranks. Each row has other attributes: the true ones, then guesses. No choice
may ever use a head that is measured here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from tqdm import tqdm

from benchmarks.results_file import append_section, table
from data.biometrics import Attributes, Biometrics
from data.ct.as_skull import draw_scan_skull
from data.ct.config import CtConfig
from data.images import read_image
from data.manifest import read_manifest
from data.program import run_program
from muti_control.case.calibrate import DataSettings, spread_evenly
from muti_control.evaluation.judges.dlib_recogniser import (
    USUAL_RECTANGLE,
    Recogniser,
    descriptor_distances,
    procrustes_distances,
)
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import DEMO_WEIGHTS, SKULL_LANDMARKS
from muti_control.sampling.reconstructor import Reconstructor
from settings.base import Settings, expect

Pixels = NDArray[np.uint8]
JUDGES = ("dlib", "shape", "landmarks", "picture")
BLUR_PX = 2.0  # at 256 px
OTHER_AGE = 20  # years


class RealHeadsConfig(Settings):
    """What is measured."""

    people: Annotated[list[str], Field(min_length=1)]
    """Sex, age, ethnicity and body mass (1 to 5) of each scan, with commas."""
    others: PositiveInt = 20
    """Skulls of test people."""
    faces: PositiveInt = 4
    """Faces of each skull."""
    seed: int = 0
    """Seed of the first face."""
    guesses: bool = True
    """Also tell other attributes."""
    steps: PositiveInt = 20
    """Steps of the sampler."""
    weights: str = DEMO_WEIGHTS
    """Checkpoint of the model."""
    landmark_weights: str = SKULL_LANDMARKS
    """Network that reads the face's landmarks off skulls."""
    face_landmark_weights: str = "models/demo/pipnet_face.safetensors"
    """Network that reads landmarks off faces."""
    data: DataSettings = DataSettings(root="cohort")
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


class Judge:
    """Distances of drawn faces to one real face."""

    def __init__(self, real: Pixels, mm_per_px: float, reader: LandmarkReader) -> None:
        self.mm, self.reader, self.recogniser = mm_per_px * real.shape[0], reader, Recogniser()
        self.real = self._look(real)

    def distances(self, face: Pixels) -> NDArray[np.float64]:
        """Return (4,) distances of one face (H, W, 3), in the order of JUDGES."""
        (a, b, c, d), (x, y, z, w) = self._look(face), self.real
        mm = self.mm * np.linalg.norm((c - c.mean(0)) - (z - z.mean(0)), axis=1).mean()
        dlib, shape = descriptor_distances(a[None], x[None]), procrustes_distances(b[None], y[None])
        return np.array([dlib[0, 0], shape[0, 0], mm, 1 - np.corrcoef(d.ravel(), w.ravel())[0, 1]])

    def _look(self, face: Pixels) -> tuple[NDArray[np.floating], ...]:
        size = face.shape[0]
        picture = torch.from_numpy(face / np.float32(255)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            points = self.reader(picture)[0][0].numpy()
        left, top, right, bottom = (round(edge * size) for edge in USUAL_RECTANGLE)
        blurred = cv2.GaussianBlur(face.mean(2), (0, 0), BLUR_PX * size / 256)[top:bottom, left:right]
        return *self.recogniser.look(face), points, blurred


def guesses_of(person: Biometrics) -> Iterator[tuple[str, Biometrics]]:
    """Yield the true attributes, and guesses that differ from them in one."""
    yield "the true ones", person
    mass = person.body_mass - 1 if person.body_mass > 1 else 2
    yield f"body mass {mass}", replace(person, body_mass=mass)
    for age in (person.age - OTHER_AGE, person.age + OTHER_AGE):
        if 16 <= age <= 90:
            yield f"age {age:g}", replace(person, age=age)


def ranks(own: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.integer]:
    """Return the ranks of own distances (...,) among those of others (N, ...): 1 is nearest; ties count against."""
    return 1 + (others <= own).sum(0)


def work(cfg: RealHeadsConfig, arguments: Sequence[str], *scans: Path) -> None:
    """Draw the scans and the faces, print the table, and append it to RESULTS.md where that is set."""
    expect(len(cfg.people) == len(scans), "people", cfg.people, f"one entry for each of {len(scans)} scans")
    people = [_person(text) for text in cfg.people]
    records = spread_evenly(read_manifest(Path(cfg.data.root, "split_data/test.json")), cfg.others)
    others = [read_image(record.skull_path)[0] for record in records]
    reader = LandmarkReader.load(cfg.face_landmark_weights)
    reconstructor = Reconstructor.load(cfg.weights, cfg.device, landmark_weights=cfg.landmark_weights)
    rows = []
    for scan, person in zip(scans, people, strict=True):
        drawn = draw_scan_skull(scan, CtConfig())
        skull, face = (np.repeat(picture[..., None], 3, 2) for picture in (drawn.skull, drawn.face))
        judge = Judge(face, drawn.mm_per_px, reader)
        for label, told in [*guesses_of(person)][: None if cfg.guesses else 1]:
            results = []
            for picture in tqdm([skull, *others], unit="skull", disable=None):
                faces = reconstructor.reconstruct(
                    picture,
                    Attributes(**vars(told)),
                    cfg.faces,
                    cfg.seed,
                    sampling={"steps": cfg.steps},
                    force=True,
                ).faces
                results.append([judge.distances(one) for one in faces])
            rows.append([scan.name.split(".")[0], label, *_cells(np.array(results))])
    text = table(["head", "attributes told", *JUDGES], rows)
    print(text)
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.real_heads", *arguments])
        append_section("Real heads", command, torch.device("cpu"), text)


def _cells(results: NDArray[np.floating]) -> list[str]:
    """Return a cell for each judge of distances (1 + others, faces, 4): rank, seeds' ranks, own and others' mean."""
    mean = results.mean(1)
    of_mean, of_seeds = ranks(mean[0], mean[1:]), ranks(results[0], results[1:])  # (4,), (faces, 4)
    return [
        f"**{of_mean[k]}** of {len(results)} ({of_seeds[:, k].min()} to {of_seeds[:, k].max()}); "
        f"{mean[0, k]:.3f}, others {mean[1:, k].mean():.3f} ± {mean[1:, k].std(ddof=1):.3f}"
        for k in range(len(JUDGES))
    ]


def _person(text: str) -> Biometrics:
    parts = [part.strip() for part in text.split(",")]
    expect(len(parts) == 4, "people", text, "sex,age,ethnicity,body mass, such as M,39,Caucasian,5")
    sex, age, ethnicity, mass = parts
    return Biometrics.parse(sex=sex, age=age, ethnicity=ethnicity, body_mass=mass)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments

    def measure(cfg: RealHeadsConfig, *scans: Path) -> None:
        work(cfg, arguments, *scans)

    stopped = "stopped; no figures were written"
    return run_program(
        "benchmarks.model.real_heads",
        __doc__,
        RealHeadsConfig,
        measure,
        arguments,
        paths="SCAN...",
        stopped=stopped,
    )


if __name__ == "__main__":
    sys.exit(main())
