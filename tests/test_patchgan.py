"""The discriminator against an independent statement of its layers; its losses, its files, the gradient through it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.networks.config import PatchGanConfig
from muti_control.networks.patchgan import PatchGan, accuracy, judged, lsgan_discriminator, lsgan_generator

TINY = PatchGanConfig(width=4)


def tiny(seed: int = 0, cfg: PatchGanConfig = TINY) -> PatchGan:
    """A small network whose scores are not all next to 0."""
    torch.manual_seed(seed)
    net = PatchGan(cfg)
    for value in net.parameters():
        value.data.normal_(std=0.3)
    return net


def pictures(num: int = 2, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(num, 6, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_hand(weights: dict[str, Tensor], scale: int, x: Tensor) -> list[Tensor]:
    """Layers of one scale of arXiv 1711.11585's discriminator with 3 strided layers, from tensors by name."""
    found = []
    for layer, stride in enumerate((2, 2, 2, 1, 1)):
        name = f"scale{scale}_layer{layer}.0"
        x = F.conv2d(F.pad(x, (2, 2, 2, 2)), weights[f"{name}.weight"], weights[f"{name}.bias"], stride)
        if layer in (1, 2, 3):
            mean = x.mean((2, 3), keepdim=True)
            var = (x - mean).square().mean((2, 3), keepdim=True)
            x = (x - mean) / (var + 1e-5).sqrt()
        if layer < 4:
            x = torch.where(x > 0, x, 0.2 * x)
        found.append(x)
    return found


def half(x: Tensor) -> Tensor:
    """Means over 3x3 windows at every second place, of what lies inside the picture."""
    windows = F.unfold(F.pad(x, (1, 1, 1, 1)), 3, stride=2).view(*x.shape[:2], 9, -1).sum(2)
    inside = F.unfold(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, stride=2).view(*x.shape[:2], 9, -1).sum(2)
    return (windows / inside).view(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)


def test_names_sizes_and_number_of_parameters_are_the_public_ones() -> None:
    net = PatchGan(PatchGanConfig())
    assert sum(p.numel() for p in net.parameters()) == 5_535_618
    names = {f"scale{s}_layer{n}.0.{part}" for s in (0, 1) for n in range(5) for part in ("weight", "bias")}
    assert set(net.state_dict()) == names
    widths = [tuple(net.state_dict()[f"scale1_layer{n}.0.weight"].shape) for n in range(5)]
    assert widths == [(64, 6, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]
    with torch.device("meta"):
        sides = [scale[-1].shape for scale in PatchGan(PatchGanConfig(width=2))(torch.empty(1, 6, 256, 256))]
    assert sides == [(1, 1, 35, 35), (1, 1, 19, 19)]
    deviation = net.state_dict()["scale0_layer3.0.weight"].std()
    assert abs(deviation - 0.02) < 1e-4


def test_features_are_those_of_an_independent_statement() -> None:
    net, x = tiny(), pictures()
    found = net(x)
    fine, coarse = by_hand(net.state_dict(), 1, x), by_hand(net.state_dict(), 0, half(x))
    assert [len(scale) for scale in found] == [5, 5]
    for ours, theirs in zip(found, (fine, coarse), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_losses_worked_by_hand() -> None:
    def maps(*values: list[float]) -> list[list[Tensor]]:  # one scale per list, one value per sample
        return [
            [torch.zeros(2, 3, 1, 1), torch.tensor(v).view(2, 1, 1, 1).expand(2, 1, 2, 2)] for v in values
        ]

    real, fake = maps([1.0, 0.5], [0.0, 1.0]), maps([0.0, 0.5], [0.25, 2.0])
    assert lsgan_generator(fake).tolist() == [1.0 + 0.5625, 0.25 + 1.0]
    assert lsgan_discriminator(real, fake).tolist() == [
        ((0 + 0) + (1 + 0.0625)) / 2,
        ((0.25 + 0.25) + (0 + 4)) / 2,
    ]
    undecided = maps([0.5, 0.5], [0.5, 0.5])
    assert lsgan_discriminator(undecided, undecided).tolist() == [0.5, 0.5]  # 0.25 a scale
    # real: 1 right, 1 undecided; 1 wrong, 1 right. fake: 1 right, 1 undecided; 1 right, 1 wrong.
    assert accuracy(real, fake) == pytest.approx(0.5)
    assert accuracy(maps([1, 1], [1, 1]), maps([0, 0], [0, 0])) == 1


def test_the_gradient_reaches_skull_and_face_and_is_right() -> None:
    net = tiny().double().requires_grad_(False)
    skull = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    face = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    face.requires_grad_()

    def loss(face: Tensor) -> Tensor:
        maps = [scale[-1] for scale in net(judged(skull, face))]  # not through float32
        return sum(((scores - 1) ** 2).mean() for scores in maps)

    (gradient,) = torch.autograd.grad(loss(face), face)
    (ours,) = torch.autograd.grad(lsgan_generator(net(judged(skull, face))).sum(), face)
    torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-9)
    direction = torch.randn(face.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6 * direction
    numeric = (loss(face + step) - loss(face - step)) / 2e-6
    torch.testing.assert_close(numeric, (gradient * direction).sum(), rtol=1e-5, atol=1e-12)
    assert (gradient != 0).float().mean() > 0.99
    assert all(p.grad is None for p in net.parameters())
