"""The pictures that a method made of each probe."""

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
    """The faces of one method.

    pictures: probe -> its faces, one for each draw; a probe may be missing.
    excluded: probe -> gallery column that does not count for it: the face of the person who lent the skull.
    seconds: time to make them.
    """

    info: MethodInfo
    pictures: Mapping[int, tuple[Path, ...]]
    excluded: Mapping[int, int]
    seconds: float | None = None


def read_grey(path: Path, size: int) -> Pictures:
    """Return the mean of the channels, (size, size) uint8. Raises: ImageError."""
    return to_uint8(read_image(path, size)[0].mean(axis=2))
