"""Skulls with missing bone: pictures without the mandible, a part of the vault, or one side.

    python -m data.partial SKULL OUT missing=mandible|vault|left|right [seed=0]

SKULL is a picture or a folder of pictures; OUT a folder. What is missing is black, with an edge as a fracture leaves
it. Where the cut lies follows from the outline of the bone that stays, and from the seed; never from the bone that is
removed, nor from the face: the cut must not tell what it hides. A path with "=" in it is written as ./PATH.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from data.images import IMAGE_SUFFIXES, read_image, to_uint8, write_png
from data.program import run_program
from settings.base import Settings

Region = Literal["mandible", "vault", "left", "right"]
REGIONS = get_args(Region)
DRAWN = 8 / 255  # darker is background
# In heights of the skull, from its top down, in the frontal pictures of the synthetic cohort.
TEETH, CHEEKBONE = 0.815, 0.64  # where upper and lower teeth meet; below the cheekbones, beside the teeth
ASTRAY = (-0.01, 0.06)  # how far the mandible's cut strays from there
VAULT = (0.22, 0.38)  # how deep a piece of the vault reaches
BESIDE = (0.21, 0.27)  # half widths between which the mandible's rami begin
HALF, ASIDE = 0.35, (-0.04, 0.06)  # half the width of a skull; how far a side's cut strays from the middle
NARROW = 0.42  # rows less wide than this share of the widest are neck, not chin
# How far in from the edge that stays a skull is looked at, in its extents across; and that extent in heights.
LOOK = {"mandible": (0.75, 0.70), "vault": (0.75, 0.69), "left": (0.20, 0.95), "right": (0.20, 0.95)}
SMALLEST = 8  # px


class PartialError(ValueError):
    """There is no skull to remove bone from, or no such region; the message says which."""


class PartialConfig(Settings):
    """Which bone is removed."""

    missing: Region
    """The region to remove."""
    seed: NonNegativeInt = 0
    """Seed of the edge."""


@dataclass(frozen=True)
class RemainingPart:
    """The part of a skull that stays and decides the cut, in px; lines count from the edge that stays.

    Attributes:
        edge: the first line of the skull.
        last: the last line that counts.
        extent: the greatest extent across these lines.
        middle: their mean middle.
    """

    edge: int
    last: int
    extent: float
    middle: float

    @classmethod
    def of(cls, foreground: NDArray[np.bool_], share: float, neck: bool = False) -> RemainingPart:
        """Measure a skull, (lines, across), whose first lines stay, down to ``share`` times its extent.

        What lies further has no influence. neck: the first, narrow lines, less than an eighth of the
        picture, are not part of the skull.
        """
        lines: NDArray[np.bool_] = np.asarray(foreground.any(1))
        first = foreground.argmax(1)
        last = foreground.shape[1] - 1 - foreground[:, ::-1].argmax(1)
        extents = np.where(lines, last - first + 1, 0)
        edge = int(lines.argmax())
        until, widest = _look(extents, edge, share, len(foreground) // 8 if neck else SMALLEST)
        if neck:
            edge += int((extents[edge : until + 1] >= NARROW * widest).argmax())
            until, widest = _look(extents, edge, share)
        part = slice(edge, until + 1)
        ends = (first + last)[part][lines[part]]
        return cls(edge, until, float(widest), float(ends.mean()) / 2)


def _look(extents: NDArray[np.int_], edge: int, share: float, least: int = SMALLEST) -> tuple[int, int]:
    """Return the last line that counts from ``edge`` on, at least ``least`` lines, and the extent down to it."""
    widest = np.maximum.accumulate(extents[edge:])
    deep = np.arange(1, len(widest) + 1)
    enough = np.flatnonzero((deep >= share * widest) & (deep >= least))
    place = int(enough[0]) if len(enough) else len(widest) - 1
    return edge + place, int(widest[place])


def holds_skull(foreground: NDArray[np.bool_]) -> bool:
    """Return whether a foreground, (H, W), is large enough to remove bone from: at least 8 rows and 8 columns."""
    return min(int(foreground.any(1).sum()), int(foreground.any(0).sum())) >= SMALLEST


def missing_bone(foreground: NDArray[np.bool_], region: str, seed: int) -> NDArray[np.bool_]:
    """Return where bone is removed, (H, W) bool: a pure function of its arguments.

    It follows from the seed and from the part that stays, so that it tells nothing about the bone that goes: two skulls
    that differ only there are cut alike.

    Args:
        foreground: (H, W), where the picture is not background.
        region: one of ``REGIONS``; ``left`` and ``right`` are the person's own, as an examiner says them: the left lies
            on the picture's right.

    Raises:
        PartialError: no such region, or the picture has no foreground.
    """
    if region not in REGIONS:
        raise PartialError(f"missing: got {region!r}, expected one of {', '.join(REGIONS)}")
    if not holds_skull(foreground):
        raise PartialError("there is no skull in the picture; expected one on black")
    share, heights = LOOK[region]
    turned = _turned(foreground, region)
    part = RemainingPart.of(turned, share, neck=region == "vault")
    rng = np.random.default_rng([seed, REGIONS.index(region)])
    height = max(part.extent / heights, 1.0)
    aside = (np.arange(turned.shape[1]) - part.middle) / height  # in heights of the skull
    fracture = _fracture(rng, len(aside), height)
    if region == "mandible":
        beside = np.clip((np.abs(aside) - BESIDE[0]) / (BESIDE[1] - BESIDE[0]), 0, 1)
        cut = TEETH - (TEETH - CHEEKBONE) * beside + rng.uniform(*ASTRAY) + 0.4 * fracture
    elif region == "vault":
        cut = 1 - rng.uniform(*VAULT) + rng.uniform(-0.35, 0.35) * aside + fracture
    else:
        cut = HALF + rng.uniform(*ASIDE) + 0.4 * rng.uniform(-0.35, 0.35) * aside + fracture
    lines = np.maximum(part.edge + cut * height, part.last)
    away = np.arange(len(turned))[:, None] > lines[None]
    return _turned(away, region, back=True)


def _turned(mask: NDArray[np.bool_], region: str, back: bool = False) -> NDArray[np.bool_]:
    """Turn a picture's mask so that its first lines are on the side that stays, or ``back`` again."""
    if region == "mandible":
        return mask
    if region == "vault":
        return mask[::-1]
    if region == "left":
        return mask.T
    return mask.T[:, ::-1] if back else mask[:, ::-1].T


