"""Text, JSON and CSV of files that people or other programs wrote: read within limits, refused in one line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from pydantic import TypeAdapter, ValidationError

from settings.messages import EXPECTED, dotted, short

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 32  # objects and lists within each other
_UNIT = re.compile(r"\s*[(\[]\s*(?:years?|yrs?|y|a|cm|kg|kg/m[2²]|1\s*[-–]\s*5)\s*[)\]]\s*$", re.IGNORECASE)


class ContentError(ValueError):
    """A text that cannot be used; the one-line message names the file and, where one is wrong, the key or line."""


def read_text(path: Path) -> str:
    """Return the text of a regular file in UTF-8, or in UTF-16 with a byte-order mark; the mark is left out.

    Raises:
        ContentError: there is no such file, it is too large, or no such text.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise ContentError(f"{path}: {what}; give a text file")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ContentError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_BYTES:
        raise ContentError(f"{path}: has more than {MAX_BYTES // 2**20} MiB, too much for a text file")
    return decoded(raw, path)


def decoded(raw: bytes, name: object) -> str:
    """Return the text of the bytes of a file ``name``, as :func:`read_text` does. Raises: ContentError."""
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"line {raw[: error.start].count(10) + 1}: byte 0x{raw[error.start]:02x}"
        raise ContentError(
            f"{name}: {where} is not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise ContentError(f"{name}: holds zero bytes, so it is no UTF-8 text; save the file as UTF-8")
    return text


def parse_json(text: str, name: object, kind: Any = Any, *, finite: bool = False) -> Any:
    """Return the content of a JSON text.

    Args:
        name: the file or metadata entry, for messages; it may be empty.
        kind: a type as pydantic takes it; the content must have it, without conversions.
        finite: refuse NaN and Infinity, which Python writes although JSON has none.

    Raises:
        ContentError: no JSON, a key twice in one object, nested too deep, or of another type.
    """
    start = f"{name}: " if name else ""
    try:
        content = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_refuse_constant if finite else None
        )
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(content)
        return content if kind is Any else TypeAdapter(kind).validate_python(content, strict=True)
    except ContentError as error:
        raise ContentError(start + str(error)) from None
    except RecursionError:
        raise ContentError(f"{start}is not valid JSON: nested too deep") from None
    except json.JSONDecodeError as error:
        raise ContentError(f"{start}is not valid JSON: {error.msg}, column {error.colno}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, got = dotted(first["loc"]), f"got {short(first['input'])}"
        expected = "an object (key: value)" if first["type"] in ("dict_type", "model_type") else None
        expected = expected or EXPECTED.get(first["type"], first["msg"])
        problem = "missing" if first["type"] == "missing" else f"{got}, expected {expected}"
        raise ContentError(f"{start}{key}{': ' if key else ''}{problem}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ContentError(f"{start}is not valid JSON: {error}") from error


def read_json(path: Path, kind: Any = Any) -> Any:
    """Return the content of a JSON file: see :func:`read_text` and :func:`parse_json`. Raises: ContentError."""
    return parse_json(read_text(path), path, kind)


def _refuse_constant(name: str) -> None:
    raise ContentError(f"is not valid JSON: {name} is no number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ContentError(f"{twice}: stands twice in one object; keep one")
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        containers = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in containers for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return
    raise ContentError(
        f"is not valid JSON: more than {MAX_DEPTH} levels of objects and lists within each other"
    )


# --- CSV --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of texts: ``rows`` has the line number and the cells by column, ``columns`` their names in order."""

    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]


def column_name(text: str, names: Sequence[str], others: Mapping[str, str]) -> str:
    """Return which of ``names`` a user's spelling means, else the spelling as it stands.

    Case, blanks, underscores, hyphens and a unit in brackets do not count: ``Body Mass``, ``Age (years)``.
    others: further names, in lower case and without blanks, and which of ``names`` each means.
    """
    spelling = re.sub(r"[\W_]+", "", _UNIT.sub("", normalize("NFKC", text)).casefold())
    return {**others, **{name.replace("_", ""): name for name in names}}.get(spelling, text.strip())


def read_table(path: Path, names: Sequence[str], required: Sequence[str], others: Mapping[str, str]) -> Table:
    """Return a CSV file as spreadsheets write it: cells parted by , ; tab | or what a line ``sep=`` says.

    Empty rows and columns are left out; cells are stripped, and accents have their one-letter form (NFC).

    Args:
        names: of the columns that are known, see :func:`column_name`. required: those that must be there.

    Raises:
        ContentError: no CSV; no head line with the required columns; a cell too many, or one without a column.
    """
    text = read_text(path)
    lines = list(io.StringIO(text, newline=""))
    before = next((k for k, line in enumerate(lines) if line.strip(" \t,;\r\n")), 0)
    statement = re.fullmatch(r'"?sep=(.)"?[,;\s]*', lines[before], re.IGNORECASE) if lines else None
    before += statement is not None
    head = re.sub(r'"[^"]*"', "", lines[before]) if before < len(lines) else ""
    separator = statement[1] if statement else max(",;\t|", key=head.count)
    reader = csv.reader(
        io.StringIO("".join(lines[before:]), newline=""),
        delimiter=separator,
        skipinitialspace=separator != " ",
        strict=True,
    )
    table: list[tuple[int, list[str]]] = []
    try:
        line = before + 1
        for cells in reader:
            table.append((line, [normalize("NFC", cell.strip()) for cell in cells]))
            line = before + 1 + reader.line_num
    except csv.Error as error:
        limit = csv.field_size_limit()
        why = f"a cell has more than {limit:,} letters" if "field larger" in str(error) else str(error)
        raise ContentError(f"{path}: line {line}: {why} (a quote that nothing closes?)") from error
    first, rows = (table[0][1], table[1:]) if table else ([], [])
    columns = [column_name(cell, names, others) for cell in first]
    titles = [column for column in columns if column]
    if not set(required) <= set(columns):
        raise ContentError(
            f"{path}: its first line is {short(separator.join(titles[:20]))}; expected the names of the columns, such "
            f"as {separator.join(names)} ({', '.join(required)} must be there)"
        )
    twice, number = Counter(titles).most_common(1)[0]
    if number > 1:
        raise ContentError(f"{path}: {twice}: two columns have this meaning; keep one")
    result = []
    for line, cells in rows:
        spare = [cell for k, cell in enumerate(cells) if cell and not (k < len(columns) and columns[k])]
        if spare:
            raise ContentError(
                f"{path}: line {line}: {short(spare[0])} stands in no column of the first line; give it a name, "
                f"or put a cell with {separator!r} in quotes"
            )
        if any(cells):
            padded = [*cells, *[""] * len(columns)]
            result.append((line, {name: cell for name, cell in zip(columns, padded, strict=False) if name}))
    return Table(tuple(titles), result)
