"""The base stage (text -> face) and the control stage (skull + text -> face), both on cached latents."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import reconstruct
from data.paired import PairedDataset
from ldm.autoencoder import DiagonalGaussian
from ldm.schedule import q_sample
from muti_control.config import ExperimentConfig
from muti_control.landmark_condition import PairLandmarks
from muti_control.latent_stage import LatentStage
from muti_control.latents import LatentPairs
from muti_control.pictures import energy_distance, rank_one, small_grey

Pictures = tuple[Tensor, Tensor, Tensor]  # drawn face, true face, skull, each (3, H, W) in [0, 1]


class DiffusionStage(LatentStage):
    """Noise prediction on latents; subclasses say what conditions the network."""

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: ControlledLatentDiffusion,
        train_set: Dataset[Any],
        valid_set: Dataset[Any],
        trained: tuple[str, ...],
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained)
        self._seen: list[tuple[int, Pictures]] = []

    @property
    def controlled(self) -> ControlledLatentDiffusion:
        """The network, under its own type."""
        assert isinstance(self.net, ControlledLatentDiffusion)
        return self.net

    def context_of(self, prompts: list[str]) -> Tensor:
        """Text embeddings (B, 77, C); out of a table (``muti_control.texts``) while the text encoder is frozen."""
        return self.model.encode_text(prompts)

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, batch: dict[str, Any]) -> Tensor:
        """Predicted noise (B, z, h, w) of this stage's network."""
        raise TypeError(f"{type(self).__name__} defines no predict")

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """L_noise = mean w(t) (eps_hat - eps)^2, t uniform; logged beside it, the unweighted error.

        Source: arXiv 2006.11239 eq. 14 (w = 1); arXiv 2202.00512 section 4 (weights as errors of x_0).
        """
        posterior = DiagonalGaussian(batch["moments"])
        z = self.model.cfg.scale_factor * posterior.sample(self.draw("posterior"))  # (B, z, h, w)
        t = torch.randint(0, self.model.cfg.schedule.num_timesteps, (len(z),), generator=self.draw("t")).to(
            z.device
        )
        eps = torch.randn(z.shape, generator=self.draw("eps")).to(z)
        dropped = torch.rand(len(z), generator=self.draw("dropout")) < self.cfg.diffusion.prompt_dropout
        prompts = ["" if drop else p for p, drop in zip(batch["prompt"], dropped.tolist(), strict=True)]
        x_t = q_sample(z, t, eps, self.model.alphas_cumprod).contiguous(memory_format=torch.channels_last)
        eps_hat = self.predict(x_t, t, self.context_of(prompts), batch).float()
        errors = F.mse_loss(eps_hat, eps, reduction="none").flatten(1).mean(1)  # (B,)
        return {"loss": (self.loss_weights(t) * errors).mean(), "eps_mse": errors.detach().mean()}

    def loss_weights(self, t: Tensor) -> Tensor:
        """w(t), (B,) float32, as ``diffusion.loss_weighting`` says."""
        cfg = self.cfg.diffusion
        if cfg.loss_weighting == "eps":
            return torch.ones(len(t), device=t.device)
        abar = self.model.alphas_cumprod[t].float()
        return ((1 - abar) / abar).clamp(max=cfg.max_loss_weight)  # 1 / SNR

    def draw_faces(self, batch: dict[str, Any], with_skull: bool) -> Tensor:
        """Faces (B, 3, H, W) in [0, 1] for a validation batch, each pair with its own fixed seed."""
        seeds = [self.cfg.train.seed + 1_000_003 * (1 + int(i)) for i in batch["index"]]
        skulls = batch["skull"] if with_skull else None
        return reconstruct(
            self.controlled,
            skulls,
            batch["prompt"],
            seeds,
            self.cfg.sampling,
            landmarks=self.validation_landmarks(batch),
        )

    def validation_landmarks(self, batch: dict[str, Any]) -> Landmarks | None:
        """What a validation batch's faces are drawn with beside skull and text."""
        return None

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        faces = self.draw_faces(batch, with_skull=self.cfg.stage == "control")
        pictures = zip(
            faces.cpu(), (batch["face"].float().cpu() + 1) / 2, batch["skull"].float().cpu(), strict=True
        )
        self._seen += zip(batch["index"].tolist(), pictures, strict=True)

    def validation_scores(self) -> dict[str, float]:
        faces, truths, skulls = (torch.stack(x) for x in zip(*self.gather(self._seen), strict=True))
        self.forget_validation()
        rows = [faces, truths] if self.cfg.stage == "base" else [skulls, faces, truths]
        self.show("faces", [row[:8] for row in rows])
        return self.scores(faces, truths)

    def forget_validation(self) -> None:
        self._seen = []

    def scores(self, faces: Tensor, truths: Tensor) -> dict[str, float]:
        """Validation scores of drawn faces beside the true ones, both (N, 3, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} defines no scores")


class BaseStage(DiffusionStage):
    """Text -> face. The best checkpoint has the lowest energy distance between drawn and true faces."""

    monitor = "valid/energy_distance"
    monitor_mode = "min"

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: ControlledLatentDiffusion,
        train_set: Dataset[Any],
        valid_set: Dataset[Any],
    ) -> None:
        text = ("cond_stage_model.",) if cfg.diffusion.train_text_encoder else ()
        super().__init__(cfg, net, train_set, valid_set, ("model.diffusion_model.", *text))

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, batch: dict[str, Any]) -> Tensor:
        return self.model.unet(x_t, t, context)

    def scores(self, faces: Tensor, truths: Tensor) -> dict[str, float]:
        return {"valid/energy_distance": float(energy_distance(small_grey(faces), small_grey(truths)))}


class ControlStage(DiffusionStage):
    """Skull + text -> face; only the control network is trained.

    The best checkpoint has the lowest mean absolute error of the reconstructions. Beside it stand the rank-1
    rate among the validation faces and the skull's effect: how much the predicted noise changes, relative to
    its size, when the skulls are swapped. A skull-blind model shows 0 there.
    """

    monitor = "valid/l1"
    monitor_mode = "min"

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: ControlledLatentDiffusion,
        train_set: Dataset[Any],
        valid_set: Dataset[Any],
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, ("control_model.",))
        self._effects: list[tuple[int, dict[str, float]]] = []
        self._landmarks: dict[str, PairLandmarks] = {}
        if net.cfg.control.landmarks is not None:
            assert isinstance(train_set, LatentPairs) and isinstance(valid_set, PairedDataset)
            num = net.cfg.control.landmarks.num_points
            for part, pairs in (("train", train_set.pairs), ("valid", valid_set)):
                self._landmarks[part] = PairLandmarks(pairs.records, num, cfg.landmarks)
                print(f"{part}: {self._landmarks[part]}", flush=True)

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, batch: dict[str, Any]) -> Tensor:
        skull = batch["skull"].contiguous(memory_format=torch.channels_last)
        hint = self.controlled.encode_hint(skull)
        if self._landmarks:
            shown = self._landmarks["train"].for_training(batch["index"], self.draw("landmarks"))
            hint = hint + self.controlled.encode_landmarks(shown.to(skull.device), *skull.shape[-2:])
        return self.controlled.eps(x_t, t, context, hint)

    def validation_landmarks(self, batch: dict[str, Any]) -> Landmarks | None:
        if not self._landmarks:
            return None
        return self._landmarks["valid"].for_validation(batch["index"]).to(batch["skull"].device)

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validate_batch(batch, batch_idx)
        if batch_idx == 0 and len(batch["skull"]) > 1:
            self._effects.append((self.global_rank, self.effects(batch)))

    def validation_scores(self) -> dict[str, float]:
        effects = self.gather(self._effects)
        scores = super().validation_scores()
        names = effects[0] if effects else {}
        return scores | {name: sum(effect[name] for effect in effects) / len(effects) for name in names}

    def forget_validation(self) -> None:
        super().forget_validation()
        self._effects = []

    def effects(self, batch: dict[str, Any]) -> dict[str, float]:
        """How much a condition matters: mean |eps(own) - eps(another's)| / mean |eps|, mid-process, fixed noise."""
        skull, landmarks = batch["skull"], self.validation_landmarks(batch)
        z, h, w = self.model.cfg.latent_shape
        x_t = torch.randn((len(skull), z, h, w), generator=torch.Generator().manual_seed(0)).to(skull.device)
        t = torch.full((len(skull),), self.model.cfg.schedule.num_timesteps // 2, device=skull.device)
        context = self.context_of(list(batch["prompt"]))

        def eps(skull: Tensor, landmarks: Landmarks | None) -> Tensor:
            hint = self.controlled.encode_hint(skull)
            if landmarks is not None:
                hint = hint + self.controlled.encode_landmarks(landmarks, *skull.shape[-2:])
            return self.controlled.eps(x_t, t, context, hint).float()

        own = eps(skull, landmarks)
        others = {"skull": eps(skull.roll(1, dims=0), landmarks)}
        if landmarks is not None:
            others["landmark"] = eps(skull, landmarks.rolled())
        return {
            f"valid/{name}_effect": float((own - other).abs().mean() / own.abs().mean())
            for name, other in others.items()
        }

    def export_metadata(self) -> dict[str, str]:
        """As of every stage, and the sampler settings it was validated with, which sample.py then takes up."""
        return {**super().export_metadata(), "sampling": json.dumps(asdict(self.cfg.sampling))}

    def scores(self, faces: Tensor, truths: Tensor) -> dict[str, float]:
        return {
            "valid/l1": float((faces - truths).abs().mean()),
            "valid/rank_1": float(rank_one(small_grey(faces, 64), small_grey(truths, 64))),
        }
