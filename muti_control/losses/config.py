"""Settings of the losses: of the autoencoder, its grain and the decoded face, and of the discriminator of both."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from muti_control.networks.config import PatchGanConfig
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect


class DiscriminatorConfig(Settings):
    """The discriminator for realism and feature matching, trained together with the network that it judges."""

    init: str | None = None
    """File of its weights (discriminator.safetensors); null means fresh weights."""
    every: PositiveInt = 1
    """It steps at every so many steps."""
    network: PatchGanConfig = PatchGanConfig()
    optim: OptimConfig = OptimConfig(lr=1e-4, beta1=0.5, warmup_steps=0, clip_norm=0.0, ema_decay=0.0)

    @model_validator(mode="after")
    def _is_not_averaged(self) -> Self:
        self.optim.expect_not_averaged("optim")
        return self


def _expect_channels(discriminator: DiscriminatorConfig, num: int) -> None:
    got = discriminator.network.in_channels
    expect(got == num, "discriminator.network.in_channels", got, f"{num} in this stage")


class AutoencoderStageConfig(Settings):
    """Loss of the autoencoder stage: |x - x_hat| + edge_weight |grad x - grad x_hat| + kl_weight KL / pixels + more.

    Without texture_weight and gan, the decoder wipes out grain and noise. With one of them, the best validation
    (train.export=best) has the least difference in roughness. Otherwise it has the highest PSNR, which the smoothest
    picture would win.
    """

    crop_size: NonNegativeInt = 0
    """Side of the random training crops, px; 0 takes whole pictures."""
    edge_weight: NonNegativeFloat = 1.0
    """Weight of the difference of the gradients."""
    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the KL divergence of the latents."""
    texture_weight: NonNegativeFloat = 0.0
    """Weight of the difference in surface roughness; 0 switches it off."""
    gan: NonNegativeFloat = 0.0
    """Realism (LSGAN): norm of its gradient relative to all other terms; 0 means no discriminator."""
    gan_ramp_steps: NonNegativeInt = 0
    """Steps in which gan rises linearly to its value."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig(network=PatchGanConfig(in_channels=3))
    on_skulls: bool = False
    """Train on the skull pictures as well."""

    @model_validator(mode="after")
    def _judges_single_pictures(self) -> Self:
        _expect_channels(self.discriminator, 3)
        return self


class GrainStageConfig(Settings):
    """The grain stage: the difference in surface roughness of decoded pictures with grain."""

    filters: Annotated[int, Field(ge=1, le=64)] = 8
    """Noise filters of a new head, where init has none."""
    crop_size: Annotated[int, Field(ge=32, le=4096)] = 96
    """Side of the random training windows, px. Validation uses whole pictures."""
    crops: Annotated[int, Field(ge=1, le=256)] = 4
    """Windows of each decoded picture."""
    exemplars: Share = 0.0
    """Share of samples whose surface follows another face."""


class LossesConfig(Settings):
    """Losses of the control stage on the decoded face (of the predicted clean latent), beside the noise loss."""

    gan: NonNegativeFloat = 0.0
    """Realism (LSGAN); 0 switches it off."""
    fm: NonNegativeFloat = 0.0
    """Feature matching in the discriminator; 0 switches it off."""
    lm: NonNegativeFloat = 0.0
    """Landmarks, by the network in pipnet; 0 switches them off."""
    by: Literal["ratio", "weight"] = "ratio"
    """What gan, fm and lm are: norms of gradients relative to the noise loss's, or weights."""
    noise: PositiveFloat = 1.0
    """Weight of the noise loss."""
    ramp_steps: NonNegativeInt = 0
    """Steps in which gan, fm and lm rise linearly to their values."""
    min_t: NonNegativeInt = 0
    """Only samples from this t on are decoded."""
    max_t: int = 500
    """Only samples up to this t are decoded."""
    sub_batch: PositiveInt = 4
    """At most so many samples of a micro-batch are decoded, chosen at random."""
    chunk: PositiveInt = 4
    """So many are decoded at a time. It changes the memory and nothing else."""
    recompute: bool = True
    """Compute the decoder's activations again in the backward pass: less memory, more time."""
    real: Literal["decoded", "picture"] = "decoded"
    """The true face: its picture, or its latent decoded."""
    pipnet: str = "models/demo/pipnet_face.safetensors"
    """File of the frozen network that reads landmarks off faces."""
    measure_every: NonNegativeInt = 50
    """Steps between measurements of the gradients' norms; 0 means none, with by=weight."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()

    @property
    def on(self) -> bool:
        """Whether any face is decoded."""
        return bool(self.gan or self.fm or self.lm)

    @property
    def terms(self) -> dict[str, float]:
        """The ratio or weight of each term that is on."""
        ratios = {"gan": self.gan, "fm": self.fm, "lm": self.lm}
        return {name: value for name, value in ratios.items() if value}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        expect(self.min_t <= self.max_t, "min_t", self.min_t, f"0 to max_t={self.max_t}")
        measured = self.by == "weight" or self.measure_every > 0
        expect(measured, "measure_every", self.measure_every, "at least 1 with by=ratio")
        _expect_channels(self.discriminator, 6)
        return self
