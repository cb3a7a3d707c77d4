"""What the report of a case says, as sections; ``muti_control.case.pages`` makes the page and the PDF of them.

The words stand in ``report.txt``. All facts come from ``record.json``, the log and the pictures of the folder, so that
the same folder gives the same report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from data.biometrics import BODY_MASS_WORDS
from data.images import picture_size
from data.sheet import NOTICE
from muti_control.case.verify import Verification

HERE = Path(__file__).parent
REPORT_WRITTEN = "report written"
REPORTS = ("report.pdf", "report.html")
MAX_SKULLS = 50
_TOGETHER = ("prepared", "mean", "overlay", "grid", "landmarks", "spread")  # pictures, in this order
_WIDE = 1.3  # width to height from which a picture takes the whole width of a page
# Of values, so that none of them begins a cell or a block.
_ESCAPES = str.maketrans({"\n": "\x1e", "|": "\x1f", "\r": ""})


@dataclass(frozen=True)
class Table:
    """Rows of text below a head. widths: of the columns, relative to each other."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[int]


@dataclass(frozen=True)
class Pictures:
    """Pictures with their captions, ``across`` of them side by side."""

    files: Sequence[tuple[Path, str]]
    across: int


@dataclass(frozen=True)
class Points:
    """Short paragraphs in a list."""

    lines: Sequence[str]


Block = str | Table | Pictures | Points


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Heading:
    """What the examiner says about the case; empty where nothing is said."""

    case_number: str = ""
    examiner: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Contents:
    """A report. running: for the head of each page. date: of the run, ISO 8601."""

    title: str
    running: str
    date: str
    sections: Sequence[Section]


def contents(folder: Path, record: Mapping[str, Any], state: Verification, heading: Heading) -> Contents:
    """Return the report of a finished run.

    Raises:
        ValueError: the run is not finished, has too many skulls, or its record lacks something.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

    if not record.get("finished"):
        raise ValueError(f"{folder}: its run is not finished; resume=true finishes it, then write the report")
    cases = record["cases"]
    if len(cases) > MAX_SKULLS:
        raise ValueError(f"{folder}: has {len(cases)} skulls; a report takes at most {MAX_SKULLS}")
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, finalize=_escaped, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "time": _time,
        "inline": _inline,
        "drawn": _drawn,
        "caption": _caption,
        "rate": _rate,
        "together": partial(_together, folder, record),
    }
    calibration = record.get("calibration") or {}
    try:
        text = environment.get_template("report.txt").render(
            notice=NOTICE,
            record=record,
            heading=heading,
            faces=sum(len(case["faces"]) for case in cases),
            exhibits=_exhibits(record),
            rates=calibration.get("error_rates"),
            spread_factor=calibration.get("spread_factor"),
            coverage=calibration.get("coverage"),
            entries=[entry for entry in state.log.entries if entry["action"] != REPORT_WRITTEN],
            files=[item for item in state.files.items() if item[0] not in REPORTS],
            differences=[line for line in state.differences if not line.startswith(REPORTS)],
        )
    except (UndefinedError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its record is none of a run of sample.py ({error} is missing)"
        ) from error
    sections = [
        Section(_plain(title), [*_blocks(body, folder)])
        for title, _, body in (part.partition("\n") for part in re.split("^## ", text, flags=re.M)[1:])
    ]
    running = f"Case {heading.case_number}" if heading.case_number else "Facial approximation"
    return Contents("Facial approximation from a skull", running, record["date"], sections)


def _blocks(text: str, folder: Path) -> Iterator[Block]:
    """Yield the blocks of a section of ``report.txt``."""
    for chunk in re.split(r"\n\s*\n", text.strip()):
        lines = chunk.split("\n")
        if chunk.startswith("- "):
            yield Points([_plain(line.removeprefix("- ")) for line in lines])
        elif chunk.startswith("["):
            widths, _, head = lines[0][1:].partition("]")
            rows = [_cells(line.removeprefix("|")) for line in lines[1:]]
            yield Table(_cells(head), rows, [int(width) for width in widths.split()])
        elif chunk.startswith("!["):
            pictures = [_cells(line.partition("]")[2]) for line in lines]
            across = int(chunk[2 : chunk.index("]")])
            yield Pictures([(folder / file, caption) for file, caption in pictures], across)
        elif chunk:
            yield _plain(" ".join(lines))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(_plain(cell) for cell in line.split("|"))


def _escaped(value: object) -> str:
    return str(value).translate(_ESCAPES)


def _plain(text: str) -> str:
    return text.strip(" ").replace("\x1e", "\n").replace("\x1f", "|")


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _exhibits(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what, name and size, and SHA-256 of each file behind the faces."""
    exhibits: dict[tuple[str, str], tuple[str, str, str]] = {}

    def add(what: str, file: Mapping[str, Any] | None) -> None:
        if file and file.get("sha256"):
            size = f"\n{file['size']:,} bytes" if "size" in file else ""
            sha256 = file["sha256"]
            name = file.get("file", "its name may be that of a patient")
            exhibits.setdefault((what, sha256), (what, f"{name}{size}", f"{sha256[:32]}\n{sha256[32:]}"))

    for case in record["cases"]:
        landmarks = case.get("landmarks") or {}
        add("Skull", case.get("skull"))
        add("Scan", case.get("scan"))
        add("Landmarks, given" if landmarks.get("source") == "given" else "Network of landmarks", landmarks)
        add("Exemplar of skin", case.get("texture"))
        add("True face, for comparison", case.get("true_face"))
    add("List of skulls", record.get("manifest"))
    return list(exhibits.values())


