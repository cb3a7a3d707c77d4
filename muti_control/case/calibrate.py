"""Make the calibration of a weights file, beside it.

    python -m muti_control.case.calibrate weights=FILE data.root=FOLDER [cache=FOLDER] [evaluation=RESULTS]

FOLDER holds split_data/{train,valid,test}.json as for training. The reference of the input check comes from training
skulls, its limits from validation skulls; false alarms and detections are counted on test skulls. With ``cache`` faces
are drawn for validation and test people, and the spread of their landmarks is calibrated; a run that was stopped
continues there. With ``evaluation``, a results folder of evaluate.py, its error rates are copied. What is not asked for
is kept from the file that is there, if it belongs to the same weights.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from tqdm import tqdm

from data.check.measure import silhouette
from data.images import read_image
from data.manifest import Record, check_disjoint, read_manifest
from data.program import run_program
from ldm.checkpoint import git_revision, sha256
from muti_control.case import coverage as spread
from muti_control.case.calibration import (
    Calibration,
    CalibrationError,
    Population,
    calibration_path,
    load_calibration,
)
from muti_control.case.check import TEXTS, check_skull
from muti_control.case.measure import (
    SIDE,
    Array,
    Measures,
    laid,
    lower_part,
    measure,
    principal,
    register,
    resized,
)
from muti_control.case.planted import PLANTED, without
from muti_control.evaluation.results.results import Evaluation, Method
from muti_control.evaluation.results.results_file import read_results
from muti_control.sampling.config import DEMO_WEIGHTS
from muti_control.sampling.request import shipped
from settings.base import Settings

SKULL_AXES, FACE_AXES, NUM_FACES, ROUNDS = 40, 20, 200, (100, None)
BEYOND = 1.4  # a limit lies so much further out than the outermost validation skull
FIT_BEYOND = 6.0
SYNTHETIC = "synthetic; the figures do not show how it is with real people"
JAWLESS, JAW_RIDGE, JAW_LIMIT = 250, 0.1, 0.2


class DataSettings(Settings):
    """The people."""

    root: str = "data"
    """Folder with pairedCS/ (pictures) and split_data/ (lists)."""


class CalibrateConfig(Settings):
    """What is measured for a weights file."""

    weights: str = DEMO_WEIGHTS
    """The file to calibrate."""
    data: DataSettings = DataSettings()
    train_skulls: PositiveInt = 800
    """Training skulls at most, for the reference of the input check."""
    planted: NonNegativeInt = 100
    """Test skulls for each planted kind of mistake; 0 leaves the input check as it is."""
    cache: str | None = None
    """Folder of the landmarks of drawn faces; null leaves the spread as it is."""
    people: PositiveInt | None = None
    """People at most of each list; null takes all."""
    num_samples: PositiveInt = 8
    """Faces of each person."""
    evaluation: str | None = None
    """Folder or metrics.json of an evaluation of these weights, for the error rates."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


def calibrate(cfg: CalibrateConfig) -> None:
    """Measure what the settings ask for, write the file and print a summary."""
    weights = shipped(cfg.weights)
    digest, path = sha256(weights), calibration_path(weights)
    lists = {
        name: read_manifest(Path(cfg.data.root, "split_data", f"{name}.json"))
        for name in ("train", "valid", "test")
    }
    check_disjoint(lists)
    try:
        earlier = load_calibration(weights, digest)
    except CalibrationError as error:
        print(f"note: {error}; it is replaced")
        earlier = None
    population = Population.of_people([record.biometrics for record in lists["train"]])
    result = earlier or Calibration(weights_sha256=digest, population=population)
    result = result.with_(
        population=population, made_with={"git": git_revision(), "settings": cfg.model_dump()}
    )
    rates = None if cfg.evaluation is None else error_rates(read_results(Path(cfg.evaluation)), digest)
    result = result if rates is None else result.with_(error_rates=rates)
    if cfg.planted:
        result = calibrate_check(result, lists, cfg)
    if cfg.cache is not None:
        result = calibrate_spread(result, lists, weights, digest, cfg)
    result.save(path)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.2f} MiB) for weights {digest[:12]}")


