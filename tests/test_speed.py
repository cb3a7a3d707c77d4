"""benchmarks.sampling.speed: what it compares computes the same, and its report holds what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results_file
from benchmarks.sampling import speed


def test_all_ways_draw_the_same(
    tiny_yaml: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    monkeypatch.setattr(
        speed, "append_section", lambda *args: results_file.append_section(*args, path=results)
    )
    monkeypatch.setattr(speed, "best_product", lambda dtype, device: 1e12)  # slow in bf16 without bf16 units
    out = tmp_path / "deep" / "speed.json"
    ways = ["original", "diffusers_default", "ours_fp32", "ours_bf16"]
    arguments = [f"model={tiny_yaml}", "device=cpu", "size=64", "batches=[1,2]", "steps=2", "reps=1"]
    assert (
        speed.main([*arguments, f"variants=[{','.join(ways)}]", f"out={out}", "warmup=0", "append=true"]) == 0
    )
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())["found"]
    assert [one["batch"] for one in result] == [1, 2]
    for one in result:
        assert 2 * one["flops"]["eps"] < one["flops"]["guided step"] < 6 * one["flops"]["eps"]
        for what in ("eps", "guided step", "sampling"):
            assert one[what]["ours_fp32"]["difference"] == 0
            for name in ("original", "diffusers_default"):
                assert one[what][name]["difference"] < 1e-3
            assert 0 < one[what]["ours_bf16"]["difference"] < 0.2
            assert f"{one[what]['original']['median']:.4g} s" in printed
    assert "python -m benchmarks.sampling.speed model=" in results.read_text()
    assert "| ours_bf16 |" in results.read_text()
