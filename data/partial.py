"""Skulls of which bone is missing: pictures without the mandible, a part of the vault, or one side.

    python -m data.partial SKULL OUT missing=mandible|vault|left|right [seed=0]

SKULL is a picture or a folder of pictures; OUT a folder. What is missing is black, with an edge as a fracture leaves
it. Where the cut lies follows from the skull's own outline, or from landmarks where they are known; how it runs, from
the seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from data.images import IMAGE_SUFFIXES, ImageError, read_image, to_uint8, write_png

REGIONS = ("mandible", "vault", "left", "right")
DRAWN = 8 / 255  # darker is background
# As fractions of the way from the top of the skull to its chin, in the frontal pictures of the synthetic cohort.
TEETH, CHEEKBONE = 0.815, 0.64  # where upper and lower teeth meet; below the cheekbones, beside the teeth
VAULT = (0.22, 0.38)  # how deep a piece of the vault reaches
BESIDE = (0.21, 0.27)  # half widths, in heights, between which the mandible's rami begin
SOFT_CHIN = 0.04  # by how much the chin of a face lies below that of the bone
NARROW = 0.42  # rows less wide than this share of the widest are neck, not chin


class PartialError(ValueError):
    """Not a skull that bone can be taken from, or no such region; the message says which."""


@dataclass(frozen=True)
class Frame:
    """Where a skull lies in its picture, px: top and chin in y, middle in x."""

    top: float
    chin: float
    middle: float

    @classmethod
    def of(cls, drawn: NDArray[np.bool_], points: NDArray[np.float32] | None = None) -> Frame:
        """Of what is drawn, (H, W).

        Args:
            points: landmarks of the face, (N, 2) px, of any layout that goes round chin and both sides.

        Raises:
            PartialError: nothing is drawn.
        """
        rows = np.flatnonzero(drawn.any(1))
        if len(rows) < 8:
            raise PartialError("there is no skull in the picture; expected one on black")
        top = float(rows[0])
        if points is not None:
            low, middle = float(points[:, 1].max()), float(points[:, 0].min() + points[:, 0].max()) / 2
            return cls(top, low - SOFT_CHIN * (low - top), middle)
        left = drawn[rows].argmax(1)
        right = drawn.shape[1] - 1 - drawn[rows, ::-1].argmax(1)
        wide = np.flatnonzero(right - left >= NARROW * (right - left).max())
        upper = wide[: max(1, len(wide) // 2)]
        return cls(top, float(rows[wide[-1]] + 1), float((left + right)[upper].mean()) / 2)


def missing_bone(
    drawn: NDArray[np.bool_], region: str, seed: int, points: NDArray[np.float32] | None = None
) -> NDArray[np.bool_]:
    """Where bone is to be taken away, (H, W) bool: a pure function of its arguments.

    Args:
        drawn: (H, W), where the picture is not background. region: one of ``REGIONS``; ``left`` and ``right`` are the
            person's own, as an examiner says them: the left lies on the picture's right.
        points: of :class:`Frame`.

    Raises:
        PartialError: no such region, or nothing is drawn.
    """
    if region not in REGIONS:
        raise PartialError(f"missing: got {region!r}, expected one of {', '.join(REGIONS)}")
    frame, rng = Frame.of(drawn, points), np.random.default_rng([seed, REGIONS.index(region)])
    height = max(frame.chin - frame.top, 1.0)
    y, x = np.mgrid[: drawn.shape[0], : drawn.shape[1]].astype(np.float32)
    down, aside = (y - frame.top) / height, (x - frame.middle) / height  # in heights of the skull
    if region == "mandible":
        beside = np.clip((np.abs(aside[0]) - BESIDE[0]) / (BESIDE[1] - BESIDE[0]), 0, 1)
        edge = TEETH - (TEETH - CHEEKBONE) * beside + 0.4 * _fracture(rng, len(beside), height)
        return down > edge[None]
    tilt = rng.uniform(-0.35, 0.35)
    if region == "vault":
        edge = rng.uniform(*VAULT) + tilt * aside[0] + _fracture(rng, drawn.shape[1], height)
        return down < edge[None]
    edge = rng.uniform(-0.04, 0.06) + 0.4 * tilt * (down[:, 0] - 0.5) + _fracture(rng, drawn.shape[0], height)
    return (aside if region == "left" else -aside) > edge[:, None]


def _fracture(rng: np.random.Generator, length: int, height: float) -> NDArray[np.float64]:
    """(length,) displacements of an edge, in heights: long waves, and short jags on them."""
    waves = (0.07, 0.022), (0.018, 0.010)  # reach and standard deviation, in heights
    total = np.zeros(length)
    for reach, strength in waves:
        line = gaussian_filter1d(rng.standard_normal(length), max(reach * height, 0.5), mode="wrap")
        total += strength * line / max(float(line.std()), 1e-9)
    return total


def remove_bone(
    picture: NDArray[np.float32], region: str, seed: int, points: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """A skull picture (H, W, C) in [0, 1] with a region of bone made black; see :func:`missing_bone`."""
    away = missing_bone(picture.max(axis=2) > DRAWN, region, seed, points)
    return np.where(away[..., None], np.float32(0), picture)


def _arguments(argv: Sequence[str]) -> tuple[Path, Path, str, int]:
    paths = [argument for argument in argv if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(paths) != 2 or set(given) - {"missing", "seed"} or "missing" not in given:
        raise PartialError(f"got {' '.join(argv) or 'nothing'}, expected SKULL OUT missing=REGION [seed=0]")
    if not given.get("seed", "0").isdecimal():
        raise PartialError(f"seed: got {given['seed']!r}, expected 0 or a positive number")
    if given["missing"] not in REGIONS:
        raise PartialError(f"missing: got {given['missing']!r}, expected one of {', '.join(REGIONS)}")
    return Path(paths[0]), Path(paths[1]), given["missing"], int(given.get("seed", "0"))


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
    made: list[tuple[Path, NDArray[np.uint8]]] = []
    for file in files:
        target = out / f"{file.stem}.png"
        if target.exists():
            raise PartialError(f"{target} exists already; choose another folder")
        try:
            made.append((target, to_uint8(remove_bone(read_image(file)[0], region, seed))))
        except PartialError as error:
            raise PartialError(f"{file}: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    for target, picture in made:
        write_png(target, picture, {"Comment": f"{region} removed, seed {seed}"})
    return [target for target, _ in made]


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 2 after one line on stderr."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return 0
    try:
        files = write_partial(*_arguments(argv))
    except (PartialError, ImageError, OSError) as error:
        print(f"data.partial: {error}", file=sys.stderr)
        return 2
    print(f"wrote {len(files)} skull{'s' * (len(files) != 1)} to {files[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
