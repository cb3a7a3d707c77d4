"""Settings of the losses: of the autoencoder, its grain and the decoded face, and of the discriminator of both."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from muti_control.networks.config import PatchGanConfig
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect


class DiscriminatorConfig(Settings):
    """The discriminator that realism and feature matching need; it learns beside what it judges.

    init: its weights (a discriminator.safetensors); null: fresh ones. every: steps from one of its turns to the next.
    network: its architecture, without ``init``. optim: its own optimizer.
    """

    init: str | None = None
    every: PositiveInt = 1
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
    """Loss of the autoencoder stage: |x - x_hat| + edge_weight |grad x - grad x_hat| + kl_weight KL / pixels, and

    texture_weight: of how much rougher or smoother the surface comes back (``autoencoder_losses.texture_loss``);
    without it and gan, grain and noise are wiped out.
    gan: realism (LSGAN): how hard its gradient pulls at the decoder's last layer, relative to all other terms; 0: no
    discriminator. gan_ramp_steps: over which it rises to that. discriminator: its own; it sees single pictures.
    With either of them the best validation (train.export=best) is that of the least difference in roughness, not of the
    highest PSNR, which would be the smoothest.
    crop_size: side in px of the random crops it trains on, 0 for whole pictures (it validates on whole ones).
    on_skulls: train on the skull pictures too, not on the faces alone.
    """

    crop_size: NonNegativeInt = 0
    edge_weight: NonNegativeFloat = 1.0
    kl_weight: NonNegativeFloat = 1e-6
    texture_weight: NonNegativeFloat = 0.0
    gan: NonNegativeFloat = 0.0
    gan_ramp_steps: NonNegativeInt = 0
    discriminator: DiscriminatorConfig = DiscriminatorConfig(network=PatchGanConfig(in_channels=3))
    on_skulls: bool = False

    @model_validator(mode="after")
    def _judges_single_pictures(self) -> Self:
        _expect_channels(self.discriminator, 3)
        return self


class GrainStageConfig(Settings):
    """Of the grain stage, whose loss is ``autoencoder_losses.texture_loss`` of decoded pictures with grain.

    filters: of the noise, in a head that ``init`` has not yet. crop_size: side in px of the random windows it trains on
    (it validates on whole pictures). crops: windows of each decoded picture. exemplars: how often another face of the
    same style (the manifest's "texture") tells what the surface shall look like, in place of the decoded face itself;
    0: never, and a new head follows no exemplar when faces are drawn.
    """

    filters: Annotated[int, Field(ge=1, le=64)] = 8
    crop_size: Annotated[int, Field(ge=32, le=4096)] = 96
    crops: Annotated[int, Field(ge=1, le=256)] = 4
    exemplars: Share = 0.0


class LossesConfig(Settings):
    """Of the control stage: losses of the face that the predicted clean latent decodes to, beside the noise loss.

    gan, fm, lm: realism (LSGAN), feature matching in the discriminator, landmarks; 0 switches a term off.
    by: "ratio": they say how large the norm of the term's gradient on the control network is to be, relative to the
    noise loss's; the weights follow from measurement. "weight": they are the weights.
    noise: weight of the noise loss. ramp_steps: over which gan, fm and lm rise to what they are.
    min_t, max_t: only samples whose t is within are decoded. sub_batch: at most so many of a micro-batch, drawn.
    chunk: of these at a time; it changes memory and nothing else. recompute: of the decoder, compute activations a
    second time in the backward pass instead of keeping them.
    real: what a face is compared with, the "picture" or the true latent "decoded" as well: so nothing is
    asked of the control network that the frozen autoencoder cannot draw.
    pipnet: file of the frozen network that reads landmarks off faces. measure_every: steps between measurements of the
    gradients' norms (and in the first ones, until each was seen a few times); 0: none, with by=weight.
    """

    gan: NonNegativeFloat = 0.0
    fm: NonNegativeFloat = 0.0
    lm: NonNegativeFloat = 0.0
    by: Literal["ratio", "weight"] = "ratio"
    noise: PositiveFloat = 1.0
    ramp_steps: NonNegativeInt = 0
    min_t: NonNegativeInt = 0
    max_t: int = 500
    sub_batch: PositiveInt = 4
    chunk: PositiveInt = 4
    recompute: bool = True
    real: Literal["decoded", "picture"] = "decoded"
    pipnet: str = "models/demo/pipnet_face.safetensors"
    measure_every: NonNegativeInt = 50
    discriminator: DiscriminatorConfig = DiscriminatorConfig()

    @property
    def on(self) -> bool:
        """Whether any face is decoded."""
        return bool(self.gan or self.fm or self.lm)

    @property
    def terms(self) -> dict[str, float]:
        """Ratio or weight of each term that is on."""
        ratios = {"gan": self.gan, "fm": self.fm, "lm": self.lm}
        return {name: value for name, value in ratios.items() if value}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        expect(self.min_t <= self.max_t, "min_t", self.min_t, f"0 to max_t={self.max_t}")
        measured = self.by == "weight" or self.measure_every > 0
        expect(measured, "measure_every", self.measure_every, "at least 1 with by=ratio")
        _expect_channels(self.discriminator, 6)
        return self
