"""The control stage (skull + text -> face) on cached latents: the noise loss and losses of the decoded face."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.branches import Landmarks, untrained_metadata
from cldm.conditions import Conditions, encode
from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import Texture
from data.paired import PairedDataset
from ldm.autoencoder import DiagonalGaussian
from ldm.checkpoint import git_revision
from ldm.schedule import predict_x0, q_sample
from muti_control.conditions.altered import moved_points
from muti_control.conditions.pair_landmarks import NO_LANDMARKS, PairLandmarks
from muti_control.conditions.pair_textures import NO_EXEMPLARS, PairTextures
from muti_control.conditions.partial import with_missing_bone
from muti_control.losses.config import LossesConfig
from muti_control.losses.decoding import SUMMED, decoder_layout, gated_rows, with_gradient
from muti_control.losses.noise import noise_loss, noise_weights
from muti_control.losses.picture import FacePairs, build_losses
from muti_control.losses.weights import NOISE, LossWeights, gradient_norms
from muti_control.training.config import ExperimentConfig
from muti_control.training.latents import LatentPairs
from muti_control.training.model import export_model
from muti_control.training.optimizers import Turn
from muti_control.training.pictures import rank_one, small_grey
from muti_control.training.stage import Stage, warn
from muti_control.training.stages.base import build_on_latents, draw_faces, drop_prompts

DISCRIMINATOR = "discriminator"
_UNET = "model.diffusion_model."
UNLOCKED_PARTS = {
    "none": (),
    "decoder": (f"{_UNET}output_blocks.", f"{_UNET}out."),
    "all": (_UNET,),
}


class ControlStage(Stage):
    """Skull + text -> face. Trains the control network, and the part of the UNet that ``diffusion.unlocked`` names.

    The best checkpoint has the lowest mean absolute error of the reconstructions. Further scores are the rank-1 rate
    among the validation faces and the effect of each condition: how much the predicted noise changes, relative to
    its size, with another person's. A model that ignores the skull has a skull effect of 0.
    """

    monitor = "valid/l1"
    monitor_mode = "min"
    net: ControlledLatentDiffusion

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: ControlledLatentDiffusion,
        train_set: LatentPairs,
        valid_set: PairedDataset,
    ) -> None:
        super().__init__(
            cfg, net, train_set, valid_set, ("control_model.", *UNLOCKED_PARTS[cfg.diffusion.unlocked])
        )
        self._landmarks: dict[str, PairLandmarks] = {}
        self._textures: dict[str, PairTextures] = {}
        parts, branches = {"train": train_set.pairs, "valid": valid_set}, net.cfg.control
        if branches.landmarks is not None:
            num = branches.landmarks.num_points
            self._landmarks = {p: PairLandmarks(x.records, num, cfg.landmarks) for p, x in parts.items()}
            if cfg.landmarks.dropout < 1 and not self._landmarks["train"].any:
                warn(NO_LANDMARKS)
        if branches.texture is not None:
            self._textures = {
                p: PairTextures(x.records, x.size, branches.texture, cfg.texture) for p, x in parts.items()
            }
            if cfg.texture.dropout < 1 and not self._textures["train"].any:
                warn(NO_EXEMPLARS)
            train_set.more = {**train_set.more, "texture": self._textures["train"].features}
        for condition in (self._landmarks, self._textures):
            for part, source in condition.items():
                print(f"{part}: {source}", flush=True)
        if cfg.losses.on and cfg.losses.real == "picture":
            train_set.more = {**train_set.more, "face": train_set.pairs.face}
        self.picture_losses = build_losses(cfg.losses, cfg.train.seed)
        self.term_weights = LossWeights(
            cfg.losses.terms, cfg.losses.by == "ratio", cfg.losses.measure_every if cfg.losses.on else 0
        )
        self._warned = False  # of a skull that does not matter
        self._pairs: FacePairs | None = None  # what the generator's turn leaves for the discriminator's
        self._accuracy = {f"accuracy_{kind}": torch.tensor(float("nan")) for kind in ("real", "fake")}
        if self.picture_losses is not None:
            net.first_stage_model.decoder.recompute(cfg.losses.recompute)
            if self.picture_losses.discriminator is not None:
                self.discriminator = self.picture_losses.discriminator.to(memory_format=torch.channels_last)
            print(describe(cfg.losses, cfg.train.batch_size), flush=True)

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> ControlStage:
        """Build network and data."""
        return cls(cfg, *build_on_latents(cfg, device))

    # --- the training step --------------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the noise loss and, where they are on, the losses of the decoded faces.

        Notation: z = x_0 scaled latent of the face, t step, eps noise, x_t noised latent, eps_hat predicted noise.
        """
        cfg, model = self.cfg.diffusion, self.net

        # 1. Draw the latents, t and the noise.
        z = model.cfg.scale_factor * self.posterior_of(batch).sample(self.draw("posterior"))
        steps = torch.randint(0, model.cfg.schedule.num_timesteps, (len(z),), generator=self.draw("t"))
        t = steps.to(z.device)  # (B,)
        eps = torch.randn(z.shape, generator=self.draw("eps")).to(z)  # (B, z, h, w)
        x_t = q_sample(z, t, eps, model.alphas_cumprod).contiguous(memory_format=torch.channels_last)

        # 2. Encode the conditions; each is left out at times.
        context = model.encode_text(drop_prompts(batch["prompt"], cfg.prompt_dropout, self.draw("dropout")))
        conditions = self.conditions_of(batch)

        # 3. Predict the noise.
        eps_hat = self.predict(x_t, t, context, conditions)

        # 4. The noise loss.
        weights = noise_weights(t, model.alphas_cumprod, cfg.loss_weighting, cfg.max_loss_weight)
        loss, eps_mse = noise_loss(eps_hat, eps, weights)
        scalars = {"loss": loss, "eps_mse": eps_mse}
        if self.picture_losses is None:
            return scalars

        # 5. The losses of the decoded face, of samples with a small t.
        losses = self.cfg.losses
        rows = gated_rows(steps, losses.min_t, losses.max_t, losses.sub_batch, self.draw("gate")).to(z.device)
        x_0_hat = predict_x0(x_t[rows], t[rows], eps_hat[rows], model.alphas_cumprod)  # (n, z, h, w)
        return scalars | self._picture_loss(batch, z, rows, x_0_hat, conditions, loss)

    def posterior_of(self, batch: dict[str, Any]) -> DiagonalGaussian:
        """Return the posterior over the latents of a batch's faces: cached, or of the faces as they were moved."""
        if not self.cfg.data.augment:
            return DiagonalGaussian(batch["moments"])
        faces = batch["face"].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return self.net.first_stage_model.encode(faces)

    def conditions_of(self, batch: dict[str, Any]) -> Conditions:
        """Return the conditions of a training batch; each is left out as often as its dropout says."""
        skull, index = batch["skull"].contiguous(memory_format=torch.channels_last), batch["index"]
        present = landmarks = texture = None
        if self.cfg.partial.share > 0:
            skull = with_missing_bone(skull, self.cfg.partial, self.draw("partial"))
        if self.cfg.skull.dropout > 0:
            present = torch.rand(len(skull), generator=self.draw("skull")) >= self.cfg.skull.dropout
            present = present.to(skull.device)
        if self._landmarks:
            landmarks = self._landmarks["train"].for_training(index, self.draw("landmarks")).to(skull.device)
            if self.cfg.data.augment:
                landmarks = replace(landmarks, points=moved_points(landmarks.points, batch["affine"]))
        if self._textures:
            textures = self._textures["train"]
            texture = textures.for_training(index, batch["texture"], self.draw("texture")).to(skull.device)
        conditions = Conditions(skull, present, landmarks, texture)
        if (chance := self.cfg.diffusion.control_dropout) > 0:
            present = torch.rand(len(skull), generator=self.draw("control")) >= chance
            conditions = conditions.where(present.to(skull.device))
        return conditions

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, conditions: Conditions) -> Tensor:
        """Return the predicted noise (B, z, h, w), float32."""
        assert conditions.skulls is not None
        acting = encode(self.net, conditions, len(x_t), *conditions.skulls.shape[-2:]).acting()
        assert acting is not None
        eps = self.net.eps(x_t, t, context, acting.hint, texture=acting.texture, active=acting.active)
        return eps.float()

    # --- losses of the decoded face -----------------------------------------------------------------------

    def _picture_loss(
        self,
        batch: dict[str, Any],
        z: Tensor,
        rows: Tensor,
        x_0_hat: Tensor,
        conditions: Conditions,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """Return the whole ``loss``, each term (its sum over the samples divided by the batch size), norms and weights.

        rows: the samples (n,) that are decoded. x_0_hat: their estimated latents, with gradient. noise: the noise loss.
        """
        assert self.picture_losses is not None
        cfg, num, follow = self.cfg.losses, len(z), self.term_weights
        measure = follow.due(self.updates, self._micro)
        terms = follow.targets
        values = {name: noise.new_zeros(()) for name in terms}
        gradients: dict[str, Tensor] = {}
        self._pairs = None
        if len(rows):

            def true_faces(some: Tensor) -> Tensor:
                return self.net.decode(z[some]) if cfg.real == "decoded" else batch["face"][some]

            weights = None if measure else self._weights()
            result, self._pairs = self.picture_losses.differentiate(
                self.net.decode, x_0_hat, rows, visible_skulls(conditions), true_faces, weights
            )
            values = {name: value.sum() / num for name, value in result.values.items()}
            gradients = {name: gradient / num for name, gradient in result.gradients.items()}
        if measure:
            each = {name: (x_0_hat * gradients[name]).sum() if gradients else None for name in terms}
            parameters = [*self.trained_parameters().values()]
            follow.measured(gradient_norms({NOISE: cfg.noise * noise, **each}, parameters))
        weights = self._weights()
        total = cfg.noise * noise
        if gradients:
            if measure:
                gradients[SUMMED] = torch.stack([weights[name] * gradients[name] for name in terms]).sum(0)
            value = torch.stack([weights[name] * values[name] for name in terms]).sum()
            total = with_gradient(total + value, x_0_hat, gradients[SUMMED])
        facts = {"gated": len(rows) / num} | {f"weight_{name}": weight for name, weight in weights.items()}
        facts |= {f"gradient_{name}": norm for name, norm in sorted(follow.norms.items())}
        logged = {name: torch.tensor(value, device=noise.device) for name, value in facts.items()}
        return {"loss": total, "noise": noise.detach(), **values, **logged}

    def _weights(self) -> dict[str, float]:
        """Return the weight of each term at this step."""
        steps = self.cfg.losses.ramp_steps
        ramp = min(1.0, (self.updates + 1) / steps) if steps else 1.0
        return {name: ramp * weight for name, weight in self.term_weights.weights().items()}

    def turns(self) -> list[Turn]:
        if self.picture_losses is None or self.picture_losses.discriminator is None:
            return super().turns()
        cfg, name = self.cfg.losses.discriminator, DISCRIMINATOR
        parameters = dict(self.discriminator.named_parameters(prefix=name))
        return [*super().turns(), Turn(name, parameters, cfg.optim, cfg.every, f"losses.{name}.optim")]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self._discriminator_loss(len(batch["index"])) if turn == DISCRIMINATOR else self.loss_of(batch)

    def _discriminator_loss(self, num: int) -> dict[str, Tensor]:
        """Return the loss of the faces that the generator's turn decoded of the same micro-batch; zero without any.

        The accuracies are those of the last micro-batch that had any.
        """
        assert self.picture_losses is not None
        if self._pairs is None:  # a gradient of zero, so that scalers and other processes find one
            nothing = torch.stack([p.float().sum() for p in self.discriminator.parameters()]).sum() * 0
            return {"loss": nothing, **{name: x.to(self.device) for name, x in self._accuracy.items()}}
        scalars = self.picture_losses.discriminator_loss(self._pairs, num)
        self._accuracy = {name: value.detach() for name, value in scalars.items() if name != "loss"}
        return scalars

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.picture_losses is None:
            return
        self.net.first_stage_model.to(memory_format=decoder_layout(self.device))
        if self.picture_losses.reader is not None:
            self.picture_losses.reader.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["loss_weights"] = self.term_weights.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.term_weights.load_state_dict(checkpoint["loss_weights"])

    # --- validation ---------------------------------------------------------------------------------------

    def validation_landmarks(self, batch: dict[str, Any]) -> Landmarks | None:
        """Return the landmarks of a validation batch; None if the model has no branch for them."""
        if not self._landmarks:
            return None
        return self._landmarks["valid"].for_validation(batch["index"]).to(batch["skull"].device)

    def validation_texture(self, batch: dict[str, Any]) -> Texture | None:
        """Return the exemplars of a validation batch; None if the model has no branch for them."""
        if not self._textures:
            return None
        return self._textures["valid"].for_validation(batch["index"]).to(batch["skull"].device)

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        skulls = batch["skull"]
        landmarks, texture = self.validation_landmarks(batch), self.validation_texture(batch)
        faces = draw_faces(self.net, self.cfg, batch, skulls, landmarks, texture)
        pictures = (faces.cpu(), (batch["face"].float().cpu() + 1) / 2, skulls.float().cpu())
        self.keep("faces", batch["index"].tolist(), zip(*pictures, strict=True))
        if batch_idx == 0 and len(skulls) > 1:
            self.keep("effects", [self.global_rank], [self.effects(batch)])

    def validation_scores(self) -> dict[str, float]:
        effects = self.gather("effects")
        faces, truths, skulls = (torch.stack(x) for x in zip(*self.gather("faces"), strict=True))
        self.show("faces", [row[:8] for row in (skulls, faces, truths)])
        scores = {
            "valid/l1": float((faces - truths).abs().mean()),
            "valid/rank_1": float(rank_one(small_grey(faces, 64), small_grey(truths, 64))),
        }
        names = effects[0] if effects else {}
        scores |= {name: sum(effect[name] for effect in effects) / len(effects) for name in names}
        watch, effect = self.cfg.watch, scores.get("valid/skull_effect", 1.0)
        if effect < watch.flat_effect and self.updates >= watch.flat_after and not self._warned:
            self._warned = True
            warn(
                f"after {self.updates} steps the skull hardly matters: another person's skull changes the predicted "
                f"noise by {effect:.2%} (valid/skull_effect). Try diffusion.loss_weighting=x0, a larger optim.lr or "
                "batch, a higher diffusion.prompt_dropout; python -m data.check finds skulls that are not their faces'"
            )
        return scores

    def effects(self, batch: dict[str, Any]) -> dict[str, float]:
        """Return each condition's effect: mean |eps(own) - eps(another's)| / mean |eps|, mid-process, fixed noise."""
        skulls = batch["skull"]
        conditions = Conditions(
            skulls, None, self.validation_landmarks(batch), self.validation_texture(batch)
        )
        z, h, w = self.net.cfg.latent_shape
        x_t = torch.randn((len(skulls), z, h, w), generator=torch.Generator().manual_seed(0)).to(
            skulls.device
        )
        t = torch.full((len(skulls),), self.net.cfg.schedule.num_timesteps // 2, device=skulls.device)
        context = self.net.encode_text(list(batch["prompt"]))
        own = self.predict(x_t, t, context, conditions)
        others = {"skull": replace(conditions, skulls=skulls.roll(1, dims=0))}
        if conditions.landmarks is not None:
            others["landmark"] = replace(conditions, landmarks=conditions.landmarks.rolled())
        if conditions.texture is not None:
            others["texture"] = replace(conditions, texture=conditions.texture.rolled())
        return {
            f"valid/{name}_effect": float(
                (own - self.predict(x_t, t, context, other)).abs().mean() / own.abs().mean()
            )
            for name, other in others.items()
        }

    # --- what is written at the end -----------------------------------------------------------------------

    def trained_branches(self) -> frozenset[str]:
        """Return the names of the branches that this run trains: some of its samples have the condition."""
        trains = {"skull": self.cfg.skull.dropout < 1}
        if self._landmarks:
            trains["landmarks"] = self.cfg.landmarks.dropout < 1 and self._landmarks["train"].any
        if self._textures:
            trains["texture"] = self.cfg.texture.dropout < 1 and self._textures["train"].any
        return frozenset(name for name, learns in trains.items() if learns)

    def export(self, path: Path) -> None:
        """Write the whole model, and the discriminator of the last step in a file beside it.

        The metadata have the sampler settings of the validations, which sample.py takes up, and how often each
        condition was left out or damaged.
        """
        parts = ("skull", "partial", "texture", "landmarks")
        conditions = {part: getattr(self.cfg, part).model_dump() for part in parts}
        if self.cfg.data.augment:
            conditions["skull"]["augment"] = self.cfg.data.augment
        conditions["landmarks"].pop("predicted")  # file names, which tell of a machine
        metadata = {
            "sampling": json.dumps(self.cfg.sampling.model_dump()),
            "conditions": json.dumps(conditions),
            **untrained_metadata(self.net.untrained_branches - self.trained_branches()),
        }
        with self.ema.applied(self.averaged_tensors()):
            export_model(self, path, self.net.cfg, metadata)
        if DISCRIMINATOR in dict(self.named_children()):
            more = {"stage": self.cfg.stage, "real": self.cfg.losses.real, "git": git_revision()}
            self.discriminator.save(path.with_name(f"{DISCRIMINATOR}.safetensors"), more=more)


def visible_skulls(conditions: Conditions) -> Tensor:
    """Return the skulls (B, 3, H, W) in [0, 1] as the network sees them: black where a sample has none."""
    assert conditions.skulls is not None
    if conditions.skull_present is None:
        return conditions.skulls
    present = conditions.skull_present[:, None, None, None]
    return torch.where(present, conditions.skulls, torch.zeros_like(conditions.skulls))


def describe(cfg: LossesConfig, batch_size: int) -> str:
    """Return a line for the user: which terms, how strong, on how many samples."""
    kind = "of the noise loss's gradient" if cfg.by == "ratio" else "as weights"
    terms = ", ".join(f"{name} {value:g}" for name, value in cfg.terms.items())
    return (
        f"losses of the decoded face: {terms} ({kind}); up to {min(cfg.sub_batch, batch_size)} of {batch_size} faces "
        f"with {cfg.min_t} <= t <= {cfg.max_t}"
    )
