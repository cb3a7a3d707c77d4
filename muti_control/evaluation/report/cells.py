"""What several parts of the report write alike: a method's label, a measure's column, a person."""

from __future__ import annotations

from collections.abc import Mapping

from muti_control.evaluation.report import markup
from muti_control.evaluation.report.markup import Cell
from muti_control.evaluation.results.results import Evaluation, Figure, Measure, Measured, Probe


def label_of(evaluation: Evaluation, name: str) -> str:
    """The label of a method; its name where the run does not know it."""
    method = evaluation.method(name)
    return name if method is None else method.label


def measure_head(measure: Measure) -> Cell:
    """The head of a measure's column, with its unit."""
    return Cell(measure.label + (f", {measure.unit}" if measure.unit else ""))


def measure_cell(measures: Mapping[str, Measured], measure: Measure) -> Cell:
    """One measure with its interval, a dash where it was not measured."""
    measured = measures.get(measure.name)
    return figure_cell(None if measured is None else measured.figure, measure.decimals)


def figure_cell(figure: Figure | None, decimals: int, factor: float = 1.0) -> Cell:
    """A figure times ``factor`` with its interval, a dash for None."""
    if figure is None:
        return Cell("\N{EN DASH}", style="faint")

    def text(value: float) -> str:
        return f"{value * factor:.{decimals}f}".replace("-", markup.MINUS)

    small = "" if figure.low is None or figure.high is None else f"[{text(figure.low)}, {text(figure.high)}]"
    return Cell(text(figure.value), small)


def person(probe: Probe) -> str:
    """A probe in words."""
    body = probe.groups.get("body mass", f"body mass level {probe.body_mass}")
    return f"{probe.name}: {probe.ethnicity} {probe.sex}, {probe.age:.0f} years, {body}"
