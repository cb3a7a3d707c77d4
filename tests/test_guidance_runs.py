"""What guided runs leave: traces, and evaluations that compare settings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.controlled import load_model
from cldm.spgd import InnerStep, SpgdStep
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.run_folder import identity_of
from muti_control.networks.config import GuidanceDecoderConfig
from muti_control.networks.guidance_decoder import GuidanceDecoder, signature
from muti_control.sampling.charts import Panel, Series, draw_panels
from muti_control.sampling.config import SpgdConfig
from muti_control.sampling.trace import trace_of, trace_plot
from sample import main as sample
from tests.test_guidance import guided_run

__all__ = ["guided_run"]


def test_a_trace_is_written_for_each_face(guided_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings = ["spgd.mode=spgd", "spgd.trace=true", "spgd.inner=2", "spgd.gradient=denoiser"]
    assert sample(guided_run("traced", *settings)) == 0
    assert sample(guided_run("untraced", *settings[:1], *settings[2:])) == 0
    folder = tmp_path / "traced"
    files = json.loads((folder / "record.json").read_text())["files"]
    assert {"test_1_0_spgd.json", "test_1_0_spgd.png"} <= set(files)
    assert all((folder / name).is_file() for name in files)
    trace = json.loads((folder / "test_1_0_spgd.json").read_text())
    assert trace["guidance"]["mode"] == "spgd"
    assert [step["step"] for step in trace["steps"]] == [1, 2, 3]
    for step in trace["steps"]:
        assert len(step["inner"]) == 2
        assert 0 <= step["to_denoising"] <= 180
        assert step["inner"][0]["energies"].keys() == {"landmarks", "containment"}
    assert trace["steps"][0]["inner"][0]["turn"] is None
    assert trace["steps"][1]["inner"][0]["turn"] >= 0
    for name in ("test_0_0.png", "test_1_0.png"):  # to look on changes nothing
        assert Image.open(folder / name).tobytes() == Image.open(tmp_path / "untraced" / name).tobytes()
    assert sample([*guided_run("traced", *settings), "overwrite=true"]) == 0


def test_a_resumed_run_keeps_its_traces_and_adds_those_it_lacks(guided_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings = ["spgd.mode=spgd", "spgd.trace=true", "spgd.inner=2"]
    folder = tmp_path / "traced"

    def resume(*more: str) -> list[str]:
        assert sample([*guided_run("traced", *more), "resume=true"]) == 0
        files = json.loads((folder / "record.json").read_text())["files"]
        assert sorted(files) == sorted(path.name for path in folder.iterdir())
        return files

    assert sample(guided_run("traced", *settings[:1], *settings[2:])) == 0
    face = (folder / "test_0_0.png").read_bytes()
    assert "test_0_0_spgd.json" in resume(*settings)  # switched on when the faces are there
    assert (folder / "test_0_0.png").read_bytes() == face
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("test_*_0*")}
    resume(*settings)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("test_*_0*")} == before
    (folder / "test_1_0_spgd.png").unlink()
    resume(*settings)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("test_*_0*")}
    assert {name for name in before if before[name] != after[name]} == {
        *("test_1_0.png", "test_1_0_spgd.json", "test_1_0_spgd.png")
    }


def test_a_small_decoder_looks_for_the_energies_alone(guided_run, weights: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, _ = load_model(weights)
    own, foreign = (tmp_path / name for name in ("own.safetensors", "foreign.safetensors"))
    decoder = GuidanceDecoder(GuidanceDecoderConfig(widths=[6, 5, 4], blocks=[1, 0, 0]))
    decoder.save(own, signature(model.first_stage_model))
    decoder.save(foreign, [1.0, 2.0])
    run = ("limit=1", "spgd.mode=spgd", "spgd.scale=0.1")
    assert sample(guided_run("full", *run)) == 0
    assert sample(guided_run("small", *run, f"spgd.decoder={own}")) == 0
    full, small = (Image.open(tmp_path / name / "test_0_0.png").tobytes() for name in ("full", "small"))
    assert full != small
    record = json.loads((tmp_path / "small/record.json").read_text())["guidance"]
    assert record["decoder"]["file"] == "own.safetensors" and len(record["decoder"]["sha256"]) == 64
    assert sample(guided_run("bad", *run, f"spgd.decoder={foreign}")) == 2
    assert sample(guided_run("bad", *run, "spgd.decoder=none.safetensors")) == 2
    assert not (tmp_path / "bad").exists()


def test_no_step_is_longer_than_the_clip(guided_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings = [
        "limit=1",
        "spgd.mode=spgd",
        "spgd.trace=true",
        "spgd.scale=1",
        "spgd.clip=0.05",
    ]
    assert sample(guided_run("clipped", *settings)) == 0
    steps = json.loads((tmp_path / "clipped/test_0_0_spgd.json").read_text())["steps"]
    lengths = [one["length"] for step in steps for one in step["inner"]]
    assert lengths[0] == pytest.approx(0.05, rel=1e-4)  # asked for 1
    assert max(lengths) <= 0.05 * (1 + 1e-4)


def test_a_trace_holds_no_nan() -> None:
    row = torch.tensor([1.0, math.nan])
    inner = InnerStep({"landmarks": row}, row, row, row, torch.tensor([False, True]))
    trace = trace_of([SpgdStep(0, 900, 1.0, [inner, inner], row)], 1, {"mode": "spgd", "scale": 0.1})
    json.dumps(trace, allow_nan=False)
    assert trace["steps"][0]["inner"][1]["skipped"] is True
    assert trace_plot(trace, "none").shape[2] == 3


def test_charts_show_their_lines() -> None:
    empty, full = (
        draw_panels([Panel("a", "x", [Series("s", [1, 10, 100], values)], log_x=True)])
        for values in ([math.nan] * 3, [0.1, 0.5, 0.2])
    )
    assert empty.shape == full.shape and empty.dtype == np.uint8
    assert (empty != full).any()


def test_settings_of_models_lie_over_the_common_ones() -> None:
    cfg = EvaluateConfig(
        weights="w",
        models={"plain": "w"},
        spgd=SpgdConfig(mode="spgd", scale=0.5, inner=2),
        guided={"plain": {"mode": "plain", "scale": 0.1}},
    )
    assert cfg.spgd_of("model") == cfg.spgd
    plain = cfg.spgd_of("plain")
    assert (plain.mode, plain.scale, plain.inner) == ("plain", 0.1, 2)


def test_what_changes_no_face_does_not_tell_evaluations_apart() -> None:
    def identity(scale: float, at_once: int, trace: bool) -> object:
        own = {"scale": scale, "at_once": at_once, "recompute": trace, "trace": trace}
        config = {"spgd": own, "guided": {"plain": own, "model": {"mode": "off"}}, "batch_size": at_once}
        return identity_of(config, {})

    assert identity(0.1, 8, False) == identity(0.1, 1, True) != identity(0.2, 8, False)
