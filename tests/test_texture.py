"""The texture branch: what the features tell and what not, presence, and a fresh branch that changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from branched import SAMPLING, TEXTURE, branched_model, random_landmarks, random_texture
from torch import Tensor

from cldm.branches import Landmarks
from cldm.conditions import Conditions, encode
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import reconstruct
from cldm.texture import LAGS, NUM_FEATURES, Texture, TextureError, skin_patches, texture_features


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
