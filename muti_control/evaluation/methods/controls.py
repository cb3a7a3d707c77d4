"""What a person is given instead of the own skull, name or attributes: controls, and edits with a true face.

The true face after an edit of age or body mass is the cohort's face of the subject at that age or body mass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.cases import Case
from data.manifest import Record
from muti_control.evaluation.methods.baselines import shuffle_within_groups
from muti_control.evaluation.protocol.inputs import group_of

MASS_LEVELS = 2  # of body mass in one edit
LEAST_YEARS, YEARS = 10, 25  # an edit of age: at least the first, and as near to the second as the data allow
EDITS = {
    "age_up": f"older by about {YEARS} years",
    "age_down": f"younger by about {YEARS} years",
    "body_mass_up": "body mass two levels up",
    "body_mass_down": "body mass two levels down",
}


@dataclass(frozen=True)
class Donors:
    """The person who lends each probe a skull.

    records: None where nobody fits. columns: (P,) gallery column of the donor's own face, -1 outside the gallery. A
    method that follows the skull draws that face, which would push the control below chance: it does not count for
    this probe. origins: ``held_out``, ``train``, ``outside`` (the probe's group) or ``nobody``.
    """

    records: Sequence[Record | None]
    columns: NDArray[np.integer]
    origins: Sequence[str]

    def counts(self) -> dict[str, int]:
        """Return the number of donors of each origin."""
        return {origin: self.origins.count(origin) for origin in ("held_out", "train", "outside", "nobody")}


def shuffled_donors(
    probes: Sequence[Record], gallery: Sequence[Record], train: Sequence[Record], seed: int
) -> Donors:
    """Return, for each probe, another subject of the same sex, age level, body mass and ethnicity.

    Donors are held-out subjects where the group has one, else training subjects, else (outside the group) training
    subjects of the same sex and age level.
    """
    rng = np.random.default_rng(seed)
    groups, in_gallery, in_train = ([group_of(r) for r in records] for records in (probes, gallery, train))
    subjects, in_gallery_subjects, train_subjects = (
        [r.subject for r in records] for records in (probes, gallery, train)
    )
    held_out = shuffle_within_groups(groups, in_gallery, subjects, in_gallery_subjects, rng)
    trained = shuffle_within_groups(groups, in_train, subjects, train_subjects, rng)
    short = shuffle_within_groups(
        [g[:2] for g in groups], [g[:2] for g in in_train], subjects, train_subjects, rng
    )
    pools = (("held_out", held_out, gallery), ("train", trained, train), ("outside", short, train))
    choices = [
        next(((pool[rows[i]], origin) for origin, rows, pool in pools if rows[i] >= 0), (None, "nobody"))
        for i in range(len(probes))
    ]
    return Donors([record for record, _ in choices], held_out, [origin for _, origin in choices])


def with_skull_of(case: Case, donor: Record) -> Case:
    """Return a case with another person's skull, and with that person's truth wherever a method uses it.

    The prompt and the exemplar stay the case's own: the control differs from the method by the skull alone.
    """
    return replace(
        case,
        skull_path=donor.skull_path,
        face_path=donor.face_path,
        landmarks_path=donor.landmarks_path,
    )


def permuted(num: int, seed: int) -> NDArray[np.int64]:
    """Return (num,) the probe whose face stands for each probe: another one, each once."""
    order = np.random.default_rng([seed, num]).permutation(num)
    other = np.empty(num, np.int64)
    other[order] = np.roll(order, 1)
    return other


def other_attributes(probes: Sequence[Record], seed: int) -> list[int]:
    """Return, for each probe, the index of one with another prompt; its own where there is none."""
    rng = np.random.default_rng([seed, len(probes), 1])
    groups = [group_of(record) for record in probes]
    others = [[j for j, other in enumerate(groups) if other != group] for group in groups]
    return [int(rng.choice(own)) if own else i for i, own in enumerate(others)]


# ---------------------------------------------------------------- edits
@dataclass(frozen=True)
class EditPlan:
    """One kind of edit. variants: probe -> the person's true face after it."""

    name: str
    label: str
    variants: Mapping[int, Record]


def find_edits(probes: Sequence[Record], variants: Sequence[Record], limit: int) -> list[EditPlan]:
    """Return the edits whose truth the data know, each of the first ``limit`` probes that have it."""
    by_subject: dict[str, list[Record]] = {}
    for record in variants:
        by_subject.setdefault(record.subject, []).append(record)
    edits = []
    for name, label in EDITS.items():
        changed, direction = name.rsplit("_", 1)
        truths = [_variant(p, by_subject.get(p.subject, []), changed, direction == "up") for p in probes]
        of_probes = [(i, truth) for i, truth in enumerate(truths) if truth is not None]
        if of_probes[:limit]:
            edits.append(EditPlan(name, label, dict(of_probes[:limit])))
    return edits


def _variant(probe: Record, variants: list[Record], changed: str, up: bool) -> Record | None:
    """Return the person's true face after the edit, or None."""
    sign = 1 if up else -1
    those = [r for r in variants if r.changed == (changed,) and r.face_path is not None]
    if changed == "body_mass":
        level = probe.biometrics.body_mass + sign * MASS_LEVELS
        return next((r for r in those if r.biometrics.body_mass == level), None)
    steps = {r.line: sign * (r.biometrics.age - probe.biometrics.age) for r in those}
    far = [r for r in those if steps[r.line] >= LEAST_YEARS]
    return min(far, key=lambda r: abs(steps[r.line] - YEARS), default=None)
