"""What PIPNet's training is made of: mean face, flip table, augmentation, measures, the stage and its command lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import landmarks
from data.landmarks import PredictedLandmarks, landmark_fractions
from data.manifest import read_manifest
from muti_control.networks.config import AugmentConfig
from muti_control.networks.pipnet import export, meanface
from muti_control.networks.pipnet.augment import augment
from muti_control.networks.pipnet.meanface import flip_table, mean_face, neighbours, read_meanface
from muti_control.networks.pipnet.measures import ced, ced_area, eye_corners, nme
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training import crossfit
from muti_control.training.landmark_pairs import LandmarkDataset, fold_of
from muti_control.training.seeded_batches import generator
from tests.landmark_pairs import CORNERS, LAYOUT, MIRRORED, picture_of, write_landmark_pairs

STILL = AugmentConfig(**dict.fromkeys(vars(AugmentConfig()), 0.0))
TINY = [
    "train.batch_size=4", "train.num_valid=4", "train.save_every=2", "train.val_every=4",
    "train.device=cpu", "optim.lr=2e-3", "optim.warmup_steps=1", "optim.ema_decay=0.5", "pipnet.eye_corners=[0,3]",
    "pipnet.network.image_size=64", "pipnet.network.width=0.125", "pipnet.network.num_neighbours=4",
]  # fmt: skip


# ---------------------------------------------------------------- mean face
def test_neighbours_and_who_speaks_of_whom():
    mean = np.array([[0.0, 0.0], [0.1, 0.0], [0.25, 0.0], [1.0, 0.0]])
    nearest = neighbours(mean, 2)
    assert nearest.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    # of point 0 speak 1 (first) and 2 (second); of 1 speak 0, 2, 3; of 2: 0, 1, 3; of 3 nobody
    assert meanface.reverse_index(nearest).tolist() == [[2, 5, 2], [0, 4, 7], [1, 3, 6], [-1, -1, -1]]
    assert neighbours(np.zeros((3, 2)), 2).tolist() == [[1, 2], [0, 2], [0, 1]], "none is its own neighbour"
    with pytest.raises(ValueError, match="expected 1 to 3"):
        neighbours(mean, 4)


def test_flip_table_is_right_for_a_face_in_any_place_and_order():
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(len(LAYOUT))
        shown = LAYOUT[order] * 0.7 + rng.uniform(0, 0.2, 2) + rng.normal(0, 0.002, LAYOUT.shape)
        table = flip_table(shown)
        assert [order[i] for i in table] == [MIRRORED[i] for i in order]
        assert (table[table] == np.arange(len(table))).all()


def test_flip_table_of_the_shipped_pairs_is_that_of_their_layout():
    root = Path(__file__).resolve().parent.parent / "data"
    records = read_manifest(root / "split_data" / "train.json")
    table = flip_table(mean_face(np.stack([landmark_fractions(r)[0] for r in records])))
    assert table[:33].tolist() == list(range(32, -1, -1)), "the contour, from ear to ear"
    assert set(table[33:42]) == set(range(42, 51)) and set(table[66:75]) == set(range(75, 84)), "brows, eyes"
    assert table[66] == 79 and table[70] == 75 and table[104] == 105, "corners of the eyes, pupils"
    assert table[51:60].tolist() == [51, 52, 53, 54, 65, 64, 63, 62, 61], "the nose"
    assert table[84] == 90 and table[87] == 87 and table[93] == 93, "the lips"


def test_flip_table_refuses_points_that_are_on_one_side_only():
    with pytest.raises(ValueError, match=r"pipnet\.augment\.flip=0"):
        flip_table(np.delete(LAYOUT, 0, axis=0))


def test_meanface_file_reads_back_and_bad_ones_are_told(tmp_path):
    meanface.write_meanface(tmp_path / "meanface.txt", LAYOUT)
    assert np.abs(read_meanface(tmp_path / "meanface.txt") - LAYOUT).max() < 1e-10
    for text in ("", "0.1 0.2 0.3", "a b c d", "0.1 nan 0.3 0.4"):
        (tmp_path / "meanface.txt").write_text(text)
        with pytest.raises(ValueError, match=r"meanface\.txt"):
            read_meanface(tmp_path / "meanface.txt")


# ---------------------------------------------------------------- augmentation
def test_points_move_with_the_pixels():
    side, num = 128, 24
    face = LAYOUT + np.random.default_rng(0).normal(0, 0.02, LAYOUT.shape)  # not its own mirror image
    points = torch.from_numpy(np.stack([face] * num)).float()
    pictures = torch.from_numpy(picture_of(face, side)).expand(num, 1, -1, -1).float() / 255
    cfg = AugmentConfig(blur=0.0, occlude=0.0, contrast=0.0, brightness=0.0, noise=0.0)
    table = torch.tensor(MIRRORED)
    changed, moved = augment(pictures, points, cfg, table, generator(0, 0, 0, "a"))
    at_points = torch.nn.functional.grid_sample(changed, moved[:, None] * 2 - 1, align_corners=False)
    inside = ((moved > 0.03) & (moved < 0.97)).all(2)
    assert at_points[:, 0, 0][inside].min() > 0.9, "each disc's middle is where its point is"
    assert changed.mean() < 0.2, "and most of the picture is dark"
    assert (moved[:, 0, 0] < moved[:, 3, 0]).all(), "the left eye stays left of the right one"
    assert (moved - points).abs().max() > 0.02
    unmirrored = augment(pictures, points, cfg, None, generator(0, 0, 0, "a"))[1]
    differ = (unmirrored - moved).abs().amax((1, 2)) > 1e-6
    assert 0.2 < differ.float().mean() < 0.8, "half of the pictures are mirrored"


def test_augmentation_depends_on_its_generator_alone_and_zero_changes_nothing():
    torch.manual_seed(1)
    pictures, points = torch.rand(4, 1, 32, 32), torch.rand(4, 12, 2)
    one = augment(pictures, points, AugmentConfig(), None, generator(0, 0, 5, "a"))
    torch.manual_seed(2)
    again = augment(pictures, points, AugmentConfig(), None, generator(0, 0, 5, "a"))
    other = augment(pictures, points, AugmentConfig(), None, generator(0, 0, 6, "a"))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    still = augment(pictures, points, STILL, None, generator(0, 0, 5, "a"))
    assert (still[0] - pictures).abs().max() < 1e-4 and (still[1] - points).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["blur", "occlude", "contrast", "brightness", "noise"])
def test_every_change_of_grey_levels_changes_them_and_no_point(name):
    pictures, points = torch.rand(8, 1, 64, 64), torch.rand(8, 12, 2)
    settings = {**vars(STILL), name: getattr(AugmentConfig(), name), "occlude_size": 0.5}
    if name in ("occlude", "blur"):  # patches on all; at 64 px the default blur is a third of a pixel
        settings[name] = {"occlude": 1.0, "blur": 8.0}[name]
    changed, same = augment(pictures, points, AugmentConfig(**settings), None, generator(0, 0, 0, "a"))
    assert (changed - pictures).abs().max() > 0.01 and (same - points).abs().max() < 1e-5
    assert changed.min() >= 0 and changed.max() <= 1


# ---------------------------------------------------------------- measures
def test_error_and_its_distribution():
    truth = torch.tensor([[[0.2, 0.5], [0.6, 0.5], [0.4, 0.8]]]).repeat(2, 1, 1)
    points = truth.clone()
    points[1, 2, 1] += 0.12  # 0.3 eye distances, on one of three points
    errors = nme(points, truth, (0, 1))
    assert errors.tolist() == pytest.approx([0.0, 0.1])
    limits, share = ced(torch.tensor([0.0, 0.02, 0.1]))
    assert share[0] == pytest.approx(1 / 3) and share[-1] == pytest.approx(2 / 3)
    assert share[np.searchsorted(limits, 0.03)] == pytest.approx(2 / 3)
    assert ced_area(torch.tensor([0.04, 0.04])) == pytest.approx(0.5, abs=0.01)
    assert eye_corners(106) == (66, 79)
    with pytest.raises(ValueError, match="needed for 12 landmarks"):
        eye_corners(12)
    with pytest.raises(ValueError, match="two different indices below 12"):
        eye_corners(12, (0, 12))


# ---------------------------------------------------------------- data
def test_fractions_are_of_the_letterboxed_square(tmp_path):
    from PIL import Image

    root = write_landmark_pairs(tmp_path, train=1)
    Image.new("L", (100, 60)).save(root / "pairedCS/craniofacial/train_0.png")
    (root / "pairedCS/landmarks/train_0.json").write_text("[[0, 0], [99, 59]]")
    points, visible = landmark_fractions(read_manifest(root / "split_data/train.json")[0])
    assert np.abs(points - [[0.005, 0.205], [0.995, 0.795]]).max() < 1e-6 and visible.all()


def test_folds_keep_a_subject_together_and_are_even(tmp_path):
    root = write_landmark_pairs(tmp_path, train=10)
    records = read_manifest(root / "split_data/train.json") * 2  # each subject twice
    parts = fold_of(records, 3, seed=0)
    assert parts[:10] == parts[10:] and sorted(np.bincount(parts)) == [6, 6, 8]
    assert parts == fold_of(records[::-1], 3, seed=0)[::-1]
    with pytest.raises(ValueError, match="expected 2 to 10"):
        fold_of(records, 11, seed=0)


def test_broken_landmarks_and_a_set_of_different_layouts_are_refused(tmp_path):
    path = tmp_path / "face.json"
    for text in ("", "{}", "[1, 2]", '{"points": [[1, 2]], "visible": [true, true]}', "[[1, 2], [3, NaN]]"):
        path.write_text(text)
        with pytest.raises(landmarks.LandmarksError, match=r"face\.json"):
            landmarks.read_landmarks(path)
    root = write_landmark_pairs(tmp_path, train=3)
    (root / "pairedCS/landmarks/train_1.json").write_text("[[1, 2], [3, 4], [5, 6]]")
    with pytest.raises(landmarks.LandmarksError, match="3 points, but 12 in line 1"):
        LandmarkDataset(read_manifest(root / "split_data/train.json"), "face", 64)


def test_predictions_read_back_by_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(landmarks, "_MOST_BYTES", 2**20)
    records = read_manifest(write_landmark_pairs(tmp_path, train=3) / "split_data/train.json")
    points = np.random.default_rng(0).random((3, 12, 2)).astype(np.float32)
    names = [r.source for r in records]
    PredictedLandmarks(names, names, points, points[..., 0], np.arange(3)).write(tmp_path / "p.npz")
    again = PredictedLandmarks.read(tmp_path / "p.npz")
    assert np.array_equal(again.points[again.rows_of(records[::-1])], points[::-1])
    (tmp_path / "bad.npz").write_bytes(b"PK")
    whole = (tmp_path / "p.npz").read_bytes()
    middle = whole.index(b"points.npy") + 60
    (tmp_path / "flipped.npz").write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    good = dict(np.load(tmp_path / "p.npz"))
    for key, value in {
        "points": np.full((3, 12, 2), "x"),
        "sources": np.array("a"),
        "folds": points[:, 0, 0],
    }.items():
        np.savez(tmp_path / f"{key}.npz", **(good | {key: value}))
    np.savez_compressed(tmp_path / "bomb.npz", **(good | {"extra": np.zeros(2**20)}))
    np.save(tmp_path / "array.npz.npy", points)
    os.mkfifo(tmp_path / "pipe.npz")
    bad = (
        "bad.npz",
        "gone.npz",
        "flipped.npz",
        "points.npz",
        "sources.npz",
        "folds.npz",
        "bomb.npz",
        "array.npz.npy",
    )
    for name in (*bad, "pipe.npz"):
        with pytest.raises(landmarks.PredictionsError, match=name):
            PredictedLandmarks.read(tmp_path / name)
    with pytest.raises(landmarks.PredictionsError, match="lack 1 of 3"):
        PredictedLandmarks(names[:2], names[:2], points[:2], points[:2, :, 0], np.arange(2)).rows_of(records)


# ---------------------------------------------------------------- training
def arguments(root: Path, *more: str) -> list[str]:
    (root / "pip.yaml").write_text("stage: pipnet\nname: pip\n")
    return [str(root / "pip.yaml"), *TINY, f"data.root={root}", f"out={root / 'runs'}", *more]


def run(root: Path, *more: str) -> int:
    return train.main(arguments(root, *more))


def weights_after(root: Path, name: str, *more: str) -> dict[str, torch.Tensor]:
    """Return the weights of a network for skulls after two steps, unless ``more`` says otherwise."""
    assert run(root, f"name={name}", "pipnet.role=skull", "train.max_steps=2", *more) == 0
    return LandmarkReader.load(root / "runs" / name / "model.safetensors").net.state_dict()


@pytest.mark.parametrize("role", ["face", "skull"])
def test_training_lowers_the_error_and_writes_what_can_be_used(tmp_path, role):
    root = write_landmark_pairs(tmp_path, train=16, valid=4)
    assert run(root, f"pipnet.role={role}", "train.max_steps=30", "train.val_every=15") == 0
    home = root / "runs" / "pip"
    reader = LandmarkReader.load(home / "model.safetensors")
    assert reader.role == role and reader.takes_biometrics == (role == "skull")
    records = read_manifest(root / "split_data/train.json")
    truth = np.stack([landmark_fractions(r)[0] for r in records])
    assert np.abs(read_meanface(home / "meanface.txt") - mean_face(truth)).max() < 1e-6
    records = read_manifest(root / "split_data/valid.json")
    valid = LandmarkDataset(records, role, 256, reader.net.cfg.ethnicities)
    points, _ = crossfit.read_all(reader, valid)
    error = nme(torch.from_numpy(points), valid.points, CORNERS).mean()
    fresh = nme(torch.full_like(valid.points, 0.25), valid.points, CORNERS).mean()
    assert error < 0.7 * fresh
    lines = (home / "valid_nme.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[1].startswith("valid_0.png,")
    assert list((home / "images").glob("landmarks_*.png"))


def test_damaged_skulls_change_the_network_that_reads_skulls_and_no_other(tmp_path, capsys):
    root = write_landmark_pairs(tmp_path, train=8, valid=4)
    whole, damaged = (weights_after(root, f"share{k}", f"partial.share={k}") for k in (0, 1))
    assert not all(torch.equal(value, damaged[key]) for key, value in whole.items())
    assert run(root, "pipnet.role=face", "partial.share=0.5") == 2
    assert "partial.share: got 0.5, expected none" in capsys.readouterr().err


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    root = write_landmark_pairs(tmp_path, train=8, valid=4)
    whole = weights_after(root, "whole", "train.max_steps=4")
    weights_after(root, "broken")
    resumed = weights_after(root, "broken", "train.max_steps=4")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_cross_fitted_points_come_from_networks_that_left_the_subject_out(tmp_path, capsys):
    root = write_landmark_pairs(tmp_path, train=9, valid=4)
    settings = arguments(root, "pipnet.role=skull", "train.max_steps=2", "pipnet.folds=3")
    assert crossfit.main(settings) == 0, capsys.readouterr().err
    predictions = PredictedLandmarks.read(root / "runs" / "pip_landmarks.npz")
    records = read_manifest(root / "split_data/train.json")
    assert predictions.points.shape == (9, 12, 2) and predictions.confidences.shape == (9, 12)
    assert sorted(np.bincount(predictions.folds)) == [3, 3, 3]
    means = [read_meanface(root / "runs" / f"pip_fold{k}" / "meanface.txt") for k in range(3)]
    truth = np.stack([landmark_fractions(r)[0] for r in records])
    for k, mean in enumerate(means):
        assert np.abs(mean - truth[predictions.folds != k].mean(0)).max() < 1e-6, (
            "trained on the other folds only"
        )
    reader = LandmarkReader.load(root / "runs" / "pip_fold1" / "model.safetensors")
    own = [r for r, fold in zip(records, predictions.folds, strict=True) if fold == 1]
    again, _ = crossfit.read_all(reader, LandmarkDataset(own, "skull", 256, reader.net.cfg.ethnicities))
    assert np.array_equal(again, predictions.points[predictions.folds == 1])


def test_wrong_settings_and_data_are_refused(tmp_path, capsys):
    root = write_landmark_pairs(tmp_path, train=4, valid=2)
    for setting in ("pipnet.eye_corners=[0,99]", "pipnet.fold=1", "model.image_size=64"):
        assert run(root, setting) == 2
        assert setting.split("=")[0].split(".")[0] in capsys.readouterr().err
    assert crossfit.main(arguments(root)) == 2
    assert "pipnet.folds" in capsys.readouterr().err
    lines = (root / "split_data/train.json").read_text().splitlines()
    lines[2] = json.dumps({k: v for k, v in json.loads(lines[2]).items() if k != "landmarks"})
    (root / "split_data/train.json").write_text("\n".join(lines))
    assert run(root) == 2
    assert "line 3 (train_2.png)" in capsys.readouterr().err
    assert export.main([f"weights={root / 'none.safetensors'}"]) == 2
    assert not (root / "runs").exists()
