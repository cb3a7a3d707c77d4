"""train.py with losses of the decoded face: whole runs, continued runs, several processes, the discriminator's file."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import train
from ldm.checkpoint import read_state_dict
from muti_control.losses.noise import noise_loss
from muti_control.networks.patchgan import PatchGan
from muti_control.training.config import ExperimentConfig
from muti_control.training.run import prepare
from settings.reading import parse_command_line
from tests.landmark_pairs import write_landmark_pairs
from tests.test_picture_losses import write_reader
from tests.test_training import At, Crash, crash

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
stage: control
name: whole
out: {root}/runs
init: {weights}
data: {{root: {root}}}
train: {{max_steps: 6, batch_size: 2, val_every: 100, save_every: 2, log_every: 1, num_valid: 2, accelerator: cpu,
  precision: 32-true, accumulate: 2, export: last}}
optim: {{lr: 1.0e-2, warmup_steps: 0}}
losses:
  gan: 0.2
  fm: 0.2
  lm: 0.3
  max_t: 500
  sub_batch: 1
  measure_every: 3
  pipnet: {root}/reader.safetensors
  discriminator: {{network: {{width: 8}}, optim: {{lr: 1.0e-3}}}}
sampling: {{steps: 2, control_scales: [1.0]}}
"""


@pytest.fixture
def arguments(weights: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """arguments("train.max_steps=3", ...): of train.py, for a run of six steps with all losses."""
    root = write_landmark_pairs(tmp_path / "pairs", train=6, valid=2)
    write_reader(root / "reader.safetensors")
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=root, weights=weights))
    return lambda *more: [str(tmp_path / "config.yaml"), *more]


def run_of(arguments: list[str]) -> Path:
    return parse_command_line(ExperimentConfig, arguments).run_dir


def test_a_continued_run_equals_an_unbroken_one_with_its_discriminator(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments()) == 0
    assert (
        "losses of the decoded face: gan 0.2, fm 0.2, lm 0.3 (of the noise loss's gradient)"
        in capsys.readouterr().out
    )
    training = prepare(parse_command_line(ExperimentConfig, arguments("name=broken")))
    training.trainer.callbacks.insert(0, At(7, crash))
    with pytest.raises(Crash):
        training.fit()
    assert train.main(arguments("name=broken", "losses.chunk=1", "losses.recompute=false")) == 0
    whole, broken = run_of(arguments()), run_of(arguments("name=broken"))
    for file in ("model.safetensors", "discriminator.safetensors"):
        (one, metadata), (other, _) = read_state_dict(whole / file), read_state_dict(broken / file)
        assert one.keys() == other.keys() and metadata["stage"] == "control"
        for name, value in one.items():
            assert torch.equal(value, other[name]), (file, name)
    first, last = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["loss_weights"]
        for run in (whole, broken)
    )
    assert first == last and set(first["norms"]) == {"noise", "gan", "fm", "lm"}
    fresh = PatchGan(PatchGan.load(whole / "discriminator.safetensors").cfg)
    trained = PatchGan.load(whole / "discriminator.safetensors").state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in fresh.state_dict().items())
    with (whole / "csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    terms = ("gan", "fm", "lm")
    logged = {
        "loss",
        "noise",
        "gated",
        *terms,
        *(f"{kind}_{term}" for kind in ("weight", "gradient") for term in terms),
    }
    assert {f"train/{name}" for name in logged} <= set(rows[-1])
    kinds = ("loss", "accuracy_real", "accuracy_fake")
    assert all(0 <= float(rows[-1][f"train/discriminator/{kind}"]) <= 1 for kind in kinds)
    assert train.main(arguments("name=broken", "losses.lm=0.4", "train.max_steps=7")) == 2
    assert "losses.lm: " in capsys.readouterr().err


def test_the_step_reads_in_four_files(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """From train.py to the noise loss: train.py, stage.py, control.py, noise.py. A flat skull effect is told once."""
    walks: list[set[Path]] = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code is noise_loss.__code__:
            files, at = set(), frame
            while at is not None:
                files.add(Path(at.f_code.co_filename))
                at = at.f_back  # type: ignore[assignment]
            walks.append(
                {f for f in files if f.is_relative_to(ROOT) and not f.is_relative_to(ROOT / "tests")}
            )

    watch = ("train.max_steps=2", "train.val_every=1", "watch.flat_after=1", "watch.flat_effect=1000000")
    sys.setprofile(profile)
    try:
        assert train.main(arguments(*watch)) == 0
    finally:
        sys.setprofile(None)
    (walk,) = {frozenset(walk) for walk in walks}
    walk = {f for f in walk if "site-packages" not in f.parts}
    assert {f.name for f in walk} == {"train.py", "stage.py", "control.py", "noise.py"} and len(walk) == 4
    assert capsys.readouterr().err.count("valid/skull_effect") == 1


def test_two_processes_agree(arguments: Callable[..., list[str]]) -> None:
    """Each decodes other samples, at times none; weights of networks and losses are the same in the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.picture_ranks", *arguments("train.max_steps=4", "losses.max_t=300")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = {rank: json.loads(text) for rank, text in re.findall(r"<(\d) (.*?)>", done.stdout)}
    assert set(told) == {"0", "1"}, done.stdout
    assert told["0"]["gated"] != told["1"]["gated"] and 0.0 in [*told["0"]["gated"], *told["1"]["gated"]]
    assert told["0"]["digest"] == told["1"]["digest"]
    assert told["0"]["weights"] == told["1"]["weights"] and all(told["0"]["weights"].values())


def test_what_is_missing_is_told(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train.main(arguments("losses.pipnet=none.safetensors", "losses.discriminator.init=d.safetensors"))
        == 2
    )
    message = capsys.readouterr().err
    assert (
        "losses.pipnet: none.safetensors not found" in message
        and "losses.discriminator.init: d.safet" in message
    )
    assert train.main(arguments("stage=base")) == 2
    assert (
        "losses: got {'gan': 0.2, 'fm': 0.2, 'lm': 0.3}, expected none: losses.* belong to the control stage"
        in capsys.readouterr().err
    )
    assert train.main(arguments("losses.min_t=1000", "losses.max_t=2000")) == 2
    assert "losses.min_t: got 1000, expected less than the model's 1000 steps" in capsys.readouterr().err
    assert not run_of(arguments()).exists()
