"""The cost model: counted arithmetic against the known, and how its prediction depends on what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.training.cost_model import (
    CARDS,
    UPDATE_BYTES,
    Cost,
    CostConfig,
    Machine,
    counted,
    fitted,
    main,
    step_seconds,
)
from cldm.controlled import SD15_CONFIG
from ldm.latent_diffusion import ModelConfig


def test_the_arithmetic_of_sd15() -> None:
    """At 256 px: one denoiser evaluation is 180 GFLOP (benchmarks/RESULTS.md, counted on real tensors), the control
    network about 63, its gradients twice that, and the decoder's gradient of its inputs about 120.
    """
    ours = counted(str(SD15_CONFIG), 256)
    assert ours.trained == 361_279_120
    assert ours.flops == pytest.approx((180 + 63 + 2 * 63 + 120) * 1e9, rel=0.04)


def test_the_published_way_has_more_to_do(tiny_config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.structured(tiny_config)), encoding="utf-8"
    )
    ways = ("ours_fp32", "original_stored", "original")
    ours, stored, original = (counted(str(tmp_path / "tiny.yaml"), 64, way).flops for way in ways)
    assert 1.2 * ours < stored < original


def test_a_step_is_the_sum_of_its_parts() -> None:
    card = Machine("a card", flops=1e12, memory=1e9, link=1e9, launch=0.5)
    cost = Cost(flops=1e11, trained=1_000_000)
    update = UPDATE_BYTES * 1e6 / 1e9
    assert step_seconds(cost, card, batch=4) == pytest.approx(0.5 + 0.4 + update)
    assert step_seconds(cost, card, batch=4, accumulate=3) == pytest.approx(3 * 0.9 + update)
    assert step_seconds(cost, card, batch=4, cards=4) == pytest.approx(0.9 + update + 1.5 * 4e6 / 1e9)


def test_a_fit_goes_through_its_two_points() -> None:
    rate, constant = fitted([(1e9, 1.5), (5e9, 99.0), (9e9, 5.5)])
    assert constant + 1e9 / rate == pytest.approx(1.5) and constant + 9e9 / rate == pytest.approx(5.5)


def test_bad_settings_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("utilisation=0", "cards=[]", "steps=0", "sizes=[0]"):
        assert main([argument]) == 2
        assert argument.split("=")[0] in capsys.readouterr().err
    assert CostConfig().utilisation < 1 and torch.tensor([card.flops for card in CARDS]).diff().min() > 0
