"""What guidance did to a face, step by step: as JSON and as a plot."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cldm.spgd import GuidedStep
from data.images import write_png
from muti_control.sampling.charts import Panel, Series, draw_panels

MEANING = {
    "energies": "before each inner step",
    "gradient_norm": "of the weighted energies, each in its own unit, with respect to the estimate's latent",
    "turn": "degrees between a gradient and the one before",
    "length": "of each inner step, relative to the latent's norm",
    "to_denoising": "degrees between what guidance moved and where the denoiser moved next",
    "rate": "of the first step's length",
}


def trace_of(steps: Sequence[GuidedStep], sample: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The trace of one sample of a batch, for JSON: what is not finite is null."""
    found = []
    for step in steps:
        inner = [
            {
                "energies": {name: _number(values, sample) for name, values in one.energies.items()},
                "gradient_norm": _number(one.gradient_norm, sample),
                "turn": _number(one.turn, sample),
                "length": _number(one.length, sample),
                "skipped": bool(one.skipped[sample]),
            }
            for one in step.inner
        ]
        found.append(
            {
                "step": step.i + 1,
                "t": step.t,
                "rate": step.rate,
                "to_denoising": None if step.to_denoising is None else _number(step.to_denoising, sample),
                "inner": inner,
            }
        )
    return {"guidance": dict(settings), "meaning": MEANING, "steps": found}


def trace_plot(trace: Mapping[str, Any], title: str) -> NDArray[np.uint8]:
    """Four panels over the denoising steps, (H, W, 3) uint8: energies, angles, gradients, lengths."""
    steps = trace["steps"]
    inner = [
        (step["step"] + k / len(step["inner"]), one) for step in steps for k, one in enumerate(step["inner"])
    ]
    x = [place for place, _ in inner]
    names = list(inner[0][1]["energies"]) if inner else []
    energies = []
    for name in names:
        values = [_or_nan(one["energies"][name]) for _, one in inner]
        most = max((value for value in values if value > 0), default=1.0)
        energies.append(Series(f"{name} (1 = {most:.3g})", x, [value / most for value in values]))
    at = "denoising step"
    whole = [step["step"] for step in steps]
    panels = [
        Panel("energies, each relative to its largest", at, energies),
        Panel(
            "angles, degrees",
            at,
            [
                Series("successive gradients", x, [_or_nan(one["turn"]) for _, one in inner]),
                Series("guidance to denoising", whole, [_or_nan(step["to_denoising"]) for step in steps]),
            ],
        ),
        Panel(
            "norm of the gradient", at, [Series("", x, [_or_nan(one["gradient_norm"]) for _, one in inner])]
        ),
        Panel(
            "length of a step, % of |x_t|",
            at,
            [Series("", x, [100 * _or_nan(one["length"]) for _, one in inner])],
        ),
    ]
    return draw_panels(panels, across=2, title=title)


def trace_names(face: str) -> tuple[str, str]:
    """File names of the trace and its plot, beside the face of that name."""
    stem = Path(face).stem
    return f"{stem}_guidance.json", f"{stem}_guidance.png"


def write_trace(
    folder: Path, face: str, steps: Sequence[GuidedStep], sample: int, settings: Mapping[str, Any]
) -> None:
    """Write both files."""
    trace = trace_of(steps, sample, settings)
    file, plot = (folder / name for name in trace_names(face))
    temporary = file.with_name(
        f".{file.name}.{secrets.token_hex(4)}.tmp"
    )  # as a broken-off write is known by
    temporary.write_text(json.dumps(trace) + "\n", encoding="utf-8")
    os.replace(temporary, file)
    write_png(plot, trace_plot(trace, f"Guidance of {face}: {settings['mode']}, scale {settings['scale']:g}"))


def _number(values: Tensor, sample: int) -> float | None:
    value = float(values[sample])
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
