"""benchmarks.sampling.spgd_cost and benchmarks.sampling.spgd_stability on a model of a few weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.sampling import spgd_cost as guidance_cost
from benchmarks.sampling import spgd_gaussian as guidance_gaussian
from benchmarks.sampling import spgd_stability as guidance_stability
from benchmarks.sampling.spgd_cost import CostConfig, rows, run
from benchmarks.sampling.spgd_stability import StabilityConfig, draw, share_lower
from cldm.controlled import load_model
from cldm.sampling import SamplingConfig
from data.cases import Known, find_cases
from ldm.config import parse_command_line
from muti_control.sampling.spgd import GuidanceConfig, load_guidance
from tests.conftest import write_pairs


def test_a_way_is_run_and_timed(weights: Path) -> None:
    cfg = CostConfig(weights=str(weights), size=64, steps=3, device="cpu", precision="fp32", cfg_scale=2.0)
    for way in ("off", "spgd/estimate/small", "plain/denoiser/full"):
        found = run(cfg, way)
        assert len(found["steps"]) == 2 and min(found["steps"]) > 0
        assert found["peak"] > 2**20


def test_unguided_may_be_written_without_quotes() -> None:
    cfg = parse_command_line(CostConfig, ["ways=[off,spgd/estimate/small]"])
    cfg.validate()
    assert cfg.ways == ["off", "spgd/estimate/small"]


def test_the_table_of_costs() -> None:
    runs = [
        {"way": "off", "first": 9.0, "steps": [1.0, 1.0, 2.0], "decoding": 2.0, "peak": 2**30},
        {"way": "spgd/estimate/full", "first": 9.0, "steps": [3.0], "decoding": 2.0, "peak": 3 * 2**30},
        {"way": "off", "first": 9.0, "steps": [1.0], "decoding": 2.0, "peak": 2**29},
    ]
    cfg = CostConfig(ways=["off", "spgd/estimate/full"], whole=11)
    assert rows(cfg, runs) == [
        ["off", "1.000 s", "1.00", "13.0 s", "1.00", "1.00 GiB", "1.00"],
        ["spgd/estimate/full", "3.000 s", "3.00", "33.0 s", "2.54", "3.00 GiB", "3.00"],
    ]


@pytest.mark.parametrize(
    ("program", "argument", "message"),
    [
        (guidance_cost, "ways=[fast]", "ways: got 'fast'"),
        (guidance_cost, "steps=1", "the first is not guided"),
        (guidance_stability, "scales={none: 1}", "scales: got none: 1"),
        (guidance_stability, "num=0", "num: got 0"),
        (guidance_stability, "weights=nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_bad_arguments_are_told(
    program, argument: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([argument, f"out={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err


def test_the_gaussian_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert guidance_gaussian.main(["samples=64", "scales=[0.1]"]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    errors = {mode: float(error) for mode, error in lines[2:]}
    assert list(errors) == ["off", "plain", "warmup", "spgd"]
    assert errors["spgd"] < errors["plain"] < errors["off"]
    assert guidance_gaussian.main(["scales=[-1]"]) == 2
    assert "guidance.scale: got -1" in capsys.readouterr().err


def test_an_energy_that_went_down_or_stayed_zero_is_lower() -> None:
    before = np.array([2.0, 2.0, 0.0, 0.0])
    assert share_lower(np.array([1.0, 2.0, 0.0, 1e-9]), before) == 0.5
    assert share_lower(np.full(4, np.nan), before) == 0.0


def test_what_breaks_is_seen_before_it_is_clipped(weights: Path, tmp_path: Path) -> None:
    model, _ = load_model(weights)
    cases = find_cases(write_pairs(tmp_path, test=3) / "split_data/test.json", Known())
    cfg = StabilityConfig(batch_size=2)
    sampling = SamplingConfig(3, "trailing", guidance_scale=1.0, control_scales=[1.0])
    guidance = load_guidance(GuidanceConfig("plain", landmarks=0), model, cases, None, Path("none"))
    assert guidance is not None
    for guided in (None, guidance):
        drawn = draw(model, cases, sampling, guided, cfg, guidance)
        assert list(drawn.energies) == ["containment"] and drawn.energies["containment"].shape == (3,)
        assert drawn.pixels.shape == (3, 64, 64, 3) and drawn.pixels.dtype == np.uint8
        assert drawn.finite.all() and drawn.in_range.all()
    with torch.no_grad():
        model.first_stage_model.decoder.conv_out.bias.add_(3)
    assert not draw(model, cases, replace(sampling, eta=0.0), None, cfg, guidance).in_range.any()
    with torch.no_grad():
        model.first_stage_model.decoder.conv_out.bias[0] = torch.inf
    assert not draw(model, cases, sampling, None, cfg, guidance).finite.any()
