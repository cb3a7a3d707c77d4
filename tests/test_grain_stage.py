"""The grain stage: it trains the head alone, and what it writes is the model it began with and a head."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from cldm.controlled import load_model, model_metadata
from cldm.texture import NUM_FEATURES
from ldm.autoencoder import GRAIN
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import TextureConfig
from ldm.grain import LAGS
from muti_control.conditions.pair_textures import exemplar_features
from muti_control.losses.config import GrainStageConfig
from muti_control.training.config import DataConfig, ExperimentConfig, TrainConfig
from muti_control.training.run import build_stage
from muti_control.training.stages.grain import GrainStage, correlation

SETTINGS = (
    "train.batch_size=4", "train.num_valid=4", "train.val_every=1000", "train.device=cpu",
    "train.precision=fp32", "optim.lr=1e-2", "optim.warmup_steps=1", "optim.ema_decay=0.5",
    "grain.filters=3", "grain.crop_size=48", "grain.crops=2",
)  # fmt: skip


STYLES = (6, 14, 22, 30)  # grey levels


@pytest.fixture
def grainy(make_pairs: Callable[..., Path]) -> Path:
    """Pairs whose faces have grain, more of it from face to face."""
    root = make_pairs(train=8, valid=8)
    rng = np.random.default_rng(1)
    for k, name in enumerate(sorted_faces(root)):
        pixels = 128 + STYLES[k % 4] * rng.standard_normal((64, 64))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "pairedCS/craniofacial" / name)
    return root


def sorted_faces(root: Path) -> list[str]:
    """Names of all faces; the style of the k-th is STYLES[k % 4]."""
    return sorted(path.name for path in (root / "pairedCS/craniofacial").iterdir())


@pytest.fixture
def flat(weights: Path, tmp_path: Path) -> Path:
    """A model whose decoder draws hardly anything, as one does that was trained on the error by pixels alone."""
    state, metadata = read_state_dict(weights)
    key = "first_stage_model.decoder.conv_out."
    state |= {key + name: 0.02 * state[key + name] for name in ("weight", "bias")}
    write_state_dict(tmp_path / "flat.safetensors", state, metadata)
    return tmp_path / "flat.safetensors"


def arguments(root: Path, init: Path, *more: str) -> list[str]:
    (root / "config.yaml").write_text("stage: grain\nname: g\n", encoding="utf-8")
    paths = [f"init={init}", f"data.root={root}", f"out={root / 'runs'}"]
    return [str(root / "config.yaml"), *SETTINGS, *paths, *more]


def test_the_gradient_reaches_the_head_alone(grainy: Path, weights: Path) -> None:
    cfg = ExperimentConfig(
        stage="grain",
        name="g",
        out=str(grainy / "runs"),
        init=str(weights),
        data=DataConfig(root=str(grainy)),
        train=TrainConfig(batch_size=2, num_valid=2, precision="fp32"),
        grain=GrainStageConfig(filters=3, crop_size=48, crops=2),
    )
    stage = build_stage(cfg)
    assert isinstance(stage, GrainStage) and not stage.head.measured
    stage.head.measure(stage.summaries(8))
    with torch.no_grad():
        for p in stage.head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])
    assert batch.keys() == {"face", "index"}
    loss = stage.loss_of(batch)["loss"]
    assert torch.equal(loss, stage.loss_of(batch)["loss"])  # the draws are those of the step
    loss.backward()
    for name, p in stage.net.named_parameters():
        if name.startswith(GRAIN):
            assert p.grad is not None and p.grad.abs().max() > 0, name
        else:
            assert p.grad is None and not p.requires_grad, name


def test_training_gives_the_model_it_began_with_and_a_head_that_helps(grainy: Path, flat: Path) -> None:
    assert train.main(arguments(grainy, flat, "train.max_steps=40", "train.val_every=20")) == 0
    run = grainy / "runs/g"
    with (run / "csv/version_0/metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("valid/texture")]
    last = {key: float(value) for key, value in rows[-1].items() if key.startswith("valid/")}
    assert last["valid/texture"] < 0.5 * last["valid/texture_without"], last
    assert abs(last["valid/bias"]) < abs(last["valid/bias_without"]), last
    assert len(list((run / "images").glob("true_decoded_grain_*.png"))) == 2
    before, metadata = read_state_dict(flat)
    after, known = read_state_dict(run / "model.safetensors")
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(after[key].dtype == value.dtype for key, value in before.items())
    assert {key for key in after if key not in before} == {key for key in after if key.startswith(GRAIN)}
    assert {key for key in metadata if known[key] != metadata[key]} == {"config"}
    assert json.loads(known["grain"])["step"] in (20, 40)
    model, _ = load_model(run / "model.safetensors")
    head = model.first_stage_model.grain
    assert head is not None and head.measured and len(head.filters.weight) == 3
    # Another stage takes it as it is, and a second run goes on from its head.
    again = arguments(grainy, run / "model.safetensors", "name=again", "train.max_steps=1")
    assert train.main(again) == 0
    later, _ = read_state_dict(grainy / "runs/again/model.safetensors")
    assert torch.equal(later[f"{GRAIN}deviation"], after[f"{GRAIN}deviation"])
    assert not torch.equal(later[f"{GRAIN}filters.weight"], after[f"{GRAIN}filters.weight"])
    base = [arg for arg in again if not arg.startswith(("grain.", "name="))]
    base += ["stage=base", "name=base", "sampling.steps=2", "sampling.control_scales=[1.0]"]
    assert train.main(base) == 0
    based, _ = read_state_dict(grainy / "runs/base/model.safetensors")
    assert all(torch.equal(based[key], after[key]) for key in after if key.startswith("first_stage_model."))


def test_the_head_learns_to_follow_exemplars(grainy: Path, flat: Path) -> None:
    """Two exemplars that differ in grain, one face: the rougher one makes the rougher picture."""
    for split in ("train", "valid"):
        path = grainy / "split_data" / f"{split}.json"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        names = sorted(line["target"] for line in lines)
        style = {name: STYLES[sorted_faces(grainy).index(name) % 4] for name in names}
        for line in lines:  # another's face of the same style
            same = [name for name in names if style[name] == style[line["target"]]]
            line["texture"] = same[(same.index(line["target"]) + 1) % len(same)]
        path.write_text("\n".join(map(json.dumps, lines)))
    more = ("train.max_steps=60", "train.val_every=60", "grain.exemplars=0.7")
    assert train.main(arguments(grainy, flat, *more)) == 0
    run = grainy / "runs/g"
    with (run / "csv/version_0/metrics.csv").open(encoding="utf-8") as file:
        last = [row for row in csv.DictReader(file) if row.get("valid/texture")][-1]
    assert float(last["valid/texture_exemplar"]) < 0.5 * float(last["valid/texture_without"]), last
    model, _ = load_model(run / "model.safetensors")
    assert model.cfg.first_stage.grain_exemplar == NUM_FEATURES
    paths = [grainy / "pairedCS/craniofacial" / name for name in sorted_faces(grainy)]
    asked = torch.stack([exemplar_features(path, 64, TextureConfig()) for path in paths[:4]])
    z = torch.zeros(1, 4, 8, 8).expand(4, -1, -1, -1)
    with torch.no_grad():
        drawn = model.draw(z, [0] * 4, exemplars=asked, present=torch.ones(4, dtype=torch.bool))
        mean = model.draw(z, [0] * 4, grain=False)
    strength = (drawn - mean).flatten(1).std(1).tolist()
    assert strength == sorted(strength) and strength[3] > 1.5 * strength[0], strength


def test_a_base_model_in_half_precision_keeps_its_tensors(grainy: Path, weights: Path) -> None:
    state, metadata = read_state_dict(weights)
    base = {
        key: value.half()
        for key, value in state.items()
        if key.startswith(("model.", "first_stage_model.", "cond_stage_model."))
    }
    write_state_dict(grainy / "base.safetensors", base, metadata)
    more = ("train.max_steps=1", "train.export_dtype=float16")
    assert train.main(arguments(grainy, grainy / "base.safetensors", *more)) == 0
    after, _ = read_state_dict(grainy / "runs/g/model.safetensors")
    assert all(
        torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in base.items()
    )
    assert after[f"{GRAIN}filters.weight"].dtype == torch.float16
    assert after[f"{GRAIN}mean"].dtype == torch.float32


def test_a_broken_off_run_goes_on_as_if_it_had_not_been(grainy: Path, weights: Path) -> None:
    settings = arguments(grainy, weights, "train.save_every=2")
    assert train.main([*settings, "train.max_steps=4", "name=whole"]) == 0
    for steps in (2, 4):
        assert train.main([*settings, f"train.max_steps={steps}", "name=parts"]) == 0
    whole, parts = (
        read_state_dict(grainy / "runs" / name / "model.safetensors")[0] for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_correlation_is_that_of_numpy() -> None:
    one, other = torch.randn(9, len(LAGS)), torch.randn(9, len(LAGS))
    expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T.numpy(), other.T.numpy(), strict=True)])
    assert correlation(one, other) == pytest.approx(float(expected), abs=1e-5)
    assert correlation(one, torch.ones(9, len(LAGS))) == 0


def test_another_head_and_missing_exemplars_are_refused(
    grainy: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = load_model(weights)
    cfg = model.cfg.with_(first_stage=model.cfg.first_stage.with_(grain=5))
    write_state_dict(grainy / "five.safetensors", read_state_dict(weights)[0], model_metadata(cfg))
    for setting, message in (
        (f"init={grainy / 'five.safetensors'}", "grain.filters: got 3"),
        ("grain.exemplars=0.5", "grain.exemplars: got 0.5"),
    ):
        assert train.main([*arguments(grainy, weights), setting]) == 2
        assert message in capsys.readouterr().err and not (grainy / "runs").exists()
