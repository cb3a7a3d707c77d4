"""Landmarks of the cases of a sampling run: read off the skull, from the user's files, or of the true face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion
from data.cases import Case, read_skull
from data.files import write_text
from data.images import picture_size, read_image, to_uint8, write_png
from data.landmarks import (
    LandmarksError,
    fractions_of,
    landmarks_text,
    pixels_of,
    read_landmark_file,
    read_landmarks,
)
from ldm.checkpoint import sha256
from muti_control.conditions.landmark_picture import numbered_picture
from muti_control.networks.pipnet.reader import LandmarkReader

WITHOUT_SKULL = 256  # px of the picture that landmarks lie in where there is no skull
_NUM_NOTES = 20
_ABOUT = (
    "Edit x and y: px of the skull picture, x to the right, y down, 0 in the middle of the first pixel. Left and right "
    "are the person's. 'before' is where the network read the point: leave it, it shows typing errors."
)


class CaseLandmarks(Protocol):
    """A source of landmarks."""

    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        """Return the landmarks of cases with skulls (B, 3, H, W) in [0, 1]; on the CPU."""

    def describe(self, case: Case) -> dict[str, str]:
        """Return the source of a case's landmarks, for its record."""


@dataclass(frozen=True)
class ReadOffSkull:
    """Landmarks from a network that reads skulls, and biometrics if it takes them."""

    reader: LandmarkReader
    file: str
    sha256: str

    def check(self, cases: Sequence[Case]) -> None:
        """Raise ValueError for biometrics that the network cannot take."""
        if self.reader.takes_biometrics:
            self.reader.encode([case.biometrics for case in cases if case.biometrics is not None])

    @torch.no_grad()
    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        side, num = self.reader.net.cfg.image_size, self.reader.net.cfg.num_landmarks
        pictures = skulls.to(self.reader.reverse.device)
        if pictures.shape[-1] != side:
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        points, confidence = torch.zeros(len(cases), num, 2), torch.zeros(len(cases), num)
        people = [case.biometrics if self.reader.takes_biometrics else None for case in cases]
        for rows in ([i for i, b in enumerate(people) if b], [i for i, b in enumerate(people) if not b]):
            if rows:
                biometrics = [b for i in rows if (b := people[i]) is not None]
                result = self.reader(pictures[rows], biometrics or None)
                points[rows], confidence[rows] = (values.float().cpu() for values in result)
        return Landmarks(points, confidence, torch.ones(len(cases), dtype=torch.bool))

    def describe(self, case: Case) -> dict[str, str]:
        return {"source": "read off the skull", "file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class StoredLandmarks:
    """Landmarks from files, by the case's name: (N, 2) fractions and (N,) confidences.

    source: for the record. doubts: what people should look at again. before: of ``LandmarkFile``.
    """

    source: str
    files: Mapping[str, Path]
    hashes: Mapping[str, str]
    points: Mapping[str, NDArray[np.float32]]
    confidences: Mapping[str, NDArray[np.float32]] | None = None  # None: 1
    doubts: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        points = torch.from_numpy(np.stack([self.points[case.name] for case in cases]))  # (B, N, 2)
        confidence = torch.ones(points.shape[:2])
        if self.confidences is not None:
            confidence = torch.from_numpy(np.stack([self.confidences[case.name] for case in cases]))
        return Landmarks(points, confidence, torch.ones(len(cases), dtype=torch.bool))

    def describe(self, case: Case) -> dict[str, str]:
        file = self.files[case.name]
        doubts = {"note": self.doubts[case.name]} if case.name in self.doubts else {}
        return {"source": self.source, "file": file.name, "sha256": self.hashes[case.name], **doubts}


def true_landmarks(cases: Sequence[Case], num_points: int, key: str) -> StoredLandmarks:
    """Return the cases' true landmarks, as the setting ``key`` asks for. Raises: LandmarksError."""
    points, files = {}, {}
    for case in cases:
        if case.landmarks_path is None or case.face_path is None:
            raise LandmarksError(
                f"{key}: {case.name} has no known landmarks; they come from a manifest with 'landmarks' and 'target'"
            )
        own = fractions_of(read_landmarks(case.landmarks_path)[0], picture_size(case.face_path))
        if len(own) != num_points:
            raise LandmarksError(f"{key}: {case.landmarks_path} has {len(own)} points, expected {num_points}")
        points[case.name], files[case.name] = own, case.landmarks_path
    return StoredLandmarks("known of the true face", files, _hashes(files), points)


def choose_landmarks(
    choice: str, weights: Path, cases: Sequence[Case], model: ControlledLatentDiffusion
) -> tuple[CaseLandmarks | None, str | None]:
    """Return the source of landmarks that ``landmarks=choice`` asks for.

    Args:
        choice: auto, none, a file (of one skull) or a folder of files. weights: file of the network that reads skulls.

    Returns:
        The source, or None; and a note for the user, or None.

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
        stored = given_landmarks(Path(choice), cases, branch.num_points)
        notes = [f"{stored.files[name]}: {doubts}" for name, doubts in stored.doubts.items()]
        return stored, "\nnote: ".join(notes[:_NUM_NOTES]) or None
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
    """Load the network of a file, which must read ``num_points`` points off skulls. Raises: ValueError."""
    reader = LandmarkReader.load(weights, device)
    if reader.role != "skull" or reader.net.cfg.num_landmarks != num_points:
        raise ValueError(
            f"landmark_weights: {weights} reads {reader.net.cfg.num_landmarks} points off a {reader.role}, expected "
            f"{num_points} off a skull"
        )
    return ReadOffSkull(reader, weights.name, sha256(weights))


def given_landmarks(
    path: Path, cases: Sequence[Case], num_points: int, key: str = "landmarks"
) -> StoredLandmarks:
    """Read every case's landmarks from the file or folder that the setting ``key`` names. Raises: ValueError."""
    reason = ", as this model has" if key == "landmarks" else ", as the network for faces reads"
    if path.is_file() and len(cases) > 1:
        raise ValueError(
            f"{key}: {path} is one file for {len(cases)} skulls; give a folder with NAME_landmarks.json for each"
        )
    files = {case.name: file_of(path, case) for case in cases}
    lacking = [file.name for file in files.values() if not file.is_file()]
    if lacking:
        raise ValueError(
            f"{key}: {path} lacks {len(lacking)} of {len(files)} files, the first {lacking[0]}; expected one for each "
            f"skull, {num_points} points in px of its picture; without landmarks=PATH sample.py writes such files, to "
            "be edited, if the weights have a landmark branch"
        )
    points, confidences, doubts, before = {}, {}, {}, {}
    for case in cases:
        file, size = files[case.name], _pixels(case)
        try:
            content = read_landmark_file(file)
            num = len(content.points)
            if num != num_points:
                raise LandmarksError(f"{file}: {num} points, expected {num_points}{reason}")
            if content.prepared and case.prepared is None:
                raise LandmarksError(
                    f"{file}: its points lie in the prepared picture of the skull, but {case.name} is not prepared in "
                    f"this run; give skull={case.name}_prepared.png, or leave prepare=auto"
                )
            doubt = content.doubts(size)
        except LandmarksError as error:
            raise LandmarksError(f"{key}: {error}") from error
        if doubt is not None:
            doubts[case.name] = doubt
        points[case.name], confidences[case.name] = fractions_of(content.points, size), content.confidence
        before[case.name] = content.before
    return StoredLandmarks("given", files, _hashes(files), points, confidences, doubts, before)


def file_of(path: Path, case: Case) -> Path:
    """Return a case's file of landmarks, where ``path`` is this file or a folder of such files."""
    return path if path.is_file() else path / landmarks_name(case)


def lie_in_prepared(path: Path, case: Case) -> bool:
    """Return whether the points of a case's file lie in its prepared picture. Raises: LandmarksError."""
    file = file_of(path, case)
    return file.is_file() and read_landmark_file(file).prepared


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file: now, as the user may change them while faces are drawn."""
    return {name: sha256(file) for name, file in files.items()}


def _pixels(case: Case) -> tuple[int, int]:
    """Width and height of the picture that a case's landmarks lie in: its skull, or 256 px without one."""
    return (WITHOUT_SKULL, WITHOUT_SKULL) if case.skull_path is None else picture_size(case.source)


def landmarks_name(case: Case) -> str:
    """Return the file name of a case's landmarks."""
    return f"{case.name}_landmarks.json"


def picture_name(case: Case) -> str:
    """Return the file name of the picture that shows them."""
    return f"{case.name}_landmarks.png"


def editable_landmarks(case: Case, source: CaseLandmarks, skull: Tensor) -> tuple[str, NDArray[np.float32]]:
    """Return a case's landmarks as a file to edit, in px of its skull picture, and as fractions (N, 2).

    skull: (1, 3, H, W) in [0, 1].
    """
    landmarks = source.of([case], skull)
    points, pixels = landmarks.points[0].numpy(), _pixels(case)
    head = {"about": _ABOUT, "width": pixels[0], "height": pixels[1], **source.describe(case)}
    head |= {} if case.prepared is None else {"prepared": True}
    before = source.before.get(case.name) if isinstance(source, StoredLandmarks) else None
    text = landmarks_text(pixels_of(points, pixels), landmarks.confidence[0].numpy(), head, before)
    return text, points


def write_landmarks(folder: Path, case: Case, source: CaseLandmarks, face: Path, size: int) -> None:
    """Write a case's landmarks, in px of its skull picture, and a picture of them over the skull and its face."""
    skull, drawn = read_skull(case, size), read_image(face, size)[0]  # (H, W, 3)
    text, points = editable_landmarks(case, source, torch.from_numpy(skull).permute(2, 0, 1)[None])
    write_text(folder / landmarks_name(case), text)
    write_png(folder / picture_name(case), numbered_picture(to_uint8(skull), to_uint8(drawn), points), None)
