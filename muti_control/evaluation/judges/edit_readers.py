"""Networks that read the points of a face off a picture, to measure edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ldm.checkpoint import sha256
from muti_control.evaluation.judges.dlib_recogniser import Pictures
from muti_control.evaluation.judges.recognisers import Eye, Judge, Vector, points
from muti_control.networks.pipnet.reader import LandmarkReader

Floats = NDArray[np.floating]
BY_DLIB = "dlib's 68 points, similarity-aligned, px"


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
