"""benchmarks.sampling.speed: what it compares computes the same, and its report holds what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import results_file
from benchmarks.sampling import speed

TINY = {
    "image_size": 64,
    "unet": {
        "model_channels": 16, "channel_mult": [1, 2, 2], "attention_levels": [0, 1], "num_heads": 4, "norm_groups": 8,
        "context_dim": 24,
    },
    "first_stage": {"ch": 16, "ch_mult": [1, 1, 1, 1], "norm_groups": 8},
    "cond_stage": {"width": 24, "layers": 1, "heads": 2, "intermediate": 16},
    "control": {"hint_widths": [8, 8, 12, 12, 16, 16, 24]},
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_all_ways_draw_the_same(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    monkeypatch.setattr(
        speed, "append_section", lambda *args: results_file.append_section(*args, path=results)
    )
    monkeypatch.setattr(speed, "best_product", lambda dtype, device: 1e12)  # slow in bf16 without bf16 units
    out = tmp_path / "deep" / "speed.json"
    ways = ["original", "diffusers_default", "ours_fp32", "ours_bf16"]
    arguments = [f"model={model}", "device=cpu", "size=64", "batches=[1,2]", "steps=2", "reps=1", "warmup=0"]
    assert speed.main([*arguments, f"variants=[{','.join(ways)}]", f"out={out}", "append=true"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())["found"]
    assert [one["batch"] for one in result] == [1, 2]
    for one in result:
        assert 2 * one["flops"]["eps"] < one["flops"]["guided step"] < 5 * one["flops"]["eps"]
        for what in ("eps", "guided step", "sampling"):
            assert one[what]["ours_fp32"]["difference"] == 0
            for name in ("original", "diffusers_default"):
                assert one[what][name]["difference"] < 1e-3
            assert 0 < one[what]["ours_bf16"]["difference"] < 0.2
            assert f"{one[what]['original']['median']:.4g} s" in printed
    assert "python -m benchmarks.sampling.speed model=" in results.read_text()
    assert "| ours_bf16 |" in results.read_text()


@pytest.mark.parametrize(
    "argument", ["variants=[theirs]", "reps=0", "batches=[]", "model=none.yaml", "device=tpu", "szie=3"]
)
def test_bad_settings_are_refused_by_name(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main([argument]) == 2
    key, value = argument.split("=")
    message = capsys.readouterr().err
    assert key in message or value in message
