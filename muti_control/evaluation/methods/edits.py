"""Edits of age and body mass whose truth the data know: the cohort's faces of a subject after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.manifest import Record

MASS_LEVELS = 2  # of body mass in one edit
LEAST_YEARS, YEARS = 10, 25  # an edit of age: at least the first, and as near to the second as the data allow


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
    edits: dict[tuple[str, str], dict[int, Record]] = {
        ("age_up", f"older by about {YEARS} years"): {},
        ("age_down", f"younger by about {YEARS} years"): {},
        ("body_mass_up", "body mass two levels up"): {},
        ("body_mass_down", "body mass two levels down"): {},
    }
    for i, probe in enumerate(probes):
        own = by_subject.get(probe.subject, [])
        for (name, _), own_variants in edits.items():
            changed, direction = name.rsplit("_", 1)
            truth = _variant(probe, own, changed, direction == "up")
            if truth is not None and len(own_variants) < limit:
                own_variants[i] = truth
    return [
        EditPlan(name, label, own_variants) for (name, label), own_variants in edits.items() if own_variants
    ]


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
