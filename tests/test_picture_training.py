"""Whole runs with losses of the decoded face: continued, on two processes, with the discriminator's file."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

import train
from ldm.checkpoint import read_state_dict
from muti_control.training.config import ExperimentConfig
from muti_control.training.run import prepare
from settings.reading import parse_command_line
from tests.landmark_pairs import write_landmark_pairs
from tests.ranks import train_both
from tests.test_picture_losses import write_reader
from tests.test_training import At, Crash, crash
from tests.tiny_stages import train_gated

ROOT = Path(__file__).resolve().parent.parent
Arguments = Callable[..., list[str]]
CONFIG = """
stage: control
name: whole
out: {root}/runs
init: {weights}
data: {{root: {root}}}
train: {{max_steps: 6, batch_size: 2, val_every: 100, save_every: 2, log_every: 1, num_valid: 2, device: cpu,
  precision: fp32, accumulate: 2, export: last}}
optim: {{lr: 1.0e-2, warmup_steps: 0}}
losses: {{gan: 0.2, fm: 0.2, lm: 0.3, max_t: 500, sub_batch: 1, measure_every: 3, pipnet: {root}/reader.safetensors,
  discriminator: {{network: {{width: 8}}, optim: {{lr: 1.0e-3}}}}}}
sampling: {{steps: 2, control_scales: [1.0]}}
"""


@pytest.fixture
def arguments(weights: Path, tmp_path: Path) -> Arguments:
    """arguments("train.max_steps=3", ...): of train.py, for a run of six steps with all losses."""
    root = write_landmark_pairs(tmp_path / "pairs", train=6, valid=2)
    write_reader(root / "reader.safetensors")
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=root, weights=weights))
    return lambda *more: [str(tmp_path / "config.yaml"), *more]


def test_a_continued_run_equals_an_unbroken_one_with_its_discriminator(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments()) == 0
    training = prepare(parse_command_line(ExperimentConfig, arguments("name=broken")))
    training.trainer.callbacks.insert(0, At(7, crash))
    with pytest.raises(Crash):
        training.fit()
    assert train.main(arguments("name=broken", "losses.chunk=1", "losses.recompute=false")) == 0
    whole, broken = (tmp_path / "pairs/runs" / name for name in ("whole", "broken"))
    for file in ("model.safetensors", "discriminator.safetensors"):
        (one, metadata), (other, _) = read_state_dict(whole / file), read_state_dict(broken / file)
        assert one.keys() == other.keys() and metadata["stage"] == "control"
        assert all(torch.equal(value, other[name]) for name, value in one.items()), file
    saved = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, broken)]
    assert saved[0]["loss_weights"] == saved[1]["loss_weights"]
    assert set(saved[0]["loss_weights"]["norms"]) == {"noise", "gan", "fm", "lm"}
    with (whole / "csv/version_0/metrics.csv").open() as file:
        *_, row = csv.DictReader(file)
    columns = [f"{kind}{term}" for kind in ("", "weight_", "gradient_") for term in ("gan", "fm", "lm")]
    assert {f"train/{name}" for name in ("loss", "noise", "gated", *columns)} <= set(row)
    kinds = ("loss", "accuracy_real", "accuracy_fake")
    assert all(0 <= float(row[f"train/discriminator/{kind}"]) <= 1 for kind in kinds)
    assert train.main(arguments("name=broken", "losses.lm=0.4", "train.max_steps=7")) == 2
    assert "losses.lm: " in capsys.readouterr().err


def test_a_skull_without_effect_gives_one_warning(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ("watch.flat_after=1", "watch.flat_effect=1000000")
    assert train.main(arguments("train.max_steps=2", "train.val_every=1", *watch)) == 0
    assert capsys.readouterr().err.count("valid/skull_effect") == 1


def test_two_processes_take_the_steps_of_one(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gates differ between ranks; weights, losses and scores are those of one process, or the same in both.

    The variables are torchrun's; this process is the first one.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"TORCHELASTIC_RUN_ID": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    settings = arguments("train.max_steps=3", "losses.max_t=300")
    command = [sys.executable, "-m", "tests.ranks", str(tmp_path), *settings]
    environment = os.environ | variables | {"RANK": "1", "LOCAL_RANK": "1"}
    with (
        patch.dict(os.environ, variables | {"RANK": "0", "LOCAL_RANK": "0"}),
        subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as second,
    ):
        try:
            one = train_both(tmp_path, settings)
        finally:
            dist.destroy_process_group()
        errors = second.communicate(timeout=60)[1]
    assert second.returncode == 0, errors
    other, output = json.loads(errors.splitlines()[-1]), capsys.readouterr().out
    assert one["unused"] != other["unused"]
    assert one["gated"] != other["gated"] and 0.0 in [*one["gated"], *other["gated"]]
    assert one["digest"] == other["digest"]
    assert one["weights"] == other["weights"] and all(one["weights"].values())
    assert "2 processes" in output and output.count("finished; exported step 3") == 1
    assert train_gated(tmp_path, "single", batch_size=2, accumulate=2).unused < 12
    runs = [tmp_path / name for name in ("joint", "single")]
    joint, single = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs)
    assert (joint["world_size"], single["world_size"]) == (2, 1)
    for name, value in single["state_dict"].items():
        assert torch.allclose(joint["state_dict"][name], value, rtol=1e-5, atol=1e-7), name
    logs = [list(csv.DictReader((run / "csv/version_0/metrics.csv").open())) for run in runs]
    for key in ("train/loss", "valid/error"):
        ours, expected = ([float(row[key]) for row in log if row.get(key)] for log in logs)
        assert ours == pytest.approx(expected, rel=1e-4), key
    assert len(list((runs[0] / "checkpoints").glob("best-*.ckpt"))) == 2


def test_files_that_are_missing_are_named(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments("losses.pipnet=none", "losses.discriminator.init=d")) == 2
    message = capsys.readouterr().err
    assert "losses.pipnet: " in message and "losses.discriminator.init: " in message
    assert train.main(arguments("losses.min_t=1000", "losses.max_t=2000")) == 2
    assert "losses.min_t: got 1000" in capsys.readouterr().err
    assert not (tmp_path / "pairs/runs/whole").exists()