def _together(
    folder: Path, record: Mapping[str, Any], case: Mapping[str, Any]
) -> list[tuple[int, list[tuple[str, str]]]]:
    """Return the pictures that show all faces of a case: how many side by side, and file and kind of each."""
    names = {kind: f"{case['name']}_{kind}.png" for kind in _TOGETHER} | (case.get("outputs") or {})
    there = [(n, kind) for kind, n in names.items() if n in record["files"] and (folder / n).is_file()]
    sizes = {name: picture_size(folder / name) for name, _ in there}
    across = {name: 1 if width > _WIDE * height else 2 for name, (width, height) in sizes.items()}
    return [(num, list(group)) for num, group in groupby(there, lambda one: across[one[0]])]


def _drawn(case: Mapping[str, Any], name: str) -> str:
    """Return the values of an attribute that the faces of a case show."""
    values = [face["attributes"][name]["value"] for face in case["faces"]]
    return ", ".join(dict.fromkeys(_value(name, value) for value in values if value is not None)) or "-"


def _value(name: str, value: Any) -> str:
    if name == "body_mass" and value in BODY_MASS_WORDS:
        return f"{value} ({BODY_MASS_WORDS[value]})"
    return f"{value:g} years" if name == "age" and isinstance(value, int | float) else str(value)


def _caption(face: Mapping[str, Any]) -> str:
    assumed = [
        f"{name.replace('_', ' ')} {_value(name, entry['value'])}"
        for name, entry in face["attributes"].items()
        if entry["source"] == "assumed"
    ]
    return f"{face['file']}\nseed {face['seed']}" + (f"\nassumed: {', '.join(assumed)}" if assumed else "")


def _rate(figure: Mapping[str, Any], unit: str = "%") -> str:
    """Return a figure with its interval; a share is printed as a percentage, another unit stands in the heading."""
    factor, digits = (100, 1) if unit == "%" else (1, 2)
    text, low, high = f"{factor * figure['value']:.{digits}f}", figure.get("low"), figure.get("high")
    text += " %" if unit == "%" else ""
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        text += f" [{factor * low:.{digits}f} to {factor * high:.{digits}f}]"
    return text


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_inline, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
