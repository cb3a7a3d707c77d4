"""What saves memory changes no result: recomputation, averages in main memory, a frozen UNet in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tool_add_control
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import ModelConfig
from muti_control.optim import OptimConfig
from muti_control.training.config import (
    DataConfig,
    DiffusionStageConfig,
    ExperimentConfig,
    MemoryConfig,
    TrainConfig,
)
from muti_control.training.run import Training, prepare


@pytest.fixture
def control(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path]
) -> Callable[[str, str, MemoryConfig], Training]:
    """A control stage of three steps in a folder: control(name, precision, memory) -> checked, ready to fit."""
    root = make_pairs(train=8, valid=2)
    base = ControlledLatentDiffusion(tiny_config)
    for p in base.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    state = {k: v for k, v in base.state_dict().items() if not k.startswith(("control_model.", "logvar"))}
    write_state_dict(root / "base.safetensors", state, model_metadata(tiny_config))
    arguments = [str(root / "base.safetensors"), str(root / "ini.safetensors")]
    assert tool_add_control.main(arguments) == 0

    def make(
        name: str,
        precision: str,
        memory: MemoryConfig,
        unlocked: str = "none",
    ) -> Training:
        cfg = ExperimentConfig(
            stage="control", name=name, out=str(root / "runs"), init=str(root / "ini.safetensors"),
            data=DataConfig(root=str(root)),
            train=TrainConfig(
                max_steps=3, batch_size=2, accumulate=2, val_every=3, save_every=3, num_valid=2,
                precision=precision, accelerator="cpu", export="last",
            ),
            optim=OptimConfig(lr=1e-2, warmup_steps=0),
            sampling=SamplingConfig(steps=2, control_scales=[1.0]),
            memory=memory,
            diffusion=DiffusionStageConfig(unlocked=unlocked),
        )  # fmt: skip
        return prepare(cfg)

    return make


def fitted(training: Training) -> dict[str, Tensor]:
    exported = training.fit()
    assert exported is not None
    return read_state_dict(exported)[0]


def test_recomputing_and_averages_elsewhere_change_no_weight(control: Callable[..., Training]) -> None:
    plain = fitted(control("plain", "32-true", MemoryConfig()))
    saving = MemoryConfig(recompute_control=True, recompute_unet=True, ema_on_cpu=True)
    training = control("saving", "32-true", saving)
    assert training.stage.ema.device == torch.device("cpu")
    assert training.stage.net.unet.recomputes and training.stage.net.control_model.recomputes
    saved = fitted(training)
    assert plain.keys() == saved.keys() and all(torch.equal(plain[name], saved[name]) for name in plain)


def test_the_frozen_part_is_exported_as_it_came(control: Callable[..., Training]) -> None:
    """In training the UNet is held in bf16, and the encoders are parked; the file has all of it in float32."""
    training = control("half", "bf16-mixed", MemoryConfig())
    assert training.stage.net.dtype == torch.bfloat16
    exported = fitted(training)
    init, _ = read_state_dict(str(training.cfg.init))
    assert init.keys() <= exported.keys() | {"logvar"}
    for name, value in exported.items():
        if not name.startswith("control_model."):
            assert torch.equal(value, init[name]), name
    assert any(
        not torch.equal(exported[name], init[name]) for name in init if name.startswith("control_model.")
    )
    assert all(value.dtype == torch.float32 for value in exported.values() if value.is_floating_point())


def test_an_unlocked_unet_is_trained_in_full_precision(control: Callable[..., Training]) -> None:
    training = control("unlocked", "bf16-mixed", MemoryConfig(), unlocked="decoder")
    assert training.stage.net.dtype == torch.float32
    exported = fitted(training)
    init, _ = read_state_dict(str(training.cfg.init))
    changed = {name for name in init if not torch.equal(exported[name], init[name])}
    assert {name.split(".")[2] for name in changed if name.startswith("model.")} == {"output_blocks", "out"}
    assert any(name.startswith("control_model.") for name in changed)
    assert not any(name.startswith(("first_stage_model.", "cond_stage_model.")) for name in changed)
