"""The second-order samplers against diffusers', and what they promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.sampling import samplers
from cldm.ddim import sample_ddim
from cldm.multistep import sample_multistep
from cldm.sampling import SAMPLERS
from cldm.spacing import spaced_timesteps
from ldm.config import ScheduleConfig
from ldm.schedule import q_sample, schedule_buffers

ABAR = schedule_buffers(ScheduleConfig())["alphas_cumprod"]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
MIX = 0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    """Smooth, not linear, and different at every step."""
    return torch.tanh(torch.einsum("ij,bjhw->bihw", MIX, x)) + x * (float(t) / 2000)


def noises() -> Iterator[Tensor]:
    g = torch.Generator().manual_seed(2)
    while True:
        yield torch.randn(X_T.shape, generator=g)


def diffusers_result(scheduler: Any, steps: np.ndarray) -> Tensor:
    if isinstance(scheduler, diffusers.UniPCMultistepScheduler):  # takes no list of steps of its own
        scheduler.set_timesteps(len(steps))
        scheduler.timesteps = torch.from_numpy(steps)
        a = ABAR.double()[scheduler.timesteps]
        scheduler.sigmas = torch.cat([((1 - a) / a).sqrt(), torch.zeros(1)]).float()
    else:
        scheduler.set_timesteps(timesteps=steps.tolist())
    x, noise = X_T, noises()
    for t in scheduler.timesteps:
        more = (
            {"variance_noise": next(noise)} if scheduler.config.get("algorithm_type", "")[:3] == "sde" else {}
        )
        x = scheduler.step(denoiser(x, t), t, x, **more).prev_sample
    return x


@pytest.mark.parametrize("spacing", ["karras", "leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m, eta 1", "unipc"])
def test_against_diffusers(name: str, num_steps: int, spacing: str) -> None:
    steps = spaced_timesteps(num_steps, spacing, 1000, ABAR)
    if name == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(**SD, solver_order=2, solver_type="bh2")
    else:
        kind = "sde-dpmsolver++" if name.endswith("eta 1") else "dpmsolver++"
        scheduler = diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type=kind, solver_order=2)
    noise = noises()
    ours = SAMPLERS[name.split(",")[0]](
        lambda x, t, i: denoiser(x, t[0]),
        X_T,
        steps,
        ABAR,
        eta=1.0 if name.endswith("eta 1") else 0.0,
        randn=lambda: next(noise),
        before_step=None,
        progress=None,
    )
    theirs = diffusers_result(scheduler, steps)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("num_steps", [2, 20])
def test_karras_spacing_is_diffusers(num_steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(num_steps)
    assert spaced_timesteps(num_steps, "karras", 1000, ABAR).tolist() == scheduler.timesteps.tolist()


def gaussian_eps(x: Tensor, t: Tensor, i: int) -> Tensor:
    """The exact eps of the data distribution N(0.7, 0.3^2)."""
    a = ABAR[t].reshape(-1, 1, 1, 1)
    return (1 - a).sqrt() * (x - a.sqrt() * 0.7) / (a * 0.3**2 + 1 - a)


def test_second_order_is_nearer_than_ddim() -> None:
    """The ODE of a Gaussian has a closed solution: x_0 = mean + std (x_T - sqrt(a) mean) / sqrt(a std^2 + 1 - a)."""
    steps = spaced_timesteps(20, "karras", 1000, ABAR)
    a = ABAR[steps[0]]
    exact = 0.7 + 0.3 * (X_T - a.sqrt() * 0.7) / (a * 0.3**2 + 1 - a).sqrt()
    ddim = (sample_ddim(gaussian_eps, X_T, steps, ABAR) - exact).abs().mean()
    for corrector in (False, True):
        second = sample_multistep(gaussian_eps, X_T, steps, ABAR, corrector=corrector)
        assert float((second - exact).abs().mean()) < float(ddim) / 5


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_what_the_hook_returns_is_what_goes_on(name: str) -> None:
    """Every sampler denoises what the hook returned, and the change reaches the end, UniPC's correction included."""

    def run(shift: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        returned: list[Tensor] = []
        denoised: list[Tensor] = []

        def hook(x: Tensor, t: Tensor, i: int) -> Tensor:
            returned.append(x + (shift if i == 2 else 0.0))
            return returned[-1]

        def eps_fn(x: Tensor, t: Tensor, i: int) -> Tensor:
            denoised.append(x)
            return torch.zeros_like(x)  # no estimate that could pull the change back

        steps = spaced_timesteps(5, "trailing")
        end = SAMPLERS[name](
            eps_fn, X_T, steps, ABAR, eta=0.0, randn=None, before_step=hook, progress=None
        )  # fmt: skip
        return end, returned, denoised

    plain, changed = run(0.0), run(0.5)
    assert all(torch.equal(a, b) for a, b in zip(changed[1], changed[2], strict=True))
    # with eps = 0 the rest of the way only rescales x, so the change arrives with its sign and more than its size
    assert float((changed[0] - plain[0]).min()) > 0.5


def test_progress_and_refusals() -> None:
    for sampler in (sample_ddim, sample_multistep):
        done: list[tuple[int, int]] = []
        sampler(gaussian_eps, X_T, [900, 500], ABAR, progress=lambda a, b, done=done: done.append((a, b)))
        assert done == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="randn"):
        sample_multistep(gaussian_eps, X_T, [900], ABAR, eta=1.0)
    with pytest.raises(ValueError, match="corrector"):
        sample_multistep(gaussian_eps, X_T, [900], ABAR, eta=1.0, randn=lambda: X_T, corrector=True)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_with_the_true_noise_every_sampler_returns_to_the_start(name: str) -> None:
    """One data point: its exact eps is known, and every sampler must end on it, however few the steps."""
    x_0 = torch.randn(X_T.shape, generator=torch.Generator().manual_seed(6))
    steps = spaced_timesteps(7, "trailing")
    x_T = q_sample(x_0, torch.full((2,), int(steps[0])), X_T, ABAR)

    def exact(x: Tensor, t: Tensor, i: int) -> Tensor:
        a = ABAR[t].reshape(-1, 1, 1, 1)
        return (x - a.sqrt() * x_0) / (1 - a).sqrt()

    end = SAMPLERS[name](exact, x_T, steps, ABAR, eta=0.0, randn=None, before_step=None, progress=None)
    left = 0.15 if name == "ddim" else 1e-3  # DDIM ends at step 0, where SD1.x leaves 3 % of noise
    assert float((end - x_0).abs().max()) < left


def test_the_benchmark_of_samplers(
    capsys: pytest.CaptureFixture[str], make_pairs: Callable[..., Path], weights: Path
) -> None:
    manifest = make_pairs(test=2) / "split_data" / "test.json"
    arguments = [f"weights={weights}", f"manifest={manifest}", "num=2", "device=cpu"]
    assert samplers.main([*arguments, "steps=[3,12]", "reference_steps=24"]) == 0
    rows = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("| ddim", "| dpmpp", "| unipc"))
    ]
    assert len(rows) == len(samplers.WAYS)
    few, many = (float(cell) for cell in rows[-1].strip("| ").split(" | ")[2:])
    assert many < few
    assert samplers.main([*arguments, "steps=[]"]) == 2
    assert "steps: got" in capsys.readouterr().err
