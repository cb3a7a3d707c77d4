"""The autoencoder stage: pictures -> latents -> pictures."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ldm.latent_diffusion import LatentDiffusion, ModelConfig
from muti_control.config import ExperimentConfig
from muti_control.latent_stage import LatentStage
from muti_control.pictures import psnr


def edge_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical finite differences of (B, C, H, W) pictures."""
    dx = (x.diff(dim=3) - y.diff(dim=3)).abs().mean()
    dy = (x.diff(dim=2) - y.diff(dim=2)).abs().mean()
    return dx + dy


def surface_energies(
    pictures: Tensor, window: int = 16, levels: int = 3, floor: float = 0.01
) -> list[Tensor]:
    """How rough a surface is, place by place, direction by direction and scale by scale, whatever its grains look like.

    pictures: (B, C, H, W) in [-1, 1]. window: side in px of the places, which overlap by half.
    levels: scales, each half the size of the one before. floor: differences below it count as none.

    Returns:
        For each scale the logarithm of the root mean square difference of neighbours, horizontal and vertical,
        (B, 2, H', W') float32.
    """
    grey = pictures.float().mean(1, keepdim=True)  # (B, 1, H, W)
    found = []
    for level in range(levels):
        side = max(2, window >> level)
        across, down = F.pad(grey.diff(dim=3), (0, 1)), F.pad(grey.diff(dim=2), (0, 0, 0, 1))
        squares = torch.cat([across, down], dim=1).square()
        found.append(0.5 * (F.avg_pool2d(squares, side, side // 2) + floor**2).log())
        grey = F.avg_pool2d(grey, 2)
    return found


def texture_loss(x: Tensor, y: Tensor, window: int = 16) -> Tensor:
    """Mean absolute difference of the :func:`surface_energies` of (B, C, H, W) pictures in [-1, 1].

    Grain and noise cannot be drawn grain for grain through a latent; an error pixel by pixel alone is smallest where
    they are wiped out. This one is smallest where as much of them is drawn as there was.
    """
    pairs = zip(surface_energies(x, window), surface_energies(y, window), strict=True)
    return torch.stack([(a - b).abs().mean() for a, b in pairs]).mean()


def random_crops(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One random size x size window of each picture (B, C, H, W)."""
    height, width = pictures.shape[2:]
    tops = torch.randint(0, height - size + 1, (len(pictures),), generator=generator).tolist()
    lefts = torch.randint(0, width - size + 1, (len(pictures),), generator=generator).tolist()
    windows = [p[:, a : a + size, b : b + size] for p, a, b in zip(pictures, tops, lefts, strict=True)]
    return torch.stack(windows)


class AutoencoderStage(LatentStage):
    """Trains encoder and decoder; the best checkpoint has the highest PSNR on validation pictures."""

    monitor = "valid/psnr"
    monitor_mode = "max"

    def __init__(
        self, cfg: ExperimentConfig, net: LatentDiffusion, train_set: Dataset[Any], valid_set: Dataset[Any]
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained=("first_stage_model.",))
        self._psnrs: list[tuple[int, float]] = []
        self._shown: list[Tensor] = []

    def _pictures(self, batch: dict[str, Any]) -> Tensor:
        if not self.cfg.autoencoder.on_skulls:
            return batch["face"]
        return torch.cat([batch["face"], batch["skull"] * 2 - 1])

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Reconstruction, edges and KL of (random crops of) the batch's pictures."""
        cfg = self.cfg.autoencoder
        x = self._pictures(batch)  # (B, 3, H, W) in [-1, 1]
        if 0 < cfg.crop_size < x.shape[-1]:
            x = random_crops(x, cfg.crop_size, self.draw("crop"))
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = self.model.first_stage_model.encode(x)
        x_hat = self.model.first_stage_model.decode(posterior.sample(self.draw("posterior"))).float()
        reconstruction = (x_hat - x).abs().mean()
        edges = edge_loss(x_hat, x)
        kl = posterior.kl().mean() / (x.shape[2] * x.shape[3])  # nats per pixel
        loss = reconstruction + cfg.edge_weight * edges + cfg.kl_weight * kl
        scalars = {"l1": reconstruction.detach(), "edges": edges.detach(), "kl": kl.detach()}
        if cfg.texture_weight:
            texture = texture_loss(x_hat, x)
            loss = loss + cfg.texture_weight * texture
            scalars["texture"] = texture.detach()
        return {"loss": loss, **scalars}

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        x = self._pictures(batch)
        x_hat = self.model.first_stage_model.decode(self.model.first_stage_model.encode(x).mode())
        x, x_hat = ((y.float() + 1) / 2 for y in (x, x_hat.clamp(-1, 1)))
        indices = batch["index"].repeat(len(x) // len(batch["index"])).tolist()  # faces, then skulls
        self._psnrs += zip(indices, psnr(x_hat, x).tolist(), strict=True)
        if batch_idx == 0:
            self._shown = [x[:8], x_hat[:8]]

    def validation_scores(self) -> dict[str, float]:
        values, shown = self.gather(self._psnrs), self._shown
        self.forget_validation()
        self.show("reconstructions", shown)
        return {"valid/psnr": sum(values) / len(values)}

    def forget_validation(self) -> None:
        self._psnrs, self._shown = [], []

    @torch.no_grad()
    def measure_scale_factor(self, num_pictures: int = 256) -> float:
        """1 / standard deviation of the latents of the first training pictures, from the weights as they stand."""
        assert isinstance(self.train_set, Sized)
        num = min(num_pictures, len(self.train_set))
        pictures = torch.stack([self.train_set[i]["face"] for i in range(num)])
        encode = self.model.first_stage_model.encode
        latents = torch.cat([encode(x.to(self.device)).mode() for x in pictures.split(16)])
        return 1.0 / float(latents.float().std())

    def exported_config(self) -> ModelConfig:
        """With the measured scale factor, so that the stages that follow see latents of unit size."""
        return replace(self.model.cfg, scale_factor=round(self.measure_scale_factor(), 5))
