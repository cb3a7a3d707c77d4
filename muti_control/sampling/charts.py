"""Small line charts as pictures, side by side, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PANEL = 420, 300  # px
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 44
_PAPER, _INK, _GRID = (255, 255, 255), (30, 30, 30), (225, 225, 225)
_COLOURS = ((31, 91, 168), (200, 80, 20), (30, 130, 80), (140, 60, 150), (120, 120, 120), (190, 150, 20))
_FONT_SIZE = 13


@dataclass(frozen=True)
class Series:
    """A line; NaN leaves a gap. flat: a level, drawn across the panel (``y`` has one value)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    flat: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart. log_x: for positive x."""

    title: str
    x_label: str
    series: Sequence[Series]
    log_x: bool = False


def draw_panels(panels: Sequence[Panel], across: int = 3, title: str = "") -> NDArray[np.uint8]:
    """The charts in rows of ``across``, below a title: (H, W, 3) uint8."""
    across = min(across, len(panels))
    head = 26 if title else 0
    rows = -(-len(panels) // across)
    image = Image.new("RGB", (across * PANEL[0], head + rows * PANEL[1]), _PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_SIZE)
    if title:
        pen.text((10, 6), title, _INK, font)
    for k, panel in enumerate(panels):
        _Chart(pen, font, panel, k % across * PANEL[0], head + k // across * PANEL[1]).draw()
    return np.asarray(image)


class _Chart:
    def __init__(self, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
                 panel: Panel, left: int, top: int) -> None:  # fmt: skip
        self._pen, self._font, self._panel = pen, font, panel
        self._left, self._top = left + _LEFT, top + _TOP
        self._right, self._bottom = left + PANEL[0] - _RIGHT, top + PANEL[1] - _BOTTOM
        xs = [self._place(x) for s in panel.series if not s.flat for x in s.x]
        ys = [y for s in panel.series for y in s.y if math.isfinite(y)]
        self._x0, self._x1 = (min(xs), max(xs)) if xs else (0.0, 1.0)
        self._ticks = _ticks(min(ys, default=0.0), max(ys, default=1.0))
        self._y0, self._y1 = self._ticks[0], self._ticks[-1]

    def _place(self, x: float) -> float:
        return math.log10(x) if self._panel.log_x else x

    def _at(self, x: float, y: float) -> tuple[float, float]:
        part = (self._place(x) - self._x0) / ((self._x1 - self._x0) or 1.0)
        up = (y - self._y0) / (self._y1 - self._y0)
        return (
            self._left + part * (self._right - self._left),
            self._bottom - up * (self._bottom - self._top),
        )

    def draw(self) -> None:
        """Frame, lines and names."""
        pen, font, panel = self._pen, self._font, self._panel
        pen.text((self._left, self._top - 26), panel.title, _INK, font)
        for tick in self._ticks:
            y = self._bottom - (tick - self._y0) / (self._y1 - self._y0) * (self._bottom - self._top)
            pen.line((self._left, y, self._right, y), _GRID)
            pen.text((self._left - 6, y), f"{tick:.4g}", _INK, font, anchor="rm")
        xs = sorted({x for s in panel.series if not s.flat for x in s.x})
        marks = xs[:: max(1, -(-len(xs) // 8))] if panel.log_x else _ticks(self._x0, self._x1)
        for x in marks:
            if panel.log_x or self._x0 <= x <= self._x1:
                pen.text((self._at(x, self._y0)[0], self._bottom + 5), f"{x:g}", _INK, font, anchor="ma")
        middle = (self._left + self._right) / 2
        pen.text((middle, self._bottom + 22), panel.x_label, _INK, font, anchor="ma")
        for k, series in enumerate(panel.series):
            colour = _COLOURS[k % len(_COLOURS)]
            self._line(series, colour)
            pen.text((self._right, self._top - 10 + 15 * k), series.label, colour, font, anchor="ra")

    def _line(self, series: Series, colour: tuple[int, int, int]) -> None:
        if series.flat:
            y = self._bottom - (series.y[0] - self._y0) / (self._y1 - self._y0) * (self._bottom - self._top)
            self._pen.line((self._left, y, self._right, y), colour)
            return
        points = [
            self._at(x, y) if math.isfinite(y) else None for x, y in zip(series.x, series.y, strict=True)
        ]
        for a, b in pairwise(points):
            if a is not None and b is not None:
                self._pen.line((*a, *b), colour, 2)
        if len(series.x) <= 30:
            for point in points:
                if point is not None:
                    x, y = point
                    self._pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)


def _ticks(low: float, high: float) -> list[float]:
    """Round values about [low, high], at least two."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * 5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]
