"""Contact sheets: skull | faces | true face, a row for each case, with small labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NOTICE = "An approximation, not an identification."
MAX_ACROSS = 8
_PAPER, _INK, _FAINT = 24, 235, 165  # grey levels
_MAX_LINES = 6  # of a caption
_FONTS = (  # beside Pillow's own, which has Latin letters alone; found in the system's folders, but for the first
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Sizes of a sheet in px. line: between the base lines of two lines of text. across: most faces in a line."""

    tile: int = 256
    gap: int = 8
    line: int = 18
    font: int = 13
    across: int = MAX_ACROSS


MANY, ONE = Look(), Look(384, 12, 34, 26, 4)  # the sheet of one case can be read on a phone and on A4


@dataclass(frozen=True)
class SheetRow:
    """One case of a sheet. Pictures are (H, W) or (H, W, 3) uint8; ``title`` and ``detail`` stand above the skull.

    Captions are broken into lines.
    """

    title: str
    detail: str
    skull: np.ndarray
    faces: Sequence[np.ndarray]
    face_labels: Sequence[str]
    truth: np.ndarray | None = None


def contact_sheet(rows: Sequence[SheetRow], footer: Sequence[str] = ()) -> np.ndarray:
    """Draw one sheet.

    Args:
        rows: at least one; more than eight faces of a row go on to further lines.
        footer: small lines below, after the notice that every sheet carries.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: no rows, or a row whose faces and labels differ in number.
    """
    if not rows:
        raise ValueError("contact_sheet: got no rows, expected at least one")
    for row in rows:
        if len(row.faces) != len(row.face_labels):
            raise ValueError(
                f"contact_sheet: {row.title} has {len(row.faces)} faces and {len(row.face_labels)} labels"
            )
    look = ONE if len(rows) == 1 else MANY
    across = min(look.across, max(1, *(len(row.faces) for row in rows)))
    with_truth = any(row.truth is not None for row in rows)
    captions = [caption for row in rows for caption in (row.detail, *row.face_labels)]
    num_lines = max(len(wrapped(caption, look.font, look.tile)) for caption in captions)
    cell_w, cell_h = look.tile + look.gap, look.tile + (1 + num_lines) * look.line + look.gap
    heights = [cell_h * max(1, -(-len(row.faces) // across)) for row in rows]
    width = look.gap + cell_w * (1 + across + with_truth)
    notes = [line for note in (NOTICE, *footer) for line in wrapped(note, look.font, width - 2 * look.gap)]
    height = sum(heights) + look.gap + look.line * (1 + len(notes))
    sheet = Image.new("RGB", (width, height), (_PAPER,) * 3)

    def put(picture: np.ndarray, x: int, y: int, title: str, detail: str) -> None:
        """Put a picture below its title and the lines of its caption."""
        lines = wrapped(detail, look.font, look.tile)
        write_lines(sheet, (x, y), [*wrapped(title, look.font, look.tile, 1), *lines], look)
        tile = Image.fromarray(picture).convert("RGB")
        if tile.size != (look.tile, look.tile):
            tile = tile.resize((look.tile, look.tile), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y + (1 + num_lines) * look.line))

    top = look.gap // 2
    for row, row_height in zip(rows, heights, strict=True):
        put(row.skull, look.gap, top, row.title, row.detail)
        for k, (face, label) in enumerate(zip(row.faces, row.face_labels, strict=True)):
            x, y = look.gap + (1 + k % across) * cell_w, top + k // across * cell_h
            put(face, x, y, "reconstruction", label)
        if row.truth is not None:
            put(row.truth, look.gap + (1 + across) * cell_w, top, "true face", "")
        top += row_height
    write_lines(sheet, (look.gap, top + look.gap), notes, look)
    return np.asarray(sheet)


def write_lines(sheet: Image.Image, place: tuple[int, int], lines: Sequence[str], look: Look) -> None:
    """Write lines of text, the first one brighter, with the upper left corner at ``place`` (x, y)."""
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        text, font = legible(line, look.font)
        level = (_FAINT if i else _INK,) * 3
        pen.text((place[0], place[1] + look.line * i), text, font=font, fill=level)


def wrapped(text: str, size: int, room: int, most: int = _MAX_LINES) -> list[str]:
    """Return a text as at least one line, and ``most`` at most, of up to ``room`` px; the last one is cut."""
    text, font = legible(" ".join(text.split()), size)
    lines: list[str] = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(lines) < most and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    for i, line in enumerate(lines):
        cut = line
        while line and font.getlength(cut) > room:
            line = line[:-1]
            cut = line + "..."
        lines[i] = cut
    return lines


def legible(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text with a font of ``size`` px that has its letters; letters that no font has are escaped."""
    fonts = [font for name in _FONTS if (font := _font(name, size)) is not None]
    own = _font("", size)
    assert own is not None  # Pillow brings it along
    if text.isascii():
        return text, own
    best = next((font for font in fonts if not _lacking(text, font)), None)
    if best is not None:
        return text, best
    font = fonts[0] if fonts else own
    lacking = _lacking(text, font)
    return "".join(c.encode("unicode_escape").decode() if c in lacking else c for c in text), font


def _lacking(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """Return the letters that the font draws as it draws what no font has."""

    def drawn(letter: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(letter)
        return mask.size, bytes(mask)

    box = drawn("\U0010fffe")
    return {letter for letter in set(text) if not letter.isascii() and drawn(letter) == box}


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font by its file's name, or Pillow's own for ""; None where it is not installed."""
    if not name:
        return ImageFont.load_default(size)  # type: ignore[return-value]  # a size is given, so FreeType draws it
    library = find_spec("matplotlib")  # which brings DejaVu Sans along; it is not imported
    folder = Path(library.origin).parent if library is not None and library.origin else Path()
    for place in (folder / "mpl-data/fonts/ttf" / name, Path(name)):
        try:
            return ImageFont.truetype(str(place), size)
        except OSError:
            continue
    return None
