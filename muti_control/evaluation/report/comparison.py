"""``compare.html``: two runs side by side, in the form of the report."""

from __future__ import annotations

from collections.abc import Sequence

from muti_control.evaluation.report import markup
from muti_control.evaluation.report.markup import Cell, Numbering
from muti_control.evaluation.report.words import plural, what_was_evaluated
from muti_control.evaluation.results.comparison import Comparison, Row, cells, summary

_MARKS = {"better": "best", "worse": "worse", "unclear": "faint", "same": "faint"}


def comparison_page(comparison: Comparison) -> str:
    """The page as text."""
    first, second, numbers = comparison.first, comparison.second, Numbering()
    title = f"{second.subject.name} compared with {first.subject.name}"
    if first.subject.name == second.subject.name:
        title = f"Two evaluations of {first.subject.name} compared"
    byline = f"{first.date[:10]} and {second.date[:10]}, {plural(len(first.probes), 'skull')}"
    lines = [
        first.notice,
        f"First: {first.title}. {what_was_evaluated(first)}",
        f"Second: {second.title}. {what_was_evaluated(second)}",
    ]
    head = (
        f"<header><h1>{markup.escape(title)}</h1><p class='byline'>{markup.escape(byline)}</p>"
        f"{markup.items(lines, 'limits')}<h2>Findings</h2>{markup.items(summary(comparison), 'findings')}</header>"
    )
    commands = [f"<pre>{markup.escape(run.command)}</pre>" for run in (first, second)]
    body = (
        markup.section("differences", "Differences skull by skull", _table(comparison, numbers)),
        markup.section("settings", "What they were told differently", _settings(comparison, numbers)),
        markup.section("commands", "To repeat them", *commands),
    )  # fmt: skip
    return markup.page(title, head + "".join(body))


def _table(comparison: Comparison, numbers: Numbering) -> str:
    rows: list[tuple[Cell, Sequence[Cell]]] = []
    shown = [row for row in comparison.rows if row.verdict != "same"]
    for label in dict.fromkeys(row.label for row in shown):
        rows.append((Cell(label), []))
        rows += [_row(row) for row in shown if row.label == label]
    if not rows:
        return markup.paragraph("Every measure is the same on every skull.")
    head = [
        Cell("Measure"),
        Cell("first"),
        Cell("second"),
        Cell("second \N{MINUS SIGN} first"),
        Cell("p"),
        Cell("skulls"),
        Cell("second is"),
    ]
    caption = (
        "Second minus first on the same skulls against the same gallery: paired bootstrap over skulls, "
        f"{comparison.first.protocol.bootstrap:,} draws, {100 * comparison.first.protocol.confidence:.0f} % intervals, "
        "two-sided p without correction for their number."
    )
    return markup.table(numbers.table(), caption, head, rows)


def _row(row: Row) -> tuple[Cell, Sequence[Cell]]:
    first, second, gap, interval = cells(row)
    p = row.difference.p
    return Cell(row.column.label, row.part), [
        Cell(first),
        Cell(second),
        Cell(gap, interval, _MARKS.get(row.verdict, "")),
        Cell(f"{p:.3f}"),
        Cell(str(row.difference.n)),
        Cell(row.verdict, style=_MARKS.get(row.verdict, "")),
    ]


def _settings(comparison: Comparison, numbers: Numbering) -> str:
    rows = [(Cell(name), [Cell(one), Cell(two)]) for name, one, two in comparison.settings]
    if not rows:
        return ""
    return markup.table(
        numbers.table(),
        "Settings and files that differ.",
        [Cell("Setting"), Cell("first"), Cell("second")],
        rows,
    )
