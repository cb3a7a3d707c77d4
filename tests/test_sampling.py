"""Reconstruction: what a picture depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cldm.branches import Landmarks
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import reconstruct
from cldm.texture import NUM_FEATURES, Texture
from ldm.config import LandmarkConfig, ModelConfig, TextureConfig

CFG = SamplingConfig(steps=4, spacing="trailing", eta=1.0, guidance_scale=3.0, control_scales=[1.0])
PROMPTS = [
    "3D face scan,Asian male,age level 3,normal face.",
    "3D face scan,Asian female,age level 2,thin face.",
]


@pytest.fixture
def model(tiny_config: ModelConfig) -> ControlledLatentDiffusion:
    net = ControlledLatentDiffusion(tiny_config)
    with torch.no_grad():
        for name, p in net.named_parameters():  # fresh, two prompts would hardly differ
            p.add_((1.0 if name.startswith("cond_stage_model.") else 0.1) * torch.randn_like(p))
        last = net.control_model.input_hint_block[-1]  # nor would two skulls
        last.weight.div_(net.encode_hint(torch.rand(8, 3, 64, 64)).std(0).mean())
    return net.eval()


@pytest.fixture
def skulls() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def test_a_picture_depends_on_its_own_skull_prompt_and_seed_alone(
    model: ControlledLatentDiffusion, skulls: Tensor
) -> None:
    both = reconstruct(model, skulls, PROMPTS, [5, 6], CFG)
    assert both.shape == (2, 3, 64, 64)
    assert float(both.min()) >= 0
    assert float(both.max()) <= 1
    alone = reconstruct(model, skulls[1:], PROMPTS[1:], [6], CFG)
    assert torch.allclose(both[1:], alone, atol=1e-5)
    for other in (
        reconstruct(model, skulls[:1], PROMPTS[1:], [6], CFG),
        reconstruct(model, skulls[1:], PROMPTS[:1], [6], CFG),
        reconstruct(model, skulls[1:], PROMPTS[1:], [7], CFG),
        reconstruct(model, None, PROMPTS[1:], [6], CFG),
    ):
        assert float((other - alone).abs().max()) > 1e-3  # a hundred times the batch tolerance


def test_control_window_and_scales(model: ControlledLatentDiffusion, skulls: Tensor) -> None:
    def draw(**changes: Any) -> Tensor:
        cfg = CFG.with_(**{"eta": 0.0, "guidance_scale": 1.0} | changes)
        return reconstruct(model, skulls, PROMPTS, [1, 2], cfg)

    without = reconstruct(model, None, PROMPTS, [1, 2], CFG.with_(eta=0.0, guidance_scale=1.0))
    assert torch.equal(draw(control_end=0.0), without)
    assert torch.allclose(draw(control_scales=[0.0]), without, atol=1e-5)
    assert not torch.allclose(draw(), without, atol=1e-3)
    assert not torch.allclose(draw(control_start=0.5), draw(), atol=1e-4)
    num = model.cfg.unet.num_control_outputs
    assert torch.allclose(draw(control_scales=[1.0] * num), draw(), atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc"])
def test_every_sampler_draws_a_face(model: ControlledLatentDiffusion, skulls: Tensor, sampler: str) -> None:
    cfg = CFG.with_(sampler=sampler, eta=0.0, spacing="karras")
    both = reconstruct(model, skulls, PROMPTS, [5, 6], cfg)
    assert both.shape == (2, 3, 64, 64)
    assert torch.allclose(both[1:], reconstruct(model, skulls[1:], PROMPTS[1:], [6], cfg), atol=1e-5)
    assert float((both - reconstruct(model, skulls.flip(0), PROMPTS, [5, 6], cfg)).abs().max()) > 1e-3


@torch.no_grad()
def test_keys_and_values_are_as_good_as_the_text(model: ControlledLatentDiffusion, skulls: Tensor) -> None:
    context = model.encode_text(PROMPTS)
    hint = model.encode_hint(skulls)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([300, 900])
    text = model.project_text(context)
    for h in (hint, None):
        assert torch.equal(model.eps(x, t, context, h), model.eps(x, t, text, h))
    swapped = model.project_text(context.flip(0))
    assert float((model.eps(x, t, swapped, hint) - model.eps(x, t, text, hint)).abs().max()) > 1e-3


def test_decoding_in_parts_changes_nothing(
    model: ControlledLatentDiffusion, skulls: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reconstruct(model, skulls, PROMPTS, [5, 6], CFG)
    sizes: list[int] = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: (sizes.append(len(z)), decode(z))[1])
    monkeypatch.setattr("cldm.sampling.DECODED_AT_ONCE", 64 * 64)
    assert torch.allclose(reconstruct(model, skulls, PROMPTS, [5, 6], CFG), whole, atol=1e-5)
    assert sizes == [1, 1]


def test_lengths_must_agree(model: ControlledLatentDiffusion, skulls: Tensor) -> None:
    with pytest.raises(ValueError, match="as many of each"):
        reconstruct(model, skulls, PROMPTS, [1], CFG)
    with pytest.raises(ValueError, match=r"^sampling.control_scales: "):
        reconstruct(model, skulls, PROMPTS, [1, 2], CFG.with_(control_scales=[1.0, 2.0]))


@pytest.fixture
def branched(tiny_config: ModelConfig) -> ControlledLatentDiffusion:
    """With all branches, none of which is zero, and a decoder that hands the latents out."""
    control = tiny_config.control.with_(landmarks=LandmarkConfig(num_points=5), texture=TextureConfig())
    net = ControlledLatentDiffusion(tiny_config.with_(control=control))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    net.decode = lambda z: z * 1e-4  # type: ignore[method-assign]
    return net.eval()


@pytest.mark.parametrize(
    "dropped",
    [
        ["text"],
        ["skull"],
        ["landmarks"],
        ["texture"],
        ["skull", "landmarks", "texture"],
        ["text", "skull", "landmarks", "texture"],
    ],
    ids="+".join,
)
def test_what_guidance_drops(branched: ControlledLatentDiffusion, skulls: Tensor, dropped: list[str]) -> None:
    """The last latent of a single deterministic step is linear in the noise, and so is guidance: the face guided by s
    is without + s (with - without), where both are drawn unguided.
    """
    landmarks = Landmarks(torch.rand(2, 5, 2), torch.ones(2, 5), torch.ones(2, dtype=torch.bool))
    texture = Texture(torch.randn(2, NUM_FEATURES), torch.tensor([True, False]))

    def draw(scale: float, without: Sequence[str] = ()) -> Tensor:
        cfg = CFG.with_(steps=1, eta=0.0, guidance_scale=scale, guidance_drops=dropped)
        return reconstruct(
            branched,
            None if "skull" in without else skulls,
            ["", ""] if "text" in without else PROMPTS,
            [1, 2],
            cfg,
            landmarks=None if "landmarks" in without else landmarks,
            texture=None if "texture" in without else texture,
        )

    alone, given = draw(1.0, dropped), draw(1.0)
    differs = slice(0, 1) if dropped == ["texture"] else slice(0, 2)  # the second has no exemplar
    assert float((given - alone)[differs].abs().amax((1, 2, 3)).min()) > 1e-5
    assert torch.allclose(draw(2.5), alone + 2.5 * (given - alone), atol=2e-6)


@pytest.mark.parametrize("switched_off", [False, True])
def test_what_is_not_there_cannot_be_sharpened(
    branched: ControlledLatentDiffusion, skulls: Tensor, switched_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance over the skull, of a face without one: both branches would be the same, and one is enough."""
    rows: list[int] = []
    eps = branched.eps
    monkeypatch.setattr(branched, "eps", lambda x_t, *more: rows.append(len(x_t)) or eps(x_t, *more))

    def draw(scale: float) -> Tensor:
        rows.clear()
        cfg = CFG.with_(steps=2, eta=0.0, guidance_scale=scale, guidance_drops=["skull", "landmarks"])
        cfg.control_end = 0.0 if switched_off else 1.0
        return reconstruct(branched, skulls if switched_off else None, PROMPTS, [1, 2], cfg)

    guided = draw(2.5)
    assert rows == [2, 2]
    assert torch.equal(guided, draw(1.0))
