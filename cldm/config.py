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
    """The sampler; by default as ICCR-Diff has it for SD1.5.

    ddim with eta 1 is the same as Euler ancestral; dpmpp_2m with eta 1 is its stochastic form. guidance_drops=["text"]
    sharpens the prompt; ["skull", "landmarks", "texture"] sharpens what is drawn of this person rather than of anybody
    whom the prompt describes.
    """

    steps: Annotated[int, Field(ge=1, le=999)] = 50
    """Denoising steps."""
    spacing: Spacing = "midmany"
    """Which of the training steps they visit."""
    eta: Share = 1.0
    """Noise of each step: 0 none, 1 as much as DDPM."""
    guidance_scale: float = 9.0
    """Classifier-free guidance; 1 switches it off."""
    control_scales: Annotated[list[float], Field(min_length=1)] = [1.4] * 3 + [1.2] * 3 + [0.8] * 7
    """Factor on each control residual, or one for all."""
    control_start: Share = 0.0
    """Share of the steps after which the skull acts, and with it all branches."""
    control_end: Share = 1.0
    """Share of the steps until which they act."""
    sampler: SamplerName = "ddim"
    """dpmpp_2m and unipc are of second order and need fewer steps; unipc is deterministic."""
    landmark_scale: float = 1.0
    """Factor on what landmarks add; 0 switches them off."""
    landmark_start: Share = 0.0
    """Share of the steps after which landmarks act."""
    landmark_end: Share = 1.0
    """Share of the steps until which they act."""
    texture_scale: float = 1.0
    """Factor on what the texture adds; 0 switches it off."""
    texture_start: Share = 0.0
    """Share of the steps after which the texture acts."""
    texture_end: Share = 1.0
    """Share of the steps until which it acts."""
    guidance_drops: Annotated[list[Condition], Field(min_length=1)] = ["text"]
    """What guidance sharpens: the unconditional branch is without it."""
    grain: bool = True
    """Add grain, where the autoencoder has a grain head; false draws the mean picture."""

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
    """How a sample is guided."""

    mode: SpgdMode = "off"
    """plain is one step along the gradient, warmup several, spgd several with momentum."""
    gradient: Literal["estimate", "denoiser"] = "estimate"
    """estimate moves the last estimate of x_0 with x_t. denoiser goes through the network: exact, 1 + inner
    runs a step."""
    scale: NonNegativeFloat = 0.02
    """Length of the first step, as a share of the norm of relative_to."""
    clip: PositiveFloat = 0.1
    """Longest step, likewise."""
    relative_to: Literal["latent", "estimate"] = "latent"
    """What a step moves by that much: x_t, or the estimate of x_0."""
    start: Share = 0.0
    """Share of the sampling steps after which it acts."""
    end: Share = 1.0
    """Share of the sampling steps until which it acts."""
    every: PositiveInt = 1
    """It acts at every so many steps."""
    inner: PositiveInt = 3
    """Steps along the gradient before each denoising step, except with mode=plain."""
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum, with mode=spgd."""

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
