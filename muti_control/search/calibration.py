"""What a score of the matching network is worth: a likelihood ratio with an interval, and how often it misled.

``models/demo/match.safetensors`` has ``models/demo/match.calibration.safetensors``, which ``python -m
muti_control.search.calibrate`` makes. It carries the SHA-256 of its weights: other weights refuse it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from ldm.checkpoint import read_state_dict, write_state_dict
from muti_control.case.calibration import CalibrationError, calibration_path
from settings.base import Settings
from settings.reading import from_json

COMMAND = "python -m muti_control.search.calibrate weights={weights} data.root=FOLDER"
METADATA, DRAWS = "match_calibration", "draws"

Floats = NDArray[np.floating]


class MatchCalibration(Settings):
    """What was measured for one matching network.

    Attributes:
        weights_sha256: of the network.
        slope, offset: the natural logarithm of the likelihood ratio is slope times the score, plus the offset.
        limit: the greatest ratio, and one over the least one: so many people there were to learn it from.
        people: of the validation list. test: figures of the test list. made_with: settings and revision.
        draws: (D, 2) slopes and offsets of other draws of the people; in the file a tensor beside the rest.
    """

    weights_sha256: str
    slope: PositiveFloat
    offset: float
    limit: PositiveFloat
    people: PositiveInt
    test: dict[str, Any] = {}
    made_with: dict[str, Any] = {}

    def ratios(self, scores: Floats, draws: Floats | None = None) -> Floats:
        """Return likelihood ratios of scores (N,): (N,), or (D, N) by ``draws`` of slopes and offsets."""
        lines = np.array([[self.slope, self.offset]]) if draws is None else np.asarray(draws, np.float64)
        logs = lines[:, :1] * np.asarray(scores, np.float64) + lines[:, 1:]
        most = np.log(self.limit)
        ratios = np.exp(np.clip(logs, -most, most))
        return ratios[0] if draws is None else ratios

    def save(self, path: Path, draws: Floats) -> None:
        """Write the file, whole or not at all. Raises: CheckpointError."""
        state = {DRAWS: torch.from_numpy(np.asarray(draws, np.float32))}
        write_state_dict(path, state, {METADATA: self.model_dump_json()})


def load_match_calibration(weights: Path, digest: str) -> tuple[MatchCalibration, Floats] | None:
    """Return the calibration beside a network's file, with its draws; None where there is none.

    digest: SHA-256 of the network.

    Raises:
        CalibrationError: it belongs to other weights, or cannot be read.
    """
    path, remedy = calibration_path(weights), f"remove it, or make its own: {COMMAND.format(weights=weights)}"
    if not path.is_file():
        return None
    try:
        state, metadata = read_state_dict(path, mmap=False)
        calibration = from_json(MatchCalibration, metadata.get(METADATA, "null"))
        draws = state[DRAWS].double().numpy()
        if draws.ndim != 2 or draws.shape[1] != 2 or not np.isfinite(draws).all():
            raise ValueError(f"draws of shape {draws.shape}, expected (D, 2)")
    except (ValueError, OSError, KeyError) as error:
        raise CalibrationError(f"{path}: is no calibration that can be read ({error}); {remedy}") from error
    if calibration.weights_sha256 != digest:
        raise CalibrationError(
            f"{path}: belongs to weights {calibration.weights_sha256[:12]}..., not to {weights.name} "
            f"({digest[:12]}...); {remedy}"
        )
    return calibration, draws
