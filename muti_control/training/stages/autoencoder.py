"""The autoencoder stage: pictures -> latents -> pictures."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.paired import PairedDataset
from ldm.latent_diffusion import LatentDiffusion
from muti_control.losses.autoencoder import edge_loss, gradient_ratio, texture_loss
from muti_control.losses.picture import build_discriminator
from muti_control.networks.patchgan import accuracy, lsgan_discriminator, lsgan_generator
from muti_control.training.config import ExperimentConfig
from muti_control.training.model import build_model, export_model, read_lists
from muti_control.training.optimizers import Turn
from muti_control.training.pictures import psnr
from muti_control.training.stage import Stage

DISCRIMINATOR = "discriminator"
TRAINED = tuple(
    f"first_stage_model.{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")
)  # a grain head has a stage of its own


def random_crops(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return one random size x size window of each picture (B, C, H, W)."""
    height, width = pictures.shape[2:]
    tops = torch.randint(0, height - size + 1, (len(pictures),), generator=generator).tolist()
    lefts = torch.randint(0, width - size + 1, (len(pictures),), generator=generator).tolist()
    windows = [p[:, a : a + size, b : b + size] for p, a, b in zip(pictures, tops, lefts, strict=True)]
    return torch.stack(windows)


class AutoencoderStage(Stage):
    """Trains encoder and decoder; the best checkpoint has the highest PSNR on validation pictures.

    Beside it stands how much rougher or smoother their surfaces come back, which the highest PSNR does not care for:
    with texture_weight or gan on, the best checkpoint has the lowest of that instead.
    """

    monitor = "valid/psnr"
    monitor_mode = "max"
    net: LatentDiffusion

    def __init__(
        self, cfg: ExperimentConfig, net: LatentDiffusion, train_set: Dataset[Any], valid_set: Dataset[Any]
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained=TRAINED)
        self._shown: list[Tensor] = []
        self._crops: tuple[Tensor, Tensor] | None = None  # true and decoded crops of the micro-batch in hand
        if cfg.autoencoder.gan or cfg.autoencoder.texture_weight:
            self.monitor, self.monitor_mode = "valid/texture", "min"
        if cfg.autoencoder.gan:
            discriminator = build_discriminator(cfg.autoencoder.discriminator, cfg.train.seed)
            self.discriminator = discriminator.to(memory_format=torch.channels_last)

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> AutoencoderStage:
        """Build network and data."""
        model = build_model(cfg)
        train, valid = (PairedDataset(x, size=model.cfg.image_size) for x in read_lists(cfg).values())
        return cls(cfg, model, train, valid)

    def turns(self) -> list[Turn]:
        if not self.cfg.autoencoder.gan:
            return super().turns()
        cfg, name = self.cfg.autoencoder.discriminator, DISCRIMINATOR
        parameters = dict(self.discriminator.named_parameters(prefix=name))
        return [*super().turns(), Turn(name, parameters, cfg.optim, cfg.every, f"autoencoder.{name}.optim")]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        if turn != DISCRIMINATOR:
            return self.loss_of(batch)
        assert self._crops is not None  # the generator's turn is at every step, and the first
        real, fake = (self.discriminator(pictures) for pictures in self._crops)
        return {
            "loss": lsgan_discriminator(real, fake).mean(),
            "accuracy": accuracy(real, fake).detach(),
        }

    def _pictures(self, batch: dict[str, Any]) -> Tensor:
        if not self.cfg.autoencoder.on_skulls:
            return batch["face"]
        return torch.cat([batch["face"], batch["skull"] * 2 - 1])

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return reconstruction, edges, KL, and what else is on, of (random crops of) the batch's pictures."""
        cfg = self.cfg.autoencoder
        x = self._pictures(batch)  # (B, 3, H, W) in [-1, 1]
        if 0 < cfg.crop_size < x.shape[-1]:
            x = random_crops(x, cfg.crop_size, self.draw("crop"))
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = self.net.first_stage_model.encode(x)
        x_hat = self.net.first_stage_model.decode(posterior.sample(self.draw("posterior"))).float()
        reconstruction = (x_hat - x).abs().mean()
        edges = edge_loss(x_hat, x)
        kl = posterior.kl().mean() / (x.shape[2] * x.shape[3])  # nats per pixel
        loss = reconstruction + cfg.edge_weight * edges + cfg.kl_weight * kl
        scalars = {"l1": reconstruction.detach(), "edges": edges.detach(), "kl": kl.detach()}
        if cfg.texture_weight:
            texture = texture_loss(x_hat, x)
            loss = loss + cfg.texture_weight * texture
            scalars["texture"] = texture.detach()
        if cfg.gan:
            realism = lsgan_generator(self.discriminator(x_hat)).mean()
            weight = gradient_ratio(loss, realism, self.net.first_stage_model.decoder.conv_out.weight)
            ramp = min(1.0, (self.updates + 1) / cfg.gan_ramp_steps) if cfg.gan_ramp_steps else 1.0
            loss = loss + ramp * cfg.gan * weight * realism
            scalars |= {"gan": realism.detach(), "gan_weight": ramp * cfg.gan * weight}
            self._crops = x.detach(), x_hat.detach()
        return {"loss": loss, **scalars}

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        x = self._pictures(batch)
        x_hat = self.net.first_stage_model.decode(self.net.first_stage_model.encode(x).mode())
        x, x_hat = ((y.float() + 1) / 2 for y in (x, x_hat.clamp(-1, 1)))
        indices = batch["index"].repeat(len(x) // len(batch["index"])).tolist()  # faces, then skulls
        rough = [float(texture_loss(a[None] * 2 - 1, b[None] * 2 - 1)) for a, b in zip(x_hat, x, strict=True)]
        self.keep("scores", indices, zip(psnr(x_hat, x).tolist(), rough, strict=True))
        if batch_idx == 0:
            self._shown = [x[:8], x_hat[:8]]

    def validation_scores(self) -> dict[str, float]:
        psnrs, rough = zip(*self.gather("scores"), strict=True)
        self.show("reconstructions", self._shown)
        return {"valid/psnr": sum(psnrs) / len(psnrs), "valid/texture": sum(rough) / len(rough)}

    @torch.no_grad()
    def measure_scale_factor(self, num_pictures: int = 256) -> float:
        """Return 1 / standard deviation of the latents of the first training pictures, with the current weights."""
        assert isinstance(self.train_set, Sized)
        num = min(num_pictures, len(self.train_set))
        pictures = torch.stack([self.train_set[i]["face"] for i in range(num)])
        encode = self.net.first_stage_model.encode
        latents = torch.cat([encode(x.to(self.device)).mode() for x in pictures.split(16)])
        return 1.0 / float(latents.float().std())

    def export(self, path: Path) -> None:
        """Write the model with the measured scale factor, so that the next stages see latents of unit size."""
        with self.ema.applied(self.averaged_tensors()):
            scale = round(self.measure_scale_factor(), 5)
            export_model(self, path, self.net.cfg.with_(scale_factor=scale), {})
