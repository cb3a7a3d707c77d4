"""Landmarks for the training pairs by networks that never saw them.

    python -m muti_control.training.crossfit CONFIG.yaml pipnet.folds=5 [key=value ...]

The arguments are those of train.py. The subjects of the training list are parted into ``pipnet.folds`` parts; for each
part a network is trained on the others (in OUT/NAME_fold0, ...) and reads the part's pictures. A model trained on these
points meets at sampling time points of the same quality, which it would not after training on a network's answers to
its own training pictures. They are written to OUT/NAME_landmarks.npz (data.landmarks). The same command
continues an interrupted run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.landmarks import PredictedLandmarks
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training.config import ExperimentConfig
from muti_control.training.landmark_pairs import LandmarkDataset, collate, fold_of
from muti_control.training.model import read_list
from settings.help import help_text, is_asked
from settings.messages import ConfigError
from settings.program import Program
from settings.reading import parse_command_line


@torch.no_grad()
def read_all(
    reader: LandmarkReader, pictures: LandmarkDataset, batch_size: int = 32, informed: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return points (M, N, 2), fractions, and confidences (M, N) of all pictures of a set.

    With ``informed``, a network that takes biometrics gets them.
    """
    device = reader.reverse.device
    points, confidences = [], []
    for start in range(0, len(pictures), batch_size):
        batch = collate([pictures[i] for i in range(start, min(start + batch_size, len(pictures)))])
        attributes = batch["attributes"].to(device) if informed and reader.takes_biometrics else None
        result = reader(batch["picture"].to(device).float() / 255, attributes)
        points.append(result[0].cpu().numpy())
        confidences.append(result[1].cpu().numpy())
    return np.concatenate(points), np.concatenate(confidences)


def crossfit(cfg: ExperimentConfig) -> Path | None:
    """Train all folds and write their predictions; None: stopped before the end.

    Raises:
        ValueError: settings or data that cannot be used.
    """
    from muti_control.training.run import prepare

    if cfg.stage != "pipnet" or cfg.pipnet.folds < 2:
        raise ConfigError(
            f"stage={cfg.stage}, pipnet.folds={cfg.pipnet.folds}: expected a config of the pipnet stage and at least 2 "
            "folds, such as pipnet.folds=5"
        )
    records = read_list(cfg.data, cfg.data.train)
    part = np.array(fold_of(records, cfg.pipnet.folds, cfg.train.seed))
    landmarks: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}  # by the place in the list
    for fold in range(cfg.pipnet.folds):
        own = cfg.with_(name=f"{cfg.name}_fold{fold}", pipnet=cfg.pipnet.with_(fold=fold))
        print(f"fold {fold + 1} of {cfg.pipnet.folds}", flush=True)
        weights = prepare(own).fit()
        if weights is None:
            return None
        rows = np.flatnonzero(part == fold).tolist()
        reader = LandmarkReader.load(weights)
        size = max(256, reader.net.cfg.image_size)
        left_out = [records[row] for row in rows]
        pictures = LandmarkDataset(left_out, reader.role, size, reader.net.cfg.ethnicities)
        landmarks |= zip(rows, zip(*read_all(reader, pictures), strict=True), strict=True)
    points, confidences = map(np.stack, zip(*(landmarks[i] for i in range(len(records))), strict=True))
    path = Path(cfg.out) / f"{cfg.name}_landmarks.npz"
    PredictedLandmarks.of(records, points, confidences, part).write(path)
    return path


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, 2 with one message on stderr, or 130 where it was stopped."""
    with Program("crossfit", "interrupted; the same command continues") as end:
        if not arguments or is_asked(arguments):
            print(help_text(__doc__, ExperimentConfig, arguments))
        elif (path := crossfit(parse_command_line(ExperimentConfig, arguments))) is None:
            end.status = 130
        else:
            print(
                f"landmarks of every training pair, each by a network that did not know its subject: {path}"
            )
    return end.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
