"""The manifests of a cohort: the subjects of each split, their texture exemplars, and the listed pictures.

``{train,valid,test}.json`` list the frontal pairs. ``{train,valid,test}_views.json`` (with ``views``) list those and
the turned ones. ``variants.json`` lists the subjects chosen for it, each with its own face and then with its others;
``ceiling.json`` and ``ceiling_neutral.json`` list the expected faces of the test subjects.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.cohort.config import SPLIT_DIR, SUBJECT_DIR, CohortConfig
from data.cohort.heads.subject import subject_name
from data.cohort.protocols import draw_face_style
from data.cohort.variants import EXPECTED, variant_labels, view_labels
from data.files import write_text
from data.manifest import FIELDS
from settings.parsing import ContentError, read_json

SPLITS = ("train", "valid", "test")


def split_of_subjects(config: CohortConfig) -> dict[str, list[int]]:
    """Return the subject indices of train, valid and test: disjoint, sorted, from the seed and the counts alone."""
    order = np.random.default_rng(np.random.SeedSequence(config.seed)).permutation(config.num_subjects)
    test, valid, train = np.split(order, [config.test_subjects, config.test_subjects + config.valid_subjects])
    return {name: sorted(part.tolist()) for name, part in zip(SPLITS, (train, valid, test), strict=True)}


def varied_subjects(config: CohortConfig) -> list[int]:
    """Return the indices of the subjects with variants: of the test split first, then of valid, then of train."""
    splits = split_of_subjects(config)
    return [*splits["test"], *splits["valid"], *splits["train"]][: config.variants]


def wanted_names(config: CohortConfig) -> Iterator[tuple[int, list[str]]]:
    """Yield every subject's index with the names of all pictures that the settings ask for."""
    varied = frozenset(varied_subjects(config))
    expected = frozenset(split_of_subjects(config)["test"] if config.ceiling else ())
    for k in range(config.num_subjects):
        labels = ["", *view_labels(config)]
        labels += variant_labels(config, k) if k in varied else []
        labels += [label for label, *_ in EXPECTED.values()] if k in expected else []
        yield k, [subject_name(k) + label for label in labels]


class Exemplars:
    """Texture exemplars: faces of another subject of the same split, or where it has none, of train."""

    def __init__(self, config: CohortConfig) -> None:
        self._split_of: dict[str, str] = {}
        self._by_protocol: dict[tuple[str, str], list[str]] = defaultdict(list)
        for split, indices in split_of_subjects(config).items():
            for index in indices:
                name = subject_name(index)
                self._split_of[name] = split
                self._by_protocol[split, draw_face_style(config.seed, index).name].append(name)

    def of(self, subject: str, style: str) -> str | None:
        """Return the frontal face picture of another subject in this style, or None.

        It is the next one by number, so that each serves as often as any other.
        """
        for split in dict.fromkeys((self._split_of[subject], "train")):
            others = [name for name in self._by_protocol[split, style] if name != subject]
            if others:
                return next((name for name in others if name > subject), others[0]) + ".png"
        return None


def write_lists(out: Path, config: CohortConfig) -> None:
    """Write all manifests from the records of finished pictures."""
    splits = split_of_subjects(config)
    lists: dict[str, list[str]] = {}
    for split, indices in splits.items():
        lists[split] = [subject_name(k) for k in indices]
        if config.views:
            labels = ["", *view_labels(config)]
            lists[f"{split}_views"] = [subject_name(k) + label for k in indices for label in labels]
    if config.variants:
        lists["variants"] = [
            subject_name(k) + label
            for k in varied_subjects(config)
            for label in ("", *variant_labels(config, k))
        ]
    if config.ceiling:
        for manifest, (label, *_) in EXPECTED.items():
            lists[manifest] = [subject_name(k) + label for k in splits["test"]]
    exemplars = Exemplars(config)
    for manifest, names in lists.items():
        with_changed = manifest in ("variants", *EXPECTED)
        lines = [json.dumps(_line(out, name, exemplars, with_changed)) + "\n" for name in names]
        write_text(out / SPLIT_DIR / f"{manifest}.json", "".join(lines))


def _line(out: Path, name: str, exemplars: Exemplars, with_changed: bool) -> dict[str, Any]:
    """Return the manifest line of a picture. Its body mass is a level: the BMI is left out."""
    path = out / SUBJECT_DIR / f"{name}.json"
    record = read_json(path, dict[str, Any])
    if lacking := {"subject", "style", "yaw", "pitch"} - record.keys():
        raise ContentError(f"{path}: {', '.join(sorted(lacking))}: missing; delete the file to make it again")
    line = {key: value for key, value in record.items() if key in FIELDS and key != "changed"}
    texture = exemplars.of(record["subject"], record["style"])
    if texture is not None:
        line["texture"] = texture
    if with_changed:
        line["changed"] = record.get("changed", [])
    if record["yaw"] or record["pitch"]:
        line["extra"] = {key: record[key] for key in ("yaw", "pitch", "roll") if key in record}
    return line
