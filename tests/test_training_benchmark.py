"""benchmarks.training.training compares ways that compute the same thing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.training.training import TrainingConfig, main, rows
from benchmarks.training.training_steps import WAYS, run


def losses(tiny_yaml: str, variant: str) -> list[float]:
    request = {
        "variant": variant,
        "device": "cpu",
        "batch_size": 2,
        "size": 64,
        "reps": 2,
        "model": tiny_yaml,
    }
    result = run(request)
    assert len(result["seconds"]) == 2 and result["peak"] > 2**20
    return result["losses"]


def test_the_published_way_keeps_nothing_back_and_loses_nothing(tiny_yaml: str) -> None:
    assert losses(tiny_yaml, "original") == pytest.approx(losses(tiny_yaml, "original_stored"), rel=1e-4)


def test_ours_has_the_same_loss_in_every_precision_and_layout(tiny_yaml: str) -> None:
    exact = losses(tiny_yaml, "ours_fp32")
    for variant in ("ours", "ours_recompute"):
        assert losses(tiny_yaml, variant) == pytest.approx(exact, rel=2e-2), variant


def test_with_all_losses_both_begin_with_the_same_value(
    tiny_yaml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours then goes another way: its gradient has the pictures in it."""
    theirs, ours = losses(tiny_yaml, "original_losses"), losses(tiny_yaml, "ours_losses_fp32")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
    monkeypatch.setitem(WAYS, "recompute_fp32", replace(WAYS["ours_losses_fp32"], recompute="blocks"))
    assert losses(tiny_yaml, "recompute_fp32") == pytest.approx(ours, rel=1e-4)


def test_the_table(tiny_yaml: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        {"variant": "original", "seconds": [4.0, 2.0], "peak": 2**31},
        {"variant": "ours", "seconds": [1.0, 0.5], "peak": 2**30},
        {"variant": "original", "seconds": [4.0], "peak": 2**30},
    ]
    assert rows(TrainingConfig(batch_size=2), runs) == [
        ["original", "4.000 s (2.000)", "0.5", "1.00", "2.00 GiB", "1.00"],
        ["ours", "0.750 s (0.500)", "2.67", "5.33", "1.00 GiB", "0.50"],
    ]
    on_cpu = [run | {"seconds": [9.0], "cpu_seconds": run["seconds"]} for run in runs]
    assert rows(TrainingConfig(batch_size=2, clock="cpu"), on_cpu)[1][1] == "0.750 s (0.500)"
    out = tmp_path / "times.json"
    arguments = [f"model={tiny_yaml}", "device=cpu", "size=64", "variants=[ours_fp32]", "rounds=1", "reps=1"]
    assert main([*arguments, f"out={out}", "warmup=0"]) == 0
    assert "| ours_fp32 |" in capsys.readouterr().out
    assert json.loads(out.read_text())["config"]["reps"] == 1
