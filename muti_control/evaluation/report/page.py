"""Render ``report.html`` and ``compare.html`` from the templates beside this file."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from data.files import write_text
from data.sheet import NOTICE
from muti_control.evaluation.report import figures, tables, words
from muti_control.evaluation.results.comparison import Comparison, cells, summary
from muti_control.evaluation.results.results import REPORT, Evaluation, Probe
from muti_control.evaluation.results.results_file import read_results

HERE = Path(__file__).parent
THUMBNAIL, JPEG_QUALITY = 208, 82  # px a side


class ReportError(ValueError):
    """A library that the report needs is not installed."""


def check_installed() -> None:
    """Raise ReportError where matplotlib is missing, before an evaluation begins."""
    if find_spec("matplotlib") is None:
        raise ReportError("report: python -m pip install matplotlib  (the `eval` extra) draws its figures")


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into a results folder, from its ``metrics.json`` and pictures.

    Raises:
        ResultsError: there is no readable ``metrics.json``. OSError: the page cannot be written.
    """
    folder = Path(folder)
    write_text(folder / REPORT, report(read_results(folder), folder))
    return folder / REPORT


def report(evaluation: Evaluation, folder: Path) -> str:
    """Return the page of a run as text. folder: where the pictures of ``evaluation`` lie."""
    return _render(
        "report.html",
        e=evaluation,
        roles=words.Roles.of(evaluation),
        figures=figures,
        tables=tables,
        picture=partial(_picture, folder),
        label=partial(words.label_of, evaluation),
    )


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison as text."""
    return _render("compare.html", c=comparison, cells=cells, summary=summary(comparison))


def _render(template: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "sentence": words.sentence,
        "plural": words.plural,
        "number": words.number,
        "duration": _duration,
        "inline": _inline,
        "person": _person,
        "measure_label": lambda measure: measure.label + (f", {measure.unit}" if measure.unit else ""),
        "next_number": next,
        "json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "file_name": lambda path: Path(path).name,
        "image": lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
    }
    style = (HERE / "style.css").read_text(encoding="utf-8")
    numbers = {"table": count(1), "figure": count(1)}
    text = environment.get_template(template).render(
        content | {"style": style, "words": words, "numbers": numbers, "notice": NOTICE}
    )
    # a number stays with its unit
    return re.sub(r"(?<=\d) (?=(?:%|dB|px)(?!\w))", "\N{NO-BREAK SPACE}", text)


def _picture(folder: Path, path: str) -> str | None:
    """Return a picture as a JPEG data URI of at most THUMBNAIL px a side; None where the file is missing."""
    if not (folder / path).is_file():
        return None
    with Image.open(folder / path) as opened:
        image = opened.convert("L" if opened.mode in ("L", "1", "I;16") else "RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _person(probe: Probe) -> str:
    body = probe.groups.get("body mass", f"body mass level {probe.body_mass}")
    return f"{probe.name}: {probe.ethnicity} {probe.sex}, {probe.age:.0f} years, {body}"


def _inline(value: object) -> str:
    """Return settings as one line of text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_inline, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
