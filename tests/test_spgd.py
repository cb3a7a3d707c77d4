"""SPGD as mathematics: its formulas by hand, a posterior that is known in closed form, and what it must not do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from gaussian_case import ABAR, SHAPE, Gaussian, gradient_of
from torch import Tensor

from cldm.config import SpgdStepConfig
from cldm.sampling import SAMPLERS
from cldm.spacing import spaced_timesteps
from cldm.spgd import (
    RunningNorm,
    Spgd,
    adaptive_momentum,
    angle,
    learning_rate,
    spgd_step,
)


def test_momentum_by_hand() -> None:
    """Two positions of two channels: parallel at one (cos 1), at right angles at the other (cos 0), so alpha = 3/4."""
    first = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # (1, 2, 1, 2)
    second = torch.tensor([[[[2.0, 0.0]], [[0.0, 3.0]]]])
    assert adaptive_momentum(first, None, 0.9) is first
    smoothed = adaptive_momentum(second, first, 0.8)  # alpha beta = 0.6
    expected = torch.tensor([[[[0.6 + 0.4 * 2, 0.6]], [[0.0, 0.4 * 3]]]])
    assert torch.allclose(smoothed, expected, atol=1e-6)
    assert torch.allclose(
        adaptive_momentum(-first, first, 0.9), -first
    )  # alpha 0: turned round, nothing is kept
    assert torch.allclose(adaptive_momentum(3 * first, first, 0.9), 0.9 * first + 0.1 * 3 * first)
    assert torch.equal(adaptive_momentum(second, torch.zeros_like(second), 0.9), second)


def test_rate_and_clip_by_hand() -> None:
    assert [learning_rate(i, 12) for i in (0, 11)] == pytest.approx([1.0, 0.01])
    assert learning_rate(5, 11) == pytest.approx(0.505)
    assert learning_rate(0, 1) == 1.0
    x, direction = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    moved = spgd_step(x, direction, 0.1, 0.2, torch.tensor([10.0, 10.0]))
    assert torch.allclose(moved[0].norm(), torch.tensor(2.0))  # asked for 0.5, clipped to 0.2 of 10
    assert torch.allclose(moved[1], torch.tensor([-0.3, -0.4]))
    assert torch.allclose(angle(torch.eye(2), torch.ones(2, 2)), torch.tensor([45.0, 45.0]), atol=1e-3)


def test_two_steps_by_hand() -> None:
    """x = (3, 4), abar = 1/4, no noise predicted, energy |x_0|^2 / 2 whose gradient is x_0 = 2 x.

    |x| = 5 and the gradient's norm is 10, which is its own unit: g~_0 = (0.6, 0.8), and a step of 0.1 takes
    0.5 (0.6, 0.8) off: x = (2.7, 3.6). Then the norm is 9, its unit sqrt((100 + 81) / 2), the cosine at the one
    position 1, and g~_1 = (0.9 + 0.1 * 9 / unit) (0.6, 0.8).
    """
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    abar, t = torch.full((4,), 0.25), torch.tensor([2])
    cfg = SpgdStepConfig(mode="spgd", scale=0.1, clip=1.0, inner=2, beta=0.9)
    for gradient in ("estimate", "denoiser"):
        spgd = Spgd(
            cfg.with_(gradient=gradient),
            gradient_of(lambda x_0: x_0.flatten(1).square().sum(1) / 2),
        ).attach(lambda x_t, _t, _i: torch.zeros_like(x_t), abar, num_steps=3)
        spgd.eps(x, t, 0)
        moved = spgd.before_step(x, t, 0)
        length = 0.5 * (1 + 0.9 + 0.1 * 9 / math.sqrt(90.5))
        expected = x * (1 - length / 5)
        assert torch.allclose(moved, expected, atol=1e-5), gradient


@pytest.mark.parametrize("gradient", ["estimate", "denoiser"])
def test_a_step_may_be_relative_to_the_estimate(gradient: str) -> None:
    """It moves the estimate, not the latent, by the scale: at abar = 1/4 half as far as one relative to the latent."""
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    abar, t = torch.full((4,), 0.25), torch.tensor([2])
    for relative_to, expected in (("latent", 0.9), ("estimate", 0.95)):
        spgd = Spgd(
            SpgdStepConfig(mode="plain", gradient=gradient, scale=0.1, clip=1.0, relative_to=relative_to),
            gradient_of(lambda x_0: x_0.flatten(1).square().sum(1) / 2),
        ).attach(lambda x_t, _t, _i: torch.zeros_like(x_t), abar, num_steps=3)
        spgd.eps(x, t, 0)
        assert torch.allclose(spgd.before_step(x, t, 0), expected * x, atol=1e-5)


def test_units_are_running_means_of_each_sample() -> None:
    unit = RunningNorm()
    assert torch.allclose(unit(torch.tensor([3.0, 0.0, math.nan])), torch.tensor([3.0, 1.0, 1.0]))
    assert torch.allclose(unit(torch.tensor([4.0, 5.0, 2.0])), torch.tensor([math.sqrt(12.5), 5.0, 2.0]))
    parts = RunningNorm()
    parts(torch.tensor([3.0]), slice(0, 1), 3)
    assert torch.equal(parts(torch.tensor([0.0, 7.0]), slice(1, 3), 3), torch.tensor([1.0, 7.0]))


@pytest.mark.parametrize("gradient", ["estimate", "denoiser"])
def test_a_posterior_in_closed_form(gradient: str) -> None:
    """Guided samples have the exact posterior's mean, nearly; SPGD needs a smaller scale for it than plain guidance."""
    case = Gaussian()
    cfg = SpgdStepConfig(mode="spgd", gradient=gradient, clip=0.5)
    assert case.error(SpgdStepConfig()) > 0.85  # unguided: the prior
    scales = {"estimate": (0.05, 0.1, 0.2, 0.5), "denoiser": (0.02, 0.05, 0.1, 0.2)}[gradient]
    errors = {
        mode: [case.error(cfg.with_(mode=mode, scale=scale)) for scale in scales]
        for mode in ("plain", "warmup", "spgd")
    }
    assert min(errors["spgd"]) < {"estimate": 0.2, "denoiser": 0.4}[gradient], errors
    assert min(errors["plain"]) < 0.3, errors
    assert errors["spgd"][0] < errors["plain"][0] - 0.1, errors


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("gradient", ["estimate", "denoiser"])
@pytest.mark.parametrize("mode", ["plain", "spgd"])
def test_every_sampler_is_guided_and_a_batch_gives_what_its_samples_give_alone(
    sampler: str, gradient: str, mode: str
) -> None:
    case = Gaussian()
    case.measured += 6  # where the prior hardly ever comes by itself
    x_T = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(4))
    steps = spaced_timesteps(12, "trailing", 1000, ABAR)

    def draw(x: Tensor, cfg: SpgdStepConfig) -> Tensor:
        spgd = Spgd(cfg, gradient_of(case.energy)).attach(case.eps, ABAR, len(steps))
        hook = spgd.before_step if cfg.acts else None
        with torch.no_grad():
            return SAMPLERS[sampler](
                spgd.eps, x, steps, ABAR, eta=0.0, randn=None, before_step=hook, progress=None
            )

    cfg = SpgdStepConfig(mode=mode, gradient=gradient, scale=0.05)
    free, guided = draw(x_T, SpgdStepConfig()), draw(x_T, cfg)
    lower = case.energy(guided) < case.energy(free)
    assert float(lower.float().mean()) >= 0.95
    assert torch.allclose(draw(x_T[5:6], cfg), guided[5:6], atol=1e-4)


