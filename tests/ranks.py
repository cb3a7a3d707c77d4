"""Two runs on several processes; ``python -m tests.ranks OUT [CONFIG.yaml] [key=value ...]`` is one of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from muti_control.training.config import ExperimentConfig
from muti_control.training.run import prepare
from muti_control.training.stages.control import ControlStage
from settings.reading import parse_command_line
from tests.tiny_stages import train_gated


def train_both(out: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Train the gated stage, then the control stage as train.py would; return what this process has of them."""
    unused = train_gated(out, "joint", batch_size=1, accumulate=2).unused
    training = prepare(parse_command_line(ExperimentConfig, arguments))
    stage = training.stage
    assert isinstance(stage, ControlStage)
    gated: list[float] = []
    original = stage.loss_of

    def recorded(batch: dict[str, object]) -> dict[str, torch.Tensor]:
        scalars = original(batch)
        gated.append(float(scalars["gated"]))
        return scalars

    stage.loss_of = recorded  # type: ignore[method-assign]
    training.fit()
    digest = hashlib.sha256()
    for name, value in sorted(stage.trained_state().items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    weights = stage.term_weights.weights()
    return {"unused": unused, "digest": digest.hexdigest(), "weights": weights, "gated": gated}


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = train_both(Path(sys.argv[1]), sys.argv[2:])
    print(json.dumps(result), file=sys.stderr)
