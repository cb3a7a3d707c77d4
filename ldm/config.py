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
    """Shape of the autoencoder.

    ch: width at full resolution; ch_mult: width of each level relative to it (each level but the last halves
    the resolution); z_channels: channels of the latent; norm_groups: groups of every GroupNorm.
    gradient_checkpointing: recompute the blocks' activations in the backward pass.
    grain: filters of the grain head (ldm/grain.py), 0 for none, as in the public files. grain_exemplar: how many
    numbers of an exemplar's surface it reads, 0 if it follows none.
    """

    in_channels: Size = 3
    ch: Size = 128
    ch_mult: Sizes = [1, 2, 4, 4]
    num_res_blocks: Depth = 2
    z_channels: Size = 4
    norm_groups: Size = 32
    gradient_checkpointing: bool = False
    grain: Annotated[int, Field(ge=0, le=256)] = 0
    grain_exemplar: Annotated[int, Field(ge=0, le=4096)] = 0

    @property
    def downscale(self) -> int:
        """Picture pixels per latent cell along one axis."""
        return 2 ** (len(self.ch_mult) - 1)


class UNetConfig(Settings):
    """Shape of the UNet.

    model_channels: width of the first level; channel_mult: width of each level relative to it.
    attention_levels: levels (0 = full latent resolution) that carry a SpatialTransformer.
    context_dim: width of the text embedding; norm_groups: groups of every GroupNorm.
    gradient_checkpointing: recompute activations in the backward pass (memory for time).
    """

    in_channels: Size = 4
    out_channels: Size = 4
    model_channels: Size = 320
    channel_mult: Sizes = [1, 2, 4, 4]
    num_res_blocks: Depth = 2
    attention_levels: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)] = [0, 1, 2]
    num_heads: Size = 8
    transformer_depth: Depth = 1
    context_dim: Size = 768
    norm_groups: Size = 32
    gradient_checkpointing: bool = False

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
    """Size of the text encoder (CLIP ViT-L/14).

    Attributes:
        vocab_size: number of token ids; the last two are the begin and the end token.
        width: channels of an embedding, the cross-attention context width of the UNet.
        layers: transformer blocks.
        heads: attention heads; divides `width`.
        max_length: tokens per prompt, begin and end token included.
        intermediate: channels inside each block's MLP.
    """

    vocab_size: Size = 49408
    width: Size = 768
    layers: Depth = 12
    heads: Size = 12
    max_length: Size = 77
    intermediate: Size = 3072

    @model_validator(mode="after")
    def _divides(self) -> Self:
        expect(self.width % self.heads == 0, "heads", self.heads, f"a divisor of width={self.width}")
        return self


class ScheduleConfig(Settings):
    """The forward process q(x_t | x_0).

    linear_start, linear_end: first and last beta (dimensionless variance added in a step).
    num_timesteps: length T of the forward process, in steps.
    prediction: what the UNet puts out, "eps" (the noise, as Stable Diffusion 1.5 does) or "v". An error of eps is
    sqrt((1 - abar) / abar) times as large in the clean latent, 15 at the noisiest step; one of v never grows.
    """

    num_timesteps: Size = 1000
    linear_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    linear_end: Annotated[float, Field(gt=0, lt=1)] = 0.0120
    prediction: Literal["eps", "v"] = "eps"

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
    """Shape of the landmark branch.

    num_points: of a face, in the data's own order (a heatmap each). sigma: of their Gaussians, in latent cells (8 px).
    widths: of the branch's convolutions before the last.
    """

    num_points: Annotated[int, Field(ge=1, le=1000)] = 106
    sigma: PositiveFloat = 1.0
    widths: Sizes = [64, 96]


class TextureConfig(Settings):
    """Shape of the texture branch.

    patch_size: side in px of the patches of skin that it compares. num_patches: how many of an exemplar.
    width: of the two hidden layers behind their statistics.
    """

    patch_size: Annotated[int, Field(ge=9, le=64)] = 16
    num_patches: Size = 128
    width: Size = 128


class ControlConfig(Settings):
    """Shape of the ControlNet beside the UNet.

    hint_channels: in how many channels the condition picture comes;
    hint_widths: widths of the hint encoder's seven convolutions (the public ControlNet's by default);
    landmarks, texture: these branches, none by default.
    """

    hint_channels: Size = 3
    hint_widths: Sizes = [16, 16, 32, 32, 96, 96, 256]
    landmarks: LandmarkConfig | None = None
    texture: TextureConfig | None = None


class ModelConfig(Settings):
    """The whole model. The defaults are Stable Diffusion 1.5 with a ControlNet.

    image_size: side of the pictures it was trained on, px. scale_factor: latents are multiplied by it before
    diffusion, so that their standard deviation is about 1.
    """

    image_size: Side = 256
    scale_factor: PositiveFloat = 0.18215
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
