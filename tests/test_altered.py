"""Skulls altered while training: what each kind does, that landmarks and faces move along, and that runs continue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import train
from data.manifest import read_manifest
from ldm.checkpoint import read_state_dict
from muti_control.conditions.altered import MOST, Alteration, alteration_of, draw_alteration, moved_points
from muti_control.training.config import ExperimentConfig
from muti_control.training.landmark_pairs import LandmarkDataset
from muti_control.training.run import prepare
from muti_control.training.seeded_batches import EndlessBatches
from settings.messages import ConfigError
from settings.reading import parse_command_line
from tests.landmark_pairs import write_landmark_model, write_landmark_pairs
from tests.test_training import At, Crash, crash

SIZE = 256
DOTS = np.array([(80.3, 100.6), (170.2, 90.7), (128.9, 178.1)])  # px, x and y
Y, X = np.mgrid[:SIZE, :SIZE]
BALL = np.sqrt(np.clip(1 - ((X - 127.5) ** 2 + (Y - 127.5) ** 2) / 90**2, 0, 1)).astype(np.float32)[..., None]
FLAT = np.full((SIZE, SIZE, 1), 0.5, np.float32)


def with_dots() -> np.ndarray:
    squares = [(X - x) ** 2 + (Y - y) ** 2 for x, y in DOTS]
    return np.sum([np.exp(-square / (2 * 3.0**2)) for square in squares], 0).astype(np.float32)[..., None]


def dots_in(picture: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the centroids (N, 2) px of the dots near these places."""
    found = []
    for x, y in near:
        weight = picture[..., 0] * ((X - x) ** 2 + (Y - y) ** 2 < 14**2)
        found.append([(weight * X).sum() / weight.sum(), (weight * Y).sum() / weight.sum()])
    return np.array(found)


@pytest.mark.parametrize(
    ("amounts", "first"),
    [
        ({"right": 12.0}, (92.3, 100.6)),
        ({"down": -7.5}, (80.3, 93.1)),
        ({"turn": 6.0}, (77.7467, 105.6811)),  # counter-clockwise about (127.5, 127.5)
        ({"scale": 0.08}, (76.3688, 98.3596)),
        ({"right": -9.0, "down": 5.0, "turn": -6.0, "scale": -0.08}, (None, None)),
    ],
)
def test_landmarks_lie_on_the_features_that_moved(
    amounts: dict[str, float], first: tuple[float | None, float | None]
) -> None:
    alteration, picture = Alteration(amounts), with_dots()
    points = moved_points(
        torch.from_numpy((DOTS + 0.5) / SIZE), torch.from_numpy(alteration.points(SIZE)).double()
    )
    places = points.numpy() * SIZE - 0.5
    for moved in (alteration.skull(picture), alteration.moved(picture)):  # skull and face alike
        assert np.abs(dots_in(moved, places) - places).max() < 0.1
    if first[0] is not None:
        assert places[0] == pytest.approx(first, abs=2e-3)


def test_each_kind_does_what_it_says() -> None:
    def made(picture: np.ndarray, at: float = 0.0, **amounts: float) -> np.ndarray:
        return Alteration(amounts, at, seed=3).skull(picture)[..., 0]

    assert made(FLAT, gamma=0.5).mean() == pytest.approx(0.5 ** (2**0.5), abs=1e-4)
    assert made(FLAT, brightness=-0.2).mean() == pytest.approx(0.5 * np.exp(-0.2), abs=1e-4)
    noisy = made(FLAT, noise=0.05)
    assert (noisy.mean(), noisy.std()) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.05, abs=1e-3))
    falling = made(FLAT, falloff=4.0)
    assert falling[0, [0, 255]] == pytest.approx([0.3, 0.7], abs=1e-3) and np.ptp(falling, axis=0).max() == 0
    blurred, dot = made(with_dots(), blur=1.5), DOTS[0]
    near = (X - dot[0]) ** 2 + (Y - dot[1]) ** 2 < 14**2
    variance = (blurred * near * (X - dot[0]) ** 2).sum() / (blurred * near).sum()
    assert variance == pytest.approx(3.0**2 + 1.5**2, rel=0.02)
    stored = made(BALL, jpeg=60)
    assert 2e-4 < np.abs(stored - BALL[..., 0]).mean() < 0.01
    right, above = made(BALL, lamp=40.0), made(BALL, at=-np.pi / 2, lamp=40.0)
    assert right[127, 180] > 1.3 * right[127, 75] and above[75, 127] > 1.3 * above[180, 127]
    assert right[60, 127] == pytest.approx(right[195, 127], rel=0.05)
    for kind, (_, most) in MOST.items():  # the background stays black, and the picture's type and shape
        altered = Alteration({kind: most}, 1.0, 2).skull(BALL)
        assert altered.shape == BALL.shape and altered.dtype == np.float32
        assert altered.min() >= 0 and altered.max() <= 1 and not np.array_equal(altered, BALL)
        assert kind == "jpeg" or max(altered[:8].max(), altered[:, :8].max()) == 0


