"""Settings of the small networks, their architectures and how their stages train them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ldm.config import Side
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect

STRIDE = 32  # of PIPNet's maps
STAGE_WIDTHS = (64, 128, 256, 512)  # of layer1 to layer4 at width 1
WIDEST = 8  # times the width of the pix2pix generator's first layer
MOST_CHANNELS = 512  # of the discriminator

EyeCorners = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class PatchGanConfig(Settings):
    """Architecture of the discriminator."""

    in_channels: PositiveInt = 6
    """Channels of its input: 6 for skull and face, 3 for a single picture."""
    width: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = 64
    """Channels of the first layer. They double up to 512."""
    num_scales: Annotated[int, Field(ge=1, le=6)] = 2
    """Networks, each on half the size."""
    num_layers: Annotated[int, Field(ge=1, le=6)] = 3
    """Convolutions of stride 2 in each network."""


class GeneratorConfig(Settings):
    """Architecture of the Pix2Pix generator."""

    image_size: Side = 256
    """Side of the pictures, px."""
    width: PositiveInt = 64
    """Channels of the first layer. They double up to eight times that."""
    levels: Annotated[int, Field(ge=2, le=12)] = 8
    """Halvings of the picture; 8 end at 1 px from 256."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout of the innermost layers, in training only."""
    embedding: PositiveInt = 64
    """Channels of the layers that read the biometrics."""
    ethnicities: list[str] | None = None
    """Words that it knows; null takes those of the training data."""

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
    """Architecture of the landmark network."""

    num_landmarks: Annotated[int, Field(ge=2, le=1000)] = 106
    """Points of a picture, taken from the data."""
    num_neighbours: PositiveInt = 10
    """Neighbours of each point, whose places it predicts too."""
    image_size: Annotated[int, Field(ge=2 * STRIDE, le=4096, multiple_of=STRIDE)] = 256
    """Side of the picture that the network sees, px."""
    width: Annotated[float, Field(ge=1 / 16, le=4)] = 1.0
    """Factor on ResNet-18's channels; 1 is the public network."""
    ethnicities: list[str] | None = None
    """Words that the biometrics know, taken from the data; null means no biometrics."""
    attribute_width: PositiveInt = 64
    """Channels of the layer that reads the biometrics."""

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
    """How far the pipnet stage changes its training pictures; 0 switches a change off."""

    translate: Annotated[float, Field(ge=0, le=0.5)] = 0.06
    """Largest shift, as a share of the side."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 12.0
    """Largest turn, degrees."""
    scale: Annotated[float, Field(ge=0, le=2)] = 0.12
    """Largest factor on the size, as its log2."""
    flip: Share = 0.5
    """Chance of mirroring."""
    blur: Annotated[float, Field(ge=0, le=20)] = 1.2
    """Largest deviation of the blur, px of 256, on half of the pictures."""
    occlude: Share = 0.3
    """Chance of a hidden patch."""
    occlude_size: Share = 0.25
    """Largest side of the patch, as a share of the picture's."""
    contrast: Annotated[float, Field(ge=0, le=4)] = 0.5
    """Largest factor on the contrast, as its log2."""
    brightness: Share = 0.1
    """Largest shift of the grey levels, as a share of the range."""
    noise: Share = 0.03
    """Largest deviation of added noise, as a share of the range."""


class PipNetStageConfig(Settings):
    """The pipnet stage, which needs no 'model:'."""

    role: Literal["face", "skull"] = "face"
    """Whether it reads faces, or the face's landmarks off skulls."""
    biometrics: bool = True
    """Let sex, age, body mass and ethnicity move the points; skulls only."""
    drop_biometrics: Share = 0.1
    """Chance that a training picture comes without them."""
    network: PipNetConfig = PipNetConfig()
    augment: AugmentConfig = AugmentConfig()
    eye_corners: EyeCorners | None = None
    """The two points whose distance is the unit of the error; null takes the outer corners of known layouts."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Parts of the subjects, for cross-fitting; 0 means none."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The part (from 0) that is left out of training, where there are folds."""

    @model_validator(mode="after")
    def _has_the_fold(self) -> Self:
        expect(self.folds != 1, "folds", self.folds, "0 (none) or at least 2")
        last = max(1, self.folds) - 1
        expect(self.fold <= last, "fold", self.fold, f"0 to {last}")
        return self


