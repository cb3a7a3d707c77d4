"""Step spacings and the sampling loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cldm.ddim import ddim_step, sample_ddim
from cldm.spacing import SPACINGS, spaced_timesteps
from ldm.config import ScheduleConfig
from ldm.schedule import schedule_buffers

# The fifty steps ICCR-Diff visits, as its published code computes them.
MIDMANY_50 = [
    34, 66, 98, 128, 158, 186, 214, 240, 266, 290, 313, 335, 356, 376, 394, 412, 427, 442, 455, 467, 477, 486, 493,
    497, 499, 502, 506, 513, 522, 532, 544, 557, 572, 587, 605, 623, 643, 664, 686, 709, 733, 759, 785, 813, 841, 871,
    901, 933, 965, 999,
]  # fmt: skip


ABAR = schedule_buffers(ScheduleConfig())["alphas_cumprod"]


def test_midmany_is_the_original() -> None:
    assert spaced_timesteps(50, "midmany")[::-1].tolist() == MIDMANY_50


@given(st.integers(1, 999), st.sampled_from(SPACINGS))
def test_spacings_are_distinct_descending_and_in_range(num_steps: int, spacing: str) -> None:
    t = spaced_timesteps(num_steps, spacing, 1000, ABAR)
    assert len(t) == num_steps
    assert (np.diff(t) < 0).all()
    assert t.min() >= 0
    assert t.max() <= 999


def test_eta_needs_noise() -> None:
    with pytest.raises(ValueError, match="noise"):
        ddim_step(torch.zeros(1), torch.zeros(1), ABAR[500], ABAR[400], 1.0, None)
    with pytest.raises(ValueError, match="randn"):
        sample_ddim(lambda x, t, i: x, torch.zeros(1, 1), [5], ABAR, eta=1.0)
