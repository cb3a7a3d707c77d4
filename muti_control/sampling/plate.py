"""Plates for documents: pictures of heads side by side on black, with captions that stay readable when scaled down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
SIDE = 256  # px of a picture's height
# Of a picture's width so much is left out at the left and at the right: no head of the cohort reaches there.
CROP = 0.1
TILE = SIDE - 2 * round(SIDE * CROP), SIDE  # px, width and height
GAP, WIDE, MARGIN = 8, 26, 14  # px
_HEADING, _CAPTION, _FOOTER = 23, 19, 17  # px of the letters; a document shows them at about 0.7 of that
_INK, _FAINT, FRAME = (240, 240, 240), (175, 175, 175), (255, 190, 60)


@dataclass(frozen=True)
class Tile:
    """One picture: (S, S) or (S, S, 3) uint8, below its caption. framed: pointed out."""

    picture: Pixels
    caption: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Row:
    """Tiles from the left, None leaving a place empty; headings: by the column above which they begin."""

    tiles: Sequence[Tile | None]
    headings: Mapping[int, str] = field(default_factory=dict)

    @property
    def captions(self) -> bool:
        """Return whether a tile has a caption."""
        return any(tile is not None and tile.caption for tile in self.tiles)


@dataclass(frozen=True)
class Bar:
    """The scale of heat maps: colours of 0 to ``upper``, with what they stand for."""

    upper: float
    label: str


def plate(
    rows: Sequence[Row], footer: Sequence[str] = (), wide: Sequence[int] = (), bar: Bar | None = None
) -> Pixels:
    """Draw rows of tiles, a bar and small lines below them.

    Args:
        wide: columns after which the gap is wider. bar: of the heat maps among the tiles.

    Returns:
        (H, W) uint8 where all is grey, else (H, W, 3).

    Raises:
        ValueError: no tile to draw.
    """
    if not any(tile is not None for row in rows for tile in row.tiles):
        raise ValueError("plate: got no tile, expected at least one")
    across = max(len(row.tiles) for row in rows)
    lefts = [MARGIN]
    for column in range(across):
        lefts.append(lefts[-1] + TILE[0] + (WIDE if column in wide else GAP))
    width = lefts[across - 1] + TILE[0] + MARGIN
    heights = [_height(row) for row in rows]
    below = 56 * (bar is not None) + (_FOOTER + 7) * len(footer)
    canvas = Image.new("RGB", (width, sum(heights) + below + 2 * MARGIN))
    pen = ImageDraw.Draw(canvas)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        _draw_row(canvas, pen, row, top, lefts)
        top += height
    if bar is not None:
        _draw_bar(canvas, pen, bar, top + 4)
        top += 56
    for line in footer:
        _write(pen, (MARGIN, top + 4), line, _FOOTER, _FAINT, width - 2 * MARGIN)
        top += _FOOTER + 7
    pixels = np.asarray(canvas)
    return pixels if np.ptp(pixels, axis=2).any() else pixels[..., 0]


def heat(values: NDArray[np.floating], upper: float) -> Pixels:
    """(H, W), 0 to ``upper`` -> (H, W, 3) uint8: black, red, yellow, white."""
    share = np.clip(values / upper, 0, 1)[..., None] * 3 - np.arange(3)
    return (share.clip(0, 1) * 255).round().astype(np.uint8)


def middle(picture: Pixels) -> Pixels:
    """What a tile shows of a square picture (S, S[, 3]): all but ``CROP`` of the width at either side."""
    cut = round(picture.shape[1] * CROP)
    return picture[:, cut : picture.shape[1] - cut]


def _height(row: Row) -> int:
    return (_HEADING + 14) * bool(row.headings) + (_CAPTION + 9) * row.captions + TILE[1] + GAP


def _draw_row(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, row: Row, top: int, lefts: Sequence[int]
) -> None:
    starts = sorted(row.headings)
    for column, end in pairwise([*starts, len(lefts) - 1]):
        room = lefts[end] - lefts[column] - GAP
        _write(pen, (lefts[column], top + 6), row.headings[column], _HEADING, _INK, room)
    caption_top = top + (_HEADING + 14) * bool(starts)
    top = caption_top + (_CAPTION + 9) * row.captions
    for left, tile in zip(lefts, row.tiles, strict=False):
        if tile is None:
            continue
        _write(pen, (left, caption_top), tile.caption, _CAPTION, FRAME if tile.framed else _FAINT, TILE[0])
        image = Image.fromarray(middle(tile.picture)).convert("RGB")
        canvas.paste(image.resize(TILE, Image.Resampling.LANCZOS), (left, top))
        if tile.framed:
            pen.rectangle((left - 3, top - 3, left + TILE[0] + 2, top + TILE[1] + 2), outline=FRAME, width=3)


def _draw_bar(canvas: Image.Image, pen: ImageDraw.ImageDraw, bar: Bar, top: int) -> None:
    width, height = 3 * TILE[0], 20
    ramp = np.broadcast_to(np.linspace(0, bar.upper, width), (height, width))
    canvas.paste(Image.fromarray(heat(ramp, bar.upper)), (MARGIN, top))
    pen.rectangle((MARGIN - 1, top - 1, MARGIN + width, top + height), outline=(90, 90, 90))
    font = ImageFont.load_default(_FOOTER)
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        label = f"{share * bar.upper:g}" + " or more" * (share == 1)
        pen.text((MARGIN + share * width, top + height + 3), label, _FAINT, font, anchor)
    room = canvas.width - 2 * MARGIN - width - 14
    _write(pen, (MARGIN + width + 14, top - 1), bar.label, _FOOTER, _FAINT, room)


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, ink: tuple[int, ...], room: int
) -> None:
    """Write one line in letters of ``size`` px; smaller ones where it would not fit, at the worst cut."""
    font = ImageFont.load_default(size)
    while size > 11 and pen.textlength(text, font=font) > room:
        size -= 1
        font = ImageFont.load_default(size)
    while text and pen.textlength(text, font=font) > room:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 4 else ""
    pen.text(place, text, fill=ink, font=font)
