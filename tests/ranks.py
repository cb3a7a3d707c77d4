"""Started by torchrun: ``python -m tests.ranks OUT [CONFIG.yaml] [key=value ...]`` trains two runs on all processes.

The first is of the gated stage; the second of the control stage, as train.py would. Each process prints its results.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from muti_control.training.config import ExperimentConfig
from muti_control.training.run import prepare
from muti_control.training.stages.control import ControlStage
from settings.reading import parse_command_line
from tests.tiny_stages import train_gated

torch.set_num_threads(1)
result = {"unused": train_gated(Path(sys.argv[1]), "joint", batch_size=1, accumulate=2).unused}
training = prepare(parse_command_line(ExperimentConfig, sys.argv[2:]))
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
result |= {"digest": digest.hexdigest(), "weights": stage.term_weights.weights(), "gated": gated}
sys.stdout.write(f"<{stage.global_rank} {json.dumps(result)}>\n")
sys.stdout.flush()
