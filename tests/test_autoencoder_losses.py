"""Losses of the autoencoder stage: what they want of a surface that cannot be drawn grain for grain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.autoencoder_stage import surface_energies, texture_loss


def grainy(amount: float, seed: int, flat: float = 0.2) -> Tensor:
    """Pictures (2, 3, 64, 64): grey noise of that standard deviation on a flat ground."""
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    return (flat + amount * noise).expand(-1, 3, -1, -1)


def test_the_same_grain_elsewhere_is_better_than_no_grain() -> None:
    truth, elsewhere = grainy(0.1, 0), grainy(0.1, 1)
    wiped = F.avg_pool2d(F.pad(truth, (2, 2, 2, 2), mode="reflect"), 5, 1)
    assert (wiped - truth).abs().mean() < (elsewhere - truth).abs().mean()  # what an error by pixels prefers
    assert texture_loss(elsewhere, truth) < 0.25 * texture_loss(wiped, truth)
    assert texture_loss(truth, truth) == 0


@pytest.mark.parametrize("amount", [0.03, 0.3])
def test_too_much_costs_as_too_little_does(amount: float) -> None:
    assert texture_loss(grainy(amount, 1), grainy(0.1, 0)) > 3 * texture_loss(grainy(0.1, 1), grainy(0.1, 0))


def test_lines_across_are_not_lines_down() -> None:
    lines = torch.sin(torch.arange(64) * 1.5).expand(2, 3, 64, 64)
    assert texture_loss(lines, lines.transpose(2, 3)) > 1
    level = surface_energies(lines)[0]
    assert (
        level[:, 0] > level[:, 1] + 1
    ).all()  # neighbours side by side differ, those above each other do not


def test_flat_pictures_have_a_finite_gradient_towards_grain() -> None:
    flat = (torch.full((2, 3, 64, 64), 0.2) + 1e-3 * grainy(1.0, 2, 0.0)).requires_grad_(True)
    texture_loss(flat, grainy(0.1, 0)).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()
    rougher = flat.detach() - 0.5 * flat.grad / flat.grad.abs().max() * 0.01
    assert texture_loss(rougher, grainy(0.1, 0)) < texture_loss(flat, grainy(0.1, 0))
    black = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    texture_loss(black, torch.full((1, 3, 64, 64), -1.0)).backward()
    assert black.grad is not None and black.grad.isfinite().all()


def test_energies_come_scale_by_scale() -> None:
    shapes = [tuple(e.shape) for e in surface_energies(torch.zeros(2, 3, 64, 64))]
    assert shapes == [(2, 2, 7, 7), (2, 2, 7, 7), (2, 2, 7, 7)]
