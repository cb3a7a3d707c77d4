"""The comparison of two runs on the same skulls against the same gallery.

Every common method and measure is compared skull by skull (paired bootstrap on second minus first). Runs with other
skulls, another gallery or another recogniser are refused: their figures cannot be subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.results.columns import (
    Column,
    Difference,
    difference,
    identification_columns,
    picture_columns,
    resampling_of,
)
from muti_control.evaluation.results.results import Coverage, Evaluation, Method, Recogniser
from muti_control.evaluation.results.results_file import ResultsError
from muti_control.evaluation.results.statistics import best_of_chance
from muti_control.evaluation.results.summary import Resampling

Floats = NDArray[np.floating]
_SHOWN = 3
ROUNDING = 1e-9  # a smaller difference comes from the order of sums


@dataclass(frozen=True)
class Row:
    """One measure of one method in both runs.

    method: its name; label, part: its and the recogniser's for the reader; first, second: means over the skulls that
    both have; difference: second minus first.
    """

    method: str
    label: str
    part: str
    column: Column
    first: float
    second: float
    difference: Difference

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``same`` (equal but for rounding) or ``unclear``; ``differs`` where none is better."""
        gap = self.difference
        if max(abs(gap.value), abs(gap.low), abs(gap.high)) < ROUNDING:
            return "same"
        if not self.difference.certain:
            return "unclear"
        if not self.column.better:
            return "differs"
        return "better" if (self.difference.value > 0) == (self.column.better == "higher") else "worse"


@dataclass(frozen=True)
class Comparison:
    """Both runs, their common rows, and the methods of only one of them."""

    first: Evaluation
    second: Evaluation
    rows: tuple[Row, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]  # setting, first, second


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Return second minus first, skull by skull.

    Raises:
        ResultsError: they cannot be compared; the message says what differs.
    """
    check_comparable(first, second)
    how = resampling_of(first)
    parts = (_method_values, _coverage_values, _edit_values)
    values = (entry for part in parts for entry in part(first, second))
    rows = tuple(row for entry in values if (row := _row(*entry, how)) is not None)
    if not rows:
        raise ResultsError("the two runs have no method and measure in common")
    one, two = ({method.name: method.label for method in run.methods} for run in (first, second))
    return Comparison(
        first,
        second,
        rows,
        tuple(label for name, label in one.items() if name not in two),
        tuple(label for name, label in two.items() if name not in one),
        tuple(_settings(first, second)),
    )


def check_comparable(first: Evaluation, second: Evaluation) -> None:
    """Refuse runs on other skulls, another gallery or with another recogniser.

    Raises:
        ResultsError: with all that differs.
    """
    wrong = list(_different_probes(first, second))
    shared = _shared_judges(first, second)
    if not shared and (first.recognisers or second.recognisers):
        names = [", ".join(judge.name for judge in run.recognisers) or "none" for run in (first, second)]
        wrong.append(f"recognisers: the first has {names[0]}, the second {names[1]}")
    for judge, other in shared:
        if judge.identity != other.identity:
            keys = {**judge.identity, **other.identity}
            pairs = [(key, judge.identity.get(key), other.identity.get(key)) for key in keys]
            differences = [f"{key} {one!r} and {two!r}" for key, one, two in pairs if one != two]
            wrong.append(f"recogniser {judge.name}: {', '.join(differences[:_SHOWN])}")
        if judge.gallery_sha256 != other.gallery_sha256:
            sizes = first.protocol.gallery_size, second.protocol.gallery_size
            wrong.append(
                f"gallery of {judge.name}: {sizes[0]} and {sizes[1]} faces, of other content or order"
            )
    if wrong:
        raise ResultsError(
            f"these runs cannot be compared; they differ in {'; '.join(wrong)}. Evaluate both with the same data, num, "
            "seed and recogniser"
        )


def _shared_judges(first: Evaluation, second: Evaluation) -> list[tuple[Recogniser, Recogniser]]:
    return [
        (judge, other) for judge in first.recognisers if (other := second.recogniser(judge.name)) is not None
    ]


def _different_probes(first: Evaluation, second: Evaluation) -> Iterator[str]:
    one, two = ({probe.name: probe for probe in run.probes} for run in (first, second))
    for here, there, which in ((one, two, "first"), (two, one, "second")):
        missing = [name for name in here if name not in there]
        if missing:
            yield f"skulls: {len(missing)} of {len(here)} only in the {which} ({_some(missing)})"
    both = [name for name in one if name in two]
    for what, key in (("skull pictures", "skull_sha256"), ("true faces", "truth_sha256")):
        changed = [name for name in both if getattr(one[name], key) != getattr(two[name], key)]
        if changed:
            yield f"{what}: {len(changed)} have another content ({_some(changed)})"
    if list(one) != list(two) and set(one) == set(two):
        yield "the order of the skulls"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


# method in the first run, part of the comparison, column, values of both runs, weights of the skulls
_Values = tuple[Method, str, Column, Floats | None, Floats | None, Floats | None]


def _method_values(first: Evaluation, second: Evaluation) -> Iterator[_Values]:
    for method in first.methods:
        other = second.method(method.name)
        if other is None:
            continue
        for judge, _ in _shared_judges(first, second):
            for column in identification_columns(judge.name):
                yield method, judge.label, column, column.values(method), column.values(other), None
        for column in picture_columns(first):
            yield method, "pictures", column, column.values(method), column.values(other), None


def _coverage_values(first: Evaluation, second: Evaluation) -> Iterator[_Values]:
    """Yield the best of K, and K together, where both drew K faces for the same skulls."""
    others = {(part.recogniser, part.within, part.draws, part.probes): part for part in second.coverage}
    for part in first.coverage:
        other = others.get((part.recogniser, part.within, part.draws, part.probes))
        judge = first.recogniser(part.recogniser)
        if other is None or judge is None:
            continue

        def best(coverage: Coverage, name: str) -> Floats:
            return best_of_chance(coverage.hits[name], coverage.draws)[:, -1]

        def together(coverage: Coverage, name: str) -> Floats:
            return np.asarray(np.array(coverage.ranks_together[name]) <= coverage.within, np.float64)

        for label, names, of in (
            (f"best of {part.draws}", part.hits.keys() & other.hits, best),
            (f"{part.draws} together", part.ranks_together.keys() & other.ranks_together, together),
        ):
            column = Column(
                part.recogniser, "coverage", f"{label}: within {part.within}", "%", "higher", 1, 100
            )
            for method in first.methods:
                if method.name in names:
                    yield method, judge.label, column, of(part, method.name), of(other, method.name), None


def _edit_values(first: Evaluation, second: Evaluation) -> Iterator[_Values]:
    others = {(edit.method, edit.name, edit.space, edit.probes): edit for edit in second.edits}
    for edit in first.edits:
        other = others.get((edit.method, edit.name, edit.space, edit.probes))
        method = first.method(edit.method)
        if other is not None and method is not None:
            column = Column("edits", edit.name, f"{edit.label}: of the true change", "%", "", 0, 100)
            own, theirs = (np.array(part.projections, np.float64) for part in (edit, other))  # NaN for None
            yield method, "edits", column, own, theirs, np.array(edit.true_sizes) ** 2


def _row(
    method: Method,
    part: str,
    column: Column,
    first: Floats | None,
    second: Floats | None,
    weights: Floats | None,
    how: Resampling,
) -> Row | None:
    gap = difference(second, first, how, weights)
    if gap is None or first is None or second is None:
        return None
    both = np.isfinite(first) & np.isfinite(second)
    w = None if weights is None else weights[both]
    one, two = (float(np.average(values[both], weights=w)) for values in (first, second))
    return Row(method.name, method.label, part, column, one, two, gap)


def _settings(first: Evaluation, second: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yield the settings and files that differ: name, first, second."""
    sides = []
    for run in (first, second):
        files = {f"file {Path(file.path).name}": file.sha256[:12] for file in run.subject.files}
        flat = dict(_flat(run.protocol.config)) | dict(_flat({"sampling": run.protocol.sampling})) | files
        sides.append({key: str(value) for key, value in flat.items()})
    for key in {**sides[0], **sides[1]}:
        one, two = (side.get(key, "") for side in sides)
        if one != two:
            yield key, one, two


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---------------------------------------------------------------- text
def cells(row: Row) -> tuple[str, str, str, str]:
    """Return a row's figures as text: first, second, second minus first, its interval."""
    column, gap = row.column, row.difference
    unit = f" {column.unit}" if column.unit else ""
    return (
        column.written(row.first) + unit,
        column.written(row.second) + unit,
        column.written(gap.value, sign=True),
        column.interval(gap, sign=True),
    )


