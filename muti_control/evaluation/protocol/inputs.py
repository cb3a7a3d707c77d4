"""Who is evaluated: the manifests of an evaluation, read and checked as a whole before anything begins."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.biometrics import age_level
from data.cases import Case, cases_of, check_pictures
from data.files import picture_sha256
from data.images import picture_size
from data.manifest import Record, check_disjoint, read_manifest
from ldm.checkpoint import sha256
from muti_control.evaluation.judges.features import FEATURE_SIZE
from muti_control.evaluation.methods.baselines import Group
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.registry import CEILINGS
from muti_control.evaluation.results.results import HashedFile

ASKED_GALLERY = 500  # faces that the protocol asks for
_SHOWN = 10


class InputError(ValueError):
    """What was given cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True)
class Inputs:
    """Everything an evaluation reads.

    gallery: one record of each subject of the split. cases: the same as cases. rows: (P,) which of them are probes.
    train, valid: what baselines learn from and are chosen on; empty where there is no such list.
    trained_on: pairs the model learnt from. expected: for each ceiling, subject -> record of the expected face; turned:
    of another view. variants: true faces at other ages and body masses. size: side in px at which faces are compared.
    remarks: what the reader must know of all that.
    """

    root: Path
    gallery: Sequence[Record]
    cases: Sequence[Case]
    rows: NDArray[np.int64]
    size: int
    train: Sequence[Record]
    valid: Sequence[Record]
    trained_on: Sequence[Record]
    expected: Mapping[str, Mapping[str, Record]]
    turned: Mapping[str, Record]
    variants: Sequence[Record]
    manifests: Sequence[HashedFile]
    cohort: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def probes(self) -> list[Record]:
        """Records of the probes, in order."""
        return [self.gallery[row] for row in self.rows]

    @property
    def probe_cases(self) -> list[Case]:
        """Cases of the probes, in order."""
        return [self.cases[row] for row in self.rows]


def group_of(record: Record) -> Group:
    """What the prompt tells of a person."""
    b = record.biometrics
    return b.sex, age_level(b.age), b.body_mass, b.ethnicity


def probe_rows(num_subjects: int, num: int, seed: int) -> NDArray[np.int64]:
    """Which subjects are probes: ``num`` of them without replacement, in order; all for 0, or if there are fewer."""
    if num == 0 or num >= num_subjects:
        return np.arange(num_subjects)
    return np.sort(np.random.default_rng(seed).permutation(num_subjects)[:num])


def read_inputs(cfg: EvaluateConfig) -> Inputs:
    """Read every manifest, and every picture of the split.

    Raises:
        ManifestError, CaseError, ImageError, InputError: something there that cannot be evaluated.
    """
    root = Path(cfg.data.root)
    lists = _Lists(root, cfg.data.images_dir)
    if not lists.path(cfg.split).is_file():
        raise InputError(
            f"data.root: {lists.path(cfg.split)} not found. Give data.root=FOLDER of your own pairs, or make the "
            "synthetic cohort first: python -m data.cohort cohort num_subjects=5000 seed=1 valid_subjects=250 "
            "test_subjects=500 ceiling=true"
        )
    gallery = _one_of_each(lists.read(cfg.split))
    if len(gallery) < 2:
        raise InputError(f"{lists.path(cfg.split)}: one subject only; nobody to mistake it for")
    train, valid = lists.read_optional("train"), lists.read_optional("valid")
    named = {"train": train, "valid": valid if cfg.split != "valid" else [], cfg.split: gallery}
    check_disjoint({name: records for name, records in named.items() if records})
    trained_on = train
    if cfg.data.trained_on is not None:
        trained_on = read_manifest(cfg.data.trained_on)
        _check_strangers(trained_on, gallery, cfg)
    cases = [replace(case, missing=cfg.missing) for case in cases_of(gallery)]
    size = cfg.size or _common_size(gallery, cfg.split)
    check_pictures(list(cases), size)
    rows = probe_rows(len(gallery), cfg.num, cfg.seed)
    subjects = {record.subject for record in gallery}
    own = {record.subject: record for record in gallery}
    expected = {
        name: {r.subject: r for r in lists.read_optional(name) if r.subject in subjects} for name in CEILINGS
    }
    views = [
        record
        for record in lists.read_optional(f"{cfg.split}_views")
        if record.subject in own and record.target != own[record.subject].target
    ]
    turned = {record.subject: record for record in reversed(views)}
    variants = [r for r in lists.read_optional("variants") if r.subject in subjects]
    made_with = root / "cohort.json"
    return Inputs(
        root=root,
        gallery=gallery,
        cases=cases,
        rows=rows,
        size=size,
        train=_spread(train, cfg.train_limit),
        valid=_one_of_each(valid),
        trained_on=_spread(trained_on, cfg.train_limit),
        expected=expected,
        turned=turned,
        variants=variants,
        manifests=lists.hashes,
        cohort=json.loads(made_with.read_text(encoding="utf-8")) if made_with.is_file() else {},
        remarks=tuple(_remarks(cfg, len(gallery), len(rows), len(train))),
    )


