"""Landmarks of the training and validation pairs as a condition: known, predicted, or absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cldm.branches import Landmarks
from data.landmarks import PredictedLandmarks, landmark_fractions
from data.manifest import Record
from muti_control.conditions.config import LandmarkConditionConfig
from settings.messages import ConfigError

NO_LANDMARKS = (
    "no training pair has landmarks: the model's landmark branch stays as it is; a 'landmarks' field in the manifest, "
    "or predictions by landmarks.predicted=[FILE], would train it"
)


class PairLandmarks:
    """The landmarks of a list of pairs, looked up by their place in it.

    Args:
        records: the pairs. num_points: of the model's branch.
        cfg: which predictions to use, and how often which kind is shown in training.

    Raises:
        ConfigError: a landmark file with another number of points.
        ValueError: a file that cannot be read (the message names it).
    """

    def __init__(self, records: Sequence[Record], num_points: int, cfg: LandmarkConditionConfig) -> None:
        self.cfg = cfg
        shape = (len(records), num_points)
        self.known = Landmarks(
            torch.zeros(*shape, 2), torch.ones(shape), torch.zeros(shape[0], dtype=torch.bool)
        )
        for row, record in enumerate(records):
            if record.landmarks_path is None:
                continue
            points, _ = landmark_fractions(record)
            if len(points) != num_points:
                raise ConfigError(
                    f"{record.landmarks_path}: {len(points)} points, but the model's landmark branch was made for "
                    f"{num_points}; make one with num_landmarks={len(points)} (tool_add_control.py)"
                )
            self.known.points[row] = torch.from_numpy(points)
            self.known.present[row] = True
        self.predicted = _predicted(records, num_points, cfg.predicted)

    @property
    def any(self) -> bool:
        """Whether any pair has landmarks."""
        return bool((self.known.present | self.predicted.present).any())

    def __str__(self) -> str:
        num = len(self.known.present)
        return (
            f"landmarks of {num} pairs: {int(self.known.present.sum())} known, "
            f"{int(self.predicted.present.sum())} predicted"
        )

    def for_training(self, index: Tensor, generator: torch.Generator) -> Landmarks:
        """Return, for pairs ``index`` (B,), a mix of known, predicted and absent ones, drawn from ``generator``."""
        known, predicted = _take(self.known, index), _take(self.predicted, index)
        show, which = torch.rand(2, len(index), generator=generator)
        use_known = known.present & (~predicted.present | (which < self.cfg.known_share))
        return _choose(use_known, known, predicted, show >= self.cfg.dropout)

    def for_validation(self, index: Tensor) -> Landmarks:
        """Return, for pairs ``index`` (B,), the predicted ones, as at sampling time, else the known ones."""
        known, predicted = _take(self.known, index), _take(self.predicted, index)
        return _choose(~predicted.present, known, predicted, torch.ones_like(known.present))


def _predicted(records: Sequence[Record], num_points: int, files: Sequence[str]) -> Landmarks:
    """Return the predictions of all files for the records; present where one has the pair."""
    shape = (len(records), num_points)
    result = Landmarks(torch.zeros(*shape, 2), torch.zeros(shape), torch.zeros(shape[0], dtype=torch.bool))
    rows = {(record.source, record.target or ""): row for row, record in enumerate(records)}
    for file in files:
        predictions = PredictedLandmarks.read(Path(file))
        if predictions.points.shape[1] != num_points:
            raise ConfigError(
                f"{file}: {predictions.points.shape[1]} points, but the model's landmark branch was made for "
                f"{num_points}"
            )
        pairs = zip(predictions.sources, predictions.targets, strict=True)
        places = [(rows[pair], k) for k, pair in enumerate(pairs) if pair in rows]
        if places:
            here, there = np.array(places).T
            result.points[here] = torch.from_numpy(predictions.points[there])
            result.confidence[here] = torch.from_numpy(predictions.confidences[there])
            result.present[here] = True
    return result


def _take(landmarks: Landmarks, index: Tensor) -> Landmarks:
    index = index.cpu()
    return Landmarks(landmarks.points[index], landmarks.confidence[index], landmarks.present[index])


def _choose(first: Tensor, one: Landmarks, other: Landmarks, shown: Tensor) -> Landmarks:
    """Return ``one`` where ``first`` (B,) bool, else ``other``; present where that is and ``shown`` (B,) is true."""
    return Landmarks(
        torch.where(first[:, None, None], one.points, other.points),
        torch.where(first[:, None], one.confidence, other.confidence),
        torch.where(first, one.present, other.present) & shown,
    )
