"""The command that compares two runs.

    python evaluate.py compare results/before results/after [out=FILE.html]

The table is printed, and ``compare.html`` is written into the second folder (or to ``out``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.files import write_text
from muti_control.evaluation.report.page import comparison_page
from muti_control.evaluation.report.tables import as_text
from muti_control.evaluation.results.comparison import Comparison, cells, compare, summary
from muti_control.evaluation.results.results_file import ResultsError, read_results
from settings.program import Program

PAGE = "compare.html"
USAGE = (
    "python evaluate.py compare FIRST SECOND [out=FILE.html]  (two results folders, or their metrics.json)"
)


def terminal(comparison: Comparison) -> str:
    """Return the rows that differ, as aligned text."""
    lines = [["method", "measure", "first", "second", "second - first", "", "p", "second is"]]
    for row in comparison.rows:
        if row.verdict != "same":
            measure = f"{row.part}: {row.column.label}"
            lines.append([row.label, measure, *cells(row), f"{row.difference.p:.3f}", row.verdict])
    return _plain(as_text(lines, right=(2, 3, 4)))


def _plain(text: str) -> str:
    """Return the text for terminals that know no true minus sign."""
    return text.replace("\N{MINUS SIGN}", "-")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0, or 2 with one message on stderr."""
    paths = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    with Program("evaluate.py compare") as end:
        if len(paths) != 2 or set(options) - {"out"}:
            raise ResultsError(f"got {' '.join(arguments) or 'nothing'}; expected {USAGE}")
        runs = [read_results(path) for path in paths]
        comparison = compare(*runs)
        second = Path(paths[1])
        out = Path(options.get("out") or (second if second.is_dir() else second.parent) / PAGE)
        write_text(out, comparison_page(comparison))
        print(f"first: {paths[0]}\nsecond: {paths[1]}\n\n{terminal(comparison)}\n")
        print(_plain("\n".join(summary(comparison))))
        print(f"\n{out}")
    return end.status
