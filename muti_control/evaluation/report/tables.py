"""The tables of methods: values with intervals, the best one marked, and differences skull by skull."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muti_control.evaluation.report.words import RIVALS, Roles, plural
from muti_control.evaluation.results.columns import Column, gap, identification_columns, picture_columns
from muti_control.evaluation.results.results import Evaluation, Figure, Method, Recogniser

DAGGER = "\N{DAGGER}"
_PARTS = {
    "Evaluated": ("model", "folder"),
    "Baselines": ("baseline",),
    "Controls: wrong or missing input": ("control",),
    "Ceiling": ("ceiling",),
    "The true face itself": ("limit",),
}
_CLASSES = {"model": "evaluated", "folder": "evaluated", "control": "faint"}


@dataclass(frozen=True)
class Cell:
    """One cell. text: the number; small: its interval, below it; style: CSS classes."""

    text: str
    small: str = ""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """head: column labels. parts: title -> rows of (label, CSS class, cells). notes: lines below the table."""

    head: Sequence[str]
    parts: Mapping[str, Sequence[tuple[str, str, Sequence[Cell]]]]
    notes: Sequence[str] = ()


def main_columns(evaluation: Evaluation) -> tuple[list[Column], list[Column]]:
    """Return the columns of the main table: identity by the first recogniser, and likeness of the pictures."""
    judges = evaluation.recognisers[:1]
    return [c for judge in judges for c in identification_columns(judge.name)[:4]], picture_columns(
        evaluation
    )


def main_table(evaluation: Evaluation) -> Table | None:
    """Return every method under the first recogniser and by the measures of pictures."""
    identity, pictures = main_columns(evaluation)
    return _method_table(evaluation, [*identity, *pictures], guessing=bool(identity))


def recogniser_table(evaluation: Evaluation, judge: Recogniser) -> Table | None:
    """Return every method under one recogniser, with ranks and distances."""
    columns = identification_columns(judge.name)
    methods = [method for method in evaluation.methods if judge.name in method.identification]
    if all(method.identification[judge.name].distance is None for method in methods):
        columns = columns[:-1]
    missed = {method.label: method.identification[judge.name].missed for method in methods}
    counts = [f"{label} {count}" for label, count in missed.items() if count]
    note = f"Faces in which the recogniser finds no face, each with the last rank: {'; '.join(counts)}."
    return _method_table(evaluation, columns, True, [note] if counts else [])


def difference_table(evaluation: Evaluation) -> Table | None:
    """Return the evaluated method minus every other one, skull by skull; None without an evaluated method."""
    roles = Roles.of(evaluation)
    if roles.evaluated is None or roles.judge is None:
        return None
    keys = ("rank1", "rank10", "mean_reciprocal_rank")
    columns = [c for c in identification_columns(roles.judge.name) if c.key in keys]
    columns += [c for c in picture_columns(evaluation) if c.values(roles.evaluated) is not None]
    rows = []
    for method in evaluation.methods:
        cells = [_gap_cell(evaluation, column, roles.evaluated, method) for column in columns]
        if method.name != roles.evaluated.name and any(cell.small for cell in cells):
            rows.append((method.label, "", cells))
    head = ["Minus", *(_head(column, "points" if column.unit == "%" else column.unit) for column in columns)]
    return Table(head, {"": rows}) if rows else None


def _gap_cell(evaluation: Evaluation, column: Column, first: Method, second: Method) -> Cell:
    own = gap(evaluation, column, first, second)
    if own is None:
        return Cell("\N{EN DASH}", style="faint")
    return Cell(column.written(own.value, True), column.interval(own, True), "" if own.certain else "faint")


def _method_table(
    evaluation: Evaluation, columns: Sequence[Column], guessing: bool, notes: Sequence[str] = ()
) -> Table | None:
    if not columns:
        return None
    marks = {column: _marks(evaluation, column) for column in columns}
    parts: dict[str, list[tuple[str, str, list[Cell]]]] = {}
    for title, kinds in _PARTS.items():
        methods = [m for m in evaluation.methods if m.kind in kinds and any(c.figure(m) for c in columns)]
        rows = [
            (m.label, _CLASSES.get(m.kind, ""), [_cell(column, m, marks[column]) for column in columns])
            for m in methods
        ]
        parts |= {title: rows} if rows else {}
    if guessing:
        parts["Chance"] = [("guessing", "faint", _chance(evaluation.protocol.gallery_size, columns))]
    explained = "\N{UPWARDS ARROW} higher is better, \N{DOWNWARDS ARROW} lower is better. "
    explained += "Shaded: the best of the evaluated methods and the baselines."
    if any(DAGGER in marked.values() for marked in marks.values()):
        explained += (
            f" {DAGGER} not certainly worse than the best (the paired interval of the difference holds 0)."
        )
    head = ["Method", *(_head(column, column.unit) for column in columns)]
    return Table(head, parts, [explained, _numbers_of_skulls(evaluation, columns), *notes])


def _head(column: Column, unit: str) -> str:
    arrow = {
        "higher": "\N{NO-BREAK SPACE}\N{UPWARDS ARROW}",
        "lower": "\N{NO-BREAK SPACE}\N{DOWNWARDS ARROW}",
    }.get(column.better, "")
    return column.label + (f", {unit}" if unit else "") + arrow


def _cell(column: Column, method: Method, marks: Mapping[str, str]) -> Cell:
    figure, mark = column.figure(method), marks.get(method.name, "")
    if figure is None:
        return Cell("\N{EN DASH}", style="faint")
    text = column.written(figure.value) + (mark if mark == DAGGER else "")
    return Cell(text, column.interval(figure), mark if mark == "best" else "")


def _marks(evaluation: Evaluation, column: Column) -> dict[str, str]:
    """Return method's name -> "best", or a dagger where its difference from the best is not certain."""
    values = {
        m.name: f.value
        for m in evaluation.methods
        if m.kind in RIVALS and (f := column.figure(m)) is not None
    }
    if len(set(values.values())) < 2 or not column.better:
        return {}
    top = (max if column.better == "higher" else min)(values.values())
    marks = {name: "best" for name, value in values.items() if value == top}
    best = evaluation.method(next(iter(marks)))
    for name in values.keys() - marks:
        other = evaluation.method(name)
        if best is not None and other is not None:
            loss = gap(evaluation, column, best, other)
            if loss is not None and not loss.certain:
                marks[name] = DAGGER
    return marks


