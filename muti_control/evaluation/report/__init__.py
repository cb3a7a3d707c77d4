"""The report of a run: ``report.html``, one file that opens offline, made from ``metrics.json`` and its pictures."""

from __future__ import annotations

import os
import secrets
from html import escape
from pathlib import Path

from muti_control.evaluation.report import charts, markup, sections, tables
from muti_control.evaluation.report.markup import Numbering
from muti_control.evaluation.report.words import findings, limits, what_was_evaluated
from muti_control.evaluation.results.results import REPORT, Evaluation
from muti_control.evaluation.results.results_file import read_results


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Make ``report.html`` in a results folder from what lies there.

    Raises:
        ResultsError: there is no readable ``metrics.json``. OSError: the page cannot be written.
    """
    folder = Path(folder)
    return write_page(folder / REPORT, report(read_results(folder), folder))


def write_page(path: Path, page: str) -> Path:
    """Write a page beside its final name and rename it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(page)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def report(evaluation: Evaluation, folder: Path) -> str:
    """The page as text. folder: where the pictures of ``evaluation`` lie."""
    numbers = Numbering()
    parts = [
        ("results", "Results", tables.main_table(evaluation, numbers) + charts.curves(evaluation, numbers)),
        ("differences", "Differences skull by skull", tables.difference_table(evaluation, numbers)),
        ("cases", "Best, median and worst", sections.cases(evaluation, folder, numbers)),
        ("coverage", "Several faces", charts.coverage(evaluation, numbers) + sections.diversity(evaluation, numbers)),
        ("groups", "By group of people", charts.groups(evaluation, numbers)),
        ("recognisers", "Each recogniser", "".join(
            tables.recogniser_table(evaluation, judge, numbers) for judge in evaluation.recognisers
        )),
        ("edits", "Edits", sections.edits(evaluation, folder, numbers)),
        ("sensitivity", "Sensitivity to each condition", sections.sensitivity(evaluation, numbers)),
        ("unusual", "Unusual skulls", sections.out_of_distribution(evaluation, numbers)),
        ("not-run", "Not measured", sections.not_run(evaluation, numbers)),
        ("methods", "What the methods are", sections.methods(evaluation)),
        ("protocol", "Protocol", sections.protocol(evaluation)),
    ]  # fmt: skip
    shown = [(name, title, body) for name, title, body in parts if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    body = "".join(markup.section(name, title, part) for name, title, part in shown)
    return markup.page(
        evaluation.title, _header(evaluation) + f'<nav aria-label="Contents">{links}</nav>' + body
    )


def _header(evaluation: Evaluation) -> str:
    lines = [evaluation.notice, what_was_evaluated(evaluation), limits(evaluation)]
    date = evaluation.date[:10]
    version = evaluation.environment.get("iccr_diff", "")
    byline = f"Evaluation report, {date}, ICCR-Diff {version}, preset {evaluation.protocol.preset}"
    return (
        f"<header><h1>{escape(evaluation.title)}</h1>"
        f'<p class="byline">{escape(byline)}</p>'
        f"{markup.items(lines, 'limits')}<h2>Findings</h2>{markup.items(findings(evaluation), 'findings')}</header>"
    )
