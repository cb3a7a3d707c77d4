"""Measure which share of a true change of age or body mass drawn faces make, and what each reader of points is worth.

    python -m benchmarks.model.edits data.root=COHORT results=results/NAME [key=value ...]

``results`` is a folder of evaluate.py with faces that were told another age or body mass; the cohort was made with
variants. The change of a face's points, laid onto the face before by a similarity, is held against the true change of
that person, both read off pictures by one reader: 1 is all of it. Readers are our landmark network and dlib. Three rows
tell what a reader is worth: the true faces through the autoencoder, which make all of the change; the true faces
against the cohort's exact points; and the model's change against the next person's true one, which shows how much is
common to all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from benchmarks.results_file import append_section, run, table, write_figures
from cldm.controlled import ControlledLatentDiffusion, load_model
from data.images import read_image
from data.landmarks import landmark_fractions
from data.manifest import Record, read_manifest
from ldm.checkpoint import git_revision, sha256
from muti_control.case.calibrate import DataSettings
from muti_control.evaluation.judges.dlib_recogniser import Recogniser
from muti_control.evaluation.methods.controls import EditPlan, find_edits
from muti_control.evaluation.results.statistics import bootstrap_interval, edit_projection, similarity_aligned
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.record import check_creatable
from settings.base import Settings
from settings.messages import ConfigError

Floats = NDArray[np.floating]
Points = Callable[[Tensor], Floats]  # picture (3, H, W) in [0, 1] -> points (L, 2), px of 256
DECODED = "the true faces through the autoencoder"
EXACT = "the true faces, against the exact points"
ANOTHERS = "model, against another's true change"
SIDE = 256
Face = TypeVar("Face")


class EditsConfig(Settings):
    """What is measured."""

    results: str
    """Folder of an evaluation by evaluate.py."""
    data: DataSettings = DataSettings(root="cohort")
    weights: str | None = "models/demo/iccr_demo.safetensors"
    """Model whose autoencoder the true faces go through; null leaves them out."""
    landmark_weights: str = "models/demo/pipnet_face.safetensors"
    """Network that reads landmarks off faces."""
    by: Annotated[list[Literal["network", "dlib"]], Field(min_length=1)] = ["network", "dlib"]
    """Readers of the landmarks."""
    num: Annotated[int, Field(ge=2)] = 60
    """People of each edit."""
    seed: int = 0
    """Seed of the bootstrap."""
    out: str = "benchmarks/results/edits.json"
    """JSON file to write."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


def picture(path: Path) -> Tensor:
    """(3, 256, 256) in [0, 1]."""
    return torch.from_numpy(read_image(path, SIDE)[0]).permute(2, 0, 1).float()


def network_reader(file: Path) -> Points:
    """Our landmark network. Raises: ValueError: it is none, or one that reads skulls."""
    reader = LandmarkReader.load(file)
    if reader.role != "face":
        raise ConfigError(
            f"landmark_weights: {file} reads {reader.role}s, expected a network that reads faces"
        )
    side = reader.net.cfg.image_size

    @torch.no_grad()
    def read(face: Tensor) -> Floats:
        faces = F.interpolate(face[None], (side, side), mode="bilinear", antialias=True)
        return SIDE * reader(faces)[0][0].double().numpy()

    return read


