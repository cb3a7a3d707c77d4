"""Charts as inline SVG: lines with bands, bars with intervals, a histogram. Colours come from the page's style sheet.

Coordinates are those of the viewBox; the page scales a chart to its column, so sizes are chosen to be read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 46


@dataclass(frozen=True)
class Line:
    """One curve. style: CSS class of its colour and dash; low and high: its band, or None."""

    label: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Bar:
    """One bar with its interval; low and high may be None."""

    style: str
    value: float
    low: float | None
    high: float | None


def nice_top(value: float) -> float:
    """The smallest of 1, 2, 2.5, 4, 5, 8 times a power of ten that is not below ``value`` (1 for 0)."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))


def ticks(top: float, most: int = 5) -> list[float]:
    """Round values from 0 to ``top``, at most ``most`` + 1 of them."""
    power = 10 ** math.floor(math.log10(top / most))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * most >= top * (1 - 1e-9))
    return [i * step for i in range(int(top / step + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    log_x: bool,
    y_top: float,
    x_ticks: Sequence[int],
) -> str:
    """Curves over whole numbers; y from 0 to ``y_top``."""
    first, last = x_ticks[0], x_ticks[-1]

    def across(x: float) -> float:
        part = math.log(x / first) / math.log(last / first) if log_x else (x - first) / max(last - first, 1)
        return _LEFT + part * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return HEIGHT - _BOTTOM - min(y / y_top, 1.0) * (HEIGHT - _BOTTOM - _TOP)

    parts = [_frame(up, y_top, y_label)]
    for tick in x_ticks:
        parts.append(_text(across(tick), HEIGHT - _BOTTOM + 18, f"{tick:g}", "middle"))
        parts.append(f'<line class="tick" x1="{across(tick):.1f}" x2="{across(tick):.1f}" '
                     f'y1="{HEIGHT - _BOTTOM}" y2="{HEIGHT - _BOTTOM + 4}"/>')  # fmt: skip
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, x_label, "middle", "axis"))
    for line in lines:
        if line.low is not None and line.high is not None:
            there = [(across(x), up(y)) for x, y in zip(line.x, line.high, strict=True) if x <= last]
            back = [(across(x), up(y)) for x, y in zip(line.x, line.low, strict=True) if x <= last]
            parts.append(f'<polygon class="band {line.style}" points="{_points(there + back[::-1])}"/>')
    for line in lines:
        points = [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True) if x <= last]
        parts.append(
            f'<polyline class="line {line.style}" points="{_points(points)}">'
            f"<title>{escape(line.label)}</title></polyline>"
        )
    return _svg(title, HEIGHT, parts)


def bar_chart(title: str, rows: Sequence[tuple[str, Sequence[Bar]]], top: float, x_label: str) -> str:
    """Horizontal bars with intervals, one block per row; values from 0 to ``top``, in the unit of ``x_label``."""
    thick, gap, left = 13, 15, 168
    height = _TOP + sum(len(bars) * (thick + 2) + gap for _, bars in rows) + 40

    def across(x: float) -> float:
        return left + max(0.0, min(x / top, 1.0)) * (WIDTH - left - _RIGHT - 6)

    parts = []
    for tick in ticks(top):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 40}"/>')
        parts.append(_text(x, height - 24, f"{tick:g}", "middle"))
    parts.append(_text((left + WIDTH - _RIGHT) / 2, height - 6, x_label, "middle", "axis"))
    y = _TOP + gap / 2
    for label, bars in rows:
        block = len(bars) * (thick + 2)
        parts.append(_text(left - 8, y + block / 2 + 4, label, "end"))
        for bar in bars:
            width = across(bar.value) - left
            parts.append(
                f'<rect class="bar {bar.style}" x="{left}" y="{y:.1f}" width="{width:.1f}" height="{thick}"/>'
            )
            if bar.low is not None and bar.high is not None:
                low, high, middle = across(bar.low), across(bar.high), y + thick / 2
                parts.append(
                    f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}'
                    f'M{low:.1f} {middle - 3.5:.1f}v7M{high:.1f} {middle - 3.5:.1f}v7"/>'
                )
            y += thick + 2
        y += gap
    parts.append(f'<line class="zero" x1="{left}" x2="{left}" y1="{_TOP}" y2="{height - 40}"/>')
    return _svg(title, int(height), parts)


def histogram(
    title: str,
    edges: Sequence[float],
    reference: Sequence[float],
    probes: Sequence[float],
    threshold: float,
    x_label: str,
    flag_label: str,
) -> str:
    """Two histograms of shares over the same bins (filled: reference; outline: probes) and a threshold."""
    top = nice_top(100 * max([*reference, *probes, 1e-9]))

    def across(x: float) -> float:
        part = (x - edges[0]) / (edges[-1] - edges[0])
        return _LEFT + max(0.0, min(part, 1.0)) * (WIDTH - _LEFT - _RIGHT)

    def up(share: float) -> float:
        return HEIGHT - _BOTTOM - 100 * share / top * (HEIGHT - _BOTTOM - _TOP)

    parts = [_frame(lambda y: up(y / 100), top, "% of skulls")]
    for i, share in enumerate(reference):
        left, right = across(edges[i]), across(edges[i + 1])
        parts.append(
            f'<rect class="bar reference" x="{left + 0.4:.1f}" y="{up(share):.1f}" '
            f'width="{max(right - left - 0.8, 0.5):.1f}" height="{up(0) - up(share):.1f}"/>'
        )
    steps = [(across(edges[0]), up(0))]
    for i, share in enumerate(probes):
        steps += [(across(edges[i]), up(share)), (across(edges[i + 1]), up(share))]
    steps.append((across(edges[-1]), up(0)))
    parts.append(f'<polyline class="line s0" points="{_points(steps)}"/>')
    x = across(threshold)
    parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    right_half = x > WIDTH * 0.6
    parts.append(
        _text(x - 6 if right_half else x + 6, _TOP + 12, flag_label, "end" if right_half else "start", "flag")
    )
    span = edges[-1] - edges[0]
    for tick in ticks(span):
        parts.append(
            _text(across(edges[0] + tick), HEIGHT - _BOTTOM + 18, f"{edges[0] + tick:.3g}", "middle")
        )
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, x_label, "middle", "axis"))
    return _svg(title, HEIGHT, parts)


def _frame(up: Callable[[float], float], top: float, y_label: str) -> str:
    parts = []
    for tick in ticks(top):
        y = up(tick)
        parts.append(
            f'<line class="{"grid" if tick else "zero"}" '
            f'x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 7, y + 4, f"{tick:g}", "end"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(13 {middle:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
