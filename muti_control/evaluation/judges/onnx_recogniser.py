"""A face recogniser of the user's own, from an ONNX file.

dlib finds the face. Its eyes, nose and mouth are laid onto the usual five-point template, as for ArcFace and similar
networks. The input is (1, 3, S, S) RGB, (grey - 127.5) / 127.5; the output is one vector, compared by the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muti_control.evaluation.judges.dlib_recogniser import Pictures, RecogniserError
from muti_control.evaluation.judges.features import deviation_distance
from muti_control.evaluation.judges.recognisers import DlibEye, Judge, Vector, points

Floats = NDArray[np.floating]

TEMPLATE_SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Eyes, tip of the nose, corners of the mouth in px of 112. Source: InsightFace, python-package, face_align.py."""


class OnnxEye:
    """The vector (D,) that an ONNX network makes of an aligned face.

    Raises:
        RecogniserError: onnxruntime is not installed, or the file is no such network.
    """

    name, cached = "onnx", True

    def __init__(self, path: Path, dlib: DlibEye) -> None:
        if find_spec("onnxruntime") is None:
            raise RecogniserError(
                "onnx: python -m pip install onnxruntime  (the `eval` extra) reads such files"
            )
        import onnxruntime

        if not path.is_file():
            raise RecogniserError(f"onnx: {path} is no file; give a face recogniser in ONNX format")
        contents = path.read_bytes()
        try:
            self._session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise RecogniserError(
                f"onnx: {path} cannot be read as a network ({str(error).splitlines()[0]})"
            ) from error
        self._side = _side(path, self._session)
        try:
            answer = self._answer(np.linspace(0, 255, self._side**2).reshape(self._side, self._side))
        except Exception as error:  # a batch or a type of numbers that it does not take
            reason = " ".join(str(error).split())[:200]
            raise RecogniserError(
                f"onnx: {path} fails on a picture (1, 3, S, S) of float32: {reason}"
            ) from error
        if answer.size < 2 or not np.isfinite(answer).all():
            raise RecogniserError(f"onnx: {path} gives {answer.size} numbers that tell no face from another")
        self._dlib = dlib
        self.identity: dict[str, Any] = {
            "onnx": sha256(contents).hexdigest(),
            "onnxruntime": onnxruntime.__version__,
            "found_by": dlib.identity,
        }

    def look(self, picture: Pictures) -> Vector | None:
        """Return the vector of a grey picture (H, W) uint8; None where dlib finds no face."""
        vector = self._dlib.look(picture)
        if vector is None:
            return None
        return self._answer(aligned(picture, points(vector[None])[0], self._side))

    def _answer(self, chip: NDArray[Any]) -> Vector:
        planes = np.repeat(((chip.astype(np.float32) - 127.5) / 127.5)[None, None], 3, axis=1)
        (answer, *_) = self._session.run(None, {self._session.get_inputs()[0].name: planes})
        return np.asarray(answer, np.float32).ravel()


def _side(path: Path, session: Any) -> int:
    """Return the side of the pictures that the network takes; one that takes any gets the usual one."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    sides = {side if isinstance(side, int) else TEMPLATE_SIDE for side in shape[2:]}
    fits = len(shape) == 4 and (shape[1] == 3 or not isinstance(shape[1], int)) and len(sides) == 1
    if not fits or not outputs or not 16 <= min(sides) <= 1024:
        shapes = [tuple(one.shape) for one in inputs]
        raise RecogniserError(
            f"onnx: {path} takes {shapes}; expected one input (1, 3, S, S), S a number from 16 to 1024, or free"
        )
    return sides.pop()


def five_points(face: Floats) -> Floats:
    """Return eyes, tip of the nose and corners of the mouth (5, 2) of dlib's 68 points (68, 2)."""
    return np.stack([face[36:42].mean(axis=0), face[42:48].mean(axis=0), face[30], face[48], face[54]])


def aligned(picture: Pictures, face: Floats, side: int) -> Pictures:
    """Return the face laid onto the template by shift, turn and scale (least squares), (side, side) uint8.

    Args:
        picture: (H, W) uint8.  face: (68, 2) px, dlib's points in it.
    """
    source, target = (p[:, 0] + 1j * p[:, 1] for p in (five_points(face), TEMPLATE * side / TEMPLATE_SIDE))
    centred = target - target.mean()
    # from the template to the picture
    back = (centred.conj() * (source - source.mean())).sum() / (np.abs(centred) ** 2).sum()
    shift = source.mean() - back * target.mean()
    # Pillow asks where the middle of each pixel comes from; points are given in pixel indices
    corner = shift + 0.5 * (1 + 1j) - back * 0.5 * (1 + 1j)
    matrix = (back.real, -back.imag, corner.real, back.imag, back.real, corner.imag)
    laid = Image.fromarray(picture).transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(laid)


def cosine_distances(probes: Floats, gallery: Floats) -> Floats:
    """Return 1 - cosine, (P, G) in [0, 2], of vectors (P, D) and (G, D)."""
    return deviation_distance(probes, gallery, np.zeros(1))


def onnx_judge(path: Path, rectangle: Sequence[float]) -> Judge:
    """Return the judge that compares the vectors of an ONNX network. Raises: RecogniserError."""
    return Judge(
        "onnx",
        path.stem,
        "1 - cosine",
        "A recogniser of the user's own; faces are found and aligned by dlib's points.",
        OnnxEye(path, DlibEye(rectangle)),
        cosine_distances,
    )
