"""benchmarks.model.denoising: the error of the clean latent, by step and by what the model is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.model.denoising import SHOWN, main
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from data.manifest import read_manifest
from data.paired import PairedDataset
from ldm.checkpoint import write_state_dict
from ldm.latent_diffusion import ModelConfig
from ldm.schedule import ScheduleConfig


def measured(arguments: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of the only run, by what was shown and by step."""
    assert main(arguments) == 0
    out = next(a.removeprefix("out=") for a in arguments if a.startswith("out="))
    (run,) = json.loads(Path(out).read_text())["runs"]
    return run["errors"]


def test_a_model_that_puts_out_zeros_has_the_error_that_follows(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    """v = 0 makes sqrt(abar) x_t the clean latent; z and the noise are independent, so the error is known but for
    their product. Its last layer is at zero, so nothing that is shown matters.
    """
    root = make_pairs(valid=6)
    tiny_config.schedule = ScheduleConfig(prediction="v")
    model = ControlledLatentDiffusion(tiny_config)
    write_state_dict(tmp_path / "zero.safetensors", model.state_dict(), model_metadata(tiny_config))
    arguments = [f"data.root={root}", "data.splits=[valid]", f"weights=[{tmp_path / 'zero.safetensors'}]"]
    found = measured([*arguments, "steps=[0, 999]", "num=6", "batch_size=6", f"out={tmp_path / 'a.json'}"])
    assert found["own"] == found["another's"] == found["none"]
    model, _ = load_model(tmp_path / "zero.safetensors")
    pairs = PairedDataset(read_manifest(root / "split_data/valid.json"), size=64)
    z = model.encode_first_stage(torch.stack([pairs.face(i) for i in range(6)]), sample=False)
    abar = float(model.alphas_cumprod[999])
    expected = (1 - abar) ** 2 * float(z.square().mean()) + abar * (1 - abar)
    assert found["own"]["999"]["mean"] == pytest.approx(expected, rel=0.05)
    assert found["own"]["0"]["mean"] < 0.01


def test_conditions_and_steps_are_told_apart(
    weights: Path, make_pairs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pairs(train=4, valid=4)
    arguments = [f"data.root={root}", f"weights=[{weights}]", "steps=[800, 100]", "num=4", "batch_size=3"]
    found = measured([*arguments, "data.splits=[valid]", f"out={tmp_path / 'a.json'}"])
    assert len({found[name]["800"]["mean"] for name in SHOWN}) == 3
    assert found["own"]["800"]["mean"] != found["own"]["100"]["mean"]
    one = measured([*arguments, "num=3", "data.splits=[valid]", f"out={tmp_path / 'c.json'}"])
    assert one["own"] != one["another's"]
    capsys.readouterr()
    assert main([*arguments, f"out={tmp_path / 'b.json'}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [line.split(" | ")[1:3] for line in lines] == [[s, n] for s in ("train", "valid") for n in SHOWN]


def test_what_cannot_be_measured_is_told(
    weights: Path, make_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pairs(train=4, valid=4, test=1)
    good = {"data.root": str(root), "weights": f"[{weights}]"}
    for key, value, message in (
        ("num", "1", "num: got 1, expected at least 2"),
        ("steps", "[]", "steps: got an empty list"),
        ("steps", "[1000]", f"steps: got 1000, but {weights} has steps 0 to 999"),
        ("weights", "[no.safetensors]", "no.safetensors"),
        ("data.splits", "[test]", "test lists one pair, expected at least two"),
        ("data.root", "nowhere", "nowhere"),
    ):
        assert main([f"{k}={v}" for k, v in {**good, key: value}.items()]) == 2
        assert message in capsys.readouterr().err
