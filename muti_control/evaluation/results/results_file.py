"""Write and read ``metrics.json``. The classes of ``results.py`` say what is valid; pydantic checks it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from muti_control.evaluation.results.results import METRICS, NAME, VERSION, Diversity, Evaluation, Sensitivity
from muti_control.record import write_json
from settings.parsing import ContentError, parse_json, read_text


class ResultsError(ValueError):
    """Results that cannot be read, or do not fit together; the message says what and where."""


def to_json(value: Any) -> Any:
    """Return one of the classes of ``results.py`` as dicts, lists, strings, numbers, booleans and None.

    Bytes of file names that are no UTF-8 become text such as ``\\udcff``: strict readers of JSON take nothing else.
    """
    content = TypeAdapter(type(value)).dump_python(value, mode="json")
    text = json.dumps(content, ensure_ascii=False)
    return json.loads(re.sub("[\ud800-\udfff]", lambda letter: f"\\\\u{ord(letter[0]):x}", text))


def write_results(folder: Path, evaluation: Evaluation) -> Path:
    """Write ``metrics.json`` into ``folder`` in one step, after checking that its parts fit together.

    Raises:
        ResultsError: they do not. ValueError: a setting that JSON has no form for. Nothing is written then.
    """
    check(evaluation)
    write_json(folder / METRICS, to_json(evaluation))
    return folder / METRICS


def read_results(path: str | os.PathLike[str]) -> Evaluation:
    """Return the results in a folder, or in a ``metrics.json``.

    Raises:
        ResultsError: there are none, they are of another version, or they are damaged.
    """
    path = Path(path)
    file = path / METRICS if path.is_dir() else path
    try:
        text = read_text(file)
        content = parse_json(text, file, dict[str, Any], finite=True)
    except ContentError as error:
        raise ResultsError(f"{error}; give a whole {METRICS} of evaluate.py, or its folder") from error
    if content.get("name") != NAME:
        raise ResultsError(f'{file}: not the {METRICS} of evaluate.py (its "name" is not {NAME!r})')
    if content.get("version") != VERSION:
        raise ResultsError(
            f"{file}: results of version {content.get('version')!r}, and this program reads version {VERSION}; "
            "evaluate again, or use the release that wrote them"
        )
    try:
        evaluation: Evaluation = TypeAdapter(Evaluation).validate_json(text, strict=True)
        check(evaluation)
    except ValidationError as error:
        raise ResultsError(f"{file}: {_first_of(error)}") from error
    except ResultsError as error:
        raise ResultsError(f"{file}: {error}") from error
    return evaluation


def check(evaluation: Evaluation) -> None:
    """Check that names refer to something and lists have one entry per probe.

    Raises:
        ResultsError: the first thing that does not fit.
    """
    num = len(evaluation.probes)
    _unique([probe.name for probe in evaluation.probes], "probes")
    recognisers = _unique([recogniser.name for recogniser in evaluation.recognisers], "recognisers")
    measures = _unique([measure.name for measure in evaluation.measures], "measures")
    methods = _unique([method.name for method in evaluation.methods], "methods")

    def check_names(names: Collection[str], among: set[str], where: str) -> None:
        for name in names:
            if name not in among:
                raise ResultsError(f"{where}: {name!r} is none of {sorted(among)}")

    def aligned(values: Sequence[Any] | None, where: str, length: int = num) -> None:
        if values is not None and len(values) != length:
            raise ResultsError(f"{where}: {len(values)} entries for {length} probes")

    def within(indices: Sequence[int], where: str) -> None:
        if any(not 0 <= i < num for i in indices):
            raise ResultsError(f"{where}: a probe's index is outside 0 .. {num - 1}")

    for method in evaluation.methods:
        here = f"method {method.name}"
        check_names(method.identification, recognisers, here)
        check_names(method.pictures, measures, here)
        for name, figures in method.identification.items():
            aligned(figures.ranks, f"{here}, {name}: ranks")
            aligned(figures.distances, f"{here}, {name}: distances")
        for name, measured in method.pictures.items():
            aligned(measured.values, f"{here}, {name}: values")
    for coverage in evaluation.coverage:
        check_names([coverage.recogniser], recognisers, "coverage")
        within(coverage.probes, "coverage")
        for table in (coverage.curves, coverage.together):
            check_names(table, methods, "coverage")
        for key, counts in (("hits", coverage.hits), ("ranks_together", coverage.ranks_together)):
            check_names(counts, methods, f"coverage: {key}")
            for name, row in counts.items():
                aligned(row, f"coverage, {name}: {key}", len(coverage.probes))
    spreads: list[Diversity | Sensitivity] = [*evaluation.diversity, *evaluation.sensitivity]
    for part in spreads:
        check_names([part.method], methods, type(part).__name__.lower())
        check_names(part.measures, measures, type(part).__name__.lower())
    for edit in evaluation.edits:
        check_names([edit.method], methods, "edits")
        within(edit.probes, "edits")
        aligned(edit.projections, f"edit {edit.name}: projections", len(edit.probes))
        aligned(edit.true_sizes, f"edit {edit.name}: true_sizes", len(edit.probes))
    for case in evaluation.cases:
        check_names([case.method], methods, "cases")
        check_names([case.recogniser], recognisers, "cases")
        within([case.probe], "cases")


def _unique(names: list[str], where: str) -> set[str]:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ResultsError(f"{where}: these names occur more than once: {twice[:5]}")
    return set(names)


def _first_of(error: ValidationError) -> str:
    """Return the place and the message of the first mistake: ``probes[0].age: got '43', ...``."""
    first = error.errors()[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    return f"{place}: got {first['input']!r:.60}: {first['msg']}"
