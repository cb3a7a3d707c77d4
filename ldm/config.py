"""The architecture of a model as settings; the defaults are Stable Diffusion 1.5's.

A checkpoint carries its architecture, so these numbers may come from anybody's file: the limits keep a hostile one from
asking for more than a machine can hold.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from settings.base import Settings, expect

Size = Annotated[int, Field(ge=1, le=2**20)]  # a width or count; SD1.5's largest is its 49,408 words
Side = Annotated[int, Field(ge=1, le=4096)]  # of pictures, px
Depth = Annotated[int, Field(ge=1, le=128)]  # blocks or levels
Sizes = Annotated[list[Size], Field(min_length=1, max_length=128)]  # one for each level


class AutoencoderConfig(Settings):
    """Shape of the autoencoder."""

    in_channels: Size = 3
    """Channels of a picture."""
    ch: Size = 128
    """Channels at full resolution."""
    ch_mult: Sizes = [1, 2, 4, 4]
    """Factor on ch of each level, each of half the side."""
    num_res_blocks: Depth = 2
    """Residual blocks of each level."""
    z_channels: Size = 4
    """Channels of the latent."""
    norm_groups: Size = 32
    """Groups of every GroupNorm. They divide the channels."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    grain: Annotated[int, Field(ge=0, le=256)] = 0
    """Filters of the grain head (ldm/grain.py); 0 means none, as in the public files."""
    grain_exemplar: Annotated[int, Field(ge=0, le=4096)] = 0
    """Numbers of an exemplar's surface that the grain head reads; 0 means that it follows none."""

    @property
    def downscale(self) -> int:
        """Picture pixels per latent cell along one axis."""
        return 2 ** (len(self.ch_mult) - 1)


class UNetConfig(Settings):
    """Shape of the UNet."""

    in_channels: Size = 4
    """Channels of its input, the latent."""
    out_channels: Size = 4
    """Channels of its output."""
    model_channels: Size = 320
    """Channels of the first level."""
    channel_mult: Sizes = [1, 2, 4, 4]
    """Factor on model_channels of each level."""
    num_res_blocks: Depth = 2
    """Residual blocks of each level."""
    attention_levels: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)] = [0, 1, 2]
    """Levels with attention; 0 is the full resolution of the latent."""
    num_heads: Size = 8
    """Attention heads. They divide the channels of these levels."""
    transformer_depth: Depth = 1
    """Transformer blocks of each SpatialTransformer."""
    context_dim: Size = 768
    """Channels of the text embedding, as cond_stage.width."""
    norm_groups: Size = 32
    """Groups of every GroupNorm. They divide the channels."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        for level, mult in enumerate(self.channel_mult):
            width = self.model_channels * mult
            divisors = ["norm_groups", *(["num_heads"] if level in self.attention_levels else [])]
            for key in divisors:
                expect(
                    width % getattr(self, key) == 0,
                    key,
                    getattr(self, key),
                    f"a divisor of {width}, level {level}'s width",
                )
        last = len(self.channel_mult) - 1
        outside = [level for level in self.attention_levels if level > last]
        expect(not outside, "attention_levels", self.attention_levels, f"levels from 0 to {last}")
        return self

    @property
    def num_control_outputs(self) -> int:
        """Feature maps a ControlNet adds: one per encoder block, one for the middle (13 for SD1.5)."""
        return len(self.channel_mult) * (self.num_res_blocks + 1) + 1


class TextConfig(Settings):
    """Size of the text encoder (CLIP ViT-L/14)."""

    vocab_size: Size = 49408
    """Number of token ids. The last two are the begin and the end token."""
    width: Size = 768
    """Channels of an embedding."""
    layers: Depth = 12
    """Transformer blocks."""
    heads: Size = 12
    """Attention heads. They divide width."""
    max_length: Size = 77
    """Tokens of a prompt, with the begin and the end token."""
    intermediate: Size = 3072
    """Channels inside each block's MLP."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        expect(self.width % self.heads == 0, "heads", self.heads, f"a divisor of width={self.width}")
        return self


class ScheduleConfig(Settings):
    """The forward process q(x_t | x_0).

    An error of eps is sqrt((1 - abar) / abar) times as large in the clean latent, 15 at the noisiest step; one of v
    never grows.
    """

    num_timesteps: Size = 1000
    """Length T of the forward process, in steps."""
    linear_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    """First beta, the variance added in a step."""
    linear_end: Annotated[float, Field(gt=0, lt=1)] = 0.0120
    """Last beta."""
    prediction: Literal["eps", "v"] = "eps"
    """What the UNet puts out: the noise, as in SD1.5, or v."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        expect(
            self.linear_start < self.linear_end,
            "linear_start",
            self.linear_start,
            f"less than {self.linear_end}, linear_end",
        )
        return self


class LandmarkConfig(Settings):
    """Shape of the landmark branch."""

    num_points: Annotated[int, Field(ge=1, le=1000)] = 106
    """Landmarks of a face, in the order of the data."""
    sigma: PositiveFloat = 1.0
    """Width of their Gaussians, in latent cells of 8 px."""
    widths: Sizes = [64, 96]
    """Channels of the branch's convolutions before the last."""


class TextureConfig(Settings):
    """Shape of the texture branch."""

    patch_size: Annotated[int, Field(ge=9, le=64)] = 16
    """Side of the patches of skin that it compares, px."""
    num_patches: Size = 128
    """Patches of an exemplar."""
    width: Size = 128
    """Channels of the two hidden layers."""


class ControlConfig(Settings):
    """Shape of the ControlNet beside the UNet."""

    hint_channels: Size = 3
    """Channels of the condition picture."""
    hint_widths: Sizes = [16, 16, 32, 32, 96, 96, 256]
    """Channels of the hint encoder's seven convolutions."""
    landmarks: LandmarkConfig | None = None
    """The landmark branch; null means none."""
    texture: TextureConfig | None = None
    """The texture branch; null means none."""


class ModelConfig(Settings):
    """Architecture of the whole model; by default Stable Diffusion 1.5 with a ControlNet."""

    image_size: Side = 256
    """Side of the pictures that it is trained on, px."""
    scale_factor: PositiveFloat = 0.18215
    """Factor on latents before diffusion, which makes their standard deviation about 1."""
    unet: UNetConfig = UNetConfig()
    first_stage: AutoencoderConfig = AutoencoderConfig()
    cond_stage: TextConfig = TextConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    control: ControlConfig = ControlConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        unet, first = self.unet, self.first_stage
        width, channels = self.cond_stage.width, first.z_channels
        expect(
            unet.context_dim == width,
            "unet.context_dim",
            unet.context_dim,
            f"{width}, as cond_stage.width: it reads the text embedding",
        )
        expect(
            unet.in_channels == channels,
            "unet.in_channels",
            unet.in_channels,
            f"{channels}, as first_stage.z_channels",
        )
        expect(
            first.downscale == 8,
            "first_stage.ch_mult",
            first.ch_mult,
            "four levels: the hint encoder is built for latents of 1/8",
        )
        step = first.downscale * 2 ** (len(unet.channel_mult) - 1)
        expect(self.image_size % step == 0, "image_size", self.image_size, f"a multiple of {step} px")
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (z, h, w) of one latent."""
        side = self.image_size // self.first_stage.downscale
        return self.first_stage.z_channels, side, side
