"""The pictures of a cohort folder as arrays, with what is known of the people in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data.biometrics import age_level
from data.manifest import Record, read_manifest
from muti_control.evaluation.methods.baselines import Group

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Shown:
    """One line of a manifest with its pictures.

    Attributes:
        skull, face: (H, W) uint8.
        landmarks: (106, 2) px.  visible: (106,) bool.
        known: everything the cohort recorded of it (BMI, pose, scan), empty where there is no such record.
    """

    record: Record
    skull: NDArray[np.uint8]
    face: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    visible: NDArray[np.bool_]
    known: dict[str, Any]

    @property
    def group(self) -> Group:
        b = self.record.biometrics
        return b.sex, age_level(b.age), b.body_mass, b.ethnicity


def read_cohort(root: Path, manifest: str, num: int = 0, progress: bool = True) -> list[Shown]:
    """The pictures behind ``split_data/MANIFEST.json``; with ``num`` only the first that many.

    Raises:
        ManifestError: the manifest is missing or wrong, a picture missing.
        ValueError: landmarks that are missing or not the cohort's.
    """
    records = read_manifest(root / "split_data" / f"{manifest}.json")
    chosen = records[: num or None]
    return [
        _shown(root, r) for r in tqdm(chosen, desc=manifest, unit="pair", disable=not progress, leave=False)
    ]


def has_manifest(root: Path, manifest: str) -> bool:
    return (root / "split_data" / f"{manifest}.json").is_file()


def _shown(root: Path, record: Record) -> Shown:
    if record.face_path is None or record.landmarks is None:
        raise ValueError(
            f"{root}: {record.source} has no face picture or no landmarks: not a cohort of data.cohort"
        )
    with (root / "pairedCS" / record.landmarks).open(encoding="utf-8") as file:
        points = json.load(file)
    own = root / "subjects" / f"{Path(record.target or record.source).stem}.json"
    known = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
    return Shown(
        record=record,
        skull=_grey(record.skull_path),
        face=_grey(record.face_path),
        landmarks=np.array(points["points"], np.float32),
        visible=np.array(points["visible"], bool),
        known=known,
    )


def _grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def blocks(pictures: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.float32]:
    """(N, side * side) block averages in [0, 1]."""
    stack = np.stack(pictures)
    n, height, width = stack.shape
    if height % side or width % side:
        raise ValueError(f"pictures of {height} x {width} px do not divide into {side} x {side} blocks")
    parts = stack.reshape(n, side, height // side, side, width // side)
    return parts.mean(axis=(2, 4), dtype=np.float32).reshape(n, -1) / 255
