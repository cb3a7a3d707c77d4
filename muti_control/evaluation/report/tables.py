"""The report's tables of methods: values with intervals, the best marked, and differences probe by probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muti_control.evaluation.report.markup import Cell, Numbering, paragraph, table
from muti_control.evaluation.report.words import RIVALS, Roles, interval_text, plural, sentence, the
from muti_control.evaluation.results.columns import (
    Column,
    difference,
    identification_columns,
    picture_columns,
    resampling_of,
)
from muti_control.evaluation.results.results import Evaluation, Method, Recogniser

DAGGER = "\N{DAGGER}"
ARROWS = "\N{UPWARDS ARROW} higher is better, \N{DOWNWARDS ARROW} lower."
_PARTS = (
    (("model", "folder"), "Evaluated"),
    (("baseline",), "Baselines"),
    (("control",), "Controls: told something wrong, or less"),
    (("ceiling",), "Ceiling"),
    (("limit",), "The true face itself"),
)


def main_table(evaluation: Evaluation, numbers: Numbering) -> str:
    """Every method under the first recogniser, and as a picture."""
    judge = evaluation.recognisers[0] if evaluation.recognisers else None
    identity = [] if judge is None else identification_columns(judge.name)[:4]
    pictures = picture_columns(evaluation)
    columns = [*identity, *pictures]
    if not columns:
        return ""
    size = evaluation.protocol.gallery_size
    above = [("", 1)]
    if judge is not None:
        above.append((f"Identity: {judge.label}, {size:,} faces", len(identity)))
    if pictures:
        above.append(("Likeness to the true face", len(pictures)))
    caption = (
        f"All methods on the same skulls, with {100 * evaluation.protocol.confidence:.0f} % intervals over skulls, "
        "the gallery fixed."
    )
    return _method_table(evaluation, numbers.table(), caption, columns, above, judge)


def recogniser_table(evaluation: Evaluation, judge: Recogniser, numbers: Numbering) -> str:
    """Every method under one recogniser, with ranks and distances."""
    columns = identification_columns(judge.name)
    if all(method.identification[judge.name].distance is None for method in _judged(evaluation, judge)):
        columns = columns[:-1]
    caption = f"Identity by {judge.label} ({judge.distance}). {judge.note}".strip()
    missed = {m.label: m.identification[judge.name].missed for m in _judged(evaluation, judge)}
    found_none = [f"{label} {number}" for label, number in missed.items() if number]
    notes = ""
    if found_none:
        notes = f"Faces in which it found none, each counted with the last rank: {'; '.join(found_none)}."
    return _method_table(evaluation, numbers.table(), caption, columns, [], judge, notes)


def _judged(evaluation: Evaluation, judge: Recogniser) -> list[Method]:
    return [method for method in evaluation.methods if judge.name in method.identification]


def _method_table(
    evaluation: Evaluation,
    number: str,
    caption: str,
    columns: Sequence[Column],
    above: Sequence[tuple[str, int]],
    judge: Recogniser | None,
    notes: str = "",
) -> str:
    marks = {column: _marks(evaluation, column) for column in columns}
    rows: list[tuple[Cell, Sequence[Cell]]] = []
    for kinds, title in _PARTS:
        methods = [m for m in evaluation.methods if m.kind in kinds and any(c.figure(m) for c in columns)]
        if methods:
            rows.append((Cell(title), []))
        rows += [_row(evaluation, method, columns, marks) for method in methods]
    if judge is not None:
        rows += [(Cell("Chance"), []), _chance(evaluation.protocol.gallery_size, columns)]
    head = [Cell("Method"), *(_head(c, c.unit) for c in columns)]
    certain = any(DAGGER in mark for marked in marks.values() for mark in marked.values())
    explained = f"{ARROWS} Shaded: the best of the evaluated methods and the baselines."
    if certain:
        explained += (
            f" {DAGGER} not certainly worse than it (the paired interval of their difference holds zero)."
        )
    fewer = _fewer(evaluation, columns)
    return (
        table(number, caption, head, rows, above)
        + f'<div class="notes">{paragraph(explained, fewer, notes)}</div>'
    )


def _head(column: Column, unit: str) -> Cell:
    arrow = {"higher": " \N{UPWARDS ARROW}", "lower": " \N{DOWNWARDS ARROW}"}.get(column.better, "")
    return Cell(column.label + (f", {unit}" if unit else "") + arrow)


def _row(
    evaluation: Evaluation, method: Method, columns: Sequence[Column], marks: dict[Column, dict[str, str]]
) -> tuple[Cell, Sequence[Cell]]:
    cells = []
    for column in columns:
        figure, mark = column.figure(method), marks[column].get(method.name, "")
        if figure is None:
            cells.append(Cell("\N{EN DASH}", style="faint"))
        else:
            text = column.written(figure.value) + (DAGGER if mark == DAGGER else "")
            cells.append(Cell(text, interval_text(column, figure), "best" if mark == "best" else ""))
    style = "evaluated" if method.kind in ("model", "folder") else "faint" if method.kind == "control" else ""
    return Cell(method.label, style=style), cells


def _marks(evaluation: Evaluation, column: Column) -> dict[str, str]:
    """Method's name -> "best", or a dagger where it cannot be told from the best."""
    rivals = {m.name: m for m in evaluation.methods if m.kind in RIVALS and column.figure(m) is not None}
    if len(rivals) < 2 or not column.better:
        return {}
    sign = 1 if column.better == "higher" else -1

    def strength(method: Method) -> float:
        figure = column.figure(method)
        return -np.inf if figure is None else sign * figure.value

    best = max(rivals.values(), key=strength)
    marks = {name: "best" for name, method in rivals.items() if strength(method) == strength(best)}
    if len(marks) == len(rivals):
        return {}
    how = resampling_of(evaluation)
    for name, method in rivals.items():
        gap = None if name in marks else difference(column.values(best), column.values(method), how)
        if gap is not None and not gap.certain:
            marks[name] = DAGGER
    return marks