def calibrate_check(
    calibration: Calibration, lists: dict[str, list[Record]], cfg: CalibrateConfig
) -> Calibration:
    """Return the calibration with reference and limits of the check, and how often it was right on test skulls."""
    train = spread_evenly(lists["train"], cfg.train_skulls)
    faces = [record.face_path for record in train[:NUM_FACES] if record.face_path is not None]
    skulls = [read_image(record.skull_path)[0] for record in train]
    arrays = make_reference([skull.mean(2) for skull in skulls], [_grey(path) for path in faces])
    own = [measure(skull.mean(2), arrays) for skull in tqdm(skulls, desc="training skulls", disable=None)]
    jawless = [
        measure(without("mandible", skull, record.source).mean(2), arrays)
        for skull, record in zip(skulls[:JAWLESS], train, strict=False)
    ]
    arrays["jaw"] = jaw_weights(own, jawless)
    valid = tqdm(lists["valid"], desc="validation skulls", disable=None)
    held_out = [measure(_grey(record.skull_path), arrays) for record in valid]
    rows = [measures.numbers for measures in (*held_out, *own)]
    limits: dict[str, float] = {}
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name in TEXTS:
        usual = float(np.median(values[name]))
        limits |= {f"{name}_usual": usual, name: BEYOND * float(np.abs(values[name] - usual).max())}
    held = {name: values[name][: len(held_out)] for name in ("residual", "fit")}
    limits |= {"residual": BEYOND * float(held["residual"].max()), "mandible": JAW_LIMIT}
    limits["fit"] = 1 - FIT_BEYOND * (1 - float(held["fit"].min()))
    arrays["residuals"] = np.quantile(held["residual"], np.linspace(0, 1, 101)).astype(np.float32)
    others = {name: array for name, array in calibration.arrays.items() if name.startswith("spread")}
    result = calibration.with_(limits=limits, arrays=arrays | others)
    report = count_findings(result, lists["test"], cfg.planted)
    print(json.dumps(report, indent=1))
    return result.with_(check=report)


def jaw_weights(sound: Sequence[Measures], jawless: Sequence[Measures]) -> Array:
    """Return weights of ``lower_part`` whose sum is about 1 with a mandible and -1 without (ridge regression)."""
    rows = np.stack([lower_part(measures.aligned) for measures in (*sound, *jawless)]).astype(np.float64)
    sides = np.r_[np.ones(len(sound)), -np.ones(len(jawless))]
    kernel = rows @ rows.T
    strength = JAW_RIDGE * np.trace(kernel - kernel.mean(0)) / len(rows)
    weights = rows.T @ np.linalg.solve(kernel + strength * np.eye(len(rows)), sides)
    return _as_stored(weights)


def make_reference(skulls: Sequence[Array], faces: Sequence[Array]) -> dict[str, Array]:
    """Return the arrays of the check from skulls and faces, each (H, H) in [0, 1].

    The mean skull is that of the skulls laid over their mean, which is made twice.
    """
    small = [_small(skull) for skull in skulls]
    bones = [_small(silhouette(skull).filled.astype(np.float32)) for skull in skulls]
    mean, mask = np.mean(small, 0), np.mean(bones, 0)
    for num in ROUNDS:
        places = [
            register(skull, mean, mask)[0] for skull in tqdm(small[:num], desc="reference", disable=None)
        ]
        aligned = np.stack([laid(skull, place) for skull, place in zip(small, places, strict=False)])
        mean = aligned.mean(0)
        mask = np.mean([laid(bone, place) for bone, place in zip(bones, places, strict=False)], 0)
    arrays = {"mean": mean, "mask": mask}
    arrays["skull_mean"], arrays["skull_axes"] = principal(aligned, SKULL_AXES)
    if faces:
        over = np.stack([laid(face, register(face, mean, mask)[0]) for face in map(_small, faces)])
        arrays["face_mean"], arrays["face_axes"] = principal(over, FACE_AXES)
    return {name: _as_stored(array) for name, array in arrays.items()}


def count_findings(calibration: Calibration, records: Sequence[Record], planted: int) -> dict[str, Any]:
    """Return how many sound skulls have any finding, and in how many of each planted kind the right one is there."""
    sound = [
        check_skull(read_image(record.skull_path)[0], calibration)
        for record in tqdm(records, desc="sound skulls", disable=None)
    ]
    some = spread_evenly(records, planted)
    shares: dict[str, float] = {}
    for kind, (finding, change) in tqdm(PLANTED.items(), desc="planted", disable=None):
        pictures = (change(read_image(r.skull_path)[0], r.source).astype(np.float32) for r in some)
        shares[kind] = float(
            np.mean([finding in check_skull(picture, calibration).names for picture in pictures])
        )
    faces = [read_image(r.face_path)[0] for r in some if r.face_path is not None]
    stopped = [check_skull(face, calibration).level == "stop" for face in faces]
    shares["a face"] = float(np.mean(stopped)) if faces else 0.0
    return {
        "sound_skulls": len(records),
        "false_alarms": sum(check.level != "ok" for check in sound) / len(records),
        "false_findings": Counter(name for check in sound for name in check.names),
        "skulls_of_each_kind": len(some),
        "found": {kind: float(share) for kind, share in shares.items()},
    }