@pytest.mark.parametrize("mm", [2.4, 5.0])
def test_slices_are_so_thick_and_keep_the_mean(mm: float) -> None:
    ramp = (Y / SIZE).astype(np.float32)[..., None]
    sliced = Alteration({"slices": mm}, seed=1).skull(ramp)[20:-20, 0, 0]
    assert (
        np.abs(sliced - ramp[20:-20, 0, 0]).max() < 0.6 * mm / 280
    )  # half of a slice's rise, halved, and rounding
    steps = np.flatnonzero(np.diff(sliced) > 1.2 / SIZE)
    assert len(sliced) / len(steps) == pytest.approx(mm / 280 * SIZE, rel=0.05)
    across = (X / SIZE).astype(np.float32)[..., None]
    assert np.abs(Alteration({"slices": mm}).skull(across) - across).max() < 1e-4


def test_an_alteration_follows_from_name_pass_and_seed_within_its_ranges() -> None:
    assert alteration_of("a.png", 3, 1, 1.0) == alteration_of("a.png", 3, 1, 1.0)
    others = [
        alteration_of(*key) for key in (("a.png", 4, 1, 1.0), ("b.png", 3, 1, 1.0), ("a.png", 3, 2, 1.0))
    ]
    assert all(other != alteration_of("a.png", 3, 1, 1.0) for other in others)
    many = [draw_alteration(np.random.default_rng(k), 0.5, share=1.0) for k in range(300)]
    for kind, (low, high) in MOST.items():
        amounts = np.array([one.amounts[kind] for one in many]) / 0.5
        assert low <= amounts.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < amounts.max() <= high
    whole = np.mean([not alteration_of(f"{k}.png", 0, 0, 1.0).amounts for k in range(1000)])
    assert 0.16 < whole < 0.24


def test_another_pass_alters_a_skull_anew_and_off_changes_nothing(tmp_path: Path) -> None:
    root = write_landmark_pairs(tmp_path, train=3, valid=2)
    records = read_manifest(root / "split_data/train.json")
    plain, altered = (LandmarkDataset(records, "skull", 64, None, strength, 7) for strength in (0.0, 1.0))
    passes = [altered[2 + 3 * k] for k in range(4)]
    assert all(item["index"] == 2 for item in passes)
    assert len({item["picture"].numpy().tobytes() for item in passes}) >= 3
    for k, item in enumerate(passes):
        affine = torch.from_numpy(alteration_of(records[2].source, k, 7, 1.0).points(64))
        assert torch.equal(item["points"], moved_points(plain[2]["points"], affine))
    assert torch.equal(plain[2]["picture"], plain.picture(2)) and torch.equal(
        plain[5]["picture"], plain.picture(2)
    )
    counted = next(iter(EndlessBatches(3, 8, seed=0, count_passes=True)))
    assert [k // 3 for k in counted] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [k % 3 for k in counted] == next(iter(EndlessBatches(3, 8, seed=0)))


CONFIG = """
stage: control
name: whole
out: {root}/runs
init: {weights}
data: {{root: {root}, augment: 1.0}}
train: {{max_steps: 3, batch_size: 2, val_every: 100, save_every: 1, log_every: 1, num_valid: 2, device: cpu,
  precision: fp32, export: last}}
optim: {{lr: 1.0e-2, warmup_steps: 0}}
landmarks: {{dropout: 0.0}}
sampling: {{steps: 1, control_scales: [1.0]}}
"""


def test_the_control_stage_moves_faces_and_landmarks_along_and_continues_where_it_stopped(
    tmp_path: Path,
) -> None:
    root = write_landmark_pairs(tmp_path / "pairs", train=6, valid=2)
    write_landmark_model(root, 12)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root, weights=root / "model.safetensors"))
    assert train.main([str(config)]) == 0
    training = prepare(parse_command_line(ExperimentConfig, [str(config), "name=broken"]))
    training.trainer.callbacks.insert(0, At(2, crash))
    with pytest.raises(Crash):
        training.fit()
    assert train.main([str(config), "name=broken"]) == 0
    files = [read_state_dict(root / f"runs/{name}/model.safetensors")[0] for name in ("whole", "broken")]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    assert train.main([str(config), "name=broken", "data.augment=0.5", "train.max_steps=4"]) == 2

    stage = training.stage
    items = [stage.train_set[k] for k in (0, 1, 6, 7)]
    batch: dict[str, Tensor] = {
        name: torch.stack([item[name] for item in items]) for name in ("skull", "face", "affine")
    } | {"index": torch.tensor([item["index"] for item in items])}
    assert batch["index"].tolist() == [0, 1, 0, 1]
    assert not torch.equal(batch["skull"][0], batch["skull"][2])
    landmarks = stage.conditions_of(batch).landmarks
    plain = stage._landmarks["train"].known.points[batch["index"]]
    assert landmarks is not None and bool(landmarks.present.all())
    assert torch.equal(landmarks.points, moved_points(plain, batch["affine"]))
    assert not torch.equal(landmarks.points, plain)
    moments = stage.net.first_stage_model.encode(batch["face"])
    assert torch.allclose(stage.posterior_of(batch).mean, moments.mean)
    assert not torch.allclose(stage.posterior_of(batch).mean[0], stage.posterior_of(batch).mean[2])


def test_stages_that_read_no_skulls_refuse_it() -> None:
    for stage in ({"stage": "pix2pix"}, {"stage": "pipnet", "pipnet": {"role": "face"}}):
        with pytest.raises(ConfigError, match=r"data\.augment"):
            ExperimentConfig.of(name="x", data={"augment": 1.0}, **stage)
