"""An independent judge of identity: dlib's face recogniser and dlib's own 68 facial points.

Others trained both networks on photographs. Nothing here trains them, and no loss and no guidance uses them: their
judgement of a reconstruction is evidence. A face becomes a descriptor of 128 numbers, whose Euclidean distance is
small between pictures of one person, and 68 points, whose shapes are compared after Procrustes alignment (without
position, size and turn in the picture).

Needs the ``eval`` extra: dlib-bin, and face-recognition-models for the weights (its points were trained on iBUG
300-W, whose terms exclude commercial use). The package itself is never imported, only its files are found.

Source: D. King, "High quality face recognition with deep metric learning", dlib blog, 2017; V. Kazemi and
J. Sullivan, "One millisecond face alignment with an ensemble of regression trees", CVPR 2014.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]

Rectangle = tuple[float, float, float, float]
USUAL_RECTANGLE = (0.264, 0.365, 0.735, 0.835)
"""The mean result of dlib's detector on the cohort's faces (280 mm field, frontal)."""

NUM_POINTS, DESCRIPTOR_SIZE = 68, 128
_WEIGHTS = {
    "points": "shape_predictor_68_face_landmarks.dat",
    "descriptor": "dlib_face_recognition_resnet_model_v1.dat",
}
_CROP = {
    "size": 150,
    "padding": 0.25,
}  # side in px and margin in fractions of the face, as in the network's training
_REMEDY = (
    "python -m pip install dlib-bin face-recognition-models  (the `eval` extra; make test installs it too)"
)


class RecogniserError(ValueError):
    """The recogniser cannot be used, or found no face; the message says why and what to do."""


class NoFaceError(RecogniserError):
    """dlib's detector finds no face in a picture."""


class Recogniser:
    """Descriptors and points of grey face pictures, one at a time, on the CPU.

    Args:
        rectangle: left, top, right and bottom of the face in fractions of the picture's side. None: the detector finds
            each face.
        detect: whether a picture without a detectable face is refused, also with a rectangle.

    Raises:
        RecogniserError: dlib or its weights are not installed.
    """

    def __init__(self, rectangle: Rectangle | None = USUAL_RECTANGLE, detect: bool = False) -> None:
        self._rectangle, self._detect = rectangle, detect
        if find_spec("dlib") is None:
            raise RecogniserError(f"dlib is not installed: {_REMEDY}")
        import dlib

        self._dlib: Any = dlib
        self._weights = {name: _weight_file(file) for name, file in _WEIGHTS.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """The versions and settings that the figures depend on, for records."""
        files = {name: path.stat().st_size for name, path in self._weights.items()}
        crop = {"chip": _CROP["size"], "padding": _CROP["padding"], "jitters": 0}
        return {
            "dlib": self._dlib.__version__,
            "weight_bytes": files,
            "rectangle": self._rectangle,
            "detect": self._detect,
        } | crop

    @cached_property
    def _predictor(self) -> Any:
        return self._dlib.shape_predictor(str(self._weights["points"]))

    @cached_property
    def _network(self) -> Any:
        return self._dlib.face_recognition_model_v1(str(self._weights["descriptor"]))

    @cached_property
    def _detector(self) -> Any:
        return self._dlib.get_frontal_face_detector()

    def look(self, picture: Pictures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the descriptor and the points of one picture.

        Args:
            picture: (H, W) or (H, W, 3) uint8, the face upright.

        Returns:
            descriptor (128,) and points (68, 2) in px, x right and y down.

        Raises:
            RecogniserError: not such a picture.  NoFaceError: the detector found no face in it.
        """
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim < 2 or picture.shape[2:] not in ((), (3,)):
            raise RecogniserError(
                f"picture of shape {picture.shape} and type {picture.dtype}: expected (H, W) or (H, W, 3) uint8"
            )
        colour = np.ascontiguousarray(
            picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        )
        shape = self._predictor(colour, self._box(colour))
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
        chip = self._dlib.get_face_chip(colour, shape, **_CROP)
        return np.array(self._network.compute_face_descriptor(chip), np.float32), points

    def _box(self, colour: Pictures) -> Any:
        height, width = colour.shape[:2]
        boxes = []
        if self._rectangle is None or self._detect:
            boxes = self._detector(colour, 0) or self._detector(colour, 1)
            if not boxes:
                raise NoFaceError(
                    "no face was found in a picture: turn the head to the front, or give the face's rectangle"
                )
        if self._rectangle is not None:
            left, top, right, bottom = self._rectangle
            return self._dlib.rectangle(
                round(left * width), round(top * height), round(right * width), round(bottom * height)
            )
        return max(boxes, key=lambda box: box.area())


def descriptor_distances(probes: NDArray[np.floating], gallery: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return Euclidean distances (P, G) between descriptors (P, 128) and (G, 128); dlib calls one person below 0.6."""
    p, g = np.asarray(probes, np.float64), np.asarray(gallery, np.float64)
    squared = (p**2).sum(1)[:, None] - 2 * p @ g.T + (g**2).sum(1)
    return np.sqrt(np.maximum(squared, 0))


def procrustes_distances(probes: NDArray[np.floating], gallery: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return partial Procrustes distances (P, G) between planar shapes (P, K, 2) and (G, K, 2), in [0, sqrt(2)].

    Shapes are centred and scaled to unit centroid size; the best rotation (no reflection) is the phase of their
    complex inner product, so the distance is sqrt(2 - 2 |<p, g>|).
    Source: Dryden and Mardia, Statistical Shape Analysis, 2nd edition 2016, section 4.2.

    Raises:
        ValueError: a shape whose points all coincide, or shapes of another size.
    """
    if probes.ndim != 3 or probes.shape[2] != 2 or probes.shape[1:] != gallery.shape[1:]:
        raise ValueError(f"shapes {probes.shape} and {gallery.shape}: expected (P, K, 2) and (G, K, 2)")
    p, g = _preshape(probes), _preshape(gallery)
    return np.sqrt(np.maximum(2 - 2 * np.abs(p.conj() @ g.T), 0))


def _preshape(shapes: NDArray[np.floating]) -> NDArray[np.complex128]:
    planar = shapes[..., 0].astype(np.float64) + 1j * shapes[..., 1]
    planar -= planar.mean(axis=1, keepdims=True)
    size = np.linalg.norm(planar, axis=1, keepdims=True)
    if (size < 1e-9).any():
        raise ValueError("a shape whose points all coincide has no form to compare")
    return planar / size


def _weight_file(name: str) -> Path:
    spec = find_spec("face_recognition_models")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise RecogniserError(f"the weights {name} are not installed: {_REMEDY}")
