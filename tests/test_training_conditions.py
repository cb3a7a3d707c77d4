"""Landmarks and exemplars as conditions in training: how often each is used, and that its branch learns."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cldm.branches import BRANCHES, NAMES, untrained_metadata
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from cldm.texture import TextureError
from data.landmarks import PredictedLandmarks
from data.manifest import Record, read_manifest
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import LandmarkConfig, ModelConfig, TextureConfig
from muti_control.conditions.pair_landmarks import PairLandmarks
from muti_control.conditions.pair_textures import PairTextures, exemplar_features
from muti_control.training.config import ExperimentConfig, LandmarkConditionConfig, TextureConditionConfig
from muti_control.training.run import prepare
from muti_control.training.seeded_batches import generator
from settings.messages import ConfigError
from settings.reading import parse_command_line

NUM = 4
BRANCH = TextureConfig(patch_size=9, num_patches=8, width=8)


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
    small = ["train.num_valid=2", "train.max_steps=1", "train.batch_size=2", "train.precision=fp32"]
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


# ---------------------------------------------------------------- exemplars
def with_exemplars(root: Path, split: str, num: int | None = None) -> list[Record]:
    """The first ``num`` pairs of a split (default: all) lend their neighbour's face."""
    path = root / "split_data" / f"{split}.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    faces = [line["target"] for line in lines]
    for i, line in enumerate(lines[:num]):
        line["texture"] = faces[i - 1]
    path.write_text("\n".join(map(json.dumps, lines)))
    return read_manifest(path)


def test_exemplars_are_shown_as_often_as_asked_and_read_once(make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(train=8)
    records = with_exemplars(root, "train", 6)
    pairs = PairTextures(records, 64, BRANCH, TextureConditionConfig(dropout=0.3))
    assert str(pairs) == "texture exemplars of 6 of 8 pairs"
    index = torch.arange(8).repeat(1000)
    features = torch.stack([pairs.features(i) for i in range(8)])[index]
    shown = pairs.for_training(index, features, generator(0, 0, 0, "texture"))
    again = pairs.for_training(index, features, generator(0, 0, 0, "texture"))
    assert torch.equal(shown.present, again.present)
    assert float(shown.present[index < 6].float().mean()) == pytest.approx(0.7, abs=0.02)
    assert not shown.present[index >= 6].any()
    path = records[1].texture_path
    assert path is not None
    torch.testing.assert_close(pairs.features(1), exemplar_features(path, 64, BRANCH))
    path.unlink()  # is not read a second time
    at_sampling = pairs.for_validation(torch.tensor([1, 7]))
    assert at_sampling.present.tolist() == [True, False]
    torch.testing.assert_close(at_sampling.features[0], features[1])


def test_an_exemplar_without_skin_is_refused(make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(train=2, valid=2)
    bare = read_manifest(root / "split_data" / "valid.json")
    assert not PairTextures(bare, 64, BRANCH, TextureConditionConfig()).any
    with pytest.raises(TextureError, match=r"train_0\.png: the picture has 8 x 8 px"):
        exemplar_features(root / "pairedCS" / "craniofacial" / "train_0.png", 8, BRANCH)


# ---------------------------------------------------------------- training
@pytest.mark.parametrize("kind", ["landmarks", "texture"])
def test_the_branch_learns_and_its_effect_is_logged(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path], kind: str
) -> None:
    root = make_pairs(train=6, valid=2)
    for split in ("train", "valid"):
        (with_landmarks if kind == "landmarks" else with_exemplars)(root, split)
    branch = LandmarkConfig(num_points=NUM, widths=[8]) if kind == "landmarks" else BRANCH
    setattr(tiny_config.control, kind, branch)
    model = ControlledLatentDiffusion(tiny_config)
    for name, p in model.named_parameters():
        if not p.any() and not name.startswith(BRANCHES):
            torch.nn.init.normal_(p, std=0.2)
    write_state_dict(root / "ini.safetensors", model.state_dict(), model_metadata(tiny_config))
    settings = [
        *("stage=control", "name=b", f"out={root}/runs", f"init={root}/ini.safetensors", f"data.root={root}"),
        *("train.max_steps=4", "train.batch_size=2", "train.val_every=2", "train.num_valid=2"),
        *("train.device=cpu", "train.precision=fp32", "train.export=last", "optim.lr=1e-2"),
        *("optim.warmup_steps=0", "optim.ema_decay=0", "sampling.steps=2", "sampling.control_scales=[1.0]"),
        *("skull.dropout=0.5", "partial.share=0.5", "sampling.guidance_scale=1"),
    ]
    exported = prepare(parse_command_line(ExperimentConfig, settings)).fit()
    assert exported is not None
    end, start = read_state_dict(exported)[0], model.state_dict()
    for name in start:
        if name.startswith(BRANCHES):
            assert not torch.equal(end[name], start[name]), name
    (log,) = (root / "runs/b/csv").rglob("metrics.csv")
    column = "valid/texture_effect" if kind == "texture" else "valid/landmark_effect"
    effects = [float(row[column]) for row in csv.DictReader(log.open()) if row.get(column)]
    assert effects and all(effect > 0 for effect in effects)
