"""A latent diffusion model put together: UNet, autoencoder, text encoder and schedule under their public names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass

import torch
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderConfig, AutoencoderKL
from ldm.grain import grain_noise
from ldm.schedule import ScheduleConfig, schedule_buffers
from ldm.text import FrozenCLIPEmbedder, TextConfig
from ldm.unet import UNetConfig, UNetModel
from settings.base import Settings

MAX_SIZE = 2**20  # of a width or count; SD1.5's largest is its 49,408 words
MAX_DEPTH = 128  # blocks or levels


class LandmarkConfig(Settings):
    """Shape of the landmark branch.

    num_points: of a face, in the data's own order (a heatmap each). sigma: of their Gaussians, in latent cells (8 px).
    widths: of the branch's convolutions before the last.
    """

    num_points: int = 106
    sigma: float = 1.0
    widths: list[int] = [64, 96]


class TextureConfig(Settings):
    """Shape of the texture branch.

    patch_size: side in px of the patches of skin that are looked at. num_patches: how many of an exemplar.
    width: of the two hidden layers behind their statistics.
    """

    patch_size: int = 16
    num_patches: int = 128
    width: int = 128


class ControlConfig(Settings):
    """Shape of the ControlNet beside the UNet.

    hint_channels: in how many channels the condition picture comes;
    hint_widths: widths of the hint encoder's seven convolutions (the public ControlNet's by default);
    landmarks, texture: these branches, none by default.
    """

    hint_channels: int = 3
    hint_widths: list[int] = [16, 16, 32, 32, 96, 96, 256]
    landmarks: LandmarkConfig | None = None
    texture: TextureConfig | None = None


class ModelConfig(Settings):
    """The whole model. The defaults are Stable Diffusion 1.5 with a ControlNet.

    image_size: side of the pictures it was trained on, px. scale_factor: latents are multiplied by it before
    diffusion, so that their standard deviation is about 1.
    """

    image_size: int = 256
    scale_factor: float = 0.18215
    unet: UNetConfig = UNetConfig()
    first_stage: AutoencoderConfig = AutoencoderConfig()
    cond_stage: TextConfig = TextConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    control: ControlConfig = ControlConfig()

    def validate(self) -> None:
        """Raises ValueError for a size no network can have, or when the parts do not fit together."""
        for name, part in vars(self).items():
            if is_dataclass(part):
                check_sizes(name, vars(part))
        check_sizes("model", {"image_size": self.image_size})
        self.schedule.validate()
        if self.control.landmarks is not None:
            check_sizes("control.landmarks", vars(self.control.landmarks))
            if not 0 < self.control.landmarks.sigma < math.inf:
                raise ValueError(
                    f"control.landmarks: sigma={self.control.landmarks.sigma}, expected a positive number of cells"
                )
        if self.control.texture is not None:
            check_sizes("control.texture", vars(self.control.texture))
            if not 9 <= self.control.texture.patch_size <= 64:
                raise ValueError(
                    f"control.texture: patch_size={self.control.texture.patch_size}, expected 9 to 64 px"
                )
        if not 0 < self.scale_factor < math.inf:
            raise ValueError(f"model: scale_factor={self.scale_factor}, expected a positive number")
        if self.unet.context_dim != self.cond_stage.width:
            raise ValueError(
                f"model: unet.context_dim={self.unet.context_dim} but cond_stage.width={self.cond_stage.width}; "
                "the text embedding feeds the cross-attention, so make them equal"
            )
        if self.unet.in_channels != self.first_stage.z_channels:
            raise ValueError(
                f"model: unet.in_channels={self.unet.in_channels} but "
                f"first_stage.z_channels={self.first_stage.z_channels}; make them equal"
            )
        if self.first_stage.downscale != 8:
            raise ValueError(
                f"model: first_stage.ch_mult={list(self.first_stage.ch_mult)} makes latents of 1/"
                f"{self.first_stage.downscale}, expected 1/8 (four levels): the hint encoder is built for that"
            )
        step = self.first_stage.downscale * 2 ** (len(self.unet.channel_mult) - 1)
        if self.image_size % step:
            raise ValueError(f"model: image_size={self.image_size} is no multiple of {step} px")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (z, h, w) of one latent."""
        side = self.image_size // self.first_stage.downscale
        return self.first_stage.z_channels, side, side


