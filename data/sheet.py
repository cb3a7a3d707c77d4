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
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)

    def write(x: int, y: int, text: str, level: int, room: int = _TILE) -> None:
        """Write one line of text, cut to the room in px."""
        line = text = " ".join(text.split())
        while text and pen.textlength(line, font=font) > room:
            text = text[:-1]
            line = text + "..."
        pen.text((x, y), line, font=font, fill=(level,) * 3)

    def put(picture: np.ndarray, x: int, y: int, title: str, detail: str) -> None:
        """Put a picture below two lines of text."""
        write(x, y, title, _INK)
        write(x, y + _LINE, detail, _FAINT)
        tile = Image.fromarray(picture).convert("RGB")
        if tile.size != (_TILE, _TILE):
            tile = tile.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y + 2 * _LINE))

    top = _GAP // 2
    for row, row_height in zip(rows, heights, strict=True):
        put(row.skull, _GAP, top, row.title, row.detail)
        for k, (face, label) in enumerate(zip(row.faces, row.face_labels, strict=True)):
            x, y = _GAP + (1 + k % across) * cell_w, top + k // across * cell_h
            put(face, x, y, "reconstruction", label)
        if row.truth is not None:
            put(row.truth, _GAP + (1 + across) * cell_w, top, "true face", "")
        top += row_height
    for i, line in enumerate([NOTICE, *footer]):
        write(_GAP, top + _GAP + _LINE * i, line, _FAINT if i else _INK, width - 2 * _GAP)
    return np.asarray(sheet)
