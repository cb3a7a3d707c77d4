"""The trace of SPGD: what it did to a face, step by step, as JSON and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cldm.spgd import SpgdStep
from data.images import write_png
from muti_control.record import write_json

MEANING = {
    "energies": "before each inner step",
    "gradient_norm": "of the weighted energies, each in its own unit, with respect to the estimate's latent",
    "turn": "degrees between a gradient and the one before",
    "length": "of each inner step, relative to the latent's norm",
    "to_denoising": "degrees between the guided move and the denoiser's own move after it",
    "rate": "of the first step's length",
}
PANEL = 420, 260  # px
MARGINS = 62, 34, 14, 30  # px left, above, right and below of a panel's frame
COLOURS = "#1f5ba8", "#c85014", "#1e8250", "#8c3c96"

Line = tuple[str, Sequence[float], Sequence[float]]
"""Label, x and y; NaN in y leaves a gap."""


def trace_of(steps: Sequence[SpgdStep], sample: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trace of one sample of a batch, for JSON: a number that is not finite becomes null."""
    return {
        "spgd": dict(settings),
        "meaning": MEANING,
        "steps": [
            {
                "step": step.i + 1,
                "t": step.t,
                "rate": step.rate,
                "to_denoising": _of_sample(step.to_denoising, sample),
                "inner": [_of_sample(vars(inner), sample) for inner in step.inner],
            }
            for step in steps
        ],
    }


def _of_sample(values: Any, sample: int) -> Any:
    """Return the sample's entry of tensors (B,), as in dictionaries of them."""
    if isinstance(values, Mapping):
        return {name: _of_sample(entry, sample) for name, entry in values.items()}
    value = None if values is None else values[sample].item()
    return value if value is not None and math.isfinite(value) else None


def trace_plot(trace: Mapping[str, Any], title: str) -> NDArray[np.uint8]:
    """Return energies, angles, gradients and lengths over the denoising steps, (H, W, 3) uint8."""
    steps = trace["steps"]
    rows = [
        (step["step"] + k / len(step["inner"]), inner)
        for step in steps
        for k, inner in enumerate(step["inner"])
    ]
    x = [place for place, _ in rows]

    def line(label: str, key: str, scale: float = 1.0) -> Line:
        return label, x, [scale * _or_nan(inner[key]) for _, inner in rows]

    energies: list[Line] = []
    for name in rows[0][1]["energies"] if rows else ():
        values = [_or_nan(inner["energies"][name]) for _, inner in rows]
        largest = max((value for value in values if value > 0), default=1.0)
        energies.append((f"{name} (1 = {largest:.3g})", x, [value / largest for value in values]))
    denoising = [step["step"] for step in steps], [_or_nan(step["to_denoising"]) for step in steps]
    panels: list[tuple[str, list[Line]]] = [
        ("energies, each relative to its largest", energies),
        ("angles, degrees", [line("successive gradients", "turn"), ("SPGD to denoising", *denoising)]),
        ("norm of the gradient", [line("", "gradient_norm")]),
        ("length of a step, % of |x_t|", [line("", "length", 100)]),
    ]
    head = 26
    image = Image.new("RGB", (2 * PANEL[0], head + 2 * PANEL[1]), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    pen.text((10, 6), f"{title}; over the denoising steps", "black", font)
    for k, (name, lines) in enumerate(panels):
        _draw_panel(pen, font, (k % 2 * PANEL[0], head + k // 2 * PANEL[1]), name, lines)
    return np.asarray(image)


def _draw_panel(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    title: str,
    lines: Sequence[Line],
) -> None:
    """Draw lines in a frame whose lower and left edges bear the least and the largest values."""
    left, top = corner[0] + MARGINS[0], corner[1] + MARGINS[1]
    right, bottom = corner[0] + PANEL[0] - MARGINS[2], corner[1] + PANEL[1] - MARGINS[3]
    xs = [place for _, x, _ in lines for place in x] or [0.0]
    ys = [value for _, _, y in lines for value in y if math.isfinite(value)] or [0.0]
    x_0, x_1, y_0, y_1 = min(xs), max(xs), min(0.0, *ys), max(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_0) / (x_1 - x_0 or 1), (y - y_0) / (y_1 - y_0 or 1)
        return left + across * (right - left), bottom - up * (bottom - top)

    pen.rectangle((left, top, right, bottom), outline="#e1e1e1")
    pen.text((left, top - 26), title, "black", font)
    for value in (y_0, y_1):
        pen.text((left - 6, at(x_0, value)[1]), f"{value:.4g}", "black", font, anchor="rm")
    for value in (x_0, x_1):
        pen.text((at(value, y_0)[0], bottom + 5), f"{value:g}", "black", font, anchor="ma")
    for k, (label, x, y) in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        pen.text((right, top - 10 + 15 * k), label, colour, font, anchor="ra")
        for finite, points in groupby(zip(x, y, strict=True), lambda point: math.isfinite(point[1])):
            if finite:
                pen.line([at(*point) for point in points], colour, 2)


def trace_names(face: str) -> tuple[str, str]:
    """Return the names of the trace and its plot, which lie beside the face of that file name."""
    stem = Path(face).stem
    return f"{stem}_spgd.json", f"{stem}_spgd.png"


def write_trace(
    folder: Path, face: str, steps: Sequence[SpgdStep], sample: int, settings: Mapping[str, Any]
) -> None:
    """Write the trace of one sample of a batch and its plot."""
    trace = trace_of(steps, sample, settings)
    file, plot = (folder / name for name in trace_names(face))
    write_json(file, trace, indent=None)
    write_png(plot, trace_plot(trace, f"SPGD of {face}: {settings['mode']}, scale {settings['scale']:g}"))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
