"""What the tests of diffusers folders share: a tiny model, and how the command is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion, model_metadata
from cldm.diffusers_folder.__main__ import main
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import AutoencoderConfig, ControlConfig, ModelConfig, TextConfig, UNetConfig

CFG = ModelConfig(  # no two numbers that could be mistaken for each other, and not SD1.5's proportions
    image_size=64,
    scale_factor=0.3,
    unet=UNetConfig(
        model_channels=16,
        channel_mult=[1, 3, 2],
        num_res_blocks=1,
        attention_levels=[1],
        num_heads=4,
        context_dim=24,
        norm_groups=8,
    ),
    first_stage=AutoencoderConfig(ch=8, ch_mult=[1, 2, 2, 3], num_res_blocks=1, norm_groups=4),
    cond_stage=TextConfig(width=24, layers=2, heads=2, intermediate=20),
    control=ControlConfig(hint_widths=[4, 4, 6, 6, 8, 8, 10]),
)
SAMPLING = {"steps": 4, "spacing": "trailing", "eta": 1.0, "guidance_scale": 1.0, "control_scales": [0.9]}
PROMPT = "3D face scan,Asian male,age level 3,normal face."


def perturbed_model(cfg: ModelConfig = CFG) -> ControlledLatentDiffusion:
    """None of its layers at zero, which would hide what lies behind them; the same at each call."""
    torch.manual_seed(0)
    net = ControlledLatentDiffusion(cfg)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_((0.3 if "control_model" in name else 0.1) * torch.randn_like(p))
    return net.eval().requires_grad_(False)


def exported_as(parent: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """`parent`/folder, exported from `parent`/model.safetensors by the command."""
    write_state_dict(parent / "model.safetensors", state, metadata)
    assert main(["export", str(parent / "model.safetensors"), str(parent / "folder")]) == 0
    return parent / "folder"


@pytest.fixture(scope="module")
def model() -> ControlledLatentDiffusion:
    return perturbed_model()


@pytest.fixture(scope="module")
def exported(model: ControlledLatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = {**model_metadata(CFG), "step": "77", "sampling": json.dumps(SAMPLING)}
    return exported_as(tmp_path_factory.mktemp("exported"), model.state_dict(), metadata)


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> diffusers.StableDiffusionControlNetPipeline:
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(exported)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(value, b[key]) and value.dtype == b[key].dtype for key, value in a.items()
    )


def imported(folder: Path, target: Path, *arguments: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    assert main(["import", str(folder), str(target), *arguments]) == 0
    return read_state_dict(target)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err
