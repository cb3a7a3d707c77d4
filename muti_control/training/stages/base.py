"""The base stage (text -> face) on cached latents, and what the control stage shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import reconstruct
from cldm.texture import Texture
from data.paired import PairedDataset
from ldm.autoencoder import DiagonalGaussian
from ldm.schedule import q_sample
from muti_control.losses.noise import noise_loss, noise_weights
from muti_control.training.config import ExperimentConfig
from muti_control.training.latents import LatentPairs, face_moments
from muti_control.training.model import build_model, export_model, read_lists
from muti_control.training.pictures import energy_distance, small_grey
from muti_control.training.stage import Stage
from muti_control.training.texts import park, tabulate_texts
from settings.messages import ConfigError


class BaseStage(Stage):
    """Text -> face. The best checkpoint has the lowest energy distance between drawn and true faces."""

    monitor = "valid/energy_distance"
    monitor_mode = "min"
    net: ControlledLatentDiffusion

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: ControlledLatentDiffusion,
        train_set: LatentPairs,
        valid_set: PairedDataset,
    ) -> None:
        text = ("cond_stage_model.",) if cfg.diffusion.train_text_encoder else ()
        super().__init__(cfg, net, train_set, valid_set, ("model.diffusion_model.", *text))

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> BaseStage:
        """Build network and data."""
        return cls(cfg, *build_on_latents(cfg, device))

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the noise loss: the control stage's without its conditions and without a decoded face."""
        cfg, model = self.cfg.diffusion, self.net
        z = model.cfg.scale_factor * DiagonalGaussian(batch["moments"]).sample(self.draw("posterior"))
        t = torch.randint(0, model.cfg.schedule.num_timesteps, (len(z),), generator=self.draw("t")).to(
            z.device
        )
        eps = torch.randn(z.shape, generator=self.draw("eps")).to(z)  # (B, z, h, w)
        x_t = q_sample(z, t, eps, model.alphas_cumprod).contiguous(memory_format=torch.channels_last)
        context = model.encode_text(drop_prompts(batch["prompt"], cfg.prompt_dropout, self.draw("dropout")))
        eps_hat = model.eps(x_t, t, context, None).float()
        weights = noise_weights(t, model.alphas_cumprod, cfg.loss_weighting, cfg.max_loss_weight)
        loss, eps_mse = noise_loss(eps_hat, eps, weights)
        return {"loss": loss, "eps_mse": eps_mse}

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        faces = draw_faces(self.net, self.cfg, batch, None)
        truths = (batch["face"].float().cpu() + 1) / 2
        self.keep("faces", batch["index"].tolist(), zip(faces.cpu(), truths, strict=True))

    def validation_scores(self) -> dict[str, float]:
        faces, truths = (torch.stack(x) for x in zip(*self.gather("faces"), strict=True))
        self.show("faces", [faces[:8], truths[:8]])
        return {"valid/energy_distance": float(energy_distance(small_grey(faces), small_grey(truths)))}

    def export(self, path: Path) -> None:
        with self.ema.applied(self.averaged_tensors()):
            export_model(self, path, self.net.cfg, {})


def build_on_latents(
    cfg: ExperimentConfig, device: torch.device
) -> tuple[ControlledLatentDiffusion, LatentPairs, PairedDataset]:
    """Return the network, the training pairs with the latents of their faces, and the validation pairs.

    Encoders that the run then does without rest on the CPU.
    """
    model = build_model(cfg)
    size, num_timesteps = model.cfg.image_size, model.cfg.schedule.num_timesteps
    train, valid = (PairedDataset(records, size=size) for records in read_lists(cfg).values())
    cfg.sampling.scales_for(model.cfg.unet.num_control_outputs)  # complain now, not at the first validation
    if cfg.losses.on and cfg.losses.min_t >= num_timesteps:
        raise ConfigError(
            f"losses.min_t: got {cfg.losses.min_t}, expected less than the model's {num_timesteps} steps of noise: no "
            "face would ever be decoded"
        )
    cache = Path(cfg.out) / "cache"
    moments = None  # faces that move are encoded at each step
    if not cfg.data.augment:
        moments = face_moments(model, train, cache, device, cfg.data.num_workers)
        park(model.first_stage_model, "encoder")
    if cfg.stage == "control" or not cfg.diffusion.train_text_encoder:
        prompts = {pairs.prompt(k) for pairs in (train, valid) for k in range(len(pairs))}
        tabulate_texts(model, prompts, cache, device)
    latents = LatentPairs(train, moments, cfg.stage == "control", cfg.data.augment, cfg.train.seed)
    return model, latents, valid


def drop_prompts(prompts: Sequence[str], chance: float, generator: torch.Generator) -> list[str]:
    """Return the prompts, each replaced by the empty one with probability ``chance``."""
    dropped = torch.rand(len(prompts), generator=generator) < chance
    return ["" if drop else prompt for prompt, drop in zip(prompts, dropped.tolist(), strict=True)]


def draw_faces(
    model: ControlledLatentDiffusion,
    cfg: ExperimentConfig,
    batch: dict[str, Any],
    skulls: Tensor | None,
    landmarks: Landmarks | None = None,
    texture: Texture | None = None,
) -> Tensor:
    """Return faces (B, 3, H, W) in [0, 1] of a validation batch, each with its own fixed seed, without grain.

    Grain would only blur the scores, which compare pixel by pixel.
    """
    seeds = [cfg.train.seed + 1_000_003 * (1 + int(i)) for i in batch["index"]]
    sampling = cfg.sampling.with_(grain=False)
    return reconstruct(model, skulls, batch["prompt"], seeds, sampling, landmarks=landmarks, texture=texture)