def test_a_gradient_that_is_not_finite_is_left_out_for_its_sample_alone() -> None:
    case = Gaussian()
    whole = gradient_of(case.energy)

    def broken(x_0: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        values, g = whole(x_0)
        g[1] = math.inf
        return values, g

    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5))
    t = torch.full((3,), 500)
    cfg = SpgdStepConfig(mode="spgd", scale=0.05)
    moved = []
    for energy in (whole, broken):
        spgd = Spgd(cfg, energy, trace=True).attach(case.eps, ABAR, 2)
        spgd.eps(x, t, 0)
        moved.append(spgd.before_step(x, t, 1))
        if energy is broken:
            with pytest.warns(RuntimeWarning, match="of 1 of 3 samples was not finite"):
                spgd.eps(moved[-1], t, 1)
        else:
            spgd.eps(moved[-1], t, 1)
        assert [bool(inner.skipped[1]) for inner in spgd.steps[0].inner] == [energy is broken] * cfg.inner
    assert torch.equal(moved[1][1], x[1])
    assert torch.equal(moved[1][[0, 2]], moved[0][[0, 2]])
    assert not torch.equal(moved[0][1], x[1])


def test_no_inner_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of a tensor would make the program wait until the device has computed it."""
    calls: list[object] = []
    case = Gaussian()

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: calls.append(real) or real(*arguments)

    for name in ("__bool__", "__int__", "__float__", "item", "tolist", "nonzero"):
        monkeypatch.setattr(Tensor, name, counted(getattr(Tensor, name)))
    x, t = torch.randn(3, *SHAPE), torch.full((3,), 500)
    spgd = Spgd(SpgdStepConfig(mode="spgd", scale=0.05), gradient_of(case.energy))
    spgd.attach(case.eps, ABAR, 10)
    for i in range(3):
        x = spgd.before_step(x, t, i)
        spgd.eps(x, t, i)
    assert not calls
    assert bool(x.isfinite().all()) and calls  # the count works


def test_which_steps_are_guided() -> None:
    on = SpgdStepConfig(mode="spgd")
    assert on.with_(start=0.25, end=0.75, every=2).guided_steps(20) == [5, 7, 9, 11, 13]
    assert on.with_(start=0.55).guided_steps(100) == list(range(55, 100))  # 0.55 * 100 is a little over 55
    assert on.guided_steps(3) == [1, 2]  # before the first prediction there is no estimate
    assert on.with_(gradient="denoiser").guided_steps(3) == [0, 1, 2]
    assert SpgdStepConfig().guided_steps(3) == on.with_(scale=0.0).guided_steps(3) == []
    for changes in ({"start": 0.5, "end": 0.5}, {"start": 0.4, "end": 0.45}, {"every": 3}, {"end": 0.3}):
        with pytest.raises(ValueError, match=r"^spgd: no step is guided"):
            on.with_(**changes).guided_steps(3)


@pytest.mark.parametrize("gradient", ["estimate", "denoiser"])
def test_guided_steps_are_those_that_move(gradient: str) -> None:
    case, moved = Gaussian(), []
    cfg = SpgdStepConfig(mode="spgd", gradient=gradient, scale=0.05, start=0.0, end=0.8, every=2)
    spgd = Spgd(cfg, gradient_of(case.energy)).attach(case.eps, ABAR, 9)
    x, t = torch.randn(2, *SHAPE), torch.full((2,), 500)
    for i in range(9):
        if not torch.equal(spgd.before_step(x, t, i), x):
            moved.append(i)
        spgd.eps(x, t, i)
    assert moved == cfg.guided_steps(9) and len(moved) in (3, 4)
