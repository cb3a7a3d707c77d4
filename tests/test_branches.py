"""The landmark and the texture branch: their inputs, presence, and what fresh and trained ones change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from branched import NUM, SAMPLING, TEXTURE, branched_model, random_landmarks, random_texture
from conftest import tiny_model_config
from torch import Tensor

from cldm.branches import LandmarkBranch, Landmarks, heatmaps
from cldm.conditions import Conditions, encode
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from cldm.sampling import reconstruct
from cldm.texture import LAGS, NUM_FEATURES, Texture, TextureError, skin_patches, texture_features
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


def disc(seed: int = 0, size: int = 96, grain: float = 0.1) -> Tensor:
    """A rough disc on black, brighter to the right: (3, size, size)."""
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.arange(size) - size / 2, torch.arange(size) - size / 2, indexing="ij")
    grey = (0.5 + 0.3 * x / size + grain * noise).clamp(0.1, 1) * (x**2 + y**2 < (0.45 * size) ** 2)
    return grey.expand(3, -1, -1)


def test_patches_are_a_function_of_picture_and_seed_and_lie_on_skin() -> None:
    picture = disc()
    first = skin_patches(picture, TEXTURE)
    state = torch.random.get_rng_state()
    assert torch.equal(first, skin_patches(picture.clone(), TEXTURE))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.shape == (24, 16, 16) and bool((first > 8 / 255).all())
    assert not torch.equal(first, skin_patches(picture, TEXTURE, seed=1))
    assert len({patch.numpy().tobytes() for patch in first}) == 24  # no place twice


def test_the_few_places_of_a_small_face_come_again_and_none_is_an_error() -> None:
    small = torch.zeros(3, 40, 40)
    small[:, 5:30, 5:30] = 0.5 + 0.1 * torch.rand(25, 25)
    patches = skin_patches(small, TEXTURE)
    assert len({patch.numpy().tobytes() for patch in patches}) == 4  # (25 - 24 + 1) ** 2
    for picture in (torch.zeros(3, 64, 64), torch.ones(3, 20, 64)):
        with pytest.raises(TextureError):
            skin_patches(picture, TEXTURE)


def test_features_know_neither_order_nor_mirror_nor_shading() -> None:
    patches = skin_patches(disc(), TEXTURE)
    features = texture_features(patches)
    rng = np.random.default_rng(0)
    scrambled = patches[torch.from_numpy(rng.permutation(len(patches)))].clone()
    for patch in scrambled:
        for axis in (0, 1):
            if rng.random() < 0.5:
                patch.copy_(patch.flip(axis))
    torch.testing.assert_close(texture_features(scrambled), features, atol=1e-4, rtol=0)
    along = torch.linspace(0, 0.3, 16)
    torch.testing.assert_close(
        texture_features(patches + along + along[:, None]), features, atol=1e-2, rtol=0
    )
    assert (
        float((texture_features(patches.transpose(1, 2)) - features).abs().max()) > 1e-2
    )  # steps lie across


def test_features_against_numpy() -> None:
    """The same statistics, written down in loops over patches and filters."""
    patches = np.random.default_rng(1).random((3, 16, 16))
    y, x = np.mgrid[0:16, 0:16]
    design = np.stack([np.ones(256), y.ravel(), x.ravel()], 1)
    logs = []
    for patch in patches:
        flat = patch - (design @ np.linalg.lstsq(design, patch.ravel(), rcond=None)[0]).reshape(16, 16)
        row = []
        for axis in (1, 0):
            for lag in LAGS:
                ahead, behind = np.arange(lag, 16), np.arange(16 - lag)
                row.append(np.mean((flat.take(ahead, axis) - flat.take(behind, axis)) ** 2))
            row.append(np.mean(np.diff(flat, 2, axis=axis) ** 2))
        row.append(np.mean(np.diff(np.diff(flat, axis=0), axis=1) ** 2))
        logs.append(np.log(np.array(row) + 1e-6))
    got = texture_features(torch.from_numpy(patches))
    half = NUM_FEATURES // 2
    spread = np.std(logs, axis=0)
    both = [got[:half].numpy(), np.mean(logs, axis=0)], [got[half:].numpy(), spread]
    for ours, theirs in both:  # but for an affine map, one for all filters
        slope, shift = np.polyfit(theirs, ours, 1)
        np.testing.assert_allclose(ours, slope * theirs + shift, atol=1e-3)
        assert slope > 0


def test_roughness_counts_and_identity_does_not() -> None:
    """Another face of the same roughness is nearer than the same face of another roughness."""
    own, other, rough = (
        texture_features(skin_patches(picture, TEXTURE))
        for picture in (disc(0, 96), disc(1, 120), disc(0, 96, grain=0.02))
    )
    assert float((own - other).norm()) < 0.3 * float((own - rough).norm())


def test_gradients_reach_the_patches() -> None:
    """What a texture energy needs."""
    patches = skin_patches(disc(), TEXTURE).requires_grad_(True)
    texture_features(patches).sum().backward()
    assert patches.grad is not None and bool(patches.grad.isfinite().all()) and bool(patches.grad.any())


@pytest.mark.parametrize("condition", ["landmark", "texture"])
def test_a_fresh_branch_changes_no_bit_of_a_face_and_a_trained_one_does(condition: str) -> None:
    skulls = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    inputs: dict = (
        {"landmarks": random_landmarks(2)} if condition == "landmark" else {"texture": random_texture()}
    )

    def draw(model: ControlledLatentDiffusion, inputs: dict, **changes: float) -> Tensor:
        settings = SAMPLING.with_(**{f"{condition}_{key}": value for key, value in changes.items()})
        return reconstruct(model, skulls, ["", ""], [0, 1], settings, **inputs)

    fresh, trained = branched_model(perturbed=False), branched_model(perturbed=True)
    assert torch.equal(draw(fresh, inputs), draw(fresh, {}))
    plain, whole = draw(trained, {}), draw(trained, inputs)
    assert not torch.equal(whole, plain)
    for off in ({"scale": 0.0}, {"end": 0.0}, {"start": 1.0}):
        assert torch.equal(draw(trained, inputs, **off), plain)
    late = draw(trained, inputs, start=0.5)
    assert not torch.equal(late, plain) and not torch.equal(late, whole)


def test_in_a_mixed_batch_what_is_absent_contributes_exactly_nothing() -> None:
    """All eight subsets of skull, landmarks and texture side by side, against batches in which all have the same."""
    model = branched_model(perturbed=True)
    subsets = [(s, m, t) for s in (True, False) for m in (True, False) for t in (True, False)]
    num = len(subsets)
    skulls, points, texture = torch.rand(num, 3, 64, 64), random_landmarks(num), random_texture(num)
    x_t, t = torch.randn(num, 4, 8, 8), torch.full((num,), 500)
    context = model.encode_text([""] * num)

    def eps(conditions: Conditions) -> Tensor:
        acting = encode(model, conditions, num, 64, 64).acting()
        if acting is None:
            return model.eps(x_t, t, context, None)
        return model.eps(x_t, t, context, acting.hint, None, acting.texture, acting.active)

    skull, landmark, exemplar = (torch.tensor([subset[k] for subset in subsets]) for k in range(3))
    nan = torch.tensor(float("nan"))  # absent conditions have no values
    mixed = Conditions(
        skulls,
        skull,
        Landmarks(torch.where(landmark[:, None, None], points.points, nan), points.confidence, landmark),
        Texture(torch.where(exemplar[:, None], texture.features, nan), exemplar),
    )
    with torch.no_grad():
        together = eps(mixed)
        for i, (s, m, x) in enumerate(subsets):
            alone = eps(
                Conditions(skulls if s else None, None, points if m else None, texture if x else None)
            )
            torch.testing.assert_close(together[i], alone[i], atol=1e-6, rtol=0)
            for j in range(i):
                assert not torch.allclose(together[i], together[j], atol=1e-3)
        base = model.eps(x_t, t, context, None)
    assert torch.equal(together[-1], base[-1])  # nothing but text: the base model, to the bit


def test_faces_with_and_without_a_skull_mix_in_a_batch() -> None:
    model, prompts, seeds = branched_model(perturbed=True), ["", ""], [0, 1]
    guided = SAMPLING.with_(guidance_scale=3.0)
    half = reconstruct(
        model, torch.rand(2, 3, 64, 64), prompts, seeds, guided, skull_present=torch.tensor([True, False])
    )
    none = reconstruct(model, None, prompts, seeds, guided)
    assert torch.equal(half[1], none[1]) and not torch.equal(half[0], none[0])
    with pytest.raises(ValueError, match="got 3 landmarks, 2 prompts, 2 seeds"):
        reconstruct(model, None, prompts, seeds, SAMPLING, landmarks=random_landmarks(3))
