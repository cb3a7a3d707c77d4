"""Rank-1 of the reconstruction beside its controls and baselines, on subjects no part of the model has seen.

    python -m benchmarks.rank1 weights=models/demo/iccr_demo.safetensors data.root=cohort split=test num=100

Each probe is one subject's skull with what the prompt says of the person. A method predicts a face; the gallery is the
true faces of all subjects of the split; rank 1 means that the true face is the nearest one. The distance was chosen on
the validation split (benchmarks/RESULTS.md says how). Without `weights` only the baselines run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.baselines import (
    Group,
    Vocabulary,
    choose_ridge,
    group_mean,
    nearest_skull,
    shuffle_within_groups,
)
from benchmarks.identification import DISTANCES, identify, markdown_table, picture_features
from data.biometrics import age_level
from data.images import write_png
from data.manifest import Record, read_manifest
from data.paired import PairedDataset

BASELINES = ("ridge", "nearest skull", "nearest skull of the group", "group mean", "mean face")
OF_THE_MODEL = ("model", "model, shuffled skull", "model, no skull", "true face through the autoencoder")
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
    samples: reconstructions per probe; their mean picture is compared. distance: one of DISTANCES.
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
    distance: str = "deviation"
    methods: list[str] = field(default_factory=list)
    out: str = "benchmarks/results/rank1"


@dataclass(frozen=True)
class Split:
    """The pairs of one split: features (N, D) in [0, 1], and who they are."""

    records: Sequence[Record]
    skulls: NDArray[np.float32]
    faces: NDArray[np.float32]
    groups: Sequence[Group]

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


def shuffled_donors(probes: Split, gallery: Split, train: Split, seed: int) -> tuple[list[Record], int]:
    """For each probe another subject's record of the same sex, age level, body mass and ethnicity.

    Donors are held-out subjects where the group has one, else training subjects, else (counted in the second value)
    the training subject of the nearest group: same sex and age level.
    """
    rng = np.random.default_rng(seed)
    donors: list[Record] = []
    outside = 0
    held_out = shuffle_within_groups(probes.groups, gallery.groups, probes.subjects, gallery.subjects, rng)
    trained = shuffle_within_groups(probes.groups, train.groups, probes.subjects, train.subjects, rng)
    short = shuffle_within_groups(
        [g[:2] for g in probes.groups], [g[:2] for g in train.groups], probes.subjects, train.subjects, rng
    )
    for i in range(len(probes.records)):
        if held_out[i] >= 0:
            donors.append(gallery.records[held_out[i]])
        elif trained[i] >= 0:
            donors.append(train.records[trained[i]])
        elif short[i] >= 0:
            donors.append(train.records[short[i]])
            outside += 1
        else:
            raise ValueError(
                f"no other subject of sex and age level {probes.groups[i][:2]} to take a skull from"
            )
    return donors, outside


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
