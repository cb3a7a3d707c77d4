"""The guidance_decoder stage: a small network learns what the frozen autoencoder's decoder draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.paired import PairedDataset
from ldm.autoencoder import DiagonalGaussian
from muti_control.losses.autoencoder import edge_loss
from muti_control.networks.guidance_decoder import GuidanceDecoder, signature
from muti_control.training.config import ExperimentConfig
from muti_control.training.latents import LatentPairs, face_moments
from muti_control.training.model import FirstStage, file_facts, read_lists
from muti_control.training.pictures import psnr
from muti_control.training.seeded_batches import generator
from muti_control.training.stage import Stage
from muti_control.training.texts import park
from settings.messages import ConfigError

NUM_SHOWN = 8


def altered(z: Tensor, noise: float, blend: float, draws: torch.Generator) -> Tensor:
    """Return latents (B, z, h, w) as a sampler's early estimates are: between people, and not quite clean.

    Each gets up to ``blend`` of its neighbour's in the batch, and noise of a deviation of up to ``noise``.
    """
    share, sigma = torch.rand(2, len(z), 1, 1, 1, generator=draws).to(z)
    mixed = z + blend * share * (z.roll(1, dims=0) - z)
    return mixed + noise * sigma * torch.randn(z.shape, generator=draws).to(z)


class GuidanceDecoderStage(Stage):
    """Trains the small decoder; the best checkpoint is nearest to the full decoder's pictures.

    Beside the error stands what guidance will feel: the cosine between the gradients that both decoders give a
    latent towards another person's picture.
    """

    monitor = "valid/l1"
    monitor_mode = "min"
    net: GuidanceDecoder

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: GuidanceDecoder,
        first_stage: FirstStage,
        train_set: LatentPairs,
        valid_set: LatentPairs,
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained=("",))
        self.first_stage = first_stage.to(memory_format=torch.channels_last)
        self.signature = signature(first_stage.first_stage_model)

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> GuidanceDecoderStage:
        """Build network and data: of ``init`` the autoencoder alone, of the pairs the latents of the faces."""
        first_stage = FirstStage.of(cfg)
        got, expected = cfg.guidance_decoder.network.z_channels, first_stage.cfg.first_stage.z_channels
        if got != expected:
            raise ConfigError(
                f"guidance_decoder.network.z_channels: got {got}, expected {expected}, as in {cfg.init}"
            )
        latents = {}
        for part, records in read_lists(cfg).items():
            pairs = PairedDataset(records, size=first_stage.cfg.image_size)
            moments = face_moments(first_stage, pairs, Path(cfg.out) / "cache", device, cfg.data.num_workers)
            latents[part] = LatentPairs(pairs, moments, with_skull=False)
        park(first_stage.first_stage_model, "encoder")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.train.seed)
            net = GuidanceDecoder(cfg.guidance_decoder.network)
        return cls(cfg, net, first_stage, latents["train"], latents["valid"])

    # --- training -----------------------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return |x_hat - x| + edge_weight |grad x_hat - grad x|, x from the full decoder."""
        cfg = self.cfg.guidance_decoder
        posterior = DiagonalGaussian(batch["moments"])
        z = self.first_stage.cfg.scale_factor * posterior.sample(self.draw("posterior"))  # (B, z, h, w)
        changed = torch.rand(len(z), generator=self.draw("which")) < cfg.altered
        other = altered(z, cfg.noise, cfg.blend, self.draw("altered"))
        z = torch.where(changed.to(z.device)[:, None, None, None], other, z)
        z = z.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            target = self.first_stage.decode(z).float()
        drawn = self.net(z).float()
        l1, edges = (drawn - target).abs().mean(), edge_loss(drawn, target)
        return {"loss": l1 + cfg.edge_weight * edges, "l1": l1.detach(), "edges": edges.detach()}

    # --- validation ---------------------------------------------------------------------------------------

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        cfg = self.cfg.guidance_decoder
        z = self.first_stage.cfg.scale_factor * DiagonalGaussian(batch["moments"]).mode()
        draws = generator(self.cfg.train.seed, self.global_rank, batch_idx, "valid/altered")
        pictures: list[Tensor] = []
        for latents in (z, altered(z, cfg.noise, cfg.blend, draws)):
            for decode in (self.first_stage.decode, self.net):
                pictures.append((decode(latents).float().clamp(-1, 1).cpu() + 1) / 2)
        indices = batch["index"].tolist()
        self.keep("pictures", indices, zip(*pictures, strict=True))
        if len(z) > 1:
            self.keep("cosines", indices, self.gradient_cosines(z).tolist())

    def gradient_cosines(self, z: Tensor) -> Tensor:
        """Return the cosine (B,) of both decoders' gradients of the squared distance to the neighbour's picture."""
        with torch.no_grad():
            goal = self.first_stage.decode(z.roll(1, dims=0)).float()
        gradients = []
        for decode in (self.first_stage.decode, self.net):
            with torch.enable_grad():
                leaf = z.detach().clone().requires_grad_(True)
                distance = (decode(leaf).float() - goal).square().flatten(1).mean(1).sum()
                gradients.append(torch.autograd.grad(distance, leaf)[0].float().flatten(1))
        return F.cosine_similarity(gradients[0], gradients[1]).cpu()

    def validation_scores(self) -> dict[str, float]:
        """Return the errors of pictures in [0, 1] against the full decoder's, of plain and of altered latents."""
        full, small, full_altered, small_altered = (
            torch.stack(pictures) for pictures in zip(*self.gather("pictures"), strict=True)
        )
        cosines = self.gather("cosines")
        self.show("decoded", [row[:NUM_SHOWN] for row in (full, small, full_altered, small_altered)])
        errors = [(small - full).abs().mean(), (small_altered - full_altered).abs().mean()]
        return {
            "valid/l1": float(torch.stack(errors).mean()),
            "valid/psnr": float(psnr(small, full).mean()),
            "valid/psnr_altered": float(psnr(small_altered, full_altered).mean()),
            "valid/gradient_cosine": sum(cosines) / max(1, len(cosines)),
        }

    # --- what is written at the end -----------------------------------------------------------------------

    def export(self, path: Path) -> None:
        """Write the averaged network as one file that says whose decoder it imitates."""
        facts = {"format": "iccr-diff", **file_facts(self)}
        with self.ema.applied(self.averaged_tensors()):
            self.net.save(path, self.signature, getattr(torch, self.cfg.train.export_dtype), facts)
