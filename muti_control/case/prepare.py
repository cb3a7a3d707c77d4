"""What ``prepare=auto`` does with a skull before it is drawn: check, mend, check again.

A skull is brought to what the model was trained on: straight, centred, in size, on black.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from data.biometrics import Attributes, Biometrics
from data.check.measure import Silhouette, silhouette
from muti_control.case.calibration import Calibration
from muti_control.case.check import SkullCheck, check_skull
from muti_control.case.measure import Array, cleared, inverted, upright

FIT_LOST = 0.01


@dataclass(frozen=True)
class CheckedSkull:
    """A skull that may be drawn.

    Attributes:
        picture: (H, W, 3) in [0, 1]; the one that was read, the same object, where nothing was done.
        check: of this picture. before: of the one that was read. done: what was done to it, a few words each.
    """

    picture: Array
    check: SkullCheck
    before: SkullCheck
    done: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Length in the picture that was read, of a px of this one, px."""
        resized = self.done and self.before.measures is not None and "scale" in self.before.away
        return self.before.measures.scale if resized and self.before.measures else 1.0

    def record(self) -> dict[str, Any]:
        """Return the check for a record, JSON: level and findings, what was done, and the findings before that."""
        before = self.before.record()["findings"] if self.done else []
        return {**self.check.record(), "prepared": list(self.done), "findings_before": before}


def checked_skull(
    picture: Array,
    calibration: Calibration | None,
    person: Attributes | Biometrics | None = None,
    prepare: bool = True,
) -> CheckedSkull:
    """Check a skull picture, (H, H, 3) float32 in [0, 1], and prepare it where the check says so.

    What makes it less like a skull is not kept.
    """
    before = check_skull(picture, calibration, person)
    prepared, done = prepare_skull(picture, before) if prepare else (picture, [])
    if prepared is picture:
        return CheckedSkull(picture, before, before)
    after = check_skull(prepared, calibration, person)
    fits = [
        check.measures.fit if check.measures and check.level != "stop" else 0 for check in (before, after)
    ]
    if fits[1] < fits[0] - FIT_LOST:
        return CheckedSkull(picture, before, before)
    return CheckedSkull(prepared, after, before, tuple(done))


def prepare_skull(picture: Array, check: SkullCheck) -> tuple[Array, list[str]]:
    """Return the picture, (H, H, 3) in [0, 1], with what the check doubts mended where it can be; and what was done.

    Uneven light stays: taking it out brought pictures of turned lamps hardly nearer to evenly lit ones. A picture
    without such findings is returned as it is, the same object.
    """
    away, result = check.away, picture
    done: list[str] = []
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
        words = {
            "angle": f"turned back by {-own.angle:.1f} degrees",
            "scale": f"scaled by {1 / own.scale:.2f}",
            "right": f"moved by {-own.right:.0f} px across",
            "down": f"moved by {-own.down:.0f} px down",
        }
        done += [text for name, text in words.items() if name in mended]
    return result, done


def _each(change: Callable[[Array, Silhouette], Array], picture: Array, shape: Silhouette) -> Array:
    """Apply a change of grey pictures to each channel of (H, W, 3)."""
    return np.stack([change(picture[..., k], shape) for k in range(3)], -1).astype(np.float32)
