"""The people of an evaluation: its manifests, read and checked as a whole before anything begins."""

from __future__ import annotations

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
from settings.parsing import read_json

ASKED_GALLERY = 500  # faces that the protocol asks for
_SHOWN = 10  # names in a message


class InputError(ValueError):
    """An input that cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True)
class Inputs:
    """Everything an evaluation reads.

    gallery: one record of each subject of the split. cases: the same as cases. rows: (P,) which of them are probes.
    train, valid: what baselines learn from and are chosen on; empty where there is no such list.
    trained_on: pairs the model learnt from. expected: for each ceiling, subject -> record of the expected face; turned:
    of another view. variants: true faces at other ages and body masses. size: side in px at which faces are compared.
    remarks: for the reader of the report.
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
    """Return the attributes of a person that the prompt holds."""
    b = record.biometrics
    return b.sex, age_level(b.age), b.body_mass, b.ethnicity


def probe_rows(num_subjects: int, num: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of ``num`` probes, drawn without replacement, in order; all for 0, or if there are fewer."""
    if num == 0 or num >= num_subjects:
        return np.arange(num_subjects)
    return np.sort(np.random.default_rng(seed).permutation(num_subjects)[:num])


def read_inputs(cfg: EvaluateConfig) -> Inputs:
    """Return every list of the data, after a look at every picture of the split.

    Raises:
        ManifestError, CaseError, ImageError, InputError: a list or picture that cannot be evaluated.
    """
    root, hashes = Path(cfg.data.root), []

    def read(name: str) -> list[Record]:
        """Return a list of the data folder; nothing where there is no such list."""
        path = root / "split_data" / f"{name}.json"
        if not path.is_file():
            return []
        hashes.append(HashedFile(f"split_data/{name}.json", sha256(path)))
        return read_manifest(path, cfg.data.images_dir)

    def by_subject(name: str) -> dict[str, Record]:
        return {record.subject: record for record in read(name) if record.subject in own}

    gallery = _one_of_each(read(cfg.split))
    if len(gallery) < 2:
        raise InputError(f"{root}: the list {cfg.split} has one subject only; nobody to mistake it for")
    own = {record.subject: record for record in gallery}
    train, valid = read("train"), read("valid")
    named = {"train": train, "valid": valid if cfg.split != "valid" else [], cfg.split: gallery}
    check_disjoint({name: records for name, records in named.items() if records})
    trained_on = train
    if cfg.data.trained_on is not None:
        trained_on = read_manifest(cfg.data.trained_on)
        _check_strangers(trained_on, gallery, cfg)
    cases = [replace(case, missing=cfg.missing) for case in cases_of(gallery)]
    size = cfg.size or _side_of(gallery, cfg.split)
    check_pictures(list(cases), size)
    rows = probe_rows(len(gallery), cfg.num_probes, cfg.seed)
    expected = {name: by_subject(name) for name in CEILINGS}
    views = [r for r in read(f"{cfg.split}_views") if r.subject in own and r.target != own[r.subject].target]
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
        turned={record.subject: record for record in reversed(views)},
        variants=[record for record in read("variants") if record.subject in own],
        manifests=hashes,
        cohort=read_json(made_with, dict[str, Any]) if made_with.is_file() else {},
        remarks=tuple(_remarks(cfg, len(gallery), len(rows), len(train))),
    )


def _one_of_each(records: Sequence[Record]) -> list[Record]:
    """Return the first record of each subject."""
    return list({record.subject: record for record in reversed(records)}.values())[::-1]


def _spread(records: Sequence[Record], limit: int) -> list[Record]:
    if limit == 0 or limit >= len(records):
        return list(records)
    return [records[i * len(records) // limit] for i in range(limit)]


def _check_strangers(trained_on: Sequence[Record], gallery: Sequence[Record], cfg: EvaluateConfig) -> None:
    """Raise InputError if the model learnt from a person of the gallery: the same name and the same skull picture."""
    trained = {record.subject: record for record in trained_on}
    for record in gallery:
        other = trained.get(record.subject)
        if other is not None and picture_sha256(other.skull_path) == picture_sha256(record.skull_path):
            raise InputError(
                f"data.trained_on={cfg.data.trained_on}: {record.subject!r} (line {other.line}) is in the {cfg.split} "
                "list too, with the same skull; a model cannot be judged on people it learnt from: give another split"
            )


def _side_of(gallery: Sequence[Record], split: str) -> int:
    """Return the side that the true faces have in common. Raises: InputError."""
    names = {record.target or record.source: face_of(record) for record in gallery}
    width, height = common_size(
        names, f"the true faces of {split}", "; or give size=256 to bring all to one size"
    )
    if width != height or width % FEATURE_SIZE:
        raise InputError(
            f"the true faces of {split} have {width} x {height} px, which is no square of a multiple of "
            f"{FEATURE_SIZE}; give size=256 to bring them to one"
        )
    return width


def common_size(pictures: Mapping[str, Path], what: str, remedy: str = "") -> tuple[int, int]:
    """Return the width and height in px that all pictures have. Raises: InputError, ImageError."""
    sizes = {name: picture_size(path) for name, path in pictures.items()}
    (usual, _), *others = Counter(sizes.values()).most_common()
    if others:
        odd = [f"{name} ({w} x {h})" for name, (w, h) in sizes.items() if (w, h) != usual]
        raise InputError(
            f"{what} differ in size: most have {usual[0]} x {usual[1]} px, but not {some(odd)}. "
            f"Render these anew{remedy}"
        )
    return usual


def some(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first names and how many more there are, for messages."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more


def face_of(record: Record) -> Path:
    """Return the true face's file."""
    assert record.face_path is not None  # read_manifest asked for it
    return record.face_path


def _remarks(cfg: EvaluateConfig, gallery: int, probes: int, train: int) -> list[str]:
    """Return what the reader of the report should know of the people."""
    remarks = [
        (
            gallery < ASKED_GALLERY,
            f"The gallery has {gallery} faces; the protocol asks for {ASKED_GALLERY}. Ranks in a smaller gallery are "
            "easier: do not compare them with others.",
        ),
        (
            probes < cfg.num_probes,
            f"num_probes={cfg.num_probes} was asked for; the split has {gallery} subjects, and all are probes.",
        ),
        (
            probes < gallery,
            f"{probes} of {gallery} subjects are probes, drawn with seed {cfg.seed}; all are in the gallery.",
        ),
        (
            0 < cfg.train_limit < train,
            f"Baselines learn from {cfg.train_limit} of {train} training pairs (train_limit).",
        ),
        (
            cfg.split != "test",
            f"The split is {cfg.split}: choices are made on it, so its figures flatter.",
        ),
        (
            cfg.missing is not None,
            f"Every probe's skull was shown without bone ({cfg.missing}), to the model and to the baselines.",
        ),
    ]
    return [remark for applies, remark in remarks if applies]