class _Lists:
    """The manifests of a data folder, by name."""

    def __init__(self, root: Path, images_dir: str | None) -> None:
        self._root, self._images_dir = root, images_dir
        self.hashes: list[HashedFile] = []

    def path(self, name: str) -> Path:
        return self._root / "split_data" / f"{name}.json"

    def read(self, name: str) -> list[Record]:
        records = read_manifest(self.path(name), self._images_dir)
        self.hashes.append(HashedFile(f"split_data/{name}.json", sha256(self.path(name))))
        return records

    def read_optional(self, name: str) -> list[Record]:
        return self.read(name) if self.path(name).is_file() else []


def _one_of_each(records: Sequence[Record]) -> list[Record]:
    """The first record of each subject."""
    return list({record.subject: record for record in reversed(records)}.values())[::-1]


def _spread(records: Sequence[Record], limit: int) -> list[Record]:
    if limit == 0 or limit >= len(records):
        return list(records)
    return [records[i * len(records) // limit] for i in range(limit)]


def _check_strangers(trained_on: Sequence[Record], gallery: Sequence[Record], cfg: EvaluateConfig) -> None:
    """Another data set may give other people the same names; the same skull picture is the same person."""
    learnt = {record.subject: record for record in trained_on}
    for record in gallery:
        other = learnt.get(record.subject)
        if other is not None and picture_sha256(other.skull_path) == picture_sha256(record.skull_path):
            raise InputError(
                f"data.trained_on={cfg.data.trained_on}: {record.subject!r} (line {other.line}) is in the {cfg.split} "
                "list too, with the same skull; a model cannot be judged on people it learnt from: give another split"
            )


def _common_size(gallery: Sequence[Record], split: str) -> int:
    """The side that the true faces have in common, if they are squares that can be compared at it."""
    sizes = {record.target or record.source: picture_size(face_of(record)) for record in gallery}
    (usual, _), *others = Counter(sizes.values()).most_common()
    odd = [name for name, size in sizes.items() if size != usual]
    if others:
        shown = ", ".join(f"{name} ({sizes[name][0]} x {sizes[name][1]})" for name in odd[:_SHOWN])
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise InputError(
            f"the true faces of {split} differ in size: most have {usual[0]} x {usual[1]} px, but not {shown}{more}; "
            "render them anew, or give size=256 to bring all to one size"
        )
    if usual[0] != usual[1] or usual[0] % FEATURE_SIZE:
        raise InputError(
            f"the true faces of {split} have {usual[0]} x {usual[1]} px, which is no square of a multiple of "
            f"{FEATURE_SIZE}; give size=256 to bring them to one"
        )
    return usual[0]


def face_of(record: Record) -> Path:
    """Return the true face's file."""
    assert record.face_path is not None  # read_manifest asked for it
    return record.face_path


def _remarks(cfg: EvaluateConfig, gallery: int, probes: int, train: int) -> list[str]:
    remarks = []
    if gallery < ASKED_GALLERY:
        remarks.append(
            f"The gallery has {gallery} faces; the protocol asks for {ASKED_GALLERY}. Ranks in a smaller gallery are "
            "easier: do not compare them with others."
        )
    if probes < cfg.num:
        remarks.append(f"num={cfg.num} was asked for; the split has {gallery} subjects, and all are probes.")
    if probes < gallery:
        remarks.append(
            f"{probes} of {gallery} subjects are probes, drawn with seed {cfg.seed}; all are in the gallery."
        )
    if cfg.train_limit and train > cfg.train_limit:
        remarks.append(f"Baselines learn from {cfg.train_limit} of {train} training pairs (train_limit).")
    if cfg.split != "test":
        remarks.append(f"The split is {cfg.split}: choices are made on it, so its figures flatter.")
    if cfg.missing is not None:
        remarks.append(
            f"Every probe's skull was shown without bone ({cfg.missing}), to the model and to the baselines."
        )
    return remarks
