"""Exemplars as a condition in training: what is shown when, and that the branch learns from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cldm.branches import BRANCHES
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from cldm.texture import TextureError
from data.manifest import Record, read_manifest
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import ModelConfig, TextureConfig
from muti_control.conditions.pair_textures import PairTextures, exemplar_features
from muti_control.training.config import (
    DataConfig,
    ExperimentConfig,
    OptimConfig,
    PartialSkullConfig,
    SkullConditionConfig,
    TextureConditionConfig,
    TrainConfig,
)
from muti_control.training.run import prepare
from muti_control.training.seeded_batches import generator

BRANCH = TextureConfig(patch_size=9, num_patches=8, width=8)


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


def test_what_does_not_fit_is_told(make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(train=2, valid=2)
    bare = read_manifest(root / "split_data" / "valid.json")
    assert not PairTextures(bare, 64, BRANCH, TextureConditionConfig()).any
    with pytest.raises(TextureError, match=r"train_0\.png: the picture has 8 x 8 px"):
        exemplar_features(root / "pairedCS" / "craniofacial" / "train_0.png", 8, BRANCH)


def test_the_branch_learns_and_its_effect_is_logged(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path]
) -> None:
    root = make_pairs(train=6, valid=2)
    for split in ("train", "valid"):
        with_exemplars(root, split)
    tiny_config.control.texture = BRANCH
    torch.manual_seed(0)
    model = ControlledLatentDiffusion(tiny_config)
    for name, p in model.named_parameters():
        if not p.any() and not name.startswith(BRANCHES):
            torch.nn.init.normal_(p, std=0.2)
    init = root / "ini.safetensors"
    write_state_dict(init, model.state_dict(), model_metadata(tiny_config))
    cfg = ExperimentConfig(
        stage="control", name="with_texture", out=str(root / "runs"), init=str(init), data=DataConfig(root=str(root)),
        train=TrainConfig(max_steps=4, batch_size=2, val_every=2, save_every=4, num_valid=2, accelerator="cpu",
                          precision="32-true", export="last"),
        optim=OptimConfig(lr=1e-2, warmup_steps=0, ema_decay=0.0),
        skull=SkullConditionConfig(dropout=0.5), partial=PartialSkullConfig(share=0.5),
        sampling=SamplingConfig(steps=2, control_scales=[1.0], guidance_scale=1.0),
    )  # fmt: skip
    exported = prepare(cfg).fit()
    assert exported is not None
    end, start = read_state_dict(exported)[0], model.state_dict()
    for name in start:
        if name.startswith(BRANCHES):
            assert not torch.equal(end[name], start[name]), name
    logged = [
        row["valid/texture_effect"]
        for path in (cfg.run_dir / "csv").rglob("metrics.csv")
        for row in csv.DictReader(path.open())
        if row.get("valid/texture_effect")
    ]
    assert logged and all(float(value) > 0 for value in logged)
