"""The sweep of SPGD settings: an evaluation of several, and one line that recommends."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from evaluate import main
from muti_control.evaluation.protocol.config import EvaluateConfig, SweepConfig
from muti_control.evaluation.results.results_file import read_results
from muti_control.evaluation.sweep import Row, advice, best_of, rows_of, table
from settings.reading import parse_command_line
from tests.landmark_pairs import write_landmark_pairs
from tests.test_spgd_runs import tiny_reader


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
    settings = ["spgd.gradient=denoiser", "spgd.scale=1", "texture=a face.png"]
    settings += ["sampling.steps=9", "sampling.eta=0.5"]
    cfg = parse_command_line(EvaluateConfig, ["weights=w", *settings])
    line = advice(rows(), cfg, {"eta": 0.5}).splitlines()[-1]
    assert shlex.split(line) == [
        *("spgd.mode=spgd", "spgd.scale=0.01", "spgd.gradient=denoiser"),
        *("sampling.steps=9", "texture=a face.png"),
    ]
    assert "16 probes, 6 settings tried" in advice(rows(), cfg, {})
    assert best_of(rows()[:1]) is None and "spgd.mode=off" in advice(rows()[:1], cfg, {})
    assert [line.split()[0] for line in table(rows()).splitlines()[1:]] == [row.mode for row in rows()]


def test_more_settings_need_more_evidence() -> None:
    """A gain of 2.5 standard errors is enough for one setting (1.96) and not for eight (2.73)."""
    free = Row("off", 0.0, 0.5, 0.4, 4.0, 0.0, 0)
    values = tuple(-2.5 / 4 + sign * math.sqrt(15 / 16) for sign in (-1, 1)) * 8  # standard error 1/4
    # a KID of 0.08 where unguided has 0: below the floor
    own = Row("spgd", 0.01, 0.5, 0.3, 4.0, 0.08, 0, values)
    tried = [replace(own, scale=0.01 * k) for k in range(1, 9)]
    assert best_of([free, *tried[:1]]) is tried[0]
    assert best_of([free, *tried]) is None
    assert best_of([free, replace(tried[0], realism=0.2)]) is None


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["sweep={}"], "weights: "),
        (["weights=w", "sweep.scales=[0]"], "sweep.scales"),
        (["weights=w", "sweep.modes=[]"], "sweep.modes"),
        (["weights=w", "sweep={}", "models={a: w}"], "models: "),
    ],
)
def test_a_bad_sweep_names_its_key(arguments, key, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"evaluate.py: {key}")


def test_a_sweep_from_end_to_end(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_landmark_pairs(tmp_path / "pairs", train=3, valid=4)
    tiny_reader().save(tmp_path / "face.safetensors")
    tiny_reader("skull").save(tmp_path / "skull.safetensors")
    sweep = SweepConfig(scales=[0.02, 0.2], modes=["plain"])
    arguments = [
        str(ROOT / "configs/evaluate/sweep.yaml"),
        f"weights={weights}",
        f"data.root={root}",
        "num_probes=3",
    ]
    arguments += ["sweep.scales=[0.02,0.2]", "sweep.modes=[plain]", "recognisers=[picture]", "size=64"]
    arguments += ["device=cpu", "precision=fp32", "landmark_weights=skull.safetensors", "sampling.steps=3"]
    arguments += ["spgd.face_landmark_weights=face.safetensors"]
    assert main(arguments) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert (tmp_path / "results/sweep/sweep.svg").is_file()
    results = read_results(tmp_path / "results/sweep")
    names = [method.name for method in results.methods]
    assert names == ["model", "plain-0p02", "plain-0p2"]
    distances = [method.identification["picture"].distances for method in results.methods]
    assert len(set(distances)) == 3
    again = rows_of(results, sweep)
    assert [len(row.gains) for row in again] == [3] * 3 and again[0].gains == (0.0, 0.0, 0.0)
    away = [np.array(own, dtype=float) for own in distances[:2]]
    assert again[1].gains == pytest.approx(away[1] - away[0])
    assert table(again) in output and "2 settings tried" in output
    assert any("Guided: plain-0p02: plain by estimate, scale 0.02" in r for r in results.protocol.remarks)
