"""Data sets of drawn heads for the tests of data.check and data.split: faces that follow from their skulls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.images import write_png

SIDE = 128  # px
_Y, _X = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1


def _ball(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Height of half an ellipsoid over the picture, 0 outside it."""
    return np.sqrt(np.clip(1 - ((_X - x) / width) ** 2 - ((_Y - y) / height) ** 2, 0, None))


def draw_head(bone: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Skull and face, (128, 128) uint8, and 10 landmarks in px, from 12 numbers of the bone and 3 of the flesh."""
    w, h, jaw, chin, eye, lean, left, right, nose, brow, tilt, cheek = bone
    vault, face_w = 0.36 + 0.02 * w, 0.42 + 0.02 * w + 0.012 * soft[0]
    top, bottom = -0.18 - 0.02 * h, 0.3 + 0.03 * chin
    skull = np.maximum(
        _ball(0, top, vault, 0.5 + 0.02 * h), _ball(0.03 * lean, bottom, 0.25 + 0.02 * jaw, 0.36)
    )
    face = np.maximum(
        _ball(0, top, face_w, 0.55 + 0.02 * h),
        _ball(0.03 * lean, bottom + 0.05, 0.33 + 0.02 * jaw + 0.01 * soft[1], 0.42),
    )
    for sign, own in ((-1, left), (1, right)):
        x, y = sign * (0.16 + 0.01 * eye), -0.05 + 0.02 * brow + 0.03 * sign * tilt
        skull[np.hypot((_X - x) / (0.09 + 0.012 * own), (_Y - y) / 0.09) < 1] = 0.05
        skull = np.maximum(
            skull, 0.9 * _ball(sign * (vault - 0.1), 0.15 + 0.03 * own, 0.08, 0.09 + 0.01 * cheek)
        )
        face = np.maximum(face, 0.7 * _ball(sign * (face_w + 0.02), 0.02 + 0.03 * own, 0.06, 0.11))
        face -= 0.35 * _ball(x, y, 0.1 + 0.012 * own, 0.035)
    skull[np.hypot(_X / 0.06, (_Y - 0.14) / (0.11 + 0.01 * nose)) < 1] = 0.05
    face += 0.15 * _ball(0, 0.14, 0.06, 0.15 + 0.01 * nose) - 0.3 * _ball(
        0.02 * lean, 0.42, 0.14, 0.02 + 0.004 * soft[2]
    )
    points = [(sign * k * 0.06, top + 0.5 * k / 5 + 0.1) for k in range(1, 6) for sign in (-1, 1)]
    pictures = [np.where(p > 0, 0.3 + 0.6 * np.clip(p, 0, 1), 0) for p in (skull, face)]
    skull8, face8 = (np.rint(255 * p).astype(np.uint8) for p in pictures)
    return skull8, face8, (np.array(points) + 1) / 2 * (SIDE - 1)


class Heads:
    """A data set under ``root`` that can be spoilt before it is written."""

    def __init__(self, root: Path, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.root = root
        self.lines: list[dict[str, Any]] = []
        self.bones = rng.normal(size=(count, 12)).clip(-2, 2)
        for folder in ("skull", "craniofacial", "landmarks"):
            (root / "pairedCS" / folder).mkdir(parents=True, exist_ok=True)
        (root / "split_data").mkdir(exist_ok=True)
        for k, bone in enumerate(self.bones):
            skull, face, points = draw_head(bone, rng.normal(size=3).clip(-2, 2))
            self.write("skull", k, skull)
            self.write("craniofacial", k, face)
            self.landmarks(k).write_text(json.dumps({"points": points.round(2).tolist()}))
            self.lines.append({
                "source": f"h{k:03d}.png", "target": f"h{k:03d}.png", "gender": "MF"[k % 2],
                "age": int(rng.integers(18, 85)), "body_mass": str(rng.integers(1, 6)), "ethnicity": "Asian",
                "subject": f"h{k:03d}", "landmarks": f"landmarks/h{k:03d}.json",
            })  # fmt: skip

    def path(self, folder: str, k: int) -> Path:
        return self.root / "pairedCS" / folder / f"h{k:03d}.png"

    def landmarks(self, k: int) -> Path:
        return self.path("landmarks", k).with_suffix(".json")

    def write(self, folder: str, k: int, picture: np.ndarray) -> None:
        write_png(self.path(folder, k), picture)

    def save(self, **lists: list[dict[str, Any] | str]) -> Path:
        """Write the lists given by name; returns the root."""
        for name, lines in lists.items():
            text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
            (self.root / "split_data" / f"{name}.json").write_text(text, encoding="utf-8")
        return self.root
