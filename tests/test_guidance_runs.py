"""What guided runs leave: traces, evaluations that compare settings, and the sweep."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.controlled import load_model
from cldm.spgd import InnerStep, SpgdStep
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.run_folder import identity_of
from muti_control.evaluation.results.results_file import read_results
from muti_control.evaluation.sweep import Row, advice, arguments_of, best_of, main, rows_of, table
from muti_control.networks.config import GuidanceDecoderConfig
from muti_control.networks.guidance_decoder import GuidanceDecoder, signature
from muti_control.sampling.charts import Panel, Series, draw_panels
from muti_control.sampling.config import SpgdConfig
from muti_control.sampling.trace import trace_of, trace_plot
from sample import main as sample
from tests.landmark_pairs import write_landmark_pairs
from tests.test_guidance import guided_run, tiny_reader

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


def rows() -> list[Row]:
    return [
        Row("off", 0.0, 0.5, 0.40, 4.0, 10.0, 0),
        Row("plain", 0.01, 0.5, 0.38, 3.9, 11.0, 0, gains(-0.02)),
        Row("plain", 0.1, 0.6, 0.30, 3.9, 20.0, 0, gains(-0.10)),  # unreal
        Row("spgd", 0.01, 0.6, 0.36, 3.5, 12.0, 0, gains(-0.04)),
        Row("spgd", 0.1, 0.7, 0.20, 3.0, 9.0, 1, gains(-0.20)),  # loses a face
        Row("spgd", 0.03, 0.7, 0.35, 4.1, 9.0, 0, gains(-0.05)),  # worse points
        Row("spgd", 0.05, 0.7, 0.33, 3.5, 9.0, 0, (-0.6, 0.46) * 8),  # by chance
    ]


def gains(mean: float) -> tuple[float, ...]:
    """Of 16 probes, 0.01 about their mean."""
    return (mean - 0.01, mean + 0.01) * 8


def test_the_sweep_recommends_what_loses_nothing() -> None:
    best = best_of(rows())
    assert best is not None and (best.mode, best.scale) == ("spgd", 0.01)
    told = advice(rows(), ["weights=w", "spgd.gradient=denoiser", "spgd.scale=1", "texture=a face.png"])
    assert told.splitlines()[-1].split(" ", 2)[:2] == ["spgd.mode=spgd", "spgd.scale=0.01"]
    assert shlex.split(told.splitlines()[-1])[2:] == [
        *(
            "sampling.steps=20",
            "spgd.gradient=denoiser",
            "texture=a face.png",
        )  # 20: of evaluate.py's own file
    ]
    assert "16 probes, 6 settings tried" in told
    assert best_of(rows()[:1]) is None
    assert "leave guidance off" in advice(rows()[:1], [])
    assert [line.split()[0] for line in table(rows()).splitlines()[1:]] == [row.mode for row in rows()]


def test_more_settings_need_more_evidence() -> None:
    """A gain of 2.5 standard errors is enough for one setting (1.96) and not for eight (2.73)."""
    free = Row("off", 0.0, 0.5, 0.4, 4.0, 0.0, 0)
    values = (
        tuple(-2.5 / 4 + sign * math.sqrt(15 / 16) for sign in (-1, 1)) * 8
    )  # 16 of deviation 1: error 1/4
    own = Row(
        "spgd", 0.01, 0.5, 0.3, 4.0, 0.08, 0, values
    )  # a KID of 0.08 where unguided has 0: below the floor
    tried = [replace(own, scale=0.01 * k) for k in range(1, 9)]
    assert best_of([free, *tried[:1]]) is tried[0]
    assert best_of([free, *tried]) is None
    assert best_of([free, replace(tried[0], realism=0.2)]) is None


def test_a_file_of_settings_is_not_overridden(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("weights: w.safetensors\nnum: 7\nsamples: 2\nlandmarks: none\nsampling: {steps: 9}\n")
    command, _ = arguments_of([str(file), "samples=3"])
    given = [argument.split("=")[0] for argument in command]
    assert "num" not in given and "split=valid" in command and command.count("samples=3") == 1
    assert "samples=1" not in command
    line = advice(rows(), [str(file), "sampling.eta=0"]).splitlines()[-1]
    assert shlex.split(line)[2:] == ["landmarks=none", "sampling.steps=9", "sampling.eta=0"]
    file.write_text("weights: w\nguided: {}\n")
    with pytest.raises(ValueError, match="guided: the sweep sets this itself"):
        arguments_of([str(file)])


def test_the_sweep_is_an_evaluation() -> None:
    command, tried = arguments_of(["weights=w.safetensors", "scales=[0.01, 1e-3]", "modes=spgd", "num=5"])
    assert tried == {"spgd-0p01": ("spgd", 0.01), "spgd-0p001": ("spgd", 0.001)}
    assert command[-4:-3] == ["num=5"]
    assert json.loads(command[-2].removeprefix("guided="))["model"] == {"mode": "off"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["num=4"], "weights: not given"),
        (["weights=w", "scales=[0]"], "scales: got 0, expected positive"),
        (["weights=w", "modes=[off]"], "modes: got False"),
        (["weights=w", "modes=best"], "modes: got 'best'"),
        (["weights=w", "models={}"], "models: the sweep sets this itself"),
    ],
)
def test_a_bad_sweep_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


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


def test_a_sweep_from_end_to_end(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_landmark_pairs(tmp_path / "pairs", train=3, valid=4)
    tiny_reader().save(tmp_path / "face.safetensors")
    tiny_reader("skull").save(tmp_path / "skull.safetensors")
    arguments = [
        *(f"weights={weights}", f"data.root={root}", "scales=[0.02,0.2]", "modes=[plain,spgd]", "num=3"),
        *("recognisers=[picture]", "size=64", "device=cpu", "precision=fp32", "sampling.steps=3"),
        *("landmark_weights=skull.safetensors", "spgd.face_landmark_weights=face.safetensors"),
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.count("spgd") >= 2 and "0.2" in said
    assert (tmp_path / "results/sweep/sweep.png").is_file()
    found = read_results(tmp_path / "results/sweep")
    names = [method.name for method in found.methods]
    assert names == ["model", "plain-0p02", "plain-0p2", "spgd-0p02", "spgd-0p2"]
    distances = [method.identification["picture"].distances for method in found.methods]
    assert len({distances[0], *distances}) == 5
    again = rows_of(found, arguments_of(arguments)[1])
    assert [len(row.gains) for row in again] == [3] * 5 and again[0].gains == (0.0, 0.0, 0.0)
    away = [np.array(found, dtype=float) for found in distances[:2]]
    assert again[1].gains == pytest.approx(away[1] - away[0])
    assert said.rstrip().endswith(advice(again, arguments))
    assert any("Guided: plain-0p02: plain by estimate, scale 0.02" in r for r in found.protocol.remarks)
