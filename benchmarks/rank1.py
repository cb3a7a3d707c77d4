"""Rank-1 of the reconstruction beside its controls and baselines, on subjects no part of the model has seen.

    python -m benchmarks.rank1 [CONFIG.yaml] [key=value ...]
    python -m benchmarks.rank1 weights=models/demo/iccr_demo.safetensors data.root=cohort split=test num=100

Each probe is one subject's skull with what the prompt says of the person. A method predicts a face; the gallery is the
true faces of all subjects of the split; rank 1 means that the true face is the nearest one. The distance was chosen on
the validation split (benchmarks/RESULTS.md says how). Without `weights` only the baselines run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from benchmarks.identification import Identification, identify, markdown_table
from benchmarks.model_faces import ModelFaces, read_pictures
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.record import environment, write_json
from cldm.sampling import SamplingConfig
from data.biometrics import age_level
from data.images import write_png
from data.manifest import Record, check_disjoint, read_manifest
from data.paired import PairedDataset
from ldm.checkpoint import sha256
from ldm.config import parse_command_line
from ldm.device import choose_device
from muti_control.evaluation.baselines import (
    Group,
    Vocabulary,
    choose_ridge,
    group_mean,
    nearest_skull,
    shuffle_within_groups,
)
from muti_control.evaluation.features import DISTANCES, FEATURE_SIZE, picture_features
from muti_control.preparation import recommended_sampling

BASELINES = ("ridge", "nearest skull", "nearest skull of the group", "group mean", "mean face")
SHUFFLED = "model, shuffled skull"
OF_THE_MODEL = (
    "model",  # the right skull, the right prompt
    SHUFFLED,  # the skull of another subject of the same group
    "model, skull off",  # control scales 0: the same base model, attributes only
    "model, blank skull",  # a black picture in place of the skull
    "true face through the autoencoder",  # what the model could reach at best
)
NUM_SHOWN = 8


@dataclass
class DataConfig:
    """root: folder with split_data/{train,valid,test}.json and pairedCS/, as `python -m data.cohort` makes it."""

    root: str = "cohort"


@dataclass
class Rank1Config:
    """What is measured.

    weights: the model's checkpoint, or null for the baselines alone. split: test, or valid to make choices on.
    num: number of probes, drawn with `seed`; 0 takes all subjects. The gallery is always the whole split.
    samples: reconstructions per probe; their mean picture is compared. sampling: as for sample.py.
    distance: one of muti_control.evaluation.features.DISTANCES.
    methods: some of BASELINES and OF_THE_MODEL; empty means all that can run.
    out: where the figures (OUT.json) and the picture (OUT.png) are written.
    """

    weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    split: str = "test"
    num: int = 0
    samples: int = 1
    batch: int = 8
    seed: int = 0
    device: str = "auto"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    distance: str = "mean_absolute"
    methods: list[str] = field(default_factory=list)
    out: str = "benchmarks/results/rank1"


@dataclass(frozen=True)
class Split:
    """The pairs of one split: features (N, D) in [0, 1], and who they are."""

    records: Sequence[Record]
    skulls: NDArray[np.float32]
    faces: NDArray[np.float32]
    groups: Sequence[Group]

    def take(self, rows: NDArray[np.integer]) -> Split:
        """Some of the pairs."""
        return Split(
            [self.records[i] for i in rows],
            self.skulls[rows],
            self.faces[rows],
            [self.groups[i] for i in rows],
        )

    @property
    def subjects(self) -> list[str]:
        return [record.subject for record in self.records]


def load_split(root: Path, name: str, one_per_subject: bool) -> Split:
    """Read a split's pictures; with `one_per_subject` only the first pair of each subject."""
    records = read_manifest(root / "split_data" / f"{name}.json")
    if one_per_subject:
        records = list({record.subject: record for record in reversed(records)}.values())[::-1]
    dataset = PairedDataset(records)
    skulls, faces = [], []
    for i in range(len(dataset)):
        pair = dataset[i]
        skulls.append(picture_features(pair["skull"].permute(1, 2, 0).numpy()[None]))
        faces.append(picture_features((pair["face"].permute(1, 2, 0).numpy()[None] + 1) / 2))
    groups = [
        (b.sex, age_level(b.age), b.body_mass, b.ethnicity) for b in (record.biometrics for record in records)
    ]
    return Split(records, np.concatenate(skulls), np.concatenate(faces), groups)


