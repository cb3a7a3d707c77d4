"""Faces to be judged: which pictures a method has made of which probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images import read_image, to_uint8
from muti_control.evaluation.protocol.registry import MethodInfo

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Faces:
    """What one method made.

    pictures: probe -> its faces, one for each draw; a probe may be missing.
    excluded: probe -> gallery column that does not count for it: the face of whoever lent the skull.
    seconds: of making them.
    """

    info: MethodInfo
    pictures: Mapping[int, tuple[Path, ...]]
    excluded: Mapping[int, int]
    seconds: float | None = None


def read_grey(path: Path, size: int) -> Pictures:
    """(size, size) uint8: mean of the channels. Raises: ImageError."""
    return to_uint8(read_image(path, size)[0].mean(axis=2))
