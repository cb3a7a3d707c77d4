"""The landmark branch: heatmaps, presence, what a fresh one changes, and what a moved point changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_model_config

from cldm.branches import BRANCHES, LandmarkBranch, Landmarks, heatmaps
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from cldm.sampling import reconstruct
from ldm.checkpoint import write_state_dict
from ldm.config import LandmarkConfig

NUM = 5
SAMPLING = SamplingConfig(steps=2, spacing="trailing", guidance_scale=1.0, control_scales=[1.0])


def _landmarks(b: int = 2, n: int = NUM, seed: int = 0) -> Landmarks:
    points = torch.rand(b, n, 2, generator=torch.Generator().manual_seed(seed))
    return Landmarks(points, torch.ones(b, n), torch.ones(b, dtype=torch.bool))


def _model(perturbed: bool) -> ControlledLatentDiffusion:
    cfg = tiny_model_config()
    cfg.control.landmarks = LandmarkConfig(num_points=NUM, widths=[8])
    torch.manual_seed(0)
    model = ControlledLatentDiffusion(cfg).eval()
    for name, p in model.named_parameters():
        if not p.any() and (perturbed or not name.startswith(BRANCHES)):
            torch.nn.init.normal_(p, std=0.2)
    return model


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


def test_absent_landmarks_add_exactly_nothing() -> None:
    model = _model(perturbed=True)
    landmarks = _landmarks()
    broken = torch.tensor([[[float("nan")] * 2] * NUM]).expand(2, -1, -1)
    half = Landmarks(
        torch.stack([landmarks.points[0], broken[1]]), landmarks.confidence, torch.tensor([True, False])
    )
    added = model.encode_landmarks(half, 64, 64)
    assert added[0].abs().max() > 0
    assert torch.equal(added[1], torch.zeros_like(added[1]))
    torch.testing.assert_close(added[0], model.encode_landmarks(landmarks, 64, 64)[0])


def test_each_face_follows_its_own_landmarks_alone() -> None:
    model, skulls, landmarks = _model(perturbed=True), torch.rand(3, 3, 64, 64), _landmarks(3)
    cfg = SAMPLING.with_(guidance_scale=2.0)
    together = reconstruct(model, skulls, ["", "a", "b"], [0, 1, 2], cfg, landmarks=landmarks)
    one = Landmarks(landmarks.points[1:2], landmarks.confidence[1:2], landmarks.present[1:2])
    alone = reconstruct(model, skulls[1:2], ["a"], [1], cfg, landmarks=one)
    torch.testing.assert_close(together[1:2], alone, atol=2e-5, rtol=0)


def test_gradients_reach_the_points() -> None:
    """What lets a point be moved by descent; zero at initialisation, where the last layer is zero."""
    branch = LandmarkBranch(LandmarkConfig(num_points=NUM, widths=[8]), 4)
    landmarks = _landmarks()
    points = landmarks.points.requires_grad_(True)
    branch(Landmarks(points, landmarks.confidence, landmarks.present), 8, 8).sum().backward()
    assert points.grad is not None and not points.grad.any()
    torch.nn.init.normal_(branch.encoder[-1].weight)
    branch(Landmarks(points, landmarks.confidence, landmarks.present), 8, 8).sum().backward()
    assert bool(points.grad.isfinite().all()) and bool((points.grad != 0).all())


def test_wrong_numbers_of_points_and_shapes_are_refused() -> None:
    model = _model(perturbed=False)
    with pytest.raises(ValueError, match="got 7 points, but this model was made for 5"):
        model.encode_landmarks(_landmarks(n=7), 64, 64)
    with pytest.raises(ValueError, match="no landmark branch"):
        ControlledLatentDiffusion(tiny_model_config()).encode_landmarks(_landmarks(), 64, 64)
    with pytest.raises(ValueError, match="expected \\(B, N, 2\\)"):
        Landmarks(torch.rand(2, 5, 2), torch.ones(2, 4), torch.ones(2, dtype=torch.bool))


def test_a_file_from_before_the_branch_loads_with_a_fresh_one(tmp_path: Path) -> None:
    """The architecture says landmarks, the weights do not have them yet."""
    cfg = tiny_model_config()
    torch.manual_seed(0)
    old = ControlledLatentDiffusion(cfg)
    cfg.control.landmarks = LandmarkConfig(num_points=NUM)
    path = tmp_path / "old.safetensors"
    write_state_dict(path, old.state_dict(), model_metadata(cfg))
    model, _ = load_model(path)
    assert not model.encode_landmarks(_landmarks(), 64, 64).any()
    ends = [p for name, p in model.control_model.branches.named_parameters() if "encoder.0" in name]
    assert any(bool(p.any()) for p in ends)  # its first layers are drawn: it can learn
