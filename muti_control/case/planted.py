"""Skull pictures with one thing wrong, to measure what the check finds and what the preparation mends."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from data.partial import remove_bone
from muti_control.case.measure import Array

Change = Callable[[Array, str], Array]
CROP = 20  # px


def moved(picture: Array, angle: float = 0, scale: float = 1, right: float = 0, down: float = 0) -> Array:
    """Turn a picture (H, W, 3) counter-clockwise by degrees, scale it about its middle, and shift it by px."""
    height, width = picture.shape[:2]
    affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    affine = affine.astype(np.float64, copy=False)
    affine[:, 2] += np.array([right, down])
    return np.clip(cv2.warpAffine(picture, affine, (width, height), flags=cv2.INTER_CUBIC), 0, 1)


def lit(picture: Array, right: float = -0.15, down: float = -0.15) -> Array:
    """Brighten a picture by these shares per quarter of its side: by default as a lamp at the upper left does."""
    side = picture.shape[0]
    place = (np.arange(side, dtype=np.float32) - side / 2) / (side / 4)
    return np.clip(picture * (1 + right * place[None, :, None] + down * place[:, None, None]), 0, 1)


def on_background(picture: Array, level: float) -> Array:
    """Lay a skull on another background, in [0, 1]."""
    return np.where(picture.max(2, keepdims=True) > 0, picture, np.float32(level))


def cropped(picture: Array, side: str) -> Array:
    """Cut ``CROP`` px of the skull away, and the picture with it, on a side: top, left or right."""
    bone = np.argwhere(picture.max(2) > 0.05)
    (top, left), (_, last) = bone.min(0), bone.max(0)
    result = picture.copy()
    rest = {
        "top": result[: top + CROP],
        "left": result[:, : left + CROP],
        "right": result[:, last + 1 - CROP :],
    }
    rest[side][:] = 0
    return result


def without(region: str, picture: Array, name: str) -> Array:
    """Remove a region of ``data.partial``, with an edge that follows from the name."""
    return remove_bone(picture, region, zlib.crc32(name.encode()))


PLANTED: dict[str, tuple[str, Change]] = {  # what is done -> the finding it must give, and the change
    "turned by 5 degrees": ("turned", lambda p, _: moved(p, angle=5)),
    "turned by 20 degrees": ("turned", lambda p, _: moved(p, angle=-20)),
    "shifted by 5 px across": ("shifted", lambda p, _: moved(p, right=5)),
    "shifted by 10 px down": ("shifted", lambda p, _: moved(p, down=10)),
    "scaled by 0.75": ("scaled", lambda p, _: moved(p, scale=0.75)),
    "scaled by 1.3": ("scaled", lambda p, _: moved(p, scale=1.3)),
    "lit from the upper left": ("lit", lambda p, _: lit(p)),
    "white background": ("background", lambda p, _: on_background(p, 1.0)),
    "grey background": ("background", lambda p, _: on_background(p, 0.5)),
    "inverted": ("inverted", lambda p, _: 1 - p),
    "cut at the top": ("cropped", lambda p, _: cropped(p, "top")),
    "cut at the left": ("cropped", lambda p, _: cropped(p, "left")),
    "cut at the right": ("cropped", lambda p, _: cropped(p, "right")),
}
for region, finding in (
    ("mandible", "no_mandible"),
    ("vault", "unlike"),
    ("left", "unlike"),
    ("right", "unlike"),
):
    PLANTED[f"no {region}"] = finding, partial(without, region)
