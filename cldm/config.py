"""Settings of sampling: the sampler's, and those of a step along an energy's gradient."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from settings.base import Settings, Share, expect

SamplerName = Literal["ddim", "dpmpp_2m", "unipc"]
Spacing = Literal["leading", "trailing", "midmany", "karras"]
Condition = Literal["text", "skull", "landmarks", "texture"]
SpgdMode = Literal["off", "plain", "warmup", "spgd"]


class SamplingConfig(Settings):
    """How a face is drawn. The defaults are ICCR-Diff's for SD1.5.

    sampler: ddim (with eta 1 the same as Euler ancestral), dpmpp_2m (second order; with eta 1 its stochastic form) or
    unipc (second order, deterministic). steps: denoising steps.
    spacing: which of the training steps they visit (leading, trailing, midmany, karras).
    eta: 0 deterministic given the seed's first noise, 1 as noisy as DDPM.
    guidance_scale: classifier-free guidance; 1 switches it off.
    guidance_drops: what its unconditional branch is without (text, skull, landmarks, texture), which is what guidance
    sharpens: ["text"] the prompt; ["skull", "landmarks", "texture"] what is drawn of this person rather than of anybody
    whom the prompt describes.
    control_scales: one factor per control residual, or a single one for all.
    control_start, control_end: fractions of the steps between which the skull acts, and with it all branches.
    landmark_scale, texture_scale: factor on what landmarks and texture add to the control copy; 0 switches them off.
    landmark_start, landmark_end, texture_start, texture_end: fractions of the steps between which they act.
    grain: of a model whose autoencoder has a grain head, add its grain; false draws the mean picture.
    """

    steps: Annotated[int, Field(ge=1, le=999)] = 50
    spacing: Spacing = "midmany"
    eta: Share = 1.0
    guidance_scale: float = 9.0
    control_scales: Annotated[list[float], Field(min_length=1)] = [1.4] * 3 + [1.2] * 3 + [0.8] * 7
    control_start: Share = 0.0
    control_end: Share = 1.0
    sampler: SamplerName = "ddim"
    landmark_scale: float = 1.0
    landmark_start: Share = 0.0
    landmark_end: Share = 1.0
    texture_scale: float = 1.0
    texture_start: Share = 0.0
    texture_end: Share = 1.0
    guidance_drops: Annotated[list[Condition], Field(min_length=1)] = ["text"]
    grain: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        expect(self.sampler != "unipc" or self.eta == 0, "eta", self.eta, "0: unipc draws no noise")
        for part in ("control", "landmark", "texture"):
            start, end = getattr(self, f"{part}_start"), getattr(self, f"{part}_end")
            expect(start <= end, f"{part}_start", start, f"at most {part}_end={end}")
        return self

    @property
    def guidance_summary(self) -> str:
        """The scale, and what it sharpens where that is not the text alone."""
        over = "" if self.guidance_scale == 1 or self.guidance_drops == ["text"] else " over "
        return f"{self.guidance_scale:g}{over}" + (", ".join(self.guidance_drops) if over else "")

    def scales_for(self, num_outputs: int) -> list[float]:
        """Return one scale per control residual.

        Raises:
            ValueError: neither one scale nor ``num_outputs`` of them.
        """
        scales = self.control_scales
        if len(scales) == 1:
            return scales * num_outputs
        if len(scales) != num_outputs:
            raise ValueError(
                f"sampling.control_scales: got {len(scales)} numbers, expected one for all or {num_outputs}, one for "
                "each control residual of this model"
            )
        return scales


class SpgdStepConfig(Settings):
    """How a sample is guided.

    mode: off; plain (one step along the gradient, no momentum); warmup (``inner`` steps, no momentum); spgd (``inner``
    steps with adaptive directional momentum).
    gradient: estimate (the last estimate of x_0 moves with x_t; the denoiser runs once a step) or denoiser (through
    it: exact, 1 + ``inner`` runs a step).
    scale: length of the first step, relative to the latent's norm. clip: the longest step, likewise.
    relative_to: latent (a step moves x_t by that much, and the estimate of x_0 by 1 / sqrt(abar) times as much, ten
    times where there is hardly anything but noise) or estimate (it moves the estimate by that much).
    start, end: fractions of the sampling steps between which it acts; every: at each so-many-th of them.
    inner: warm-up steps before each denoising step. beta: of the momentum.
    """

    mode: SpgdMode = "off"
    gradient: Literal["estimate", "denoiser"] = "estimate"
    scale: NonNegativeFloat = 0.02
    clip: PositiveFloat = 0.1
    relative_to: Literal["latent", "estimate"] = "latent"
    start: Share = 0.0
    end: Share = 1.0
    every: PositiveInt = 1
    inner: PositiveInt = 3
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        expect(self.start <= self.end, "start", self.start, f"at most end={self.end}")
        return self

    @property
    def acts(self) -> bool:
        """Whether it changes anything at all."""
        return self.mode != "off" and self.scale > 0

    @property
    def num_inner(self) -> int:
        """Steps along the gradient before each denoising step."""
        return 1 if self.mode == "plain" else self.inner

    @property
    def momentum(self) -> float:
        """beta of the mode."""
        return self.beta if self.mode == "spgd" else 0.0

    def acts_at(self, i: int, num_steps: int) -> bool:
        """Whether step ``i`` (from 0) of so many is guided."""
        # 0.55 of 100 steps is 55.000000000000007 in floating point: rounded before it is rounded up
        first, end = (math.ceil(round(share * num_steps, 6)) for share in (self.start, self.end))
        return first <= i < end and (i - first) % self.every == 0

    def guided_steps(self, num_steps: int) -> list[int]:
        """Those of so many that are guided. By the last estimate, the first never is: there is none before it.

        Raises:
            ValueError: it is switched on and none is.
        """
        if not self.acts:
            return []
        without = 1 if self.gradient == "estimate" else 0
        steps = [i for i in range(without, num_steps) if self.acts_at(i, num_steps)]
        if not steps:
            late = ", the first of which has no estimate yet to guide (gradient=estimate)" if without else ""
            raise ValueError(
                f"spgd: no step is guided by start={self.start:g}, end={self.end:g}, every={self.every} at "
                f"{num_steps} sampling steps{late}; widen the window, lower spgd.every, take more sampling.steps, "
                "or leave spgd.mode=off"
            )
        return steps
