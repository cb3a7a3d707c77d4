"""The judges of identity. No loss and no guidance uses them, and nothing here trains one.

An *eye* turns a picture into a vector, or finds no face in it. A *judge* measures the distance of two vectors. dlib's
descriptor and dlib's 68 points are two judges with one eye.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.judges.dlib_recogniser import (
    DESCRIPTOR_SIZE,
    NUM_POINTS,
    NoFaceError,
    Pictures,
    Recogniser,
    RecogniserConfig,
    descriptor_distances,
    procrustes_distances,
)
from muti_control.evaluation.judges.features import DISTANCES, FEATURE_SIZE, picture_features
from muti_control.evaluation.protocol.config import EvaluateConfig

Floats = NDArray[np.floating]
Vector = NDArray[np.float32]


class Eye(Protocol):
    """name: its key. identity: versions and settings its vectors depend on. cached: whether looking takes long."""

    name: str
    identity: dict[str, Any]
    cached: bool

    def look(self, picture: Pictures) -> Vector | None:
        """Return the vector (D,) of a grey picture (H, W) uint8; None where there is no face in it."""
        ...


class DlibEye:
    """dlib's descriptor and 68 points (in px, x right, y down) as one vector of 128 + 136 numbers."""

    name, cached = "dlib", True

    def __init__(self, rectangle: Sequence[float]) -> None:
        place = (rectangle[0], rectangle[1], rectangle[2], rectangle[3]) if rectangle else None
        self._recogniser = Recogniser(RecogniserConfig(rectangle=place, detect=True))
        self.identity = self._recogniser.identity

    def look(self, picture: Pictures) -> Vector | None:
        """Return the vector of a picture, None without a face."""
        try:
            descriptor, points = self._recogniser.look(picture)
        except NoFaceError:
            return None
        return np.concatenate([descriptor, points.ravel()])


class PictureEye:
    """The picture itself, in grey, small."""

    name, cached = "picture", False

    def __init__(self) -> None:
        self.identity = {"size": FEATURE_SIZE}

    def look(self, picture: Pictures) -> Vector | None:
        """Return the vector of a picture."""
        return picture_features(picture[None].astype(np.float32) / 255)[0]


@dataclass(frozen=True)
class Judge:
    """name, label, distance, note: as in ``results.Recogniser``. compare: vectors (P, D), (G, D) -> (P, G)."""

    name: str
    label: str
    distance: str
    note: str
    eye: Eye
    compare: Callable[[Floats, Floats], Floats]

    @property
    def identity(self) -> dict[str, Any]:
        """The versions and settings that its figures depend on."""
        return dict(self.eye.identity)


def descriptors(vectors: Floats) -> Floats:
    """Return the descriptors (N, 128) in vectors of a DlibEye."""
    return vectors[:, :DESCRIPTOR_SIZE]


def points(vectors: Floats) -> Floats:
    """Return the points (N, 68, 2) in px in vectors of a DlibEye."""
    return vectors[:, DESCRIPTOR_SIZE:].reshape(-1, NUM_POINTS, 2)


def judges_of(cfg: EvaluateConfig) -> list[Judge]:
    """Return the judges that the settings ask for.

    Raises:
        RecogniserError: one that is not installed, or a model that cannot be used.
    """

    def by_descriptors(probes: Floats, gallery: Floats) -> Floats:
        return descriptor_distances(descriptors(probes), descriptors(gallery))

    def by_points(probes: Floats, gallery: Floats) -> Floats:
        return procrustes_distances(points(probes), points(gallery))

    judges: list[Judge] = []
    if {"dlib", "landmarks"} & set(cfg.recognisers):
        eye = DlibEye(cfg.rectangle)
        note = "A network trained on photographs; it hardly sees body mass."
        judges.append(Judge("dlib", "dlib descriptor", "Euclidean, 128 numbers", note, eye, by_descriptors))
        note = "Shape alone: place, size and turn in the picture are taken away."
        distance = "Procrustes, of shapes of unit size"
        judges.append(Judge("landmarks", "dlib's 68 points", distance, note, eye, by_points))
    if "picture" in cfg.recognisers:
        kind = cfg.picture_distance
        distance = f"{kind.replace('_', ' ')} difference, {FEATURE_SIZE} px, grey levels in [0, 1]"
        note = "No network: it sees everything, also what is not identity, such as the scan's noise."
        judges.append(Judge("picture", "grey levels", distance, note, PictureEye(), partial(_by_grey, kind)))
    return [judge for judge in judges if judge.name in cfg.recognisers]


def _by_grey(name: str, probes: Floats, gallery: Floats) -> Floats:
    return DISTANCES[name](probes, gallery, gallery.mean(axis=0))
