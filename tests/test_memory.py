"""What saves memory changes no result: recomputation, averages in main memory, a frozen UNet in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.checkpoint import read_state_dict
from muti_control.optim import OptimConfig
from muti_control.training.config import MemoryConfig
from muti_control.training.run import Training, prepare
from tests.tiny_stages import make_experiment


@pytest.fixture
def control(weights: Path, make_pairs: Callable[..., Path]) -> Callable[..., Training]:
    """control(precision, memory): a control stage of three steps, checked and ready to fit."""
    root = make_pairs(train=8, valid=2)

    def make(precision: str, memory: MemoryConfig, name: str = "tiny", unlocked: str = "none") -> Training:
        steps = {"max_steps": 3, "accumulate": 2, "val_every": 3, "save_every": 3, "export": "last"}
        parts = {"optim": OptimConfig(lr=1e-2, warmup_steps=0), "diffusion": {"unlocked": unlocked}}
        steps["precision"] = precision
        return prepare(
            make_experiment("control", root, steps, name=name, init=str(weights), memory=memory, **parts)
        )

    return make


def fitted(training: Training) -> dict[str, Tensor]:
    exported = training.fit()
    assert exported is not None
    return read_state_dict(exported)[0]


def test_recomputing_and_averages_elsewhere_change_no_weight(control: Callable[..., Training]) -> None:
    plain = fitted(control("fp32", MemoryConfig()))
    saving = MemoryConfig(recompute_control=True, recompute_unet=True, ema_on_cpu=True)
    training = control("fp32", saving, name="saving")
    assert training.stage.ema.device == torch.device("cpu")
    assert training.stage.net.unet.recomputes and training.stage.net.control_model.recomputes
    saved = fitted(training)
    assert plain.keys() == saved.keys() and all(torch.equal(plain[name], saved[name]) for name in plain)


def changes(training: Training) -> set[str]:
    """Return the parts of the exported model that are not those of ``init``; all are float32."""
    (init, _), exported = read_state_dict(str(training.cfg.init)), fitted(training)
    assert init.keys() - {"logvar"} <= exported.keys()
    assert all(value.dtype == torch.float32 for value in exported.values() if value.is_floating_point())
    names = {name for name in init.keys() & exported.keys() if not torch.equal(exported[name], init[name])}
    return {".".join(name.split(".")[: 3 if name.startswith("model.") else 1]) for name in names}


def test_the_frozen_part_is_exported_as_it_came(control: Callable[..., Training]) -> None:
    """In training the UNet is held in bf16, and the encoders rest on the CPU; the file has all of it in float32."""
    training = control("bf16", MemoryConfig())
    assert training.stage.net.dtype == torch.bfloat16
    assert changes(training) == {"control_model"}


def test_an_unlocked_unet_is_trained_in_full_precision(control: Callable[..., Training]) -> None:
    training = control("bf16", MemoryConfig(), unlocked="decoder")
    assert training.stage.net.dtype == torch.float32
    assert changes(training) == {
        "control_model",
        "model.diffusion_model.output_blocks",
        "model.diffusion_model.out",
    }
