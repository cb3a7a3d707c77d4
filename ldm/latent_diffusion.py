"""The latent diffusion model: UNet, autoencoder, text encoder and schedule under their public names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.config import ModelConfig
from ldm.grain import grain_noise
from ldm.schedule import schedule_buffers
from ldm.text import FrozenCLIPEmbedder
from ldm.unet import UNetModel


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
        present: Tensor | None = None,
    ) -> Tensor:
        """Scaled latents (B, z, h, w) -> final pictures (B, 3, f h, f w): :meth:`decode`, and grain if there is a head.

        keys: a seed or a name for each sample, from which its grain follows. grain: False for the mean picture.
        exemplars: (B, F), the style of a sample's surface, where ``present`` (B,) is True.
        """
        first_stage, f = self.first_stage_model, self.cfg.first_stage.downscale
        if first_stage.grain is None or not grain:
            return self.decode(z)
        noise = grain_noise(keys, f * z.shape[2], f * z.shape[3])
        if exemplars is not None and present is not None:
            exemplars, present = exemplars.to(z.device), present.to(z.device)
        return first_stage.draw(z / self.cfg.scale_factor, noise.to(z.device), exemplars, present)
