"""Writing and reading ``metrics.json``: dataclasses to JSON and back, with nothing guessed.

The reader takes the types from the dataclasses of ``results.py``: a missing or unknown key, another type or a NaN is an
error that names the place.
"""

from __future__ import annotations

import json
import math
import os
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cldm.record import write_json
from muti_control.evaluation.results.results import (
    CASE_KINDS,
    METHOD_KINDS,
    METRICS,
    NAME,
    VERSION,
    Evaluation,
)

T = TypeVar("T")


class ResultsError(ValueError):
    """Results that cannot be read, or do not fit together; the message says what and where."""


def to_json(value: Any, where: str = "") -> Any:
    """The same in dicts, lists, strings, numbers, booleans and None.

    Raises:
        ResultsError: NaN or infinity, or a value JSON has no form for; the message names its place.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return to_json(value.item(), where)  # a NumPy number
    if not isinstance(value, float):
        raise ResultsError(f"{where.lstrip('.')}: {type(value).__name__} has no place in {METRICS}")
    if not math.isfinite(value):
        raise ResultsError(f"{where.lstrip('.')}: {value} is no figure; what was not measured is None")
    return value


def from_json(kind: type[T], content: Any, where: str = "") -> T:
    """An instance of the dataclass ``kind`` from what ``to_json`` made of one.

    Raises:
        ResultsError: a key that is missing or unknown, or a value of another type.
    """
    value = _read(kind, content, where)
    assert isinstance(value, kind)
    return value


def write_results(folder: Path, evaluation: Evaluation) -> Path:
    """Write ``metrics.json`` into ``folder`` in one step, after checking that its parts fit together.

    Raises:
        ResultsError: they do not; nothing is written.
    """
    check(evaluation)
    write_json(folder / METRICS, to_json(evaluation))
    return folder / METRICS


def read_results(path: str | os.PathLike[str]) -> Evaluation:
    """The results in a folder, or in a ``metrics.json``.

    Raises:
        ResultsError: there are none, they are of another version, or they are damaged.
    """
    path = Path(path)
    file = path / METRICS if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ResultsError(
            f"{file}: cannot be read ({error.strerror}); give a folder of evaluate.py or its {METRICS}"
        ) from error
    except ValueError as error:
        raise ResultsError(
            f"{file}: not a whole {METRICS} ({error}); make it again with evaluate.py"
        ) from error
    if not isinstance(content, dict) or content.get("name") != NAME:
        raise ResultsError(f'{file}: not the {METRICS} of evaluate.py (its "name" is not {NAME!r})')
    if content.get("version") != VERSION:
        raise ResultsError(
            f"{file}: results of version {content.get('version')!r}, and this program reads version {VERSION}; "
            "evaluate again, or use the release that wrote them"
        )
    try:
        evaluation = from_json(Evaluation, content)
        check(evaluation)
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

    def known(names: Any, among: set[str], where: str) -> None:
        for name in names:
            if name not in among:
                raise ResultsError(f"{where}: {name!r} is none of {sorted(among)}")

    def aligned(values: tuple[Any, ...] | None, where: str, length: int = num) -> None:
        if values is not None and len(values) != length:
            raise ResultsError(f"{where}: {len(values)} entries for {length} probes")

    def within(indices: tuple[int, ...], where: str) -> None:
        if any(not 0 <= i < num for i in indices):
            raise ResultsError(f"{where}: a probe's index is outside 0 .. {num - 1}")

    for method in evaluation.methods:
        here = f"method {method.name}"
        known([method.kind], set(METHOD_KINDS), f"{here}: kind")
        known(method.identification, recognisers, here)
        known(method.pictures, measures, here)
        for name, found in method.identification.items():
            aligned(found.ranks, f"{here}, {name}: ranks")
            aligned(found.distances, f"{here}, {name}: distances")
        for name, measured in method.pictures.items():
            aligned(measured.values, f"{here}, {name}: values")
    for coverage in evaluation.coverage:
        known([coverage.recogniser], recognisers, "coverage")
        known([*coverage.curves, *coverage.hits, *coverage.together], methods, "coverage")
        known(coverage.ranks_together, methods, "coverage")
        within(coverage.probes, "coverage")
        for name, hits in coverage.hits.items():
            aligned(hits, f"coverage, {name}: hits", len(coverage.probes))
        for name, ranks in coverage.ranks_together.items():
            aligned(ranks, f"coverage, {name}: ranks_together", len(coverage.probes))
    for diversity in evaluation.diversity:
        known([diversity.method], methods, "diversity")
        known(diversity.measures, measures, "diversity")
    for sensitivity in evaluation.sensitivity:
        known([sensitivity.method], methods, "sensitivity")
        known(sensitivity.measures, measures, "sensitivity")
    for edit in evaluation.edits:
        known([edit.method], methods, "edits")
        within(edit.probes, "edits")
        aligned(edit.projections, f"edit {edit.name}: projections", len(edit.probes))
        aligned(edit.true_sizes, f"edit {edit.name}: true_sizes", len(edit.probes))
    for case in evaluation.cases:
        known([case.kind], set(CASE_KINDS), "cases")
        known([case.method], methods, "cases")
        known([case.recogniser], recognisers, "cases")
        within((case.probe,), "cases")


def _unique(names: list[str], where: str) -> set[str]:
    found = set(names)
    if len(found) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ResultsError(f"{where}: the names {twice[:5]} stand there more than once")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, content: Any, where: str) -> Any:
    """``content`` as the type ``kind``."""
    if kind is Any:
        return content
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # only "X | None" occurs
        return None if content is None else _read(arguments[0], content, where)
    if is_dataclass(kind):
        return _read_dataclass(kind, content, where)
    if origin is tuple and isinstance(content, list):
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(content))
    if origin is not None and issubclass(origin, Mapping) and isinstance(content, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in content.items()}
    if kind is float and isinstance(content, (int, float)) and not isinstance(content, bool):
        return float(content)
    if kind in (int, str, bool) and type(content) is kind:
        return content
    shown = repr(content) if len(repr(content)) < 60 else f"{type(content).__name__}"
    expected = getattr(origin or kind, "__name__", str(kind)).lower()
    raise ResultsError(f"{where.lstrip('.')}: got {shown}, expected {expected}")


def _read_dataclass(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ResultsError(f"{where.lstrip('.')}: got {type(content).__name__}, expected an object")
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(content) - set(known)):
        raise ResultsError(f"{(where + '.' + unknown[0]).lstrip('.')}: not a key of version {VERSION}")
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in content]:
        raise ResultsError(f"{(where + '.' + missing[0]).lstrip('.')}: is missing")
    return kind(
        **{name: _read(_hints(kind)[name], item, f"{where}.{name}") for name, item in content.items()}
    )
