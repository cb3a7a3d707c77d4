"""Two runs on the same skulls against the same gallery: is the second better, and is that certain?

Every method and measure that both have is compared skull by skull (paired bootstrap on second minus first). Runs whose
skulls, gallery or recogniser differ are refused: their figures cannot be subtracted.
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
from muti_control.evaluation.results.results import Evaluation
from muti_control.evaluation.results.results_file import ResultsError
from muti_control.evaluation.results.statistics import best_of_chance
from muti_control.evaluation.results.summary import Resampling

Floats = NDArray[np.floating]
_SHOWN = 3


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
        """``better``, ``worse``, ``same`` (equal on every skull) or ``unclear``; ``differs`` where none is better."""
        if not self.difference.value and not self.difference.low and not self.difference.high:
            return "same"
        if not self.difference.certain:
            return "unclear"
        if not self.column.better:
            return "differs"
        return "better" if (self.difference.value > 0) == (self.column.better == "higher") else "worse"


@dataclass(frozen=True)
class Comparison:
    """Both runs, the rows that both have, and what only one of them has."""

    first: Evaluation
    second: Evaluation
    rows: tuple[Row, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]  # setting, first, second


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Second minus first, skull by skull.

    Raises:
        ResultsError: they cannot be compared; the message says what differs.
    """
    check_comparable(first, second)
    how = resampling_of(first)
    rows = (
        *_method_rows(first, second, how),
        *_coverage_rows(first, second, how),
        *_edit_rows(first, second, how),
    )
    names = [{method.name: method.label for method in run.methods} for run in (first, second)]
    if not rows:
        raise ResultsError("the two runs have no method and measure in common")
    return Comparison(
        first,
        second,
        rows,
        tuple(label for name, label in names[0].items() if name not in names[1]),
        tuple(label for name, label in names[1].items() if name not in names[0]),
        tuple(_settings(first, second)),
    )


def check_comparable(first: Evaluation, second: Evaluation) -> None:
    """Refuse runs on other skulls, another gallery or with another recogniser.

    Raises:
        ResultsError: with all that differs.
    """
    wrong = list(_different_probes(first, second))
    shared = [judge for judge in first.recognisers if second.recogniser(judge.name) is not None]
    if not shared and (first.recognisers or second.recognisers):
        names = [", ".join(judge.name for judge in run.recognisers) or "none" for run in (first, second)]
        wrong.append(f"recognisers: the first has {names[0]}, the second {names[1]}")
    for judge in shared:
        other = second.recogniser(judge.name)
        if other is None:
            continue
        if judge.identity != other.identity:
            keys = _different_keys(judge.identity, other.identity)
            wrong.append(f"recogniser {judge.name}: {keys}")
        if judge.gallery_sha256 != other.gallery_sha256:
            sizes = first.protocol.gallery_size, second.protocol.gallery_size
            wrong.append(
                f"gallery of {judge.name}: {sizes[0]} and {sizes[1]} faces, of other content or order"
            )
    if wrong:
        raise ResultsError(
            "these runs cannot be compared; they differ in "
            + "; ".join(wrong)
            + ". Evaluate both with the same data, num, seed and recogniser"
        )


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