def _chance(size: int, columns: Sequence[Column]) -> tuple[Cell, Sequence[Cell]]:
    """What guessing gives: rank uniform over the gallery."""
    places = np.arange(1, size + 1)
    values = {
        "rank1": 1 / size,
        "rank5": min(5 / size, 1),
        "rank10": min(10 / size, 1),
        "mean_reciprocal_rank": (1 / places).mean(),
        "mean_rank": places.mean(),
    }
    cells = [Cell(c.written(float(values[c.key])) if c.key in values else "", style="faint") for c in columns]
    return Cell("guessing", style="faint"), cells


def _fewer(evaluation: Evaluation, columns: Sequence[Column]) -> str:
    """Which methods rest on fewer skulls than the run has."""
    whole, parts = len(evaluation.probes), []
    for method in evaluation.methods:
        numbers = [figure.n for c in columns if (figure := c.figure(method)) is not None]
        if numbers and min(numbers) < whole:
            low, high = min(numbers), max(numbers)
            parts.append(f"{method.label} {low}" + (f" to {high}" if high > low else ""))
    return f"All on {plural(whole, 'skull')}" + (f", except: {'; '.join(parts)}." if parts else ".")


def difference_table(evaluation: Evaluation, numbers: Numbering) -> str:
    """The evaluated method minus every other, skull by skull."""
    roles = Roles.of(evaluation)
    if roles.evaluated is None or roles.judge is None:
        return ""
    wanted = ("rank1", "rank10", "mean_reciprocal_rank")
    columns = [c for c in identification_columns(roles.judge.name) if c.key in wanted]
    columns += [c for c in picture_columns(evaluation) if c.values(roles.evaluated) is not None]
    how = resampling_of(evaluation)
    rows: list[tuple[Cell, Sequence[Cell]]] = []
    for method in evaluation.methods:
        if method.name == roles.evaluated.name:
            continue
        cells = []
        for column in columns:
            gap = difference(column.values(roles.evaluated), column.values(method), how)
            if gap is None:
                cells.append(Cell("\N{EN DASH}", style="faint"))
                continue
            bounds = f"[{column.written(gap.low, True)}, {column.written(gap.high, True)}]"
            cells.append(Cell(column.written(gap.value, True), bounds, "" if gap.certain else "faint"))
        if any(cell.small for cell in cells):
            rows.append((Cell(method.label), cells))
    if not rows:
        return ""
    head = [Cell("Minus"), *(_head(c, "points" if c.unit == "%" else c.unit) for c in columns)]
    caption = (
        f"{sentence(the(roles.evaluated))} minus each other method, skull by skull (paired bootstrap); "
        "pale where the interval holds zero."
    )
    return table(numbers.table(), caption, head, rows)
