"""Where the landmarks of a reconstruction come from: read off the skull, given by the user, or nowhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion
from data.cases import Case, read_skull
from data.images import read_image, write_png
from data.landmarks import (
    LandmarksError,
    fractions_of,
    landmark_fractions,
    picture_size,
    pixels_of,
    read_confidence,
    read_landmarks,
)
from data.manifest import Record
from ldm.checkpoint import sha256
from muti_control.networks.pipnet.drawing import draw_points
from muti_control.networks.pipnet.reader import LandmarkReader

WITHOUT_SKULL = 256  # px of the picture that landmarks lie in where there is no skull
DRAWN_SIDE = 512  # px of each picture with points


class CaseLandmarks(Protocol):
    """A source of landmarks."""

    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        """Landmarks of the faces of ``cases``, from their skulls (B, 3, H, W) in [0, 1]; on the CPU."""

    def describe(self, case: Case) -> dict[str, str]:
        """Where a case's come from, for its record."""


@dataclass(frozen=True)
class ReadOffSkull:
    """Landmarks by a network that knows skulls and biometrics."""

    reader: LandmarkReader
    file: str
    sha256: str

    def check(self, cases: Sequence[Case]) -> None:
        """Raises ValueError for people of whom the network cannot be told."""
        if self.reader.takes_biometrics:
            self.reader.encode([b for case in cases if (b := case.biometrics) is not None])

    @torch.no_grad()
    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        side, device = self.reader.net.cfg.image_size, self.reader.reverse.device
        pictures = skulls.to(device)
        if pictures.shape[-1] != side:
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        num = self.reader.net.cfg.num_landmarks
        points, confidence = torch.zeros(len(cases), num, 2), torch.zeros(len(cases), num)
        knowing = [c.biometrics is not None and self.reader.takes_biometrics for c in cases]
        for known in {*knowing}:
            rows = [i for i, knows in enumerate(knowing) if knows == known]
            people = [b for i in rows if (b := cases[i].biometrics) is not None] if known else None
            found, sure = self.reader(pictures[rows], people)
            points[rows], confidence[rows] = found.float().cpu(), sure.float().cpu()
        return Landmarks(points, confidence, torch.ones(len(cases), dtype=torch.bool))

    def describe(self, case: Case) -> dict[str, str]:
        return {"source": "read off the skull", "file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class Given:
    """Landmarks from files, by the case's name: (N, 2) fractions and (N,) confidences."""

    points: Mapping[str, NDArray[np.float32]]
    confidences: Mapping[str, NDArray[np.float32]]
    files: Mapping[str, Path]
    hashes: Mapping[str, str] = field(default_factory=dict)

    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        points, confidences = (
            torch.from_numpy(np.stack([values[case.name] for case in cases]))
            for values in (self.points, self.confidences)
        )
        return Landmarks(points, confidences, torch.ones(len(cases), dtype=torch.bool))

    def describe(self, case: Case) -> dict[str, str]:
        return {"source": "given", "file": self.files[case.name].name, "sha256": self.hashes[case.name]}


@dataclass(frozen=True)
class KnownLandmarks:
    """The landmarks of the true face of whoever a skull picture belongs to.

    records: by skull picture. num_points: of the model's branch.

    Raises:
        ValueError: a person without landmarks, or with another number of them.
    """

    records: Mapping[Path, Record]
    num_points: int

    def __post_init__(self) -> None:
        for record in self.records.values():
            if record.landmarks_path is None:
                raise ValueError(
                    f"landmarks=known: {record.source} has no 'landmarks' in its manifest; take landmarks=auto"
                )

    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        found = [landmark_fractions(self._record(case))[0] for case in cases]
        for case, points in zip(cases, found, strict=True):
            if len(points) != self.num_points:
                raise ValueError(
                    f"{self._record(case).landmarks_path}: {len(points)} points, expected this model's "
                    f"{self.num_points}"
                )
        stacked = torch.from_numpy(np.stack(found))  # (B, N, 2)
        present = torch.ones(len(cases), dtype=torch.bool)
        return Landmarks(stacked, torch.ones(stacked.shape[:2]), present)

    def _record(self, case: Case) -> Record:
        assert case.skull_path is not None
        return self.records[case.skull_path]

    def describe(self, case: Case) -> dict[str, str]:
        path = self._record(case).landmarks_path
        assert path is not None
        return {"source": "known of the true face", "file": path.name, "sha256": sha256(path)}


def choose_landmarks(
    choice: str, weights: Path, cases: Sequence[Case], model: ControlledLatentDiffusion
) -> tuple[CaseLandmarks | None, str | None]:
    """What ``landmarks=choice`` asks for.

    Args:
        choice: auto, none, a file (of one skull) or a folder of files. weights: of the network that reads skulls.

    Returns:
        The source, None for none; and what the user should know of it, None for nothing.

    Raises:
        ValueError: landmarks for a model without a branch, files that are missing or do not fit.
    """
    branch = model.cfg.control.landmarks
    if choice == "none" or (choice == "auto" and not model.has_trained("landmarks")):
        return None, None
    if branch is None or not model.has_trained("landmarks"):
        raise ValueError(
            f"landmarks={choice}: these weights have no trained landmark branch; add one (python "
            "tool_add_control.py IN OUT) and train it, or leave landmarks out"
        )
    if choice != "auto":
        return given_landmarks(Path(choice), cases, branch.num_points), None
    if cases and all(case.skull_path is None for case in cases):
        return None, None  # nothing to read them off
    if not weights.is_file():
        return (
            None,
            f"no landmark network at {weights}: drawn without landmarks; landmark_weights=FILE gives one",
        )
    source = skull_reader(weights, branch.num_points, model.device)
    source.check(cases)
    return source, None


def skull_reader(weights: Path, num_points: int, device: torch.device) -> ReadOffSkull:
    """The network of a file, which must read ``num_points`` points off skulls. Raises: ValueError."""
    reader = LandmarkReader.load(weights, device)
    if reader.role != "skull" or reader.net.cfg.num_landmarks != num_points:
        raise ValueError(
            f"landmark_weights: {weights} reads {reader.net.cfg.num_landmarks} points off a {reader.role}, expected "
            f"{num_points} off a skull"
        )
    return ReadOffSkull(reader, weights.name, sha256(weights))


def given_landmarks(path: Path, cases: Sequence[Case], num_points: int, key: str = "landmarks") -> Given:
    """Landmarks of every case from a file or folder that the setting ``key`` names, checked. Raises: ValueError."""
    whose = ", as this model has" if key == "landmarks" else ", as the network for faces reads"
    if path.is_file() and len(cases) > 1:
        raise ValueError(
            f"{key}: {path} is one file for {len(cases)} skulls; give a folder with NAME_landmarks.json for each"
        )
    files = {case.name: path if path.is_file() else path / landmarks_name(case) for case in cases}
    lacking = [file.name for file in files.values() if not file.is_file()]
    if lacking:
        raise ValueError(
            f"{key}: {path} lacks {len(lacking)} of {len(files)} files, the first {lacking[0]}; expected one for each "
            f"skull, {num_points} points in px of its picture; without landmarks=PATH sample.py writes such files, to "
            "be edited, if the weights have a landmark branch"
        )
    points, confidences = {}, {}
    for case in cases:
        try:
            found, _ = read_landmarks(files[case.name])
            if len(found) != num_points:
                raise LandmarksError(f"{files[case.name]}: {len(found)} points, expected {num_points}{whose}")
            confidences[case.name] = read_confidence(files[case.name], num_points)
        except LandmarksError as error:
            raise LandmarksError(f"{key}: {error}") from error
        points[case.name] = fractions_of(found, _pixels(case))
    return Given(points, confidences, files, {name: sha256(file) for name, file in files.items()})


def _pixels(case: Case) -> tuple[int, int]:
    """Width and height of what a case's landmarks are given in px of: its skull, or a picture of 256 px."""
    return (WITHOUT_SKULL, WITHOUT_SKULL) if case.skull_path is None else picture_size(case.skull_path)


def landmarks_name(case: Case) -> str:
    """File name of a case's landmarks."""
    return f"{case.name}_landmarks.json"


def picture_name(case: Case) -> str:
    """File name of the picture that shows them."""
    return f"{case.name}_landmarks.png"


def write_landmarks(folder: Path, case: Case, source: CaseLandmarks, face: Path, size: int) -> None:
    """Write a case's landmarks, in px of its skull picture, and a picture of them over the skull and its face."""
    skull = torch.from_numpy(read_skull(case, size)).permute(2, 0, 1)[None]
    found = source.of([case], skull)
    points = pixels_of(found.points[0].numpy(), _pixels(case))
    content: dict[str, Any] = {
        "points": np.round(points, 2).tolist(),
        "confidence": np.round(found.confidence[0].numpy(), 3).tolist(),
        **source.describe(case),
    }
    target = folder / landmarks_name(case)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(temporary, target)
    drawn = torch.from_numpy(read_image(face, size)[0]).permute(2, 0, 1)[None]
    both = torch.cat([skull, drawn])
    canvas = draw_points(both, found.points.expand(2, -1, -1), side=DRAWN_SIDE)  # (2, 3, side, side)
    pixels = (torch.cat(list(canvas), dim=2).clamp(0, 1) * 255).round().to(torch.uint8)
    write_png(folder / picture_name(case), pixels.permute(1, 2, 0).contiguous().numpy(), None)
