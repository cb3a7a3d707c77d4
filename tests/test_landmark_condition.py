"""Landmarks as a condition in training: what is shown when, and that the branch learns from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cldm.branches import BRANCHES, NAMES, untrained_metadata
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from data.manifest import Record, read_manifest
from data.predicted_landmarks import PredictedLandmarks
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import LandmarkConfig, ModelConfig, TextureConfig
from muti_control.conditions.pair_landmarks import PairLandmarks
from muti_control.training.config import (
    DataConfig,
    ExperimentConfig,
    LandmarkConditionConfig,
    OptimConfig,
    TrainConfig,
)
from muti_control.training.run import prepare
from muti_control.training.seeded_batches import generator
from settings.messages import ConfigError
from settings.reading import parse_command_line

NUM = 4


def with_landmarks(root: Path, split: str) -> list[Record]:
    """Give every pair of a split known landmarks at (i, j) px."""
    folder, lines = root / "pairedCS" / "landmarks", []
    folder.mkdir(exist_ok=True)
    path = root / "split_data" / f"{split}.json"
    for i, line in enumerate(path.read_text().splitlines()):
        name = f"{split}_{i}.json"
        (folder / name).write_text(json.dumps({"points": [[10 + 5 * i, 10 + 9 * k] for k in range(NUM)]}))
        lines.append(json.dumps(json.loads(line) | {"landmarks": f"landmarks/{name}"}))
    path.write_text("\n".join(lines))
    return read_manifest(path)


def predict(path: Path, records: list[Record], num: int = NUM) -> str:
    """A file of predictions, all at the picture's centre with confidence 0.5."""
    shape = (len(records), num)
    names = [record.source for record in records], [record.target or "" for record in records]
    PredictedLandmarks(
        *names,
        np.full((*shape, 2), 0.5, np.float32),
        np.full(shape, 0.5, np.float32),
        np.zeros(len(records), np.int64),
    ).write(path)
    return str(path)


def test_known_predicted_and_absent_ones_are_shown_as_often_as_asked(make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(train=8)
    records = with_landmarks(root, "train")
    cfg = LandmarkConditionConfig(
        predicted=[predict(root / "p.npz", records[:6])], known_share=0.25, dropout=0.4
    )
    pairs = PairLandmarks(records, NUM, cfg)
    assert str(pairs) == "landmarks of 8 pairs: 8 known, 6 predicted"
    index = torch.arange(8).repeat(2000)
    shown = pairs.for_training(index, generator(0, 0, 0, "landmarks"))
    again = pairs.for_training(index, generator(0, 0, 0, "landmarks"))
    assert torch.equal(shown.points, again.points) and torch.equal(shown.present, again.present)
    assert float(shown.present.float().mean()) == pytest.approx(0.6, abs=0.02)
    known = shown.confidence[:, 0] == 1
    assert float(known[index < 6].float().mean()) == pytest.approx(0.25, abs=0.02)
    assert bool(known[index >= 6].all())  # where there is no prediction
    torch.testing.assert_close(shown.points[known][0, 0, 1], torch.tensor(10.5 / 64))
    assert bool((shown.points[~known] == 0.5).all())
    at_sampling = pairs.for_validation(torch.arange(8))
    assert at_sampling.present.all()
    assert (at_sampling.confidence[:, 0] == 1).tolist() == [False] * 6 + [True] * 2


def test_what_does_not_fit_is_told(make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(train=2, valid=2)
    bare = read_manifest(root / "split_data" / "valid.json")
    without = PairLandmarks(bare, NUM, LandmarkConditionConfig())
    assert (
        not without.any
        and not without.for_training(torch.arange(2), generator(0, 0, 0, "landmarks")).present.any()
    )
    records = with_landmarks(root, "train")
    with pytest.raises(ConfigError, match="4 points, but the model's landmark branch was made for 7"):
        PairLandmarks(records, 7, LandmarkConditionConfig())
    wrong = predict(root / "p.npz", records, num=3)
    with pytest.raises(ConfigError, match="3 points, but the model's"):
        PairLandmarks(records, NUM, LandmarkConditionConfig(predicted=[wrong]))


@pytest.mark.parametrize("with_data", [False, True])
def test_a_branch_without_data_stays_untrained_and_one_with_data_does_not(
    tiny_config: ModelConfig,
    make_pairs: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    with_data: bool,
) -> None:
    root = make_pairs(train=2, valid=2)
    if with_data:
        with_landmarks(root, "train")
    tiny_config.control.landmarks = LandmarkConfig(num_points=NUM, widths=[8])
    tiny_config.control.texture = TextureConfig(width=8)
    init = root / "ini.safetensors"
    metadata = model_metadata(tiny_config) | untrained_metadata(NAMES)
    write_state_dict(init, ControlledLatentDiffusion(tiny_config).state_dict(), metadata)
    common = ["stage=control", "name=bare", f"out={root / 'runs'}", f"init={init}", f"data.root={root}"]
    small = ["train.num_valid=2", "train.max_steps=1", "train.batch_size=2", "train.precision=32-true"]
    training = prepare(
        parse_command_line(
            ExperimentConfig, [*common, *small, "sampling.control_scales=[1.0]", "sampling.steps=1"]
        )
    )
    warnings = capsys.readouterr().err
    assert ("landmarks.predicted" in warnings) != with_data
    assert warnings.count("'texture' field") == 1
    exported = training.fit()
    assert exported is not None
    model, _ = load_model(exported)
    assert model.untrained_branches == ({"texture"} if with_data else {"texture", "landmarks"})
    assert not model.control_model.branches["texture"].encoder[-1].weight.any()


def test_the_branch_learns_and_its_effect_is_logged(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path]
) -> None:
    root = make_pairs(train=6, valid=2)
    for split in ("train", "valid"):
        with_landmarks(root, split)
    tiny_config.control.landmarks = LandmarkConfig(num_points=NUM, widths=[8])
    torch.manual_seed(0)
    model = ControlledLatentDiffusion(tiny_config)
    for name, p in model.named_parameters():
        if not p.any() and not name.startswith(BRANCHES):
            torch.nn.init.normal_(p, std=0.2)
    init = root / "ini.safetensors"
    write_state_dict(init, model.state_dict(), model_metadata(tiny_config))
    cfg = ExperimentConfig(
        stage="control", name="with_landmarks", out=str(root / "runs"), init=str(init), data=DataConfig(root=str(root)),
        train=TrainConfig(max_steps=4, batch_size=2, val_every=2, save_every=4, num_valid=2, accelerator="cpu",
                          precision="32-true", export="last"),
        optim=OptimConfig(lr=1e-2, warmup_steps=0, ema_decay=0.0),
        sampling=SamplingConfig(steps=2, control_scales=[1.0], guidance_scale=1.0),
    )  # fmt: skip
    exported = prepare(cfg).fit()
    assert exported is not None
    end, start = read_state_dict(exported)[0], model.state_dict()
    for name in start:
        if name.startswith(BRANCHES):
            assert not torch.equal(end[name], start[name]), name
    logged = [
        row["valid/landmark_effect"]
        for path in (cfg.run_dir / "csv").rglob("metrics.csv")
        for row in csv.DictReader(path.open())
        if row.get("valid/landmark_effect")
    ]
    assert logged and all(float(value) > 0 for value in logged)