def dlib_reader() -> Points:
    """dlib's 68 points."""
    judge = Recogniser()
    return lambda face: judge.look(
        np.ascontiguousarray((face * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    )[1].astype(float)


def exact(record: Record) -> Floats:
    """The cohort's points, px of 256."""
    return SIDE * landmark_fractions(record)[0].astype(float)


def change(read: Callable[[Face], Floats], pairs: Collection[tuple[Face, Face]]) -> Floats:
    """Return how the points moved from the first to the second of each pair, (N, 2 L), without the similarity."""
    old, new = (np.stack([read(face) for face in side]) for side in zip(*pairs, strict=True))
    return (similarity_aligned(new, old) - old).reshape(len(old), -1)


class Bench:
    """The people, the folders and the autoencoder."""

    def __init__(self, cfg: EditsConfig) -> None:
        self.faces = Path(cfg.results) / "faces"
        lists = Path(cfg.data.root) / "split_data"
        self.probes = read_manifest(lists / "test.json")
        self.plans = find_edits(self.probes, read_manifest(lists / "variants.json"), cfg.num)
        if not self.plans:
            raise ConfigError(
                f"data.root: {cfg.data.root} has no true variants; python -m data.cohort ... variants=60"
            )
        edits = [f"_{plan.name}" for plan in self.plans]
        names = {folder.name for folder in self.faces.glob("*")}
        self.methods = sorted({n.removesuffix(e) for n in names for e in edits if n.endswith(e)})
        if not self.methods:
            raise ConfigError(
                f"results: {cfg.results} has no edited faces; python evaluate.py edited=60 ... draws them"
            )
        self.model: ControlledLatentDiffusion | None = None
        if cfg.weights is not None:
            self.model, _ = load_model(cfg.weights)

    def face_files(self, method: str, edit: str, probe: int) -> tuple[Path, Path] | None:
        """A person's faces before and after, if both were drawn."""
        record = self.probes[probe]
        assert record.face_path is not None
        name = f"{Path(record.source).stem}_0.png"
        own = self.faces / f"{method}_own"
        before = (own if own.is_dir() else self.faces / method) / name
        after = self.faces / f"{method}_{edit}" / name
        return (before, after) if before.is_file() and after.is_file() else None

    @torch.no_grad()
    def decoded(self, face: Tensor) -> Tensor:
        """Through the autoencoder, with grain of one and the same noise."""
        assert self.model is not None
        z = self.model.encode_first_stage(2 * face[None] - 1, sample=False)
        return ((self.model.draw(z, [0])[0] + 1) / 2).clamp(0, 1)

    def measure(self, plan: EditPlan, read: Points, with_exact: bool, seed: int) -> dict[str, Any]:
        """Each row's figures for one edit. with_exact: the reader's points are those that the cohort knows exactly."""
        probes = list(plan.variants)
        pairs = [(self.probes[i], plan.variants[i]) for i in probes]
        faces = [(picture(_face(a)), picture(_face(b))) for a, b in pairs]
        true = change(read, faces)
        rows = {}
        if with_exact and all(r.landmarks_path is not None for pair in pairs for r in pair):
            rows[EXACT] = _figures(true, change(exact, pairs), seed)
        if self.model is not None:
            through = [(self.decoded(a), self.decoded(b)) for a, b in faces]
            rows[DECODED] = _figures(change(read, through), true, seed)
        for method in self.methods:
            face_files = {
                k: both for k, i in enumerate(probes) if (both := self.face_files(method, plan.name, i))
            }
            if len(face_files) < 2:
                continue
            moved = change(lambda file: read(picture(file)), face_files.values())
            own = true[list(face_files)]
            rows[method] = _figures(moved, own, seed)
            if method == "model":
                rows[ANOTHERS] = _figures(moved, np.roll(own, 1, axis=0), seed)
        return {"label": plan.label, "rows": rows}


def _face(record: Record) -> Path:
    if record.face_path is None:
        raise ConfigError(f"data.root: line {record.line} of a list has no face")
    return record.face_path


def _figures(moved: Floats, true: Floats, seed: int) -> dict[str, Any]:
    """Over the people who truly change; the angle over those of them whose drawn face does, null if none does."""
    share, angle = edit_projection(moved, true)
    share = share[np.isfinite(share)]
    if not len(share):
        raise ConfigError(
            "data.root: an edit changes none of the true faces; python -m data.cohort makes variants that do"
        )
    low, high = bootstrap_interval(share, np.random.default_rng(seed))
    angle = angle[np.isfinite(angle)]
    return {
        "people": len(share),
        "projection": float(share.mean()),
        "interval": [low, high],
        "angle": float(angle.mean()) if len(angle) else None,
    }


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """A line for each reader and row, a column for each edit."""

    def cell(one: Mapping[str, Any] | None) -> str:
        if one is None:
            return ""
        low, high = one["interval"]
        angle = "no change" if one["angle"] is None else f"{one['angle']:.0f}°"
        return f"{one['projection']:.2f} [{low:.2f}, {high:.2f}], {angle}"

    return [
        [by, name, *(cell(edit["rows"].get(name)) for edit in edits.values())]
        for by, edits in results.items()
        for name in dict.fromkeys(row for edit in edits.values() for row in edit["rows"])
    ]


def work(cfg: EditsConfig, arguments: Sequence[str]) -> None:
    """Measure, write OUT, print the table, and append it to RESULTS.md where that is set."""
    check_creatable(Path(cfg.out).parent)
    bench = Bench(cfg)
    results: dict[str, Any] = {}
    for by in cfg.by:
        read = network_reader(Path(cfg.landmark_weights)) if by == "network" else dlib_reader()
        results[by] = {p.name: bench.measure(p, read, by == "network", cfg.seed) for p in bench.plans}
        print(f"read by {by}", flush=True)
    edits = results[cfg.by[0]].values()
    people = [max(row["people"] for row in edit["rows"].values()) for edit in edits]
    header = ["read by", "faces", *(f"{e['label']} ({n})" for e, n in zip(edits, people, strict=True))]
    text = table(header, rows_of(results))
    print(f"share of the true change [95 %], angle to it\n\n{text}")
    hashes = {f: sha256(Path(f)) for f in (cfg.weights, cfg.landmark_weights) if f is not None}
    record = {"config": cfg.model_dump(), "git": git_revision(), "sha256": hashes, "found": results}
    write_figures(cfg.out, record)
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.edits", *arguments])
        append_section("Edits, and what a reader is worth", command, torch.device("cpu"), text)


def main(arguments: Sequence[str]) -> int:
    return run("model.edits", EditsConfig, arguments or ["--help"], lambda cfg: work(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
