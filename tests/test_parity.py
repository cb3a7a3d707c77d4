"""The parity benchmark at tiny size: it agrees with the libraries, and it notices when something does not."""

from __future__ import annotations

import pytest
import torch
from diffusers_folders import CFG
from torch import Tensor

from benchmarks.parity import Theirs, differences, our_results, random_state, table_of
from benchmarks.their_networks import arguments_of
from cldm.controlled import SD15_CONFIG, load_model_config

SD15 = {  # as its published config.json files have it
    "unet": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    },
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
}
SIZES = [64]


def test_their_arguments_are_those_of_the_published_files() -> None:
    arguments = arguments_of(load_model_config(SD15_CONFIG))
    assert arguments.pop("controlnet")["conditioning_embedding_out_channels"] == (16, 32, 96, 256)
    assert arguments == SD15


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(CFG, seed=3)


@pytest.fixture(scope="module")
def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return our_results(state, CFG, SIZES, seed=3)


def test_agreement(state: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    theirs = Theirs(state, CFG)
    rows = differences(ours, theirs.results(ours, SIZES, seed=3))
    assert len(rows) == 8 and rows[0].name == "text embedding"
    assert all(row.largest < 1e-4 and row.rms < 1e-4 for row in rows), table_of(rows)
    assert all(0.02 < row.size < 20 for row in rows), table_of(rows)  # there is something to compare
    assert theirs.same_names == dict.fromkeys(("text_encoder", "controlnet", "unet", "vae"), True)


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("control_model.input_hint_block.0.bias", "control residuals, 64 px"),
        ("first_stage_model.quant_conv.bias", "encode: log-variance, 64 px"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text embedding"),
    ],
)
def test_another_weight_shows(state: dict[str, Tensor], ours: dict[str, Tensor], key: str, row: str) -> None:
    other = {**state, key: state[key] + 0.1 * torch.randn_like(state[key])}
    result = differences(ours, Theirs(other, CFG).results(ours, SIZES, seed=3))
    assert {r.name: r.largest for r in result}[row] > 5e-4
