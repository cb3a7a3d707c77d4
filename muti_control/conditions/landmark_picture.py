"""The picture of a case's landmarks: numbered over the skull, and over its first face, each group in its colour."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.landmarks import point_name

SIDE = 768  # px of each of the two pictures: at least three times the demo's
_LEGEND, _FONT = 30, 14  # px
_COLOURS = {  # told apart on grey by people with any colour vision. Source: Okabe and Ito, 2008
    "jaw": (86, 180, 233),
    "brow": (230, 159, 0),
    "nose": (0, 200, 140),
    "eye": (240, 228, 66),
    "mouth": (240, 130, 190),
    "points": (240, 228, 66),
}
_DISTANCES = (13, 20, 28, 37, 48)  # px from a point to the middle of its number


def numbered_picture(
    skull: NDArray[np.uint8], face: NDArray[np.uint8], points: NDArray[np.floating]
) -> np.ndarray:
    """Return (H, W, 3) uint8: the skull with numbered points, and the face with the same points without numbers.

    Shown is the square around the points.

    Args:
        skull, face: (S, S, 3). points: (N, 2), fractions of the picture; points outside it lie on its edge.
    """
    inside = np.clip(points, 0, 1)
    width = min(1.0, 1.2 * float(np.ptp(inside, axis=0).max()) + 0.05)  # of the part that is shown
    corner = np.clip(inside.min(0) + np.ptp(inside, axis=0) / 2 - width / 2, 0, 1 - width)
    canvas = Image.new("RGB", (2 * SIDE, SIDE + _LEGEND))
    for k, picture in enumerate((skull, face)):
        box = [len(picture) * edge for edge in (*corner, *(corner + width))]
        large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC, tuple(box))
        canvas.paste(large.point(lambda level: level * 0.7), (k * SIDE, 0))  # darker than the numbers
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    places = np.clip((inside - corner) / width * SIDE, 3, SIDE - 4)  # (N, 2) px
    groups = [point_name(number, len(points))[1] for number in range(len(points))]
    labels = _label_places(places)
    for (x, y), (u, v) in zip(places, labels, strict=True):
        pen.line((x, y, u, v), fill=(170, 170, 170))
    for number, ((u, v), group) in enumerate(zip(labels, groups, strict=True)):
        pen.text((u, v), str(number), _COLOURS[group], font, "mm", stroke_width=2, stroke_fill=(0, 0, 0))
    for (x, y), group in zip(places, groups, strict=True):
        for left in (0, SIDE):
            pen.ellipse((left + x - 2, y - 2, left + x + 2, y + 2), fill=_COLOURS[group], outline=(0, 0, 0))
    legend, x = ImageFont.load_default(18), 12.0
    for text in ("numbered as in the file:", *dict.fromkeys(groups)):
        colour = _COLOURS.get(text, (235, 235, 235))
        pen.text((x, SIDE + _LEGEND / 2), text, colour, legend, "lm")
        x += pen.textlength(text, legend) + 24
    return np.asarray(canvas)


def _label_places(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return (N, 2) px, the middle of each number: beside its point, where it covers least."""
    angles = np.deg2rad(np.arange(-90, 270, 30))
    offsets = np.array([(d * np.cos(a) * 1.2, d * np.sin(a)) for d, a in product(_DISTANCES, angles)])
    away = (points - points.mean(0)) / SIDE  # numbers lie rather outside than inside the face
    taken = points
    result = np.empty_like(points)
    for i, point in enumerate(points):
        places = np.clip(point + offsets, 10, SIDE - 10)  # (P, 2)
        gaps = np.abs(places[:, None] - taken[None]) / (22, 14)  # numbers are wider than high
        covered = np.clip(1 - gaps.max(2), 0, None)
        covered[:, : len(points)] *= 0.5  # a point needs less room than a number
        cost = 10 * covered.sum(1) + np.linalg.norm(offsets, axis=1) / 30 - 0.5 * (offsets @ away[i]) / 30
        result[i] = places[cost.argmin()]
        taken = np.vstack([taken, result[i]])
    return result
