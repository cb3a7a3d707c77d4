"""Bring a skull picture to what the model was trained on: straight, centred, in size, on black."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from data.check.measure import Silhouette, grow, silhouette
from muti_control.case.measure import Array, upright

if TYPE_CHECKING:
    from muti_control.case.check import SkullCheck

HIGHLIGHT = 0.8  # a hole in the bone whose rim is brighter is a highlight on a bright background, not a hole
LEVEL_STEP = 2 / 255


def prepare_skull(picture: Array, check: SkullCheck) -> tuple[Array, list[str]]:
    """Return the picture, (H, H, 3) in [0, 1], with what the check doubts mended where it can be; and what was done.

    Uneven light stays: taking it out brought pictures of turned lamps hardly nearer to evenly lit ones. A picture
    without such findings is returned as it is, the same object.
    """
    away, done, result = check.away, [], picture
    if check.measures is None or check.level == "stop":
        return picture, done
    shape = silhouette(picture.mean(2))
    if check.negative:
        result, done = _each(inverted, result, shape), ["inverted back"]
    elif "background" in check.names:
        result, done = _each(cleared, result, shape), ["background cleared"]
    own, mended = check.measures, away & {"angle", "scale", "right", "down"}
    if mended:
        flags = (cv2.INTER_AREA if own.scale > 2 else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
        back = upright(own, picture.shape[0], mended)
        result = np.clip(cv2.warpAffine(result, back, picture.shape[1::-1], flags=flags), 0, 1)
        done += [f"turned back by {-own.angle:.1f} degrees"] if "angle" in mended else []
        done += [f"scaled by {1 / own.scale:.2f}"] if "scale" in mended else []
        done += [f"moved by {-own.right:.0f} px across"] if "right" in mended else []
        done += [f"moved by {-own.down:.0f} px down"] if "down" in mended else []
    return result, done


def cleared(grey: Array, shape: Silhouette) -> Array:
    """Return a picture, (H, W), on black: its background removed, also where it shows through the bone."""
    rim = np.abs(grey - shape.background) <= max(LEVEL_STEP, 0.01)
    holes = (
        cv2.morphologyEx((shape.filled & rim).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    )
    count, labels = cv2.connectedComponents(holes.astype(np.uint8), connectivity=8)
    bone = shape.filled.copy()
    for label in range(1, count):
        hole = labels == label
        ring = grow(hole, 2) & ~grow(hole, 1)
        if float(grey[ring].mean()) < HIGHLIGHT or shape.background < HIGHLIGHT:
            bone &= ~hole
    edge = bone & ~(cv2.erode(bone.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    inner = np.where(bone, grey, 1).astype(np.float32)
    darkest = cv2.erode(inner, np.ones((3, 3), np.uint8))  # the outline is mixed with the background
    return np.where(edge, darkest, grey) * bone


def inverted(grey: Array, shape: Silhouette) -> Array:
    """Return the negative of a picture, (H, W), on black."""
    return np.where(shape.filled, 1 - grey, 0).astype(np.float32)


def _each(change, picture: Array, shape: Silhouette) -> Array:
    """Apply a change of grey pictures to each channel of (H, W, 3)."""
    return np.stack([change(picture[..., k], shape) for k in range(3)], -1).astype(np.float32)
