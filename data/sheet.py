"""Contact sheets: skull | faces | true face, a row for each case, with small labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NOTICE = "An approximation, not an identification."
MAX_ACROSS = 8
_TILE = 256  # px
_GAP = 8
_LINE = 18  # px between the base lines of two lines of text
_PAPER, _INK, _FAINT = 24, 235, 165  # grey levels
_FONT_SIZE = 13


@dataclass(frozen=True)
class SheetRow:
    """One case of a sheet. Pictures are (H, W) or (H, W, 3) uint8; ``title`` and ``detail`` stand above the skull."""

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
    across = min(MAX_ACROSS, max(1, *(len(row.faces) for row in rows)))
    with_truth = any(row.truth is not None for row in rows)
    cell_w, cell_h = _TILE + _GAP, _TILE + 2 * _LINE + _GAP
    heights = [cell_h * max(1, -(-len(row.faces) // across)) for row in rows]
    width = _GAP + cell_w * (1 + across + with_truth)
    height = sum(heights) + _GAP + _LINE * (2 + len(footer))
    sheet = Image.new("RGB", (width, height), (_PAPER,) * 3)
    pen = _Pen(ImageDraw.Draw(sheet))

    top = _GAP // 2
    for row, row_height in zip(rows, heights, strict=True):
        place = _Placer(sheet, pen, _GAP, top)
        place.put(row.skull, 0, 0, row.title, row.detail)
        for k, (face, label) in enumerate(zip(row.faces, row.face_labels, strict=True)):
            place.put(face, 1 + k % across, k // across, "reconstruction", label)
        if row.truth is not None:
            place.put(row.truth, 1 + across, 0, "true face", "")
        top += row_height
    top += _GAP
    pen.write(_GAP, top, NOTICE, width - 2 * _GAP, _INK)
    for i, line in enumerate(footer):
        pen.write(_GAP, top + _LINE * (i + 1), line, width - 2 * _GAP, _FAINT)
    return np.asarray(sheet)


class _Pen:
    """Writes single lines of text, cut to a width."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw
        self._font = ImageFont.load_default(_FONT_SIZE)

    def write(self, x: int, y: int, text: str, width: int, level: int) -> None:
        text = " ".join(text.split())
        if self._draw.textlength(text, font=self._font) > width:
            while text and self._draw.textlength(text + "...", font=self._font) > width:
                text = text[:-1]
            text += "..."
        self._draw.text((x, y), text, font=self._font, fill=(level,) * 3)


@dataclass
class _Placer:
    """Puts labelled pictures into the cells of one row."""

    sheet: Image.Image
    pen: _Pen
    left: int
    top: int

    def put(self, picture: np.ndarray, column: int, line: int, title: str, detail: str) -> None:
        x = self.left + column * (_TILE + _GAP)
        y = self.top + line * (_TILE + 2 * _LINE + _GAP)
        self.pen.write(x, y, title, _TILE, _INK)
        self.pen.write(x, y + _LINE, detail, _TILE, _FAINT)
        tile = Image.fromarray(picture).convert("RGB")
        if tile.size != (_TILE, _TILE):
            tile = tile.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        self.sheet.paste(tile, (x, y + 2 * _LINE))
