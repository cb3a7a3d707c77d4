"""Settings of the losses: of the autoencoder, its grain and the decoded face, and of the discriminator of both."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from muti_control.networks.config import PatchGanConfig
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect


class DiscriminatorConfig(Settings):
    """The discriminator for realism and feature matching; it is trained together with the network that it judges.

    init: file of its weights (discriminator.safetensors); null: fresh weights. every: it steps at every so many steps.
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
    """Loss of the autoencoder stage: |x - x_hat| + edge_weight |grad x - grad x_hat| + kl_weight KL / pixels + more.

    texture_weight: weight of the difference in surface roughness (``losses.autoencoder.texture_loss``). Without it and
    gan, the decoder wipes out grain and noise.
    gan: realism (LSGAN): norm of its gradient on the decoder's last layer, relative to all other terms; 0: no
    discriminator. gan_ramp_steps: steps of its linear rise. discriminator: its input is a single picture.
    With texture_weight or gan, the best validation (train.export=best) has the least difference in roughness. Otherwise
    it has the highest PSNR, which the smoothest picture would win.
    crop_size: side in px of the random training crops, 0 for whole pictures; validation uses whole pictures.
    on_skulls: train on the skull pictures as well.
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
    """The grain stage, whose loss is ``losses.autoencoder.texture_loss`` of decoded pictures with grain.

    filters: noise filters of a new head, where ``init`` has none. crop_size: side in px of the random training windows;
    validation uses whole pictures. crops: windows of each decoded picture. exemplars: share of samples whose surface
    follows another face of the same style (the manifest's "texture") in place of the decoded face; with 0, a new head
    has no input for an exemplar.
    """

    filters: Annotated[int, Field(ge=1, le=64)] = 8
    crop_size: Annotated[int, Field(ge=32, le=4096)] = 96
    crops: Annotated[int, Field(ge=1, le=256)] = 4
    exemplars: Share = 0.0


class LossesConfig(Settings):
    """Losses of the control stage on the decoded face (of the predicted clean latent), beside the noise loss.

    gan, fm, lm: realism (LSGAN), feature matching in the discriminator, landmarks; 0 switches a term off.
    by: "ratio": gan, fm and lm are norms of the terms' gradients on the control network, relative to the noise loss's;
    the weights follow from measurements. "weight": they are the weights.
    noise: weight of the noise loss. ramp_steps: steps in which gan, fm and lm rise linearly to their values.
    min_t, max_t: only samples with min_t <= t <= max_t are decoded. sub_batch: at most so many of a micro-batch, at
    random. chunk: so many are decoded at a time; it changes memory and nothing else. recompute: compute the decoder's
    activations a second time in the backward pass instead of storing them.
    real: the true face, as a "picture" or as its latent "decoded"; the second asks nothing of the control network that
    the frozen autoencoder cannot draw.
    pipnet: file of the frozen network that reads landmarks off faces. measure_every: steps between measurements of the
    gradients' norms (the first few steps are all measured); 0: no measurements, with by=weight.
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
