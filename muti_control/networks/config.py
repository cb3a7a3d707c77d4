"""Settings of the small networks, their architectures and how their stages train them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from ldm.config import Side
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect

STRIDE = 32  # of PIPNet's maps
STAGE_WIDTHS = (64, 128, 256, 512)  # of layer1 to layer4 at width 1
WIDEST = 8  # times the width of the pix2pix generator's first layer
MOST_CHANNELS = 512  # of the discriminator

EyeCorners = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class PatchGanConfig(Settings):
    """Architecture of the discriminator.

    in_channels: skull and face stacked. width: channels of the first layer; they double up to 512.
    num_scales: networks, each on half the size. num_layers: convolutions of stride 2 in each.
    """

    in_channels: PositiveInt = 6
    width: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = 64
    num_scales: Annotated[int, Field(ge=1, le=6)] = 2
    num_layers: Annotated[int, Field(ge=1, le=6)] = 3


class GeneratorConfig(Settings):
    """Architecture of the pix2pix generator.

    image_size: side of the pictures in px. width: channels of the first layer; they double up to eight times that.
    levels: halvings of the picture; 8 end at 1 px from 256. dropout: in the innermost layers, in training only.
    embedding: width of the layers that read the biometrics.
    ethnicities: words it knows; null takes those of the training data.
    """

    image_size: Side = 256
    width: PositiveInt = 64
    levels: Annotated[int, Field(ge=2, le=12)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    embedding: PositiveInt = 64
    ethnicities: list[str] | None = None

    @model_validator(mode="after")
    def _halves(self) -> Self:
        side = 2**self.levels
        expect(
            self.image_size % side == 0,
            "image_size",
            self.image_size,
            f"a multiple of {side} px, for levels={self.levels}",
        )
        return self

    @property
    def channels(self) -> list[int]:
        """Of each level on the way down, finest first."""
        return [self.width * min(2**level, WIDEST) for level in range(self.levels)]


class PipNetConfig(Settings):
    """Architecture of the landmark network.

    num_landmarks: points per picture. num_neighbours: of each point, whose places it predicts too.
    image_size: side in px of the picture the trunk sees, a multiple of 32; others are resized to it.
    width: factor on ResNet-18's channels; 1 is the public network.
    ethnicities: words the modulation by biometrics knows; null: the network takes no biometrics.
    """

    num_landmarks: Annotated[int, Field(ge=2, le=1000)] = 106
    num_neighbours: PositiveInt = 10
    image_size: Annotated[int, Field(ge=2 * STRIDE, le=4096, multiple_of=STRIDE)] = 256
    width: Annotated[float, Field(ge=1 / 16, le=4)] = 1.0
    ethnicities: list[str] | None = None
    attribute_width: PositiveInt = 64

    @model_validator(mode="after")
    def _has_neighbours(self) -> Self:
        most = self.num_landmarks - 1
        expect(
            self.num_neighbours <= most,
            "num_neighbours",
            self.num_neighbours,
            f"1 to {most}, one less than num_landmarks",
        )
        return self

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of layer1 to layer4: multiples of 8."""
        return tuple(max(8, round(c * self.width / 8) * 8) for c in STAGE_WIDTHS)

    @property
    def grid(self) -> int:
        """Cells along one side of the maps."""
        return self.image_size // STRIDE


class AugmentConfig(Settings):
    """How far the pipnet stage changes its training pictures. Each number is a limit; 0 switches its change off.

    translate: of the picture's side. rotate: degrees. scale: log2 of the factor. flip: chance of mirroring.
    blur: standard deviation in px at 256 px, on half of the pictures. occlude: chance of a patch.
    occlude_size: its largest side, of the picture's. contrast: log2 of the factor on grey levels about their middle.
    brightness: grey levels, of 1. noise: standard deviation of the grain that is added, of 1.
    """

    translate: Annotated[float, Field(ge=0, le=0.5)] = 0.06
    rotate: Annotated[float, Field(ge=0, le=180)] = 12.0
    scale: Annotated[float, Field(ge=0, le=2)] = 0.12
    flip: Share = 0.5
    blur: Annotated[float, Field(ge=0, le=20)] = 1.2
    occlude: Share = 0.3
    occlude_size: Share = 0.25
    contrast: Annotated[float, Field(ge=0, le=4)] = 0.5
    brightness: Share = 0.1
    noise: Share = 0.03


class PipNetStageConfig(Settings):
    """Of the pipnet stage, which needs no 'model:'.

    role: "face" reads landmarks off faces, "skull" the face's landmarks off skulls.
    biometrics: (skull) let sex, age, body mass and ethnicity move the points. drop_biometrics: chance that a
    training picture comes without them, so that the network can do without as well.
    network: the architecture; num_landmarks and ethnicities are taken from the data and must be left out or agree.
    augment: how far training pictures are changed.
    eye_corners: the two points whose distance is the unit of the error; null: the outer corners, in known layouts.
    folds, fold: with folds=K the subjects of part ``fold`` (0 to K - 1) are left out of training; 0: none.
    """

    role: Literal["face", "skull"] = "face"
    biometrics: bool = True
    drop_biometrics: Share = 0.1
    network: PipNetConfig = PipNetConfig()
    augment: AugmentConfig = AugmentConfig()
    eye_corners: EyeCorners | None = None
    folds: Annotated[int, Field(ge=0)] = 0
    fold: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_the_fold(self) -> Self:
        expect(self.folds != 1, "folds", self.folds, "0 (none) or at least 2")
        last = max(1, self.folds) - 1
        expect(self.fold <= last, "fold", self.fold, f"0 to {last}")
        return self


class Pix2PixStageConfig(Settings):
    """Of the pix2pix stage, a baseline that needs no 'model:'. Loss of the generator: gan_weight LSGAN + l1_weight L1.

    generator, discriminator: the architectures. discriminator_optim: of its own optimizer; ``optim`` is the
    generator's. Source: arXiv 1611.07004, eq. 4; the squares in place of its logarithms are arXiv 1611.04076's.
    """

    generator: GeneratorConfig = GeneratorConfig()
    discriminator: PatchGanConfig = PatchGanConfig()
    discriminator_optim: OptimConfig = OptimConfig(lr=2e-4, weight_decay=0.0, beta1=0.5, ema_decay=0.0)
    l1_weight: NonNegativeFloat = 100.0
    gan_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _fits_the_stage(self) -> Self:
        channels = self.discriminator.in_channels
        expect(channels == 6, "discriminator.in_channels", channels, "6, of skull and face")
        self.discriminator_optim.expect_not_averaged("discriminator_optim")
        return self


class GuidanceDecoderConfig(Settings):
    """Architecture of the small decoder.

    z_channels: of the latent. widths: channels at 1/8, 1/4 and 1/2 of the picture's side.
    blocks: residual blocks at each of these.
    """

    z_channels: PositiveInt = 4
    widths: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=3, max_length=3)] = [
        64,
        48,
        32,
    ]
    blocks: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=3, max_length=3)] = [3, 2, 1]


class GuidanceDecoderStageConfig(Settings):
    """Of the guidance_decoder stage: |x_hat - x| + edge_weight |grad x_hat - grad x| against the full decoder's x.

    altered: share of the training latents that are altered: each gets up to ``blend`` of another's and noise of a
    deviation of up to ``noise`` (latents have about 1), as a sampler's early estimates are.
    """

    network: GuidanceDecoderConfig = GuidanceDecoderConfig()
    edge_weight: NonNegativeFloat = 1.0
    altered: Share = 0.5
    blend: Share = 1.0
    noise: NonNegativeFloat = 0.5