def _fracture(rng: np.random.Generator, length: int, height: float) -> NDArray[np.float64]:
    """Return (length,) displacements of an edge, in heights: long waves, and short jags on them."""
    waves = (0.07, 0.022), (0.018, 0.010)  # reach and standard deviation, in heights
    total = np.zeros(length)
    for reach, strength in waves:
        line = _smooth_around(rng.standard_normal(length), max(reach * height, 0.5))
        total += strength * line / max(float(line.std()), 1e-9)
    return total


def _smooth_around(line: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Smooth a closed line (N,) by a Gaussian with ``sigma`` in samples, cut off at four of them."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(line, reach, mode="wrap"), kernel / kernel.sum(), mode="valid")


def remove_bone(picture: NDArray[np.float32], region: str, seed: int) -> NDArray[np.float32]:
    """Return a skull picture (H, W, C) in [0, 1] with a region of bone black; see :func:`missing_bone`."""
    away = missing_bone(picture.max(axis=2) > DRAWN, region, seed)
    return np.where(away[..., None], np.float32(0), picture)


def write_partial(source: Path, out: Path, region: str, seed: int) -> list[Path]:
    """Write the skulls of ``source`` without a region, under their own names; returns the files.

    Raises:
        PartialError, ImageError: a picture that cannot be used, or a target that exists; nothing is written then.
    """
    files = [source]
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise PartialError(f"{source}: holds no picture")
    sources: dict[Path, Path] = {}
    for file in files:
        target = out / f"{file.stem}.png"
        if target in sources:
            raise PartialError(f"{sources[target]} and {file} would both be {target}; rename one of them")
        if target.exists():
            raise PartialError(f"{target} exists already; choose another folder")
        sources[target] = file
    for file in files:
        _without(file, region, seed)  # all are tried before the first is written
    out.mkdir(parents=True, exist_ok=True)
    for target, file in sources.items():
        write_png(target, _without(file, region, seed), {"Comment": f"{region} removed, seed {seed}"})
    return list(sources)


def _without(file: Path, region: str, seed: int) -> NDArray[np.uint8]:
    try:
        return to_uint8(remove_bone(read_image(file)[0], region, seed))
    except PartialError as error:
        raise PartialError(f"{file}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after one line on stderr."""

    def work(config: PartialConfig, skull: Path, out: Path) -> None:
        files = write_partial(skull, out, config.missing, config.seed)
        print(f"wrote {len(files)} skull{'s' * (len(files) != 1)} to {out}")

    return run_program("data.partial", __doc__, PartialConfig, work, argv, paths="SKULL OUT")


if __name__ == "__main__":
    sys.exit(main())