def summary(comparison: Comparison) -> list[str]:
    """Return what the comparison says, in sentences."""
    lines = []
    decided = [row for row in comparison.rows if row.verdict != "same"]
    for verdict in ("better", "worse"):
        rows = [row for row in decided if row.verdict == verdict]
        for label in dict.fromkeys(row.label for row in rows):
            parts: dict[str, list[Row]] = {}
            for row in (row for row in rows if row.label == label):
                parts.setdefault(row.part, []).append(row)
            by = [
                f"{part}: {own[0].column.label} {' '.join(cells(own[0])[2:])}"
                + "".join(f", {row.column.label}" for row in own[1:])
                for part, own in parts.items()
            ]
            lines.append(f"The second is {verdict} for {label}, by {'; by '.join(by)}.")
    if not any(row.verdict in ("better", "worse") for row in decided):
        lines.append("No measure says with certainty that one run is better than the other.")
    if len(decided) > 1:
        tail = 1 - comparison.first.protocol.confidence
        lines.append(
            f"{len(decided)} comparisons were made: about {len(decided) * tail:.1f} of such intervals leave out 0 by "
            "chance alone."
        )
    changed = {row.label for row in decided}
    same = [label for label in dict.fromkeys(row.label for row in comparison.rows) if label not in changed]
    for labels, beginning in (
        (same, "The same on every skull in both"),
        (comparison.only_first, "Only in the first"),
        (comparison.only_second, "Only in the second"),
    ):
        lines += [f"{beginning}: {'; '.join(labels)}."] if labels else []
    return lines
