"""Trains by train.py's arguments on as many processes as torchrun started; each tells what it ended with."""

from __future__ import annotations

import hashlib
import json
import sys

import torch

from muti_control.training.config import ExperimentConfig
from muti_control.training.run import prepare
from muti_control.training.stages.control import ControlStage
from settings.reading import parse_command_line

torch.set_num_threads(1)
training = prepare(parse_command_line(ExperimentConfig, sys.argv[1:]))
stage = training.stage
assert isinstance(stage, ControlStage)
gated: list[float] = []
original = stage.loss_of


def watched(batch: dict[str, object]) -> dict[str, torch.Tensor]:
    scalars = original(batch)
    gated.append(float(scalars["gated"]))
    return scalars


stage.loss_of = watched  # type: ignore[method-assign]
training.fit()
digest = hashlib.sha256()
for name, value in sorted(stage.trained_state().items()):
    digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
told = {"digest": digest.hexdigest(), "weights": stage.term_weights.weights(), "gated": gated}
sys.stdout.write(f"<{stage.global_rank} {json.dumps(told)}>\n")
sys.stdout.flush()
