"""Depths of soft tissue that the user gives for points of the face, held against bone and outline of a front view.

Depth is measured across the skin. Seen from the front, that is across the picture at the outline of cheeks and jaw
alone (points 0 to 32): there it is the way from the bone's edge to the point. Everywhere else it runs towards the
camera, and no picture from the front shows it; nor where the point lies over bone, such as vertebrae below the chin.
Such a depth is only noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.check.measure import silhouette
from data.landmarks import point_name
from settings.parsing import ContentError, read_table

MOST_MM = 60.0  # of a depth
REACH_MM = (
    35.0  # from the point, where bone is sought: beyond it, a missing mandible would be taken for depth
)
OTHERS = {"number": "landmark", "label": "landmark", "point": "landmark", "name": "landmark", "depthmm": "depth",
          "mean": "depth", "low": "lower", "min": "lower", "high": "upper", "max": "upper"}  # fmt: skip


@dataclass(frozen=True)
class Depth:
    """A depth of soft tissue at a point of the face, in mm, and the bounds that its source gives for it.

    Raises:
        ValueError: it is not above 0 and at most 60, or out of its bounds.
    """

    number: int
    mm: float
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        low, high = self.lower or 0, MOST_MM if self.upper is None else self.upper
        if not 0 <= low <= self.mm <= high <= MOST_MM or self.mm == 0:
            raise ValueError(
                f"a depth of {self.mm:g} mm between {low:g} and {high:g}; expected mm above 0, at most {MOST_MM:g}, "
                "and within its bounds"
            )


@dataclass(frozen=True)
class Marker:
    """A depth in the picture.

    outline: whether a front view can show it. bone, goal: (2,) fractions of the square: the bone's edge, and where the
    depth puts the point. mm: depth of the point as it is now. All three are None where the picture does not show it.
    """

    depth: Depth
    outline: bool
    bone: NDArray[np.float64] | None = None
    goal: NDArray[np.float64] | None = None
    mm: float | None = None


def read_depths(path: Path, num: int = 106) -> list[Depth]:
    """Read a CSV file with the columns landmark (number or name), depth, and perhaps lower and upper, all in mm.

    num: points of the face.

    Raises:
        ContentError: no such file, an unknown or double point, or a depth that is none.
    """
    names = {point_name(k, num)[0].casefold(): k for k in range(num)}
    depths: dict[int, Depth] = {}
    for line, cells in read_table(
        path, ("landmark", "depth", "lower", "upper"), ("landmark", "depth"), OTHERS
    ).rows:
        where, label = f"{path}: line {line}", cells["landmark"]
        number = int(label) if re.fullmatch(r"\d{1,4}", label) else names.get(label.casefold(), num)
        if number >= num:
            raise ContentError(
                f"{where}: landmark is {label!r}, expected 0 to {num - 1}, or a name such as menton"
            )
        if number in depths:
            raise ContentError(f"{where}: landmark {label} stands there twice; each is needed once")
        try:
            depth, *bounds = (
                float(text.replace(",", ".")) if (text := cells.get(key, "")) else None
                for key in ("depth", "lower", "upper")
            )
            depths[number] = Depth(number, math.nan if depth is None else depth, *bounds)
        except ValueError as error:
            raise ContentError(f"{where}: {error}") from error
    if not depths:
        raise ContentError(f"{path}: holds no depths; expected lines such as menton,10")
    return [depths[number] for number in sorted(depths)]


def depths_text(depths: Sequence[Depth], num: int = 106) -> str:
    """Return depths as a file that :func:`read_depths` reads."""
    cells = [
        (point_name(d.number, num)[0], *(x and f"{x:g}" for x in (d.mm, d.lower, d.upper))) for d in depths
    ]
    return "\n".join(["landmark,depth,lower,upper", *(",".join(x or "" for x in row) for row in cells), ""])


def bone_of(picture: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where a picture of a skull, (S, S, 3) in [0, 1], shows it, with its holes filled, (S, S)."""
    return silhouette(picture.mean(2)).filled


def place_depths(
    depths: Sequence[Depth], points: NDArray[np.floating], bone: NDArray[np.bool_], side_mm: float | None
) -> list[Marker]:
    """Return each depth in a picture from the front.

    Args:
        points: (N, 2) fractions of the square, the outline from ear to ear first. bone: of :func:`bone_of`, where the
            skull has its mandible; nothing else is an edge of it.
        side_mm: length of the side of the square in mm; None: unknown, so that no depth is shown.
    """
    last = max(k for k in range(len(points)) if _on_outline(k, len(points)))
    ways = np.arange(0, REACH_MM, 0.2) / (side_mm or 1)  # from the point inwards
    markers = []
    for depth in depths:
        k = depth.number
        marker = Marker(depth, _on_outline(k, len(points)))
        if marker.outline and side_mm is not None:
            along = points[min(k + 2, last)] - points[max(k - 2, 0)]
            outward = np.array([-along[1], along[0]], np.float64) / max(float(np.linalg.norm(along)), 1e-6)
            places = ((points[k] - ways[:, None] * outward) * len(bone)).astype(int).clip(0, len(bone) - 1)
            hit = bone[places[:, 1], places[:, 0]]
            if hit.any() and not hit[0]:
                way = float(ways[hit.argmax()])
                edge = points[k] - way * outward
                marker = Marker(depth, True, edge, edge + depth.mm / side_mm * outward, way * side_mm)
        markers.append(marker)
    return markers


def moved_to_depths(points: NDArray[np.floating], markers: Sequence[Marker]) -> NDArray[np.float32]:
    """Return points (N, 2) with the outline at its markers' goals; points between two markers move in proportion.

    The ends of the outline, at the ears, stay where no marker moves them.
    """
    goals = {marker.depth.number: marker.goal for marker in markers if marker.goal is not None}
    if not goals:
        return points.astype(np.float32)
    jaw = [k for k in range(len(points)) if _on_outline(k, len(points))]
    fixed = {k: points[k] for k in (jaw[0], jaw[-1])} | goals
    moves = np.array([fixed[k] - points[k] for k in sorted(fixed)])
    result = points.astype(np.float64)
    for axis in (0, 1):
        result[jaw, axis] += np.interp(jaw, sorted(fixed), moves[:, axis])
    return result.astype(np.float32)


def _on_outline(number: int, num: int) -> bool:
    return point_name(number, num)[1] == "jaw"
