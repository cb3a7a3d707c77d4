"""The scanner protocols of a cohort, and the styles of a subject's surfaces.

The style of a face comes from its own random stream and does not depend on the subject: neither on bone nor prompt nor
number. The skull has a style of its own, from the same protocols and another stream, as scanners reconstruct bone and
soft tissue apart, with a kernel for each. So the skull says nothing of the face's style; only an exemplar (the texture
condition) does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.cohort.config import NUM_PROTOCOLS
from data.render import Lamp
from data.style import SurfaceStyle

SLICE_MM = (2.4, 5.0)
JITTER = 0.04  # standard deviation of one scan about its protocol, in each setting's own 0 .. 1 range
_STREAM = 1000  # apart from the streams that draw the subject


@dataclass(frozen=True)
class ScanStyle:
    """One scan of a surface.

    Attributes:
        protocol: 1 .. NUM_PROTOCOLS; 0: none of them.
        surface: the style that this scan gives the surface.
        seed: of its grain and noise.
        lamp: that lights its picture; None: a headlight.
    """

    protocol: int
    surface: SurfaceStyle
    seed: int
    lamp: Lamp | None = None

    @property
    def name(self) -> str:
        return protocol_name(self.protocol)

    def record(self) -> dict[str, Any]:
        """Return the style for JSON."""
        values = {key: round(value, 4) for key, value in asdict(self.surface).items()}
        lamp = (
            {"lamp": {key: round(value, 3) for key, value in asdict(self.lamp).items()}} if self.lamp else {}
        )
        return {"protocol": self.name, **values, **lamp}


def protocol_name(number: int) -> str:
    return f"p{number:02d}"


def protocol(number: int) -> SurfaceStyle:
    """Return the settings of protocol ``number``: each is spread evenly over its range, and no two go together.

    Source: the settings are the R-sequence, an additive recurrence that fills the cube evenly: M. Roberts, "The
    Unreasonable Effectiveness of Quasirandom Sequences" (2018).
    """
    if not 1 <= number <= NUM_PROTOCOLS:
        raise ValueError(f"protocol {number}: expected 1 to {NUM_PROTOCOLS}")
    return _style(_place(number))


def draw_face_style(seed: int, index: int) -> ScanStyle:
    """Return the style of the face of subject ``index`` of cohort ``seed``."""
    return _draw(seed, index, 0)


def draw_skull_style(seed: int, index: int) -> ScanStyle:
    """Return the style of the skull of subject ``index`` of cohort ``seed``, whatever becomes of its face."""
    return _draw(seed, index, 1)


def with_protocol(style: ScanStyle, number: int) -> ScanStyle:
    """Return the same scan by exactly another protocol; the grain stays in its place."""
    return replace(style, protocol=number, surface=protocol(number))


def scanned_again(style: ScanStyle) -> ScanStyle:
    """Return another scan by exactly the same protocol, with grain of its own: all that an exemplar can show."""
    return replace(with_protocol(style, style.protocol), seed=style.seed + 1)


def neutral(style: ScanStyle) -> ScanStyle:
    """Return the mean style, with another grain: what to expect where nothing shows the style."""
    return ScanStyle(0, _style(np.full(6, 0.5)), style.seed + 1)


def _draw(seed: int, index: int, surface: int) -> ScanStyle:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, _STREAM + surface)))
    number = 1 + int(rng.integers(NUM_PROTOCOLS))
    place = np.clip(_place(number) + JITTER * rng.standard_normal(6), 0, 1)
    return ScanStyle(number, _style(place), int(rng.integers(1 << 31)))


def _place(number: int) -> np.ndarray:
    """Return (6,) in [0, 1): where a protocol lies in the range of each setting."""
    root = 1.0
    for _ in range(40):  # of x^7 = x + 1
        root = (1 + root) ** (1 / 7)
    return (0.5 + number * root ** -np.arange(1.0, 7.0)) % 1


def _style(place: np.ndarray) -> SurfaceStyle:
    kernel, grain, gloss, noise, steps, thickness = (float(value) for value in place)
    slice_mm = SLICE_MM[0] + thickness * (SLICE_MM[1] - SLICE_MM[0])
    return SurfaceStyle(2 * kernel - 1, grain, gloss, noise, steps, slice_mm)
