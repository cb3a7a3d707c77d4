"""What does an altered skull picture cost? Faces of test people, paired with those of the unaltered picture.

    python -m benchmarks.model.altered data.root=COHORT [key=value ...]

Skull pictures are altered as users' are, one thing at a time and all at once at random
(``muti_control.conditions.altered``); the attributes are the person's own, and all faces of a person have one seed. A
face is registered to the skull picture, so it is moved back as much as that picture was moved before dlib compares it
with the true face. The error of the landmarks that the network reads off the skull is in percent of the distance of the
outer eye corners, against the true ones moved along (``prepare=off``). Differences are paired over people, with 95 %
bootstrap intervals. The control is the skull of the next person in the list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from tqdm import tqdm

from benchmarks.results_file import append_section, run, table
from data.biometrics import Attributes
from data.images import read_image, to_uint8
from data.landmarks import landmark_fractions
from data.manifest import Record, read_manifest
from muti_control.case.calibrate import DataSettings, spread_evenly
from muti_control.case.measure import upright
from muti_control.case.planted import lit, on_background
from muti_control.case.prepare import checked_skull
from muti_control.conditions.altered import Alteration, draw_alteration, moved_points
from muti_control.evaluation.judges.dlib_recogniser import Recogniser, descriptor_distances
from muti_control.evaluation.results.statistics import bootstrap_interval
from muti_control.networks.pipnet.measures import eye_corners, nme
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import DEMO_WEIGHTS, SKULL_LANDMARKS
from muti_control.sampling.reconstructor import Reconstructor
from settings.base import Settings

Floats = NDArray[np.float32]
Change = Callable[[Floats, int], tuple[Floats, Alteration]]
Prepare = Literal["off", "auto"]


def _one(**amounts: float) -> Change:
    alteration = Alteration(amounts, lamp_at=-2.36, seed=1)  # a lamp at the upper left
    return lambda picture, _: (alteration.skull(picture), alteration)


def _other(change: Callable[[Floats], Floats]) -> Change:
    return lambda picture, _: (change(picture), Alteration({}))


def _all_at_once(picture: Floats, person: int) -> tuple[Floats, Alteration]:
    alteration = draw_alteration(np.random.default_rng(person), share=1.0)
    return alteration.skull(picture), alteration


KINDS: dict[str, Change] = {
    "shifted by 10 px across": _one(right=10),
    "shifted by 10 px down": _one(down=10),
    "turned by 5 degrees": _one(turn=5),
    "8 % smaller": _one(scale=-0.08),
    "8 % larger": _one(scale=0.08),
    "lamp 40 degrees to the upper left": _one(lamp=40),
    "falling light, upper left": _other(lit),
    "gamma 0.7": _one(gamma=-0.5),
    "gamma 1.4": _one(gamma=0.5),
    "20 % darker": _one(brightness=-0.2),
    "20 % brighter": _one(brightness=0.2),
    "slices of 3 mm": _one(slices=3),
    "slices of 5 mm": _one(slices=5),
    "JPEG 40": _one(jpeg=60),
    "blur 1.5 px": _one(blur=1.5),
    "noise 5 %": _one(noise=0.05),
    "white background": _other(partial(on_background, level=1.0)),
    "all at once at random": _all_at_once,
}


class AlteredConfig(Settings):
    """What is measured."""

    weights: str = DEMO_WEIGHTS
    """Checkpoint of the model."""
    landmark_weights: str = SKULL_LANDMARKS
    """Network that reads the face's landmarks off skulls."""
    data: DataSettings = DataSettings(root="cohort")
    people: Annotated[int, Field(ge=2)] = 100
    """People, spread evenly over the list."""
    steps: PositiveInt = 5
    """Steps of the sampler."""
    prepare: list[Prepare] = ["off", "auto"]
    """Values of prepare to try."""
    split: Literal["valid", "test"] = "test"
    """List of the people."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


def work(cfg: AlteredConfig, arguments: Sequence[str]) -> None:
    """Draw and judge the faces, print the table, and append it to RESULTS.md where that is set."""
    records = spread_evenly(read_manifest(Path(cfg.data.root, f"split_data/{cfg.split}.json")), cfg.people)
    reconstructor = Reconstructor.load(cfg.weights, cfg.device, landmark_weights=cfg.landmark_weights)
    errors_of = _landmark_errors(cfg.landmark_weights)
    recogniser = Recogniser()
    skulls = [read_image(record.skull_path)[0] for record in records]
    rows: dict[str, dict[str, list[float]]] = {}
    for k, record in enumerate(tqdm(records, unit="person", disable=None)):
        draw = partial(_face, reconstructor, record, cfg.steps)
        assert record.face_path is not None, "lists of pairs have faces"
        true = _look(recogniser, to_uint8(read_image(record.face_path)[0]))
        own = Alteration({})
        pictures = {"unaltered": (skulls[k], own)} | {kind: x(skulls[k], k) for kind, x in KINDS.items()}
        pictures["the next person's skull"] = skulls[(k + 1) % len(skulls)], own
        for kind, (picture, alteration) in pictures.items():
            row = rows.setdefault(kind, {})
            faces: dict[int, NDArray[np.uint8]] = {}  # by the picture seen: often both modes see the same
            for prepare in cfg.prepare:
                seen, place = _as_seen(picture, alteration, prepare, reconstructor, record)
                if id(seen) not in faces:
                    faces[id(seen)] = draw(seen)
                back = cv2.invertAffineTransform(place)
                face = cv2.warpAffine(faces[id(seen)], back, seen.shape[:2], flags=cv2.INTER_CUBIC)
                distance = descriptor_distances(_look(recogniser, face.astype(np.uint8)), true)
                row.setdefault(prepare, []).append(float(distance[0, 0]))
            row.setdefault("landmarks", []).append(errors_of(picture, record, alteration))
    header = ["skull", *(f"dlib, prepare={prepare}" for prepare in cfg.prepare), "landmark error, %"]
    body = [[kind, *_cells(kind, row, rows["unaltered"])] for kind, row in rows.items()]
    text = table(header, body)
    print(text)
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.altered", *arguments])
        append_section("Altered skull pictures", command, torch.device("cpu"), text)


def _cells(kind: str, row: dict[str, list[float]], unaltered: dict[str, list[float]]) -> list[str]:
    """Return the means of the unaltered pictures, or how much more the others have, paired, with intervals."""
    cells = []
    for name, values in row.items():
        plain = kind == "unaltered"
        more = np.array(values) - (0 if plain else np.array(unaltered[name]))
        low, high = bootstrap_interval(more, np.random.default_rng(0))
        digits = "{:.2f}" if name == "landmarks" else "{:.3f}"
        signed = digits if plain else digits.replace(":", ":+")
        cells.append(f"{signed.format(more.mean())} [{digits.format(low)}, {digits.format(high)}]")
    return cells


def _look(recogniser: Recogniser, face: NDArray[np.uint8]) -> Floats:
    return recogniser.look(face)[0][None]


def _as_seen(
    picture: Floats, alteration: Alteration, prepare: Prepare, reconstructor: Reconstructor, record: Record
) -> tuple[Floats, NDArray[np.floating]]:
    """Return the skull picture that the network sees, and the (2, 3) affine from the unaltered picture to it, px."""
    place = alteration.affine(picture.shape[0])
    if prepare == "off":
        return picture, place
    checked = checked_skull(picture, reconstructor.networks.calibration, record.biometrics)
    own, mended = checked.before.measures, checked.before.away & {"angle", "scale", "right", "down"}
    if checked.picture is picture or own is None or not mended:
        return checked.picture, place
    forward = cv2.invertAffineTransform(upright(own, picture.shape[0], mended).astype(np.float64))
    return checked.picture, forward @ np.vstack([place, [0, 0, 1]])


def _face(reconstructor: Reconstructor, record: Record, steps: int, skull: Floats) -> NDArray[np.uint8]:
    person = Attributes(**vars(record.biometrics))
    return reconstructor.reconstruct(
        skull, person, 1, sampling={"steps": steps}, prepare="off", force=True
    ).faces[0]


def _landmark_errors(weights: str) -> Callable[[Floats, Record, Alteration], float]:
    """Return the function (picture, record, alteration) -> error of the network's landmarks, percent."""
    reader = LandmarkReader.load(weights)

    @torch.inference_mode()
    def error(picture: Floats, record: Record, alteration: Alteration) -> float:
        true = torch.from_numpy(landmark_fractions(record)[0])[None]
        true = moved_points(true, torch.from_numpy(alteration.points(picture.shape[0])))
        people = [record.biometrics] if reader.takes_biometrics else None
        points, _ = reader(torch.from_numpy(picture).permute(2, 0, 1)[None], people)
        return 100 * float(nme(points, true, eye_corners(true.shape[1])))

    return error


def main(arguments: Sequence[str]) -> int:
    return run("model.altered", AlteredConfig, arguments or ["--help"], lambda cfg: work(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
