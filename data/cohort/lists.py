"""The manifests of a cohort: who is in which split, who lends whom a texture exemplar, which pictures are listed.

``{train,valid,test}.json`` list the frontal pairs. ``{train,valid,test}_views.json`` (with ``views``) list those and
the turned ones. ``variants.json`` lists the subjects chosen for it, each with its own face and then with its others;
``ceiling.json`` and ``ceiling_neutral.json`` list the expected faces of the test subjects.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.cohort.config import SPLIT_DIR, SUBJECT_DIR, CohortConfig
from data.cohort.heads.subject import subject_name
from data.cohort.protocols import draw_face_style
from data.cohort.variants import EXPECTED, names_of, view_labels
from data.manifest import FIELDS

SPLITS = ("train", "valid", "test")


def split_of_subjects(config: CohortConfig) -> dict[str, list[int]]:
    """Subject indices of train, valid and test: disjoint, sorted, and a function of the seed and the counts."""
    order = np.random.default_rng(np.random.SeedSequence(config.seed)).permutation(config.num_subjects)
    test, valid, train = np.split(order, [config.test_subjects, config.test_subjects + config.valid_subjects])
    return {"train": sorted(train.tolist()), "valid": sorted(valid.tolist()), "test": sorted(test.tolist())}


def varied_subjects(config: CohortConfig) -> list[int]:
    """Indices of those who get variants: of the test split first, then of valid, then of train."""
    splits = split_of_subjects(config)
    return [*splits["test"], *splits["valid"], *splits["train"]][: config.variants]


def wanted_names(config: CohortConfig) -> Iterator[tuple[int, list[str]]]:
    """Every subject's index with the names of all pictures that the settings ask for."""
    varied = frozenset(varied_subjects(config))
    expected = frozenset(split_of_subjects(config)["test"] if config.ceiling else ())
    for k in range(config.num_subjects):
        yield k, names_of(config, k, k in varied, k in expected)


class Exemplars:
    """Whose face shows a protocol: another subject of the same split, or where it has none, one of train."""

    def __init__(self, config: CohortConfig) -> None:
        self._split_of: dict[str, str] = {}
        self._by_protocol: dict[tuple[str, str], list[str]] = defaultdict(list)
        for split, indices in split_of_subjects(config).items():
            for index in indices:
                name = subject_name(index)
                self._split_of[name] = split
                style = draw_face_style(config.seed, index).name
                self._by_protocol[split, style].append(name)

    def of(self, subject: str, style: str) -> str | None:
        """Name of the frontal face picture of another subject in this style: the next one by number, so that each
        serves as often as any other. None where nobody else has it."""
        for split in dict.fromkeys((self._split_of[subject], "train")):
            others = [name for name in self._by_protocol[split, style] if name != subject]
            if others:
                return next((name for name in others if name > subject), others[0]) + ".png"
        return None


def write_lists(out: Path, config: CohortConfig, write_text: Any) -> None:
    """Write all manifests from the records of finished pictures; ``write_text(path, text)`` writes one file."""
    exemplars = Exemplars(config)
    splits = split_of_subjects(config)
    for split, indices in splits.items():
        names = [subject_name(k) for k in indices]
        write_text(out / SPLIT_DIR / f"{split}.json", _lines(out, names, exemplars))
        if config.views:
            all_names = [name + label for name in names for label in ("", *view_labels(config))]
            write_text(out / SPLIT_DIR / f"{split}_views.json", _lines(out, all_names, exemplars))
    if config.variants:
        no_views = CohortConfig(**{**vars(config), "views": 0})
        names = [name for k in varied_subjects(config) for name in names_of(no_views, k, True, False)]
        write_text(out / SPLIT_DIR / "variants.json", _lines(out, names, exemplars, changed=True))
    if config.ceiling:
        for manifest, label in EXPECTED.items():
            names = [subject_name(k) + label for k in splits["test"]]
            write_text(out / SPLIT_DIR / f"{manifest}.json", _lines(out, names, exemplars, changed=True))


def _lines(out: Path, names: Sequence[str], exemplars: Exemplars, changed: bool = False) -> str:
    return "".join(json.dumps(_line(out, name, exemplars, changed)) + "\n" for name in names)


def _line(out: Path, name: str, exemplars: Exemplars, changed: bool) -> dict[str, Any]:
    """The manifest line of a picture. What the model is told of the body mass is its level: the BMI is left out."""
    record = json.loads((out / SUBJECT_DIR / f"{name}.json").read_text(encoding="utf-8"))
    line = {key: value for key, value in record.items() if key in FIELDS and key != "changed"}
    texture = exemplars.of(record["subject"], record["style"])
    if texture is not None:
        line["texture"] = texture
    if changed:
        line["changed"] = record.get("changed", [])
    if record["yaw"] or record["pitch"]:
        line["extra"] = {"yaw": record["yaw"], "pitch": record["pitch"]}
    return line
