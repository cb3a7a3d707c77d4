"""Losses of the autoencoder stage: the roughness of surfaces, and realism beside a discriminator."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import train
from muti_control.losses.autoencoder import gradient_ratio, surface_energies, texture_loss
from muti_control.training.config import ExperimentConfig
from muti_control.training.run import prepare
from settings.reading import parse_command_line


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


def test_too_much_costs_as_too_little_does() -> None:
    truth = grainy(0.1, 0)
    little, right, much = (texture_loss(grainy(amount, 1), truth) for amount in (0.03, 0.1, 0.3))
    assert little > 3 * right and much > 3 * right


def test_lines_across_are_not_lines_down() -> None:
    lines = torch.sin(torch.arange(64) * 1.5).expand(2, 3, 64, 64)
    assert texture_loss(lines, lines.transpose(2, 3)) > 1
    level = surface_energies(lines)[0]  # neighbours side by side differ, those above each other do not
    assert (level[:, 0] > level[:, 1] + 1).all()


def test_flat_pictures_have_a_finite_gradient_towards_grain() -> None:
    flat = (torch.full((2, 3, 64, 64), 0.2) + 1e-3 * grainy(1.0, 2, 0.0)).requires_grad_(True)
    texture_loss(flat, grainy(0.1, 0)).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()
    rougher = flat.detach() - 0.5 * flat.grad / flat.grad.abs().max() * 0.01
    assert texture_loss(rougher, grainy(0.1, 0)) < texture_loss(flat, grainy(0.1, 0))
    black = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    texture_loss(black, torch.full((1, 3, 64, 64), -1.0)).backward()
    assert black.grad is not None and black.grad.isfinite().all()


def test_the_ratio_makes_both_pull_alike() -> None:
    last = torch.nn.Conv2d(3, 3, 3)
    y = last(grainy(0.1, 0))
    strong, weak = 5 * y.square().mean(), 0.01 * y.abs().mean()
    weight = gradient_ratio(strong, weak, last.weight)
    one, other = (torch.autograd.grad(v, last.weight, retain_graph=True)[0] for v in (strong, weight * weak))
    assert one.norm().item() == pytest.approx(other.norm().item(), rel=1e-4)
    assert not weight.requires_grad
    assert gradient_ratio(strong, 0 * weak, last.weight).isfinite()


LITTLE = "autoencoder.discriminator.network={in_channels: 3, width: 4, num_scales: 2, num_layers: 1}"


def scalars(run: Path, name: str) -> list[float]:
    """Return a column of the run's CSV file, where it has a value."""
    rows = csv.DictReader((run / "csv/version_0/metrics.csv").read_text(encoding="utf-8").splitlines())
    return [float(row[name]) for row in rows if row.get(name)]


def test_realism_trains_beside_a_discriminator(
    make_tiny_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    on = ("autoencoder.gan=0.5", "autoencoder.texture_weight=0.1", "autoencoder.gan_ramp_steps=2", LITTLE)
    assert train.main(make_tiny_run(3, *on, "train.log_every=1", "name=on", "train.val_every=3")) == 0
    run = tmp_path / "pairs/runs/on"
    weights, losses, textures = (
        scalars(run, f"train/{name}") for name in ("gan_weight", "discriminator/loss", "texture")
    )
    assert len(weights) == len(set(losses)) == len(textures) == 3 and all(w > 0 for w in weights)
    index = json.loads((run / "checkpoints/best.json").read_text())
    (score,) = scalars(run, "valid/texture")
    assert index["monitor"] == "valid/texture" and index["best"][0]["score"] == pytest.approx(score, rel=1e-4)


def test_the_best_is_not_the_smoothest_where_surfaces_are_trained(
    make_tiny_run: Callable[..., list[str]],
) -> None:
    for settings in ((), ("autoencoder.texture_weight=0.1",), ("autoencoder.gan=0.5", LITTLE)):
        stage = prepare(parse_command_line(ExperimentConfig, make_tiny_run(1, *settings))).stage
        expected = ("valid/texture", "min") if settings else ("valid/psnr", "max")
        assert (stage.monitor, stage.monitor_mode) == expected
