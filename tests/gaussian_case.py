"""A normal prior with a linear measurement, where the noise prediction and the posterior are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cldm.config import SpgdStepConfig
from cldm.ddim import sample_ddim
from cldm.spacing import spaced_timesteps
from cldm.spgd import EnergyGradient, Spgd
from ldm.config import ScheduleConfig
from ldm.schedule import schedule_buffers

ABAR = schedule_buffers(ScheduleConfig())["alphas_cumprod"].float()
SHAPE = (4, 1, 2)  # of a sample: 8 numbers


def gradient_of(energy: Callable[[Tensor], Tensor]) -> EnergyGradient:
    """Return the gradient, by autograd, of an energy (B, ...) -> (B,) with the name ``energy``."""

    def both(x_0: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        with torch.enable_grad():
            x = x_0.detach().requires_grad_()
            values = energy(x)
            (g,) = torch.autograd.grad(values.sum(), x)
        return {"energy": values.detach()}, g

    return both


class Gaussian:
    """Eight numbers, of which three linear measurements are known but for noise of 0.3."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        d = math.prod(SHAPE)
        half = torch.randn(d, d, generator=g) / math.sqrt(d)
        self.cov = half @ half.T + 0.1 * torch.eye(d)
        self.mean = torch.randn(d, generator=g)
        self.measure, self.noise = torch.randn(3, d, generator=g), 0.3
        truth = self.mean + 1.5 * torch.linalg.cholesky(self.cov) @ torch.randn(d, generator=g)
        self.measured = self.measure @ truth + self.noise * torch.randn(3, generator=g)
        inner = self.measure @ self.cov @ self.measure.T + self.noise**2 * torch.eye(3)
        gain = self.cov @ self.measure.T @ torch.linalg.inv(inner)
        self.posterior_mean = self.mean + gain @ (self.measured - self.measure @ self.mean)

    def eps(self, x_t: Tensor, t: Tensor, i: int) -> Tensor:
        """-sqrt(1 - abar) times the score of N(sqrt(abar) mean, abar cov + 1 - abar)."""
        abar = ABAR[t[0]]
        cov = abar * self.cov + (1 - abar) * torch.eye(len(self.cov))
        score = -(x_t.flatten(1) - abar.sqrt() * self.mean) @ torch.linalg.inv(cov)
        return (-(1 - abar).sqrt() * score).view_as(x_t)

    def energy(self, x_0: Tensor) -> Tensor:
        """-log likelihood, but for a constant, (B,)."""
        return (x_0.flatten(1) @ self.measure.T - self.measured).square().sum(1) / (2 * self.noise**2)

    def sample(self, cfg: SpgdStepConfig, num: int = 128) -> Tensor:
        """(num, 8), by 50 stochastic DDIM steps."""
        g = torch.Generator().manual_seed(1)
        steps = spaced_timesteps(50, "trailing", 1000, ABAR)
        spgd = Spgd(cfg, gradient_of(self.energy)).attach(self.eps, ABAR, len(steps))
        with torch.no_grad():
            return sample_ddim(
                spgd.eps,
                torch.randn(num, *SHAPE, generator=g),
                steps,
                ABAR,
                eta=1.0,
                randn=lambda: torch.randn(num, *SHAPE, generator=g),
                before_step=spgd.before_step if cfg.acts else None,
            ).flatten(1)

    def error(self, cfg: SpgdStepConfig, num: int = 128) -> float:
        """Distance of the samples' mean from the posterior's, where the prior's is 1."""
        away = (self.sample(cfg, num).mean(0) - self.posterior_mean).norm()
        return float(away / (self.mean - self.posterior_mean).norm())
