"""The pictures that a method made of each probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.cases import Case, read_skull
from data.images import read_image, to_uint8
from muti_control.evaluation.judges.features import FEATURE_SIZE, feature
from muti_control.evaluation.protocol.registry import MethodInfo

Pictures = NDArray[np.uint8]
Features = NDArray[np.float32]


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


def skull_features(cases: Sequence[Case], size: int, side: int = FEATURE_SIZE) -> Features:
    """Return features (N, side * side) of skulls without their missing bone, from pictures of ``size`` px.

    Raises: ImageError, PartialError.
    """
    return np.stack([feature(to_uint8(read_skull(case, size).mean(axis=2)), side) for case in cases])
