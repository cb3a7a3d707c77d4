"""The judges of identity. None of them is in a loss or in guidance, and nothing here trains one.

An *eye* turns a picture into a vector, or finds no face in it; a *judge* says how far two vectors are apart. dlib's
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
        """The vector (D,) of a grey picture (H, W) uint8; None where there is no face in it."""
        ...


class DlibEye:
    """dlib's descriptor and 68 points (in px, x right, y down) as one vector of 128 + 136 numbers."""

    name, cached = "dlib", True

    def __init__(self, rectangle: Sequence[float]) -> None:
        place = (rectangle[0], rectangle[1], rectangle[2], rectangle[3]) if rectangle else None
        self._recogniser = Recogniser(RecogniserConfig(rectangle=place, detect=True))
        self.identity = self._recogniser.identity

    def look(self, picture: Pictures) -> Vector | None:
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
        """What its figures depend on."""
        return dict(self.eye.identity)


def descriptors(vectors: Floats) -> Floats:
    """(N, 128) of the vectors of a DlibEye."""
    return vectors[:, :DESCRIPTOR_SIZE]


def points(vectors: Floats) -> Floats:
    """(N, 68, 2) in px of the vectors of a DlibEye."""
    return vectors[:, DESCRIPTOR_SIZE:].reshape(-1, NUM_POINTS, 2)


def judges_of(cfg: EvaluateConfig) -> list[Judge]:
    """The judges that the settings ask for.

    Raises:
        RecogniserError: one that is not installed, or a model that cannot be used.
    """
    found: list[Judge] = []
    if "dlib" in cfg.recognisers or "landmarks" in cfg.recognisers:
        eye = DlibEye(cfg.rectangle)
        if "dlib" in cfg.recognisers:
            found.append(
                Judge(
                    "dlib",
                    "dlib descriptor",
                    "Euclidean, 128 numbers",
                    "A network trained on photographs; it hardly sees body mass.",
                    eye,
                    lambda a, b: descriptor_distances(descriptors(a), descriptors(b)),
                )
            )
        if "landmarks" in cfg.recognisers:
            found.append(
                Judge(
                    "landmarks",
                    "dlib's 68 points",
                    "Procrustes, of shapes of unit size",
                    "Shape alone: place, size and turn in the picture are taken away.",
                    eye,
                    lambda a, b: procrustes_distances(points(a), points(b)),
                )
            )
    if "picture" in cfg.recognisers:
        found.append(
            Judge(
                "picture",
                "grey levels",
                f"{cfg.picture_distance.replace('_', ' ')} difference, {FEATURE_SIZE} px, grey levels in [0, 1]",
                "No network: it sees everything, also what is not identity, such as the scan's noise.",
                PictureEye(),
                partial(_grey_distances, cfg.picture_distance),
            )
        )
    return found


def _grey_distances(name: str, probes: Floats, gallery: Floats) -> Floats:
    return DISTANCES[name](probes, gallery, gallery.mean(axis=0))


def settings_of(eye: Eye) -> str:
    """One line that tells two eyes apart."""
    return repr((eye.name, sorted(eye.identity.items())))
