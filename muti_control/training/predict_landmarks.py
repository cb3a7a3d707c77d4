"""Landmarks of a list of skulls by one network, for training a landmark branch.

    python -m muti_control.training.predict_landmarks weights=FILE data.root=cohort out=predicted.npz

Reads the skulls of the training and validation lists as ``sample.py`` does, with the biometrics, and writes what
``train.py landmarks.predicted=[predicted.npz]`` reads. Where the lists have true landmarks it prints the error on
each. A network that has learnt its training people by heart reads them better than strangers, and a branch trained on
such points trusts them too much: the command says so, and python -m muti_control.training.crossfit is the remedy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt, model_validator
from tqdm import tqdm

from data.cases import cases_of
from data.images import read_image
from data.landmarks import PredictedLandmarks, landmark_fractions
from data.manifest import Record
from ldm.checkpoint import sha256
from ldm.device import choose_device
from muti_control.conditions.case_landmarks import ReadOffSkull
from muti_control.networks.config import EyeCorners
from muti_control.networks.pipnet.measures import OUTER_EYE_CORNERS, nme
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training.config import DataConfig
from muti_control.training.model import read_list
from settings.base import Settings, expect
from settings.help import help_text, is_asked
from settings.messages import ConfigError
from settings.program import Program
from settings.reading import parse_command_line

BY_HEART = 0.9  # of the error on the validation list: on the training list it may not be smaller


class PredictConfig(Settings):
    """What is read."""

    weights: str
    """Network that reads skulls."""
    out: str
    """File to write (.npz)."""
    data: DataConfig = DataConfig()
    size: PositiveInt = 256
    """Side at which pictures are read, px, as the model's."""
    batch_size: PositiveInt = 32
    """Skulls read together."""
    eye_corners: EyeCorners | None = None
    """The two points whose distance is the unit of the error; null takes the outer corners of known layouts."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        out = Path(self.out)
        expect(out.suffix == ".npz", "out", self.out, "a name that ends in .npz")
        expect(out.absolute().parent.is_dir(), "out", self.out, "a file in a folder that exists")
        return self


def read_skulls_of(
    records: Sequence[Record], source: ReadOffSkull, cfg: PredictConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return points (M, N, 2), fractions, and confidences (M, N) of the skulls of ``records``."""
    cases, points, confidences = cases_of(records), [], []
    for start in tqdm(range(0, len(cases), cfg.batch_size), unit=" batches", disable=None):
        rows = slice(start, start + cfg.batch_size)
        some = cases[rows]
        pictures = np.stack([read_image(r.skull_path, cfg.size)[0] for r in records[rows]])  # (B, H, W, 3)
        landmarks = source.of(some, torch.from_numpy(pictures).permute(0, 3, 1, 2))
        points.append(landmarks.points.numpy())
        confidences.append(landmarks.confidence.numpy())
    return np.concatenate(points), np.concatenate(confidences)


def error_of(
    points: NDArray[np.float32], records: Sequence[Record], corners: tuple[int, int]
) -> float | None:
    """Return the normalised mean error, a fraction, over the records with true landmarks; None without any."""
    rows = [i for i, record in enumerate(records) if record.landmarks_path is not None]
    if not rows:
        return None
    truth = torch.from_numpy(np.stack([landmark_fractions(records[i])[0] for i in rows]))
    return float(nme(torch.from_numpy(points[rows]), truth, corners).mean())


def predict(cfg: PredictConfig) -> list[float | None]:
    """Read every list and write the file; return the error on each list, None without true landmarks.

    Raises:
        ValueError: settings or files that cannot be used.
    """
    reader = LandmarkReader.load(cfg.weights, choose_device(cfg.device))
    if reader.role != "skull":
        raise ConfigError(
            f"weights: {cfg.weights} reads {reader.role}s, expected a network that reads skulls"
        )
    source = ReadOffSkull(reader, Path(cfg.weights).name, sha256(cfg.weights))
    num = reader.net.cfg.num_landmarks
    if cfg.eye_corners is not None and max(cfg.eye_corners) >= num:
        raise ConfigError(
            f"eye_corners: got {list(cfg.eye_corners)}, expected two of the {num} points of {cfg.weights}, from 0 to "
            f"{num - 1}"
        )
    corners = OUTER_EYE_CORNERS.get(num) if cfg.eye_corners is None else tuple(cfg.eye_corners)
    lists = {name: read_list(cfg.data, name) for name in (cfg.data.train, cfg.data.valid)}
    points, confidences, errors = [], [], []
    for name, records in lists.items():
        some_points, some_confidences = read_skulls_of(records, source, cfg)
        points.append(some_points)
        confidences.append(some_confidences)
        error = None if corners is None else error_of(some_points, records, (corners[0], corners[1]))
        result = "no true landmarks" if error is None else f"error {100 * error:.2f} %"
        errors.append(error)
        print(f"{name}: {len(records)} skulls read, {result}", flush=True)
    everyone = [record for records in lists.values() for record in records]
    folds = np.zeros(len(everyone), np.int64)
    PredictedLandmarks.of(everyone, np.concatenate(points), np.concatenate(confidences), folds).write(
        Path(cfg.out)
    )
    return errors


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code."""
    with Program("predict") as end:
        if not arguments or is_asked(arguments):
            print(help_text(__doc__, PredictConfig, arguments))
        else:
            _predict(parse_command_line(PredictConfig, arguments))
    return end.status


def _predict(cfg: PredictConfig) -> None:
    errors = predict(cfg)
    first, last = errors[0], errors[-1]
    if first is not None and last is not None and first < BY_HEART * last:
        print(
            f"predict: the error on {cfg.data.train} is much smaller than on {cfg.data.valid}: the network knows these "
            "people by heart. Train the branch on points by networks that do not: muti_control.training.crossfit",
            file=sys.stderr,
        )
    print(f"written: {cfg.out}; for training: landmarks.predicted=[{cfg.out}]")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