def calibrate_spread(
    calibration: Calibration, lists: dict[str, list[Record]], weights: Path, digest: str, cfg: CalibrateConfig
) -> Calibration:
    """Return the calibration with the factor of the spread, and the share of true landmarks held on test people."""
    drawn, true, people = {}, {}, {}
    for name in ("valid", "test"):
        people[name] = spread_evenly(lists[name], cfg.people)
        folder = Path(str(cfg.cache)) / name
        drawn[name] = spread.drawn_landmarks(
            weights, digest, people[name], folder, cfg.num_samples, cfg.device
        )
        true[name] = spread.true_points(people[name])
    arrays, factor = spread.spread_reference(drawn["valid"], true["valid"])
    cohort = Path(cfg.data.root, "cohort.json")
    camera = json.loads(cohort.read_text(encoding="utf-8")) if cohort.is_file() else {}
    mm = 2 * camera["half_field"] / camera["size"] if camera else None
    report = spread.coverage(drawn["test"], true["test"], people["test"], arrays, factor, mm)
    report["kind_of_people"] = SYNTHETIC if camera else "as in the lists"
    print(json.dumps({"spread_factor": factor, **report}, indent=1))
    return calibration.with_(spread_factor=factor, coverage=report, arrays=calibration.arrays | arrays)


def error_rates(evaluation: Evaluation, digest: str) -> dict[str, Any]:
    """Return the error rates of an evaluation of the weights with this SHA-256, in all and by group of people.

    Raises:
        CalibrationError: it evaluated other weights.
    """
    files = {file.sha256 for file in evaluation.subject.files}
    method = next((method for method in evaluation.methods if method.kind == "model"), None)
    if digest not in files or method is None:
        raise CalibrationError(
            f"evaluation: it is of {evaluation.subject.name}, not of weights {digest[:12]}...; evaluate these first: "
            "python evaluate.py weights=FILE data.root=FOLDER"
        )
    rank1 = {
        name: {"all": vars(judged.rank1)}
        | {g.group: vars(g.rank1) for g in judged.groups if g.attribute in ("sex", "age")}
        for name, judged in method.identification.items()
        if name != "picture"  # it compares pixels, and pixels are no likeness
    }
    best = {
        c.recogniser: {"draws": c.draws, "within": c.within}
        | {key: getattr(c.curves[method.name], key)[-1] for key in ("value", "low", "high")}
        | {"n": len(c.probes)}
        for c in evaluation.coverage
        if method.name in c.curves and c.recogniser in rank1
    }
    return {
        "date": evaluation.date,
        "people": len(evaluation.probes),
        "gallery": evaluation.protocol.gallery_size,
        "kind_of_people": SYNTHETIC if evaluation.protocol.cohort else "as in the lists",
        "rank1": rank1,
        "best_of": best,
        "landmark_error": _landmark_error(evaluation, method),
    }


def _landmark_error(evaluation: Evaluation, method: Method) -> dict[str, Any] | None:
    """Return the error of dlib's points, % of the distance of the eyes, in all and by group; None if not measured."""
    measured = method.pictures.get("nme")
    if measured is None or measured.values is None:
        return None
    of_group: dict[str, list[float]] = defaultdict(list)
    for probe, value in zip(evaluation.probes, measured.values, strict=True):
        for group in ("all", *(probe.groups[name] for name in ("sex", "age") if name in probe.groups)):
            of_group[group] += [] if value is None else [value]
    figures = {name: spread.figure(np.array(values)) for name, values in of_group.items() if values}
    return {"unit": "% of the eyes' distance", **figures}


def spread_evenly(records: Sequence[Record], limit: int | None) -> list[Record]:
    """Return at most ``limit`` records, evenly over the list."""
    if limit is None or limit >= len(records):
        return list(records)
    return [records[k * len(records) // limit] for k in range(limit)]


def _grey(path: Path) -> Array:
    return read_image(path)[0].mean(2)


def _small(picture: Array) -> Array:
    return resized(picture, SIDE)


def _as_stored(array: NDArray[np.floating]) -> Array:
    """Return an array as the file, which has half precision, gives it back."""
    return array.astype(np.float16).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after one line on stderr."""
    return run_program("muti_control.case.calibrate", __doc__, CalibrateConfig, calibrate, argv, paths="")


if __name__ == "__main__":
    sys.exit(main())
