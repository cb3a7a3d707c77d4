"""The columns of the tables: the figure of each measure, its values per probe, and differences between methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.results.results import Evaluation, Figure, Identification, Method
from muti_control.evaluation.results.statistics import paired_difference
from muti_control.evaluation.results.summary import MIN_PROBES, Resampling

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Column:
    """One measure as a column of a table.

    Attributes:
        part: a recogniser's name, or ``pictures``; key: the measure within it.
        label: of the column; unit: shown behind the label.
        better: ``higher`` or ``lower``, or empty where neither is.
        decimals: to print; factor: what a value is multiplied with to be printed in ``unit`` (100 for %).
    """

    part: str
    key: str
    label: str
    unit: str
    better: str
    decimals: int
    factor: float = 1.0

    def figure(self, method: Method) -> Figure | None:
        """Return the method's figure, None where it was not measured."""
        if self.part == "pictures":
            measured = method.pictures.get(self.key)
            return None if measured is None else measured.figure
        identification = method.identification.get(self.part)
        return None if identification is None else getattr(identification, self.key)

    def values(self, method: Method) -> Floats | None:
        """Return the method's values per probe (P,), NaN where not measured; None if there are none."""
        if self.part == "pictures":
            measured = method.pictures.get(self.key)
            values = None if measured is None else measured.values
            return None if values is None else _with_nan(values)
        identification = method.identification.get(self.part)
        return None if identification is None else _PER_PROBE[self.key](identification)

    def written(self, value: float, sign: bool = False) -> str:
        """Return a value as text, without its unit."""
        return f"{value * self.factor:{'+' if sign else ''}.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")

    def interval(self, of: Figure | Difference, sign: bool = False) -> str:
        """Return "[low, high]" as text; empty where there is no interval."""
        if of.low is None or of.high is None:
            return ""
        return f"[{self.written(of.low, sign)}, {self.written(of.high, sign)}]"


def _with_nan(values: tuple[float | None, ...] | tuple[int | None, ...]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _hits(within: int) -> Callable[[Identification], Floats]:
    def of(identification: Identification) -> Floats:
        ranks = _with_nan(identification.ranks)
        return np.where(np.isnan(ranks), np.nan, ranks <= within)

    return of


_PER_PROBE: dict[str, Callable[[Identification], Floats | None]] = {
    "rank1": _hits(1),
    "rank5": _hits(5),
    "rank10": _hits(10),
    "mean_reciprocal_rank": lambda identification: 1 / _with_nan(identification.ranks),
    "mean_rank": lambda identification: _with_nan(identification.ranks),
    "distance": lambda identification: (
        None if identification.distances is None else _with_nan(identification.distances)
    ),
}


def identification_columns(recogniser: str) -> list[Column]:
    """Return the columns of one recogniser. The gallery has one face of each person, so mAP and MRR are one number."""
    return [
        Column(recogniser, "rank1", "rank-1", "%", "higher", 1, 100),
        Column(recogniser, "rank5", "rank-5", "%", "higher", 1, 100),
        Column(recogniser, "rank10", "rank-10", "%", "higher", 1, 100),
        Column(recogniser, "mean_reciprocal_rank", "mAP = MRR", "", "higher", 3),
        Column(recogniser, "mean_rank", "mean rank", "", "lower", 1),
        Column(recogniser, "distance", "distance to own", "", "lower", 3),
    ]


def identification_column(recogniser: str, key: str) -> Column:
    """Return one recogniser's column of a measure."""
    return next(column for column in identification_columns(recogniser) if column.key == key)


def picture_columns(evaluation: Evaluation) -> list[Column]:
    """Return the measures on pictures that some method has, in the order of ``measures``."""
    used = {name for method in evaluation.methods for name in method.pictures}
    return [
        Column("pictures", measure.name, measure.label, measure.unit, measure.better, measure.decimals)
        for measure in evaluation.measures
        if measure.name in used
    ]


@dataclass(frozen=True)
class Difference:
    """First minus second on the probes that both have: mean, paired bootstrap interval, two-sided p, probes."""

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def resampling_of(evaluation: Evaluation) -> Resampling:
    """Return how the run's intervals were made, for further intervals."""
    protocol = evaluation.protocol
    return Resampling(protocol.bootstrap, protocol.seed, protocol.confidence)


def difference(
    first: Floats | None, second: Floats | None, how: Resampling, weights: Floats | None = None
) -> Difference | None:
    """Return the paired difference of values per probe (P,), NaN where not measured; None below two probes."""
    if first is None or second is None:
        return None
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < MIN_PROBES:
        return None
    value, low, high, p = paired_difference(
        first[both],
        second[both],
        None if weights is None else weights[both],
        how.draws,
        how.seed,
        how.confidence,
    )
    return Difference(value, low, high, p, int(both.sum()))


def gap(evaluation: Evaluation, column: Column, first: Method, second: Method) -> Difference | None:
    """Return the difference of two methods of a run in one measure; None below two common probes."""
    return difference(column.values(first), column.values(second), resampling_of(evaluation))