def baseline_faces(
    train: Split, valid: Split, probes: Split
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Features (P, D) predicted by each of BASELINES, and how the ridge was chosen on the validation split."""
    vocabulary = Vocabulary.of(train.groups)
    ridge, strength, chosen = choose_ridge(
        (train.skulls, vocabulary.encode(train.groups), train.faces),
        (valid.skulls, vocabulary.encode(valid.groups), valid.faces),
    )
    nearest = nearest_skull(train.skulls, probes.skulls)
    nearest_in_group = nearest_skull(train.skulls, probes.skulls, train.groups, probes.groups)
    faces = {
        "ridge": ridge.predict(probes.skulls, vocabulary.encode(probes.groups), strength),
        "nearest skull": train.faces[nearest],
        "nearest skull of the group": train.faces[nearest_in_group],
        "group mean": group_mean(train.faces, train.groups, probes.groups),
        "mean face": np.repeat(train.faces.mean(axis=0, keepdims=True), len(probes.faces), axis=0),
    }
    return faces, chosen


@dataclass(frozen=True)
class Donors:
    """Whose skull each probe is given instead of its own.

    columns: (P,) where the donor's own face stands in the gallery, -1 if it does not. That face is what a model that
    follows the skull draws, so it would push the control below chance: `identify` leaves it out for this probe.
    origins: "held_out", "train" or "outside" (the probe's group) for each probe.
    """

    records: list[Record]
    columns: NDArray[np.integer]
    origins: list[str]

    def as_dict(self, probes: Sequence[str]) -> dict[str, Any]:
        """For the record: how many of each origin, and who was given to whom."""
        counts = {origin: self.origins.count(origin) for origin in ("held_out", "train", "outside")}
        return counts | {"of": {probe: d.subject for probe, d in zip(probes, self.records, strict=True)}}


def shuffled_donors(probes: Split, gallery: Split, train: Split, seed: int) -> Donors:
    """For each probe another subject's record of the same sex, age level, body mass and ethnicity.

    Donors are held-out subjects where the group has one, else training subjects, else (outside the group) training
    subjects of the same sex and age level.

    Raises:
        ValueError: a probe for whom there is none of these.
    """
    rng = np.random.default_rng(seed)
    donors: list[Record] = []
    origins: list[str] = []
    held_out = shuffle_within_groups(probes.groups, gallery.groups, probes.subjects, gallery.subjects, rng)
    trained = shuffle_within_groups(probes.groups, train.groups, probes.subjects, train.subjects, rng)
    short = shuffle_within_groups(
        [g[:2] for g in probes.groups], [g[:2] for g in train.groups], probes.subjects, train.subjects, rng
    )
    for i in range(len(probes.records)):
        if held_out[i] >= 0:
            donors.append(gallery.records[held_out[i]])
            origins.append("held_out")
        elif trained[i] >= 0:
            donors.append(train.records[trained[i]])
            origins.append("train")
        elif short[i] >= 0:
            donors.append(train.records[short[i]])
            origins.append("outside")
        else:
            raise ValueError(
                f"no other subject of sex and age level {probes.groups[i][:2]} to take a skull from"
            )
    return Donors(donors, held_out, origins)


def probe_rows(num_subjects: int, num: int, seed: int) -> NDArray[np.int64]:
    """Which subjects are probes: `num` of them drawn without replacement, in order; all for num = 0.

    Raises:
        ValueError: more probes than subjects.
    """
    if not 0 <= num <= num_subjects:
        raise ValueError(
            f"num={num}: the split has {num_subjects} subjects; give 1 .. {num_subjects}, or 0 for all"
        )
    if num == 0:
        return np.arange(num_subjects)
    return np.sort(np.random.default_rng(seed).permutation(num_subjects)[:num])


def prepare(arguments: Sequence[str]) -> tuple[Rank1Config, ControlledLatentDiffusion | None]:
    """Settings and model; what the command line leaves open of `sampling` is what the weights recommend.

    Raises:
        ValueError: an unknown key, a value that does not fit, or weights that cannot be read.
    """
    cfg = parse_command_line(Rank1Config, arguments)
    if cfg.weights is None:
        return cfg, None
    model, metadata = load_model(cfg.weights, device=choose_device(cfg.device))
    recommended = recommended_sampling(metadata, model.cfg.unet.num_control_outputs)
    base = {"sampling": recommended}
    cfg = parse_command_line(Rank1Config, arguments, base=base, base_name="settings in the weights")
    cfg.sampling.validate()
    cfg.sampling.scales_for(model.cfg.unet.num_control_outputs)
    return cfg, model


def measure(
    cfg: Rank1Config, model: ControlledLatentDiffusion | None
) -> tuple[str, dict[str, Any], NDArray[np.uint8]]:
    """Run every method on the same probes. Everything is checked, and the folder of `out` made, before that begins.

    Returns:
        The Markdown table, the figures with what made them (for JSON), and the picture.

    Raises:
        ValueError: a setting that does not fit; ManifestError, ImageError, CheckpointError as their readers do.
        OSError: the folder of `out` cannot be made or written to.
    """
    methods = chosen_methods(cfg)
    root = Path(cfg.data.root)
    train = load_split(root, "train", one_per_subject=False)
    valid = load_split(root, "valid", one_per_subject=False)
    gallery = load_split(root, cfg.split, one_per_subject=True)
    lists = {"train": train.records, "valid": valid.records, cfg.split: gallery.records}
    check_disjoint(lists)
    cohort = cohort_identity(root, list(lists))
    truth = probe_rows(len(gallery.records), cfg.num, cfg.seed)
    probes = gallery.take(truth)
    donors = shuffled_donors(probes, gallery, train, cfg.seed)
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=Path(cfg.out).parent):
        pass  # complain now that nothing can be written there, not when hours are over
    faces, ridge = baseline_faces(train, valid, probes)
    shown: dict[str, NDArray[np.floating]] = {}
    seconds: dict[str, float] = {}
    if model is not None:
        of_model = ModelFaces(
            model, cfg.sampling, probes.records, cfg.batch, cfg.samples, cfg.seed, NUM_SHOWN
        )
        for method in methods:
            if method in OF_THE_MODEL:
                faces[method] = of_model.predict(method, donors.records)
        shown, seconds = of_model.shown, of_model.seconds

    mean = train.faces.mean(axis=0)

    def figures(method: str, distance: str) -> tuple[Identification, NDArray[np.integer]]:
        excluded = donors.columns if method == SHUFFLED else None
        return identify(faces[method], gallery.faces, truth, mean, distance, cfg.seed, excluded)

    rows, ranks = {}, {}
    for method in methods:
        rows[method], ranks[method] = figures(method, cfg.distance)
    table = markdown_table(rows, ranks, "model" if "model" in rows else None)
    record = {
        "config": OmegaConf.to_container(OmegaConf.structured(cfg)),
        "weights_sha256": sha256(cfg.weights) if cfg.weights is not None else None,
        "environment": run_environment(model),
        "cohort": cohort,
        "num_train": len(train.records),
        "donors": donors.as_dict(probes.subjects),
        "ridge": ridge,
        "seconds": seconds,
        "figures": {method: row.as_dict() for method, row in rows.items()},
        "rank1_by_distance": {
            distance: {method: figures(method, distance)[0].rank1 for method in methods}
            for distance in DISTANCES
        },
        "ranks": {method: values.tolist() for method, values in ranks.items()},
    }
    picture = contact_sheet(
        probes, donors.records, {m: faces[m] for m in methods if m not in OF_THE_MODEL}, shown
    )
    return table, record, picture


def cohort_identity(root: Path, splits: Sequence[str]) -> dict[str, Any]:
    """Which pairs were measured: the content of `cohort.json` where there is one, and sha256 of the split files."""
    made = root / "cohort.json"
    return {
        "made_with": json.loads(made.read_text(encoding="utf-8")) if made.is_file() else None,
        "sha256": {name: sha256(root / "split_data" / f"{name}.json") for name in splits},
    }


def run_environment(model: ControlledLatentDiffusion | None) -> dict[str, Any]:
    """What the figures may depend on beside the settings; the baselines alone run on the CPU."""
    if model is None:
        return environment(torch.device("cpu"), torch.float32)
    return environment(model.device, model.dtype)


def chosen_methods(cfg: Rank1Config) -> list[str]:
    """The methods to run, in the table's order.

    Raises:
        ValueError: an unknown name, or one that needs weights where none are given.
    """
    possible = [*OF_THE_MODEL, *BASELINES] if cfg.weights is not None else list(BASELINES)
    unknown = [name for name in cfg.methods if name not in possible]
    if unknown:
        raise ValueError(
            f"methods: {unknown} cannot run; possible are {possible}; those of the model need weights=FILE"
        )
    if cfg.distance not in DISTANCES:
        raise ValueError(f"distance: got {cfg.distance!r}, expected one of {', '.join(DISTANCES)}")
    if min(cfg.samples, cfg.batch) < 1:
        raise ValueError(f"samples={cfg.samples}, batch={cfg.batch}: both must be at least 1")
    return [name for name in possible if not cfg.methods or name in cfg.methods]


def contact_sheet(
    probes: Split,
    donors: Sequence[Record],
    baselines: dict[str, NDArray[np.floating]],
    shown: dict[str, NDArray[np.floating]],
    side: int = 128,
) -> NDArray[np.uint8]:
    """(rows * side, columns * side) grey: a row for the skull, the true face, the donor's skull, then each method."""
    first = probes.records[:NUM_SHOWN]
    rows = {
        "skull": read_pictures(first, "skull", side).mean(dim=1).numpy(),
        "true face": read_pictures(first, "face", side).mean(dim=1).numpy(),
        "shuffled skull": read_pictures(donors[:NUM_SHOWN], "skull", side).mean(dim=1).numpy(),
    }
    rows |= shown
    for name, features in baselines.items():
        rows[name] = features[:NUM_SHOWN].reshape(-1, FEATURE_SIZE, FEATURE_SIZE)
    lines = []
    for name, pictures in rows.items():
        line = np.rint(255 * np.hstack(list(pictures.clip(0, 1)))).astype(np.uint8)
        labelled = Image.fromarray(line).resize((side * len(pictures), side), Image.Resampling.BICUBIC)
        ImageDraw.Draw(labelled).text((3, 2), name, fill=255)
        lines.append(np.asarray(labelled))
    return np.vstack(lines)


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 (130: interrupted) with one message on stderr."""
    started = time.perf_counter()
    try:
        cfg, model = prepare(arguments)
        table, record, picture = measure(cfg, model)
        record["seconds"]["all"] = time.perf_counter() - started
        out = Path(cfg.out)
        figures = out.with_name(out.name + ".json")
        write_json(figures, record)
        write_png(out.with_name(out.name + ".png"), picture)
    except (ValueError, OSError) as error:
        print(f"rank1: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrank1: interrupted; no figures were written", file=sys.stderr)
        return 130
    print(f"{record['num_train']} training pairs, distance {cfg.distance}, split {cfg.split}\n\n{table}\n")
    print(f"figures: {figures}\npicture: {out.with_name(out.name + '.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
