"""The parity benchmark at tiny size: it agrees with the libraries, and it notices when something does not."""

from __future__ import annotations

import pytest
import torch
from diffusers_folders import CFG
from torch import Tensor

from benchmarks.parity import Theirs, differences, main, our_results, random_state, table

ENCODER = {
    "block_out_channels": (16, 48, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
TINY = {
    "unet": {**ENCODER, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
    "controlnet": {**ENCODER, "conditioning_embedding_out_channels": (4, 6, 8, 10)},
    "vae": {
        "block_out_channels": (8, 16, 16, 24),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "text_encoder": {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    },
}
SIZES = [64]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(CFG, seed=3)


@pytest.fixture(scope="module")
def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return our_results(state, CFG, SIZES, seed=3)


def test_agreement(state: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    theirs = Theirs(state, CFG, TINY)
    rows = differences(ours, theirs.results(ours, SIZES, seed=3))
    assert [row.name for row in rows] == [
        "text embedding",
        "control residuals, 64 px",
        "eps without control, 64 px",
        "eps with control, 64 px",
        "encode: mean, 64 px",
        "encode: log-variance, 64 px",
        "decode, 64 px",
        "effect of the control on eps, 64 px",
    ]
    assert all(row.largest < 1e-4 and row.rms < 1e-4 for row in rows), table(rows)
    assert all(0.02 < row.size < 20 for row in rows), table(
        rows
    )  # there is something to compare, and it is sane
    assert theirs.same_names == dict.fromkeys(("text_encoder", "controlnet", "unet", "vae"), True)


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("model.diffusion_model.out.0.bias", "eps without control, 64 px"),
        ("control_model.input_hint_block.0.bias", "control residuals, 64 px"),
        ("first_stage_model.decoder.mid.attn_1.v.bias", "decode, 64 px"),
        ("first_stage_model.quant_conv.bias", "encode: log-variance, 64 px"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text embedding"),
    ],
)
def test_another_weight_shows(state: dict[str, Tensor], ours: dict[str, Tensor], key: str, row: str) -> None:
    other = {**state, key: state[key] + 0.1 * torch.randn_like(state[key])}
    found = differences(ours, Theirs(other, CFG, TINY).results(ours, SIZES, seed=3))
    assert {r.name: r.largest for r in found}[row] > 5e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sizes=[100]"], "multiples of 64 px"),
        (["append=nowhere.md"], "nowhere.md is no file"),
        (["weights=nowhere.ckpt"], "no such file"),
        (["weigths=x"], "did you mean weights?"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