def _chance(size: int, columns: Sequence[Column]) -> list[Cell]:
    """Return the figures of guessing: the rank is uniform over the gallery."""
    places = np.arange(1, size + 1)
    values = {f"rank{k}": min(k / size, 1) for k in (1, 5, 10)}
    values |= {"mean_reciprocal_rank": (1 / places).mean(), "mean_rank": places.mean()}
    return [Cell(c.written(float(values[c.key])) if c.key in values else "") for c in columns]


def _numbers_of_skulls(evaluation: Evaluation, columns: Sequence[Column]) -> str:
    """Return on how many skulls the figures rest."""
    whole, fewer = len(evaluation.probes), []
    for method in evaluation.methods:
        numbers = [figure.n for column in columns if (figure := column.figure(method)) is not None]
        if numbers and min(numbers) < whole:
            low, high = min(numbers), max(numbers)
            fewer.append(f"{method.label} {low}" + (f" to {high}" if high > low else ""))
    return f"All on {plural(whole, 'skull')}" + (f", except: {'; '.join(fewer)}." if fewer else ".")


# ---------------------------------------------------------------- for the terminal
def as_text(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return lines of cells as aligned text. right: columns that are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return "\n".join("   ".join(row).rstrip() for row in rows)


def results_as_text(evaluation: Evaluation) -> str:
    """Return one line for each method: rank-1 with its interval and rank-5 under each recogniser, in per cent."""
    names = [recogniser.name for recogniser in evaluation.recognisers]
    size = evaluation.protocol.gallery_size
    lines = [["method", *(head for name in names for head in (f"{name}: rank-1", "[95 %]", "rank-5"))]]
    for method in evaluation.methods:
        cells = [method.label]
        for name in names:
            figures = method.identification.get(name)
            cells += (
                ["", "", ""]
                if figures is None
                else [*_share(figures.rank1), f"{100 * figures.rank5.value:.1f}"]
            )
        lines.append(cells)
    lines.append(["chance", *[f"{100 / size:.1f}", "", f"{min(500 / size, 100):.1f}"] * len(names)])
    return as_text(lines, right=range(1, len(lines[0])))


def _share(figure: Figure) -> tuple[str, str]:
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"[{100 * figure.low:.0f}, {100 * figure.high:.0f}]"
    return f"{100 * figure.value:.1f}", interval
