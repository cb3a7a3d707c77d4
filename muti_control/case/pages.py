"""The contents of a report as one page (HTML) that needs nothing else, and as a PDF on A4."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from data.images import picture_size
from data.sheet import NOTICE
from muti_control.case.contents import Block, Contents, Pictures, Points, Table

if TYPE_CHECKING:
    from fpdf import FPDF

HERE = Path(__file__).parent
FONT, INK, SOFT = "DejaVu", 28, 105  # grey levels of text
MARGIN, GAP = 16, 4  # mm
HEADING_WITH = 40  # mm that must be free for a heading and its text
HEADING = 14  # mm of a heading above pictures; a line below it takes 7
TALLEST = 112  # mm of a picture, so that two fit a page


class ReportError(ValueError):
    """A library that the report needs is not installed."""


def check_installed(pdf: bool = True) -> None:
    """Raise ReportError where a library is missing, before faces are drawn."""
    needed = ("jinja2", "matplotlib", "fpdf", "uharfbuzz") if pdf else ("jinja2",)
    if any(find_spec(name) is None for name in needed):
        packages = " ".join("fpdf2" if name == "fpdf" else name for name in needed)
        raise ReportError(f"report: python -m pip install {packages}  (the `report` extra) writes it")


def html_page(contents: Contents) -> bytes:
    """Return the report as one page: pictures are in it, and it asks for nothing from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.tests |= {
        kind.__name__.lower(): lambda block, kind=kind: isinstance(block, kind)
        for kind in (str, Table, Pictures, Points)
    }
    environment.filters["data"] = lambda path: (
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    )
    return (
        environment.get_template("report.html")
        .render(c=contents, notice=NOTICE)
        .encode("utf-8", "backslashreplace")
    )


def pdf_pages(contents: Contents) -> bytes:
    """Return the report as a PDF. The same contents give the same bytes."""
    pdf = _paper(contents)
    pdf.set_font(FONT, "B", 20)
    _text(pdf, contents.title, 9)
    for section in contents.sections:
        height = float(HEADING_WITH)
        first = next((one for one in section.blocks if isinstance(one, Pictures)), None)
        if first is not None:
            row = sum(_row_size(pdf, first.files[: first.across], first.across)[1:])
            height = HEADING + 7 * section.blocks.index(first) + row
        if pdf.will_page_break(height):
            pdf.add_page()
        pdf.ln(GAP)
        pdf.set_font(FONT, "B", 13)
        pdf.start_section(_printable(section.title))
        _text(pdf, section.title, 7)
        pdf.ln(1)
        for block in section.blocks:
            _draw(pdf, block)
            pdf.ln(2)
    return bytes(pdf.output())


def _paper(contents: Contents) -> FPDF:
    """Return an empty document on A4 with the notice and the page's number on each page."""
    from fpdf import FPDF

    class Paper(FPDF):
        def header(self) -> None:
            self._line(10, contents.running, contents.title)

        def footer(self) -> None:
            self._line(-14, NOTICE, f"Page {self.page_no()} of {{nb}}")

        def _line(self, y: float, left: str, right: str) -> None:
            self.set_y(y)
            self.set_font(FONT, "", 8)
            self.set_text_color(SOFT)
            self.cell(self.epw * 0.65, 5, _printable(left)[:90])
            self.cell(0, 5, right, align="R")
            self.set_text_color(INK)
            self.ln(10 if y > 0 else 0)

    pdf = Paper(format="A4")
    for style, file in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        pdf.add_font(FONT, style, _font(file))
    pdf.set_text_shaping(True)
    pdf.set_margins(MARGIN, 10, MARGIN)
    pdf.set_auto_page_break(True, 18)
    pdf.set_title(contents.title)
    pdf.set_lang("en")
    pdf.set_creation_date(datetime.fromisoformat(contents.date))
    pdf.set_creator("iccr-diff")
    pdf.add_page()
    return pdf


def _draw(pdf: FPDF, block: Block) -> None:
    from fpdf.enums import TableBordersLayout, VAlign
    from fpdf.fonts import FontFace

    pdf.set_font(FONT, "", 9)
    if isinstance(block, str):
        _text(pdf, block, 5)
    elif isinstance(block, Points):
        for line in block.lines:
            _text(pdf, f"\N{BULLET} {line}", 5)
    elif isinstance(block, Table):
        pdf.set_font(FONT, "", 7.5)
        named = any(block.head)
        with pdf.table(
            col_widths=tuple(block.widths),
            text_align="LEFT",
            line_height=4.2,
            padding=(0.8, 1.5),
            first_row_as_headings=named,
            v_align=VAlign.T,
            headings_style=FontFace(emphasis="BOLD"),
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        ) as table:
            for row in [block.head, *block.rows] if named else block.rows:
                table.row([_printable(cell) for cell in row])
    else:
        for k in range(0, len(block.files), block.across):
            _draw_row(pdf, block.files[k : k + block.across], block.across)


def _row_size(pdf: FPDF, files: Sequence[tuple[Path, str]], across: int) -> tuple[float, float, float]:
    """Return mm of a row of pictures: the width of each, the height of the tallest, and that of the captions."""
    pdf.set_font(FONT, "", 7)
    width = (pdf.epw - GAP * (across - 1)) / across
    sizes = [picture_size(path) for path, _ in files]
    heights = (
        pdf.multi_cell(width, 3.6, _printable(caption), align="L", dry_run=True, output="HEIGHT")
        for _, caption in files
    )
    words = max(height for height in heights if isinstance(height, float))  # it can return much else
    tallest = max(width * high / wide for wide, high in sizes)
    return width, min(tallest, TALLEST, pdf.eph - words - 16), words  # smaller rather than cut


def _draw_row(pdf: FPDF, files: Sequence[tuple[Path, str]], across: int) -> None:
    """Draw pictures side by side with captions below, all on one page."""
    width, height, words = _row_size(pdf, files, across)
    if pdf.will_page_break(height + words + 2):
        pdf.add_page()
    top = pdf.get_y()
    for k, (path, caption) in enumerate(files):
        left = pdf.l_margin + k * (width + GAP)
        pdf.image(path, left, top, width, height, keep_aspect_ratio=True)
        pdf.set_xy(left, top + height + 1)
        pdf.multi_cell(width, 3.6, _printable(caption), align="L")
    pdf.set_xy(pdf.l_margin, top + height + words + 3)


def _text(pdf: FPDF, text: str, height: float) -> None:
    pdf.multi_cell(0, height, _printable(text), align="L", new_x="LMARGIN", new_y="NEXT")


def _printable(text: str) -> str:
    """Return the text; a character that the font lacks as its number, such as U+9885, so that none becomes a box."""
    known = _characters()
    return "".join(c if ord(c) in known or c == "\n" else f"[U+{ord(c):04X}]" for c in text)


@cache
def _characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font("DejaVuSans.ttf"))).get_charmap())


def _font(file: str) -> Path:
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / file