def _different_keys(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    return ", ".join(f"{key} {one.get(key)!r} and {two.get(key)!r}" for key in keys[:_SHOWN])


def _method_rows(first: Evaluation, second: Evaluation, how: Resampling) -> Iterator[Row]:
    shared = [judge for judge in first.recognisers if second.recogniser(judge.name) is not None]
    for method in first.methods:
        other = second.method(method.name)
        if other is None:
            continue
        for judge in shared:
            for column in identification_columns(judge.name):
                row = _row(
                    method.name,
                    method.label,
                    judge.label,
                    column,
                    column.values(method),
                    column.values(other),
                    how,
                )
                if row is not None:
                    yield row
        for column in picture_columns(first):
            row = _row(
                method.name,
                method.label,
                "pictures",
                column,
                column.values(method),
                column.values(other),
                how,
            )
            if row is not None:
                yield row


def _row(
    name: str, label: str, part: str, column: Column, first: Floats | None, second: Floats | None, how: Resampling,
    weights: Floats | None = None,
) -> Row | None:  # fmt: skip
    gap = difference(second, first, how, weights)
    if gap is None or first is None or second is None:
        return None
    both = np.isfinite(first) & np.isfinite(second)
    w = None if weights is None else weights[both]
    mean_first, mean_second = (float(np.average(values[both], weights=w)) for values in (first, second))
    return Row(name, label, part, column, mean_first, mean_second, gap)


def _coverage_rows(first: Evaluation, second: Evaluation, how: Resampling) -> Iterator[Row]:
    """Best of K, and K together, where both drew K faces for the same skulls."""
    others = {(part.recogniser, part.within, part.draws, part.probes): part for part in second.coverage}
    for part in first.coverage:
        other = others.get((part.recogniser, part.within, part.draws, part.probes))
        judge = first.recogniser(part.recogniser)
        if other is None or judge is None:
            continue
        best = [
            {name: best_of_chance(hits, part.draws)[:, -1] for name, hits in one.hits.items()}
            for one in (part, other)
        ]
        together = [
            {
                name: np.asarray(np.array(r) <= part.within, np.float64)
                for name, r in one.ranks_together.items()
            }
            for one in (part, other)
        ]
        for label, (mine, theirs) in (("best of {}", best), ("{} together", together)):
            told = f"{label.format(part.draws)}: within {part.within}"
            column = Column(part.recogniser, "coverage", told, "%", "higher", 1, 100)
            for name in [name for name in mine if name in theirs]:
                method = first.method(name)
                if method is None:
                    continue
                row = _row(name, method.label, judge.label, column, mine[name], theirs[name], how)
                if row is not None:
                    yield row


def _edit_rows(first: Evaluation, second: Evaluation, how: Resampling) -> Iterator[Row]:
    others = {(edit.method, edit.name, edit.space, edit.probes): edit for edit in second.edits}
    for edit in first.edits:
        other = others.get((edit.method, edit.name, edit.space, edit.probes))
        method = first.method(edit.method)
        if other is None or method is None:
            continue
        column = Column("edits", edit.name, f"{edit.label}: of the true change", "%", "", 0, 100)
        values = [
            np.array([np.nan if p is None else p for p in part.projections], dtype=np.float64)
            for part in (edit, other)
        ]
        weights = np.array(edit.true_sizes) ** 2
        row = _row(edit.method, method.label, "edits", column, values[0], values[1], how, weights)
        if row is not None:
            yield row


def _settings(first: Evaluation, second: Evaluation) -> Iterator[tuple[str, str, str]]:
    """What the runs were told differently."""
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


# ---------------------------------------------------------------- what is shown
def cells(row: Row) -> tuple[str, str, str, str]:
    """A row's figures as printed: first, second, second minus first, its interval."""
    column, gap = row.column, row.difference
    unit = f" {column.unit}" if column.unit else ""
    return (
        column.written(row.first) + unit,
        column.written(row.second) + unit,
        column.written(gap.value, sign=True),
        f"[{column.written(gap.low, sign=True)}, {column.written(gap.high, sign=True)}]",
    )


def _told(rows: Sequence[Row]) -> str:
    """One part's rows: the first with its figures, the others by name."""
    first, *others = rows
    names = "".join(f", {row.column.label}" for row in others)
    return f"{first.part}: {first.column.label} {' '.join(cells(first)[2:])}{names}"


def summary(comparison: Comparison) -> list[str]:
    """What the comparison says, in sentences."""
    lines = []
    decided = [row for row in comparison.rows if row.verdict != "same"]
    for verdict in ("better", "worse"):
        found = [row for row in decided if row.verdict == verdict]
        for label in dict.fromkeys(row.label for row in found):
            parts = dict.fromkeys(row.part for row in found if row.label == label)
            told = [_told([row for row in found if (row.label, row.part) == (label, part)]) for part in parts]
            lines.append(f"The second is {verdict} for {label}, by {'; by '.join(told)}.")
    if not any(row.verdict in ("better", "worse") for row in decided):
        lines.append("No measure says with certainty that one run is better than the other.")
    if len(decided) > 1:
        tail = 1 - comparison.first.protocol.confidence
        lines.append(
            f"{len(decided)} comparisons were made: about {len(decided) * tail:.1f} of such intervals leave out zero "
            "by chance alone."
        )
    changed = {row.label for row in decided}
    same = [label for label in dict.fromkeys(row.label for row in comparison.rows) if label not in changed]
    if same:
        lines.append(f"The same on every skull in both: {'; '.join(same)}.")
    for labels, which in ((comparison.only_first, "first"), (comparison.only_second, "second")):
        if labels:
            lines.append(f"Only in the {which}: {'; '.join(labels)}.")
    return lines
