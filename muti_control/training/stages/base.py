"""What the stages on cached latents share, and the base stage (text -> face); control_stage.py has the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from cldm.branches import Landmarks
from cldm.conditions import Conditions
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import reconstruct
from cldm.texture import Texture
from ldm.autoencoder import DiagonalGaussian
from ldm.schedule import q_sample
from muti_control.training.config import ExperimentConfig
from muti_control.training.latent_stage import LatentStage
from muti_control.training.pictures import energy_distance, small_grey

Pictures = tuple[Tensor, Tensor, Tensor]  # drawn face, true face, skull, each (3, H, W) in [0, 1]


@dataclass(frozen=True)
class Predicted:
    """A batch of noised latents and what the network said of them.

    z: (B, z, h, w) clean latents, scaled. drawn: (B,) steps, on the CPU; t: the same, on the device.
    x_t, eps, eps_hat: (B, z, h, w) noised latents, their noise, and the predicted noise (float32, with gradient).
    given: the conditions that the network was shown beside the text; None: it knows none.
    """

    z: Tensor
    drawn: Tensor
    t: Tensor
    x_t: Tensor
    eps: Tensor
    eps_hat: Tensor
    given: Conditions | None = None


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
        """Text embeddings (B, 77, C); out of a table (``training.texts``) while the text encoder is frozen."""
        return self.model.encode_text(prompts)

    def conditions_of(self, batch: dict[str, Any]) -> Conditions | None:
        """What the network is shown of a training batch beside its prompts; None: nothing."""
        return None

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, given: Conditions | None) -> Tensor:
        """Predicted noise (B, z, h, w) of this stage's network."""
        raise TypeError(f"{type(self).__name__} defines no predict")

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.noise_loss(self.predicted(batch))

    def noise_loss(self, found: Predicted) -> dict[str, Tensor]:
        """L_noise = mean w(t) (eps_hat - eps)^2, t uniform; logged beside it, the unweighted error.

        Source: arXiv 2006.11239 eq. 14 (w = 1); arXiv 2202.00512 section 4 (weights as errors of x_0).
        """
        errors = F.mse_loss(found.eps_hat, found.eps, reduction="none").flatten(1).mean(1)  # (B,)
        return {"loss": (self.loss_weights(found.t) * errors).mean(), "eps_mse": errors.detach().mean()}

    def predicted(self, batch: dict[str, Any]) -> Predicted:
        """Noise a batch's latents and predict the noise, with gradient; drawn for the micro-batch in hand."""
        posterior = DiagonalGaussian(batch["moments"])
        z = self.model.cfg.scale_factor * posterior.sample(self.draw("posterior"))  # (B, z, h, w)
        drawn = torch.randint(0, self.model.cfg.schedule.num_timesteps, (len(z),), generator=self.draw("t"))
        t = drawn.to(z.device)
        eps = torch.randn(z.shape, generator=self.draw("eps")).to(z)
        dropped = torch.rand(len(z), generator=self.draw("dropout")) < self.cfg.diffusion.prompt_dropout
        prompts = ["" if drop else p for p, drop in zip(batch["prompt"], dropped.tolist(), strict=True)]
        x_t = q_sample(z, t, eps, self.model.alphas_cumprod).contiguous(memory_format=torch.channels_last)
        given = self.conditions_of(batch)
        eps_hat = self.predict(x_t, t, self.context_of(prompts), given).float()
        return Predicted(z, drawn, t, x_t, eps, eps_hat, given)

    def loss_weights(self, t: Tensor) -> Tensor:
        """w(t), (B,) float32, as ``diffusion.loss_weighting`` says."""
        cfg = self.cfg.diffusion
        if cfg.loss_weighting == "eps":
            return torch.ones(len(t), device=t.device)
        abar = self.model.alphas_cumprod[t].float()
        if cfg.loss_weighting == "v":
            return 1 / abar
        return ((1 - abar) / abar).clamp(max=cfg.max_loss_weight)  # 1 / SNR

    def draw_faces(self, batch: dict[str, Any], with_skull: bool) -> Tensor:
        """Faces (B, 3, H, W) in [0, 1] for a validation batch, each pair with its own fixed seed, without grain.

        What they are judged by, the error by pixels, would only be blurred by grain.
        """
        seeds = [self.cfg.train.seed + 1_000_003 * (1 + int(i)) for i in batch["index"]]
        skulls = batch["skull"] if with_skull else None
        return reconstruct(
            self.controlled,
            skulls,
            batch["prompt"],
            seeds,
            self.cfg.sampling.with_(grain=False),
            landmarks=self.validation_landmarks(batch),
            texture=self.validation_texture(batch),
        )

    def validation_landmarks(self, batch: dict[str, Any]) -> Landmarks | None:
        """What a validation batch's faces are drawn with beside skull and text."""
        return None

    def validation_texture(self, batch: dict[str, Any]) -> Texture | None:
        """The exemplars that a validation batch's faces are drawn with."""
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

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, given: Conditions | None) -> Tensor:
        return self.controlled.eps(x_t, t, context, None)

    def scores(self, faces: Tensor, truths: Tensor) -> dict[str, float]:
        return {"valid/energy_distance": float(energy_distance(small_grey(faces), small_grey(truths)))}
