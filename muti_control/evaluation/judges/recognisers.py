"""The judges of identity. No loss and no guidance uses them, and nothing here trains one.

An *eye* turns a picture into a vector, or finds no face in it. A *judge* measures the distance of two vectors. dlib's
descriptor and dlib's 68 points are two judges with one eye. An *edit reader* takes the points of a face from an eye.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ldm.checkpoint import sha256
from muti_control.evaluation.judges.dlib_recogniser import (
    DESCRIPTOR_SIZE,
    NUM_POINTS,
    NoFaceError,
    Pictures,
    Recogniser,
    descriptor_distances,
    procrustes_distances,
)
from muti_control.evaluation.judges.features import DISTANCES, FEATURE_SIZE, feature
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.networks.pipnet.reader import LandmarkReader

Floats = NDArray[np.floating]
Vector = NDArray[np.float32]
BY_DLIB = "dlib's 68 points, similarity-aligned, px"


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
        self._recogniser = Recogniser(place, detect=True)
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
        return feature(picture)


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


# ---------------------------------------------------------------- the points of a face, to measure edits
class LandmarkEye:
    """An eye that gives the landmarks of a face (in px, x right, y down) as one vector of 2 L numbers.

    Raises:
        CheckpointError: not a landmark network. ValueError: one that reads skulls.
    """

    name, cached = "network", True

    def __init__(self, file: Path) -> None:
        self._reader = LandmarkReader.load(file)
        if self._reader.role != "face":
            raise ValueError(f"{file} reads {self._reader.role}s, expected a network that reads faces")
        self.identity: dict[str, Any] = {"pipnet": sha256(file)}

    @torch.no_grad()
    def look(self, picture: Pictures) -> Vector:
        """Return the landmarks (2 L,) of a grey picture (H, W) uint8."""
        side = self._reader.net.cfg.image_size
        grey = torch.from_numpy(np.ascontiguousarray(picture)).float() / 255
        scaled = F.interpolate(grey.expand(1, 3, -1, -1), (side, side), mode="bilinear", antialias=True)
        height, width = picture.shape
        return (self._reader(scaled)[0][0].numpy() * (width, height)).astype(np.float32).ravel()


@dataclass(frozen=True)
class EditReader:
    """space: of its measurements, for tables. points: vectors (N, D) of its eye -> (N, L, 2) in px."""

    space: str
    eye: Eye
    points: Callable[[Floats], Floats]


def edit_readers(network: Path | None, judges: Sequence[Judge]) -> list[EditReader]:
    """Return the landmark network as a reader, and dlib where it is among the judges' eyes.

    Raises:
        CheckpointError, ValueError: ``network`` is no landmark network that reads faces. OSError: it cannot be read.
    """
    readers = []
    if network is not None:
        space = f"landmarks by {network.name}, similarity-aligned, px"
        readers.append(EditReader(space, LandmarkEye(network), lambda v: v.reshape(len(v), -1, 2)))
    dlib = next((judge.eye for judge in judges if judge.eye.name == "dlib"), None)
    if dlib is not None:
        readers.append(EditReader(BY_DLIB, dlib, points))
    return readers