class Pix2PixStageConfig(Settings):
    """The pix2pix stage, a baseline that needs no 'model:'.

    Loss of the generator: gan_weight LSGAN + l1_weight L1; ``optim`` is its optimizer. Source: arXiv 1611.07004, eq. 4;
    the squares in place of its logarithms are arXiv 1611.04076's.
    """

    generator: GeneratorConfig = GeneratorConfig()
    discriminator: PatchGanConfig = PatchGanConfig()
    discriminator_optim: OptimConfig = OptimConfig(lr=2e-4, weight_decay=0.0, beta1=0.5, ema_decay=0.0)
    l1_weight: NonNegativeFloat = 100.0
    """Weight of the mean absolute difference."""
    gan_weight: NonNegativeFloat = 1.0
    """Weight of realism (LSGAN)."""

    @model_validator(mode="after")
    def _fits_the_stage(self) -> Self:
        channels = self.discriminator.in_channels
        expect(channels == 6, "discriminator.in_channels", channels, "6, of skull and face")
        self.discriminator_optim.expect_not_averaged("discriminator_optim")
        return self


class GuidanceDecoderConfig(Settings):
    """Architecture of the small decoder."""

    z_channels: PositiveInt = 4
    """Channels of the latent."""
    widths: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=3, max_length=3)] = [
        64,
        48,
        32,
    ]
    """Channels at 1/8, 1/4 and 1/2 of the picture's side."""
    blocks: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=3, max_length=3)] = [3, 2, 1]
    """Residual blocks at each of these."""


class GuidanceDecoderStageConfig(Settings):
    """The guidance_decoder stage: |x_hat - x| + edge_weight |grad x_hat - grad x| against the full decoder's x."""

    network: GuidanceDecoderConfig = GuidanceDecoderConfig()
    edge_weight: NonNegativeFloat = 1.0
    """Weight of the difference of the gradients."""
    altered: Share = 0.5
    """Share of the training latents that are altered, as a sampler's early estimates are."""
    blend: Share = 1.0
    """Largest share of another latent in an altered one."""
    noise: NonNegativeFloat = 0.5
    """Largest standard deviation of its noise; latents have about 1."""


class MatchConfig(Settings):
    """Architecture of the matching network: a tower for skulls and one for faces, alike."""

    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 128
    """Side in px of the grey pictures that the towers see; others are resized to it."""
    widths: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=4, max_length=4)] = [
        16,
        32,
        64,
        96,
    ]
    """Channels at 1/2, 1/4, 1/8 and 1/16 of that side."""
    blocks: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=2, max_length=2)] = [1, 2]
    """Residual blocks at 1/8 and at 1/16."""
    reduced: PositiveInt = 40
    """Channels that are read out at 1/16."""
    hidden: PositiveInt = 256
    """Width of the layer that sees the whole picture, and in the skull's tower the sex."""
    vector: PositiveInt = 128
    """Length of a vector."""


class MatchStageConfig(Settings):
    """The match stage: symmetric InfoNCE of skulls and faces, a person once in a batch (arXiv 2103.00020, 2.3)."""

    network: MatchConfig = MatchConfig()
    hard_share: Share = 0.5
    """Share of the passes in which a batch holds people of like sex, age level and body mass."""
    drop_sex: Share = 0.1
    """Chance that a skull comes without its sex."""
    drop_features: Share = 0.1
    """Dropout of what the towers read out, in training."""
    flip: bool = True
    """Mirror skull and face of half of the pairs."""
    scale: PositiveFloat = 10.0
    """Of the scores at the start; it is learnt."""
