"""The landmark branch: heatmaps, presence, what a fresh one changes, and what a moved point changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from branched import NUM, branched_model, random_landmarks
from conftest import tiny_model_config

from cldm.branches import LandmarkBranch, Landmarks, heatmaps
from cldm.conditions import Conditions
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from cldm.texture import NUM_FEATURES, Texture
from ldm.checkpoint import write_state_dict
from ldm.config import LandmarkConfig


def test_a_peak_lies_at_its_point_and_is_as_high_as_the_confidence() -> None:
    """A point at the centre of cell (column 3, row 1) of a 10 x 4 map; another one of half the confidence."""
    points = torch.tensor([[[3.5 / 10, 1.5 / 4], [0.5 / 10, 3.5 / 4]]])
    maps = heatmaps(Landmarks(points, torch.tensor([[1.0, 0.5]]), torch.tensor([True])), 4, 10, 1.0)
    assert maps.shape == (1, 2, 4, 10)
    assert maps[0, 0, 1, 3] == 1 and maps[0, 0].argmax() == 1 * 10 + 3
    assert maps[0, 1, 3, 0] == 0.5
    torch.testing.assert_close(maps[0, 0, 1, 4], torch.tensor(-0.5).exp())  # one cell away


def test_the_centre_of_mass_follows_a_point_by_less_than_a_cell() -> None:
    """What lets a latent cell of 8 px tell a point's place more finely than 8 px."""
    x = torch.arange(32) + 0.5
    for at in (15.1, 15.37, 15.9):
        points = torch.full((1, 1, 2), at / 32)
        maps = heatmaps(Landmarks(points, torch.ones(1, 1), torch.ones(1, dtype=torch.bool)), 32, 32, 1.0)
        assert float((maps[0, 0].sum(0) * x).sum() / maps.sum()) == pytest.approx(at, abs=0.01)


def test_gradients_reach_the_points() -> None:
    """What lets a point be moved by descent; zero at initialisation, where the last layer is zero."""
    branch = LandmarkBranch(LandmarkConfig(num_points=NUM, widths=[8]), 4)
    landmarks = random_landmarks()
    points = landmarks.points.requires_grad_(True)
    branch(Landmarks(points, landmarks.confidence, landmarks.present), 8, 8).sum().backward()
    assert points.grad is not None and not points.grad.any()
    torch.nn.init.normal_(branch.encoder[-1].weight)
    branch(Landmarks(points, landmarks.confidence, landmarks.present), 8, 8).sum().backward()
    assert bool(points.grad.isfinite().all()) and bool((points.grad != 0).all())


def test_conditions_of_wrong_shapes_are_refused() -> None:
    model, both = branched_model(perturbed=False), torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="got 7 points, but this model was made for 5"):
        model.encode_landmarks(random_landmarks(n=7), 64, 64)
    with pytest.raises(ValueError, match="no landmark branch"):
        ControlledLatentDiffusion(tiny_model_config()).encode_landmarks(random_landmarks(), 64, 64)
    with pytest.raises(ValueError, match="got 3 features"):
        model.encode_texture(Texture(torch.rand(2, 3), both))
    with pytest.raises(ValueError, match="expected \\(B, N, 2\\)"):
        Landmarks(torch.rand(2, 5, 2), torch.ones(2, 4), both)
    with pytest.raises(ValueError, match="expected \\(B, "):
        Texture(torch.rand(2, NUM_FEATURES), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="skull_present"):
        Conditions(None, both)


def test_a_file_from_before_the_branch_loads_with_a_fresh_one(tmp_path: Path) -> None:
    """The architecture says landmarks, the weights do not have them yet."""
    cfg = tiny_model_config()
    torch.manual_seed(0)
    old = ControlledLatentDiffusion(cfg)
    cfg.control.landmarks = LandmarkConfig(num_points=NUM)
    path = tmp_path / "old.safetensors"
    write_state_dict(path, old.state_dict(), model_metadata(cfg))
    model, _ = load_model(path)
    assert not model.encode_landmarks(random_landmarks(), 64, 64).any()
    ends = [p for name, p in model.control_model.branches.named_parameters() if "encoder.0" in name]
    assert any(bool(p.any()) for p in ends)  # its first layers are drawn: it can learn
