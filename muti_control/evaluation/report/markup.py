"""Small pieces of HTML: text, tables, figures with captions, pictures as data URIs. Everything given is escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape as escape
from pathlib import Path

from PIL import Image

from data.sheet import NOTICE

STYLE = Path(__file__).with_name("style.css")
MINUS = "\N{MINUS SIGN}"
THUMBNAIL = 208  # px a side
_QUALITY = 82


@dataclass(frozen=True)
class Cell:
    """One cell of a table. text: the number; small: its interval, below it; style: CSS classes."""

    text: str
    small: str = ""
    style: str = ""


@dataclass
class Numbering:
    """Counts tables and figures of one page, so that the text can refer to them."""

    tables: int = 0
    figures: int = 0
    marks: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        self.tables += 1
        return f"Table {self.tables}"

    def figure(self) -> str:
        self.figures += 1
        return f"Figure {self.figures}"


def paragraph(*sentences: str) -> str:
    """A paragraph of the sentences that are not empty."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return f"<p>{escape(text)}</p>" if text else ""


def items(sentences: Sequence[str], style: str = "") -> str:
    """A list."""
    if not sentences:
        return ""
    kind = f' class="{style}"' if style else ""
    return f"<ul{kind}>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def section(identifier: str, title: str, *parts: str) -> str:
    """A section with its heading, or nothing where all parts are empty."""
    body = "".join(parts)
    return f'<section id="{identifier}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def table(
    number: str,
    caption: str,
    head: Sequence[Cell],
    rows: Sequence[tuple[Cell, Sequence[Cell]]],
    above: Sequence[tuple[str, int]] = (),
) -> str:
    """A table with a caption above it; the first cell of each row is its header.

    above: (text, columns) of a line over ``head`` that joins columns, beginning at the first one. A row without cells
    is a heading of the rows that follow it.
    """
    lines = []
    if above:
        joined = "".join(
            f'<th colspan="{span}" scope="colgroup"{"" if text else " class=none"}>{escape(text)}</th>'
            for text, span in above
        )
        lines.append(f"<tr>{joined}</tr>")
    columns = "".join(f'<th scope="col"{_style(cell)}>{_content(cell)}</th>' for cell in head)
    lines.append(f"<tr>{columns}</tr>")
    body = []
    for name, cells in rows:
        if not cells:
            joined = f'<th colspan="{len(head)}" scope="rowgroup">{escape(name.text)}</th>'
            body.append(f'<tr class="part">{joined}</tr>')
            continue
        inner = "".join(f"<td{_style(cell)}>{_content(cell)}</td>" for cell in cells)
        body.append(f'<tr{_style(name)}><th scope="row">{_content(name)}</th>{inner}</tr>')
    kind = "table narrow" if len(head) < 5 and not above else "table"
    name_of_it = number.lower().replace(" ", "-")
    return (
        f'<p class="caption" id="{name_of_it}"><b>{escape(number)}.</b> {escape(caption)}</p>'
        f'<div class="{kind}" tabindex="0" role="region" aria-labelledby="{name_of_it}">'
        f'<table aria-labelledby="{name_of_it}">'
        f"<thead>{''.join(lines)}</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _style(cell: Cell) -> str:
    return f' class="{cell.style}"' if cell.style else ""


def _content(cell: Cell) -> str:
    return escape(cell.text) + (f"<small>{escape(cell.small)}</small>" if cell.small else "")


def figure(number: str, caption: str, *charts: str, legend: str = "", packed: bool = False) -> str:
    """Charts side by side, with one legend and a caption below. packed: they differ in height."""
    wide = " packed" if packed and len(charts) > 1 else "" if len(charts) > 1 else " one"
    return (
        f'<figure><div class="charts{wide}">{"".join(charts)}</div>{legend}'
        f"<figcaption><b>{escape(number)}.</b> {escape(caption)}</figcaption></figure>"
    )


def strip(text: str, pictures: Sequence[tuple[str, str, str]]) -> str:
    """A line of text above pictures side by side; each is (picture, label, caption)."""
    shown = "".join(
        f"<div>{image}<b>{escape(label)}</b>{escape(caption)}</div>" for image, label, caption in pictures
    )
    return f'<div class="case"><p>{escape(text)}</p><div class="strip">{shown}</div></div>'


def plate(number: str, caption: str, parts: Sequence[str]) -> str:
    """Strips of pictures as one figure."""
    below = f"<figcaption><b>{escape(number)}.</b> {escape(caption)}</figcaption>"
    return f"<figure>{''.join(parts)}{below}</figure>"


def panel(title: str, chart: str) -> str:
    """One chart with a title over it."""
    return f'<div class="panel"><h3>{escape(title)}</h3>{chart}</div>'


def legend(entries: Sequence[tuple[str, str]], kind: str = "line") -> str:
    """Entries (style, label), drawn as in the chart: kind ``line`` or ``bar``."""
    shape = (
        '<line class="line {0}" x1="0" x2="26" y1="6" y2="6"/>'
        if kind == "line"
        else '<rect class="bar {0}" x="0" y="0" width="26" height="12"/>'
    )
    keys = "".join(
        f'<li><svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{shape.format(style)}</svg>'
        f"{escape(label)}</li>"
        for style, label in entries
    )
    return f'<ul class="legend">{keys}</ul>'


def definitions(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, as a list of two columns."""
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    return f"<dl>{inner}</dl>"


def folded(title: str, text: str) -> str:
    """Long plain text behind a heading."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def picture(path: Path, description: str, side: int = THUMBNAIL) -> str:
    """The picture as a JPEG data URI of at most ``side`` px; a frame that says so where the file is missing."""
    if not path.is_file():
        label = escape(f"{description}: missing")
        return f'<span class="missing" role="img" aria-label="{label}">picture is missing</span>'
    with Image.open(path) as opened:
        image = opened.convert("L" if opened.mode in ("L", "1", "I;16") or _is_grey(opened) else "RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" loading="lazy" '
        f'alt="{escape(description)}">'
    )


def _is_grey(image: Image.Image) -> bool:
    """Whether all channels of a colour picture agree, as renders' do: a third of the bytes."""
    if image.mode != "RGB":
        return False
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def page(title: str, body: str) -> str:
    """A whole page: one file that asks for nothing from elsewhere."""
    style = STYLE.read_text(encoding="utf-8")
    body = re.sub(
        r"(?<=\d) (?=(?:%|dB|px)(?![\w]))", "\N{NO-BREAK SPACE}", body
    )  # a number stays with its unit
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}</style></head>'
        f"<body><main>{body}</main><footer>{escape(NOTICE)}</footer></body></html>\n"
    )
