"""Second-order samplers that remember the previous estimate: DPM-Solver++(2M), its stochastic form, and UniPC.

Sources: Lu et al. 2022, arXiv 2211.01095 (DPM-Solver++, also the stochastic form); Zhao et al. 2023, arXiv 2302.04867
(UniPC with B2(h) = e^h - 1). All predict x_0.

Notation: alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), lambda_t = log(alpha_t / sigma_t), and h = lambda_next -
lambda_t is a step's length. m_i is the estimate of x_0 at the i-th step visited. The last step goes to lambda = inf,
where x is m itself. Euler's ancestral sampler is not here because it is DDIM with eta = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cldm.ddim import BeforeStep, EpsFn


@dataclass(frozen=True)
class Level:
    """How noisy a step is: x = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio; inf without noise."""
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)


def noise_levels(timesteps: Sequence[int] | np.ndarray, alphas_cumprod: Tensor) -> list[Level]:
    """The level of every step, and of the end, which has no noise: ``len(timesteps) + 1`` of them."""
    abar = alphas_cumprod.to("cpu", torch.float64)[torch.as_tensor(np.asarray(timesteps, dtype=np.int64))]
    return [Level(math.sqrt(a), math.sqrt(1 - a)) for a in abar.tolist()] + [Level(1.0, 0.0)]


def predict(
    x: Tensor,
    m: Tensor,
    previous: tuple[Tensor, float] | None,
    now: Level,
    to: Level,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One DPM-Solver++(2M) step from level ``now`` to level ``to``; shape of x.

    previous: the estimate m_{i-1} and the length of the step before, or None for a first-order step.
    eta: 0 follows the probability-flow ODE, 1 the reverse SDE; noise: like x, needed for eta > 0.

      1. D      = m_i + h_i / (2 h_{i-1}) (m_i - m_{i-1})
      2. x_next = (sigma_to / sigma_now) e^(-eta h) x + alpha_to (1 - e^(-(1 + eta) h)) D
                  + sigma_to sqrt(1 - e^(-2 eta h)) noise
    """
    if to.sigma == 0:
        return m
    h = to.lam - now.lam
    d = m
    if previous is not None:
        m_prev, h_prev = previous
        d = m + (m - m_prev) * (h / (2 * h_prev))
    x = x * (to.sigma / now.sigma * math.exp(-eta * h)) + d * (-to.alpha * math.expm1(-(1 + eta) * h))
    if eta > 0:
        if noise is None:
            raise ValueError(f"predict: eta={eta} needs noise")
        x = x + noise * (to.sigma * math.sqrt(-math.expm1(-2 * eta * h)))
    return x


def correct(
    x: Tensor, m: Tensor, previous: tuple[Tensor, float] | None, m_to: Tensor, now: Level, to: Level
) -> Tensor:
    """UniC: the step from ``now`` to ``to`` once more, now that the estimate ``m_to`` at its end is known.

    x, m, previous: what :func:`predict` was given for this step.

    With B = e^(-h) - 1 and, for order 2, r = -h_{i-1} / h_i:
      1. D_1  = (m_{i-1} - m_i) / r,  D_2 = m_to - m_i
      2. x_to = (sigma_to / sigma_now) x - alpha_to B (m_i + rho_1 D_1 + rho_2 D_2)
    where rho solves the order conditions rho_1 + rho_2 = phi_2, r rho_1 + rho_2 = 2 phi_3 (eq. 10);
    with first order rho_2 = 1/2 alone.
    """
    h = to.lam - now.lam
    b = math.expm1(-h)
    d = m + 0.5 * (m_to - m)
    if previous is not None:
        m_prev, h_prev = previous
        r = -h_prev / h
        phi_2 = 1 / -h - 1 / b  # (B / -h - 1) / B
        phi_3 = ((b / -h - 1) / -h - 0.5) / b
        rho_2 = (2 * phi_3 - r * phi_2) / (1 - r)
        rho_1 = phi_2 - rho_2
        d = m + (m_prev - m) * (rho_1 / r) + (m_to - m) * rho_2
    return x * (to.sigma / now.sigma) - d * (to.alpha * b)


def sample_multistep(
    eps_fn: EpsFn,
    x_T: Tensor,
    timesteps: Sequence[int] | np.ndarray,
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    randn: Callable[[], Tensor] | None = None,
    before_step: BeforeStep | None = None,
    progress: Callable[[int, int], None] | None = None,
    corrector: bool = False,
) -> Tensor:
    """Walk from x_T (B, ...) down the given timesteps to the picture; returns x_0, shape of x_T.

    The arguments are those of :func:`cldm.ddim.sample_ddim`. corrector: UniPC instead of DPM-Solver++(2M); needs eta 0.

    ``before_step`` sees and may change x_t before the denoiser does. What it changed is kept by the corrector, which
    is added as a difference.

    Raises:
        ValueError: eta > 0 without ``randn``, or with the corrector.
    """
    if eta > 0 and randn is None:
        raise ValueError(f"sample_multistep: eta={eta} needs randn")
    if eta > 0 and corrector:
        raise ValueError(f"sample_multistep: the corrector is for eta=0, got {eta}")
    steps = [int(t) for t in timesteps]
    levels = noise_levels(steps, alphas_cumprod)
    x = x_T
    last: tuple[Tensor, Tensor, Tensor, tuple[Tensor, float] | None] | None = None  # of the step before
    for i, t in enumerate(steps):
        now, to = levels[i], levels[i + 1]
        t_batch = torch.full((x.shape[0],), t, device=x.device, dtype=torch.long)
        if before_step is not None:
            x = before_step(x, t_batch, i)
        m = (x - now.sigma * eps_fn(x, t_batch, i).to(x.dtype)) / now.alpha
        previous = None
        if last is not None:
            x_last, m_last, predicted, previous_last = last
            if corrector:
                x = x + (correct(x_last, m_last, previous_last, m, levels[i - 1], now) - predicted)
            previous = (m_last, now.lam - levels[i - 1].lam)
        noise = randn() if eta > 0 and randn is not None and to.sigma > 0 else None
        predicted = predict(x, m, previous, now, to, eta if noise is not None else 0.0, noise)
        x, last = predicted, (x, m, predicted, previous)
        if progress is not None:
            progress(i + 1, len(steps))
    return x