def check_sizes(part: str, sizes: Mapping[str, object]) -> None:
    """Raise ValueError for counts and widths that are not positive, or that no machine could hold.

    A checkpoint carries its architecture, so these numbers may come from anybody's file.
    """
    for name, value in sizes.items():
        limit = MAX_DEPTH if name in ("num_res_blocks", "transformer_depth", "layers") else MAX_SIZE
        values = value if isinstance(value, list) else [value]
        low = 0 if name in ("attention_levels", "grain", "grain_exemplar") else 1
        if not values and name != "attention_levels":
            raise ValueError(f"{part}: {name} is an empty list, expected one number for each level")
        if len(values) > MAX_DEPTH:
            raise ValueError(f"{part}: {name} has {len(values)} numbers, expected at most {MAX_DEPTH}")
        for number in values:
            if isinstance(number, int) and not isinstance(number, bool) and not low <= number <= limit:
                raise ValueError(f"{part}: {name}={number}, expected {low} to {limit}")


class DiffusionWrapper(nn.Module):
    """Holds the UNet one level down, where the public checkpoints keep it (``model.diffusion_model``)."""

    def __init__(self, unet: UNetModel) -> None:
        super().__init__()
        self.diffusion_model = unet


class LatentDiffusion(nn.Module):
    """Text -> latent -> picture. ``state_dict`` has the keys of a public SD1.x checkpoint."""

    alphas_cumprod: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        cfg.validate()
        self.cfg = cfg
        self.model = DiffusionWrapper(UNetModel(cfg.unet))
        self.first_stage_model = AutoencoderKL(cfg.first_stage)
        self.cond_stage_model = FrozenCLIPEmbedder(cfg.cond_stage)
        for name, value in schedule_buffers(cfg.schedule).items():
            # torch.empty(0).device is the device of a surrounding `with torch.device(...)`, meta included.
            self.register_buffer(name, value.to(torch.empty(0).device))

    @property
    def unet(self) -> UNetModel:
        """The denoiser."""
        return self.model.diffusion_model

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.alphas_cumprod.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the UNet's weights."""
        return next(self.model.parameters()).dtype

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> embeddings (B, 77, context_dim)."""
        return self.cond_stage_model.encode(prompts)

    def encode_first_stage(
        self, x: Tensor, generator: torch.Generator | None = None, sample: bool = True
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> scaled latents (B, z, H/f, W/f), drawn or the posterior's mean."""
        posterior = self.first_stage_model.encode(x)
        return self.cfg.scale_factor * (posterior.sample(generator) if sample else posterior.mode())

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, z, h, w) -> pictures (B, 3, f h, f w), about [-1, 1]. Carries gradient."""
        return self.first_stage_model.decode(z / self.cfg.scale_factor)

    def draw(
        self,
        z: Tensor,
        keys: Sequence[int | str],
        grain: bool = True,
        exemplars: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """Scaled latents (B, z, h, w) -> pictures as they are to be seen: :meth:`decode`, and grain if there is a head.

        keys: a seed or a name for each sample, from which its grain follows. grain: False for the mean picture.
        exemplars: (B, F), what tells of the surface a sample is to have, where ``shown`` (B,) is True.
        """
        first_stage, f = self.first_stage_model, self.cfg.first_stage.downscale
        if first_stage.grain is None or not grain:
            return self.decode(z)
        noise = grain_noise(keys, f * z.shape[2], f * z.shape[3])
        if exemplars is not None and shown is not None:
            exemplars, shown = exemplars.to(z.device), shown.to(z.device)
        return first_stage.draw(z / self.cfg.scale_factor, noise.to(z.device), exemplars, shown)
