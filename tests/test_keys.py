"""At full size the models have exactly the public checkpoints' keys, shapes and dtypes (on the meta device)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from ldm.config import ModelConfig
from ldm.latent_diffusion import LatentDiffusion

FIXTURES = Path(__file__).parent / "fixtures"
# Older text encoders stored this buffer; it is tolerated in files and never part of our state.
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def fixture_keys(name: str) -> dict[str, str]:
    """Key -> "[shape] dtype", as the fixture has it."""
    lines = (FIXTURES / f"{name}_keys.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def keys_of(model: nn.Module) -> dict[str, str]:
    return {
        key: f"{list(v.shape)} {str(v.dtype).removeprefix('torch.')}" for key, v in model.state_dict().items()
    }


@pytest.fixture(scope="module", params=["defaults", "models/cldm_v15.yaml"])
def cfg(request: pytest.FixtureRequest) -> ModelConfig:
    return ModelConfig() if request.param == "defaults" else load_model_config(SD15_CONFIG)


@pytest.mark.parametrize(
    ("name", "cls", "count"),
    [("sd15", LatentDiffusion, 1143), ("control_sd15", ControlledLatentDiffusion, 1484)],
)
def test_full_size_keys(cfg: ModelConfig, name: str, cls: type[LatentDiffusion], count: int) -> None:
    with torch.device("meta"):
        model = cls(cfg)
    expected = fixture_keys(name)
    assert len(expected) == count
    del expected[POSITION_IDS]
    assert keys_of(model) == expected


def test_full_size_parameter_counts() -> None:
    with torch.device("meta"):
        model = ControlledLatentDiffusion(ModelConfig())
    parts = (model.model, model.first_stage_model, model.cond_stage_model, model.control_model)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [859_520_964, 83_653_863, 123_060_480, 361_279_120]


def test_every_control_key_is_a_copy_or_a_known_new_layer() -> None:
    keys = fixture_keys("control_sd15")
    new = {"input_hint_block", "zero_convs", "middle_block_out"}
    for key, shape in keys.items():
        if key.startswith("control_model."):
            source = key.replace("control_model.", "model.diffusion_model.", 1)
            assert (keys.get(source) == shape) != (key.split(".")[1] in new), key
