"""SPGD: stabilised progressive gradient guidance as the sampler's hook, and the plain guidance it is compared with.

Source: arXiv 2507.06656. At every step, before the denoiser:
  1. g_j      = gradient of the energy at x_t
  2. alpha_j  = (cos(g_j, g~_{j-1}) + 1) / 2,  g~_j = alpha_j beta g~_{j-1} + (1 - alpha_j beta) g_j,  g~_0 = g_0
  3. x_t     <- x_t - lr g~_j,  N times (the progressive likelihood warm-up); lr falls linearly to 1 % over the run
then the sampler's own update, with the noise predicted at the x_t so reached. The authors' code reuses the noise of the
last inner step instead, and throws g~ away.

The step has no dimension: g has the gradient's direction with respect to x_t, and as its length that of the gradient
with respect to the estimate x_0, in units of its root mean square so far; lr is relative to the norm of x_t (or to
sqrt(abar) of it: relative_to). So one scale serves models and energies of any size, and a gradient that vanishes moves
nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from cldm.config import SpgdStepConfig
from cldm.ddim import EpsFn
from ldm.schedule import predict_x0

LAST_RATE = 0.01  # of the first step's, at the last one

EnergyGradient = Callable[[Tensor], tuple[Mapping[str, Tensor], Tensor]]
"""Estimates x_0 (B, ...) float32 -> energies by name, (B,) each, and the gradient of their sum, (B, ...)."""


@dataclass(frozen=True)
class InnerStep:
    """One step along the gradient, for the trace: every entry (B,) float32 on the CPU.

    energies: before the step. gradient_norm: of their sum with respect to the estimate. turn: degrees between this
    gradient and the one before, NaN for the first. length: of the step, relative to the latent's norm. skipped: bool.
    """

    energies: Mapping[str, Tensor]
    gradient_norm: Tensor
    turn: Tensor
    length: Tensor
    skipped: Tensor


@dataclass
class SpgdStep:
    """A denoising step, for the trace. i: from 0; t: of the training steps; rate: of the learning rate at the start.

    to_denoising: (B,) degrees between the guided move and the denoiser's own move after it (-eps).
    """

    i: int
    t: int
    rate: float
    inner: list[InnerStep]
    to_denoising: Tensor | None = None


# --- pure functions ---------------------------------------------------------------------------------------


def norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample of (B, ...): (B,)."""
    return x.flatten(1).norm(dim=1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return values (B,) in the shape (B, 1, ...) that multiplies ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def learning_rate(i: int, num_steps: int) -> float:
    """Return the rate of step ``i``: 1 at the first step; it falls linearly to 1 % at the last."""
    return 1.0 - (1.0 - LAST_RATE) * i / max(1, num_steps - 1)


def adaptive_momentum(g: Tensor, smoothed: Tensor | None, beta: float) -> Tensor:
    """Return g~_j (B, C, ...) of gradients g_j (B, C, ...) and g~_{j-1} (None at the first).

    The cosine is taken over the channels and averaged over positions, each sample by itself. A sample whose g~ is still
    zero begins with its gradient.
    """
    if smoothed is None:
        return g
    cosine = F.cosine_similarity(g, smoothed, dim=1, eps=1e-30).flatten(1).mean(1)  # (B,)
    alpha = (cosine + 1) / 2 * (norm(smoothed) > 0)
    weight = per_sample(alpha * beta, g)
    return weight * smoothed + (1 - weight) * g


def spgd_step(x: Tensor, direction: Tensor, rate: float, clip: float, reference: Tensor) -> Tensor:
    """Return x - rate * reference * direction (B, ...); a step is at most clip * reference long.

    reference: (B,), the latents' norm. A direction of zero leaves its sample unchanged, to the bit.
    """
    length = rate * norm(direction)  # (B,), relative
    shorter = torch.where(length > clip, clip / length.clamp(min=1e-30), torch.ones_like(length))
    return x - per_sample(rate * reference * shorter, x) * direction


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the degrees between samples of (B, ...): (B,); NaN where one of them is zero."""
    lengths = norm(a) * norm(b)
    cosine = (a.flatten(1) * b.flatten(1)).sum(1) / lengths
    return torch.where(lengths > 0, torch.rad2deg(cosine.clamp(-1, 1).acos()), torch.nan)


class RunningNorm:
    """Root mean square of each sample's gradient norm so far; zero and non-finite gradients do not count."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None
        self._count = torch.zeros(())

    def __call__(self, norms: Tensor, rows: slice = slice(None), num: int | None = None) -> Tensor:
        """Count ``norms`` and return the divisor of their gradients, (B,); 1 where none has counted.

        rows: which of ``num`` samples they are. Default: all.
        """
        if self._squares is None:
            self._squares = norms.new_zeros(len(norms) if num is None else num)
            self._count = torch.zeros_like(self._squares)
        counts = norms.isfinite() & (norms > 0)
        self._squares[rows] += torch.where(counts, norms.square(), 0.0)
        self._count[rows] += counts
        mean = self._squares[rows] / self._count[rows].clamp(min=1)
        return torch.where(mean > 0, mean.sqrt(), 1.0)


# --- the hook -----------------------------------------------------------------------------------------------


class Spgd:
    """SPGD of one batch: keeps the estimate of every prediction and moves x_t before the next one.

    All arithmetic is float32, whatever the model computes in. Each sample is guided by itself: its steps, momentum and
    clip do not depend on the batch. A gradient that is not finite is left out for its sample, with a warning.

    Args:
        cfg: settings. energy: of the estimates. trace: write an entry into ``steps`` for every guided step.
    """

    def __init__(self, cfg: SpgdStepConfig, energy: EnergyGradient, trace: bool = False) -> None:
        self.steps: list[SpgdStep] = []
        self.energy = energy
        self._cfg, self._trace = cfg, trace
        self._x_0: Tensor | None = None  # the last estimate
        self._typical = RunningNorm()
        self._last_gradient: Tensor | None = None
        self._step: SpgdStep | None = None
        self._moved: Tensor | None = None
        self._left_out: Tensor | None = None  # (B,) bool: samples that lost a step

    def attach(self, eps_fn: EpsFn, alphas_cumprod: Tensor, num_steps: int) -> Self:
        """Take the batch's noise predictor and the sampler's number of steps; the sampler then calls ``eps``."""
        self._eps_fn, self._abar, self._num_steps = eps_fn, alphas_cumprod, num_steps
        return self

    def eps(self, x_t: Tensor, t: Tensor, i: int) -> Tensor:
        """Return the predicted noise (B, ...) and keep the estimate that it implies."""
        eps = self._eps_fn(x_t, t, i)
        if self._cfg.gradient == "estimate":
            self._x_0 = predict_x0(x_t.float(), t, eps.float(), self._abar)
        if self._step is not None and self._moved is not None:
            self._step.to_denoising = angle(self._moved, -eps.float()).cpu()
            self.steps.append(self._step)
            self._step = None
        if i == self._num_steps - 1:
            self._warn()
        return eps

    def before_step(self, x_t: Tensor, t: Tensor, i: int) -> Tensor:
        """Return x_t (B, ...) after the warm-up; the sampler's hook."""
        cfg = self._cfg
        if not cfg.acts_at(i, self._num_steps) or (cfg.gradient == "estimate" and self._x_0 is None):
            return x_t  # before the first prediction there is no estimate to guide
        x = start = x_t.float()
        reference, rate = norm(start), learning_rate(i, self._num_steps)
        if cfg.relative_to == "estimate":
            reference = reference * self._abar.to(x)[t].sqrt()
        smoothed: Tensor | None = None
        inner = []
        for _ in range(cfg.num_inner):
            energies, g, strength = self._gradient(x, start, t, i)
            finite = g.flatten(1).isfinite().all(1)
            for values in energies.values():
                finite = finite & values.isfinite()
            self._left_out = ~finite if self._left_out is None else self._left_out | ~finite
            g = torch.where(per_sample(finite, g), g, 0.0)
            now = adaptive_momentum(g, smoothed, cfg.momentum)
            if smoothed is not None:
                now = torch.where(per_sample(finite, g), now, smoothed)
            moving = torch.where(per_sample(finite, g), now, 0.0)
            moved = spgd_step(x, moving, rate * cfg.scale, cfg.clip, reference)
            if self._trace:
                inner.append(self._inner(energies, strength, g, norm(moved - x) / norm(start), ~finite))
            x, smoothed = moved, now
        if self._trace:
            self._step, self._moved = SpgdStep(i, int(t[0]), rate, inner), x - start
        return x.to(x_t.dtype)

    def _gradient(
        self, x: Tensor, start: Tensor, t: Tensor, i: int
    ) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        """Return energies, the dimensionless gradient with respect to x (B, ...), and the norm of that of x_0, (B,).

        In the estimate's mode x_0 is what the last prediction made of x_t, moved as far as x is from ``start``: the
        Jacobian is 1 / sqrt(abar). For a deterministic DDIM that is the same as keeping its noise; where the sampler
        has drawn new noise since, the estimate stays free of it.
        """
        if self._cfg.gradient == "estimate":
            assert self._x_0 is not None
            abar = per_sample(self._abar.to(x)[t], x)
            energies, g = self.energy(self._x_0 + (x - start) / abar.sqrt())
            strength = norm(g.float())
            return energies, g.float() / per_sample(self._typical(strength), g), strength
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x_0 = predict_x0(leaf, t, self._eps_fn(leaf, t, i).float(), self._abar)
        energies, g_0 = self.energy(x_0.detach())
        strength = norm(g_0.float())
        (g,) = torch.autograd.grad(x_0, leaf, g_0.to(x_0))
        length = norm(g)
        target = strength / self._typical(strength)
        return energies, g * per_sample(torch.where(length > 0, target / length, 0.0), g), strength

    def _inner(
        self,
        energies: Mapping[str, Tensor],
        strength: Tensor,
        g: Tensor,
        length: Tensor,
        skipped: Tensor,
    ) -> InnerStep:
        before = self._last_gradient
        turn = torch.full_like(strength, torch.nan) if before is None else angle(g, before)
        self._last_gradient = g
        return InnerStep(
            {name: values.float().cpu() for name, values in energies.items()},
            *(values.cpu() for values in (strength, turn, length, skipped)),
        )

    def _warn(self) -> None:
        """Warn of lost steps, once after the last step: reading a number earlier would wait for the device."""
        lost = 0 if self._left_out is None else int(self._left_out.sum())
        if self._left_out is None or not lost:
            return
        warnings.warn(
            f"spgd: a gradient of {lost} of {len(self._left_out)} samples was not finite; such steps along it were "
            "left out for those samples (spgd.trace=true shows which)",
            RuntimeWarning,
            stacklevel=2,
        )
