"""The control stage (skull + text -> face) on cached latents: the noise loss and losses of the decoded face."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset

from cldm.branches import Landmarks, untrained_metadata
from cldm.conditions import Conditions, encode
from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import Texture
from data.paired import PairedDataset
from ldm.checkpoint import git_revision
from ldm.schedule import predict_x0
from muti_control.conditions.pair_landmarks import NO_LANDMARKS, PairLandmarks
from muti_control.conditions.pair_textures import NO_EXEMPLARS, PairTextures
from muti_control.conditions.partial import with_missing_bone
from muti_control.losses.config import LossesConfig
from muti_control.losses.decoding import SUMMED, decoder_layout, gated_rows, with_gradient
from muti_control.losses.picture import Pictures, Shown, build_losses
from muti_control.losses.weights import NOISE, LossWeights, gradient_norms
from muti_control.training.config import ExperimentConfig
from muti_control.training.latents import LatentPairs
from muti_control.training.optimizers import Turn
from muti_control.training.pictures import rank_one, small_grey
from muti_control.training.stages.base import DiffusionStage, Predicted

DISCRIMINATOR = "discriminator"
_UNET = "model.diffusion_model."
UNLOCKED_PARTS = {
    "none": (),
    "decoder": (f"{_UNET}output_blocks.", f"{_UNET}out."),
    "all": (_UNET,),
}


class ControlStage(DiffusionStage):
    """Skull + text -> face; the control network is trained, and of the UNet what ``diffusion.unlocked`` says.

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
        super().__init__(
            cfg, net, train_set, valid_set, ("control_model.", *UNLOCKED_PARTS[cfg.diffusion.unlocked])
        )
        self._effects: list[tuple[int, dict[str, float]]] = []
        self._landmarks: dict[str, PairLandmarks] = {}
        self._textures: dict[str, PairTextures] = {}
        if net.cfg.control.landmarks is not None:
            assert isinstance(train_set, LatentPairs) and isinstance(valid_set, PairedDataset)
            num = net.cfg.control.landmarks.num_points
            for part, pairs in (("train", train_set.pairs), ("valid", valid_set)):
                self._landmarks[part] = PairLandmarks(pairs.records, num, cfg.landmarks)
                print(f"{part}: {self._landmarks[part]}", flush=True)
            if cfg.landmarks.dropout < 1 and not self._landmarks["train"].any:
                rank_zero_warning(NO_LANDMARKS)
        if net.cfg.control.texture is not None:
            assert isinstance(train_set, LatentPairs) and isinstance(valid_set, PairedDataset)
            for part, pairs in (("train", train_set.pairs), ("valid", valid_set)):
                branch, size = net.cfg.control.texture, pairs.size
                self._textures[part] = PairTextures(pairs.records, size, branch, cfg.texture)
                print(f"{part}: {self._textures[part]}", flush=True)
            if cfg.texture.dropout < 1 and not self._textures["train"].any:
                rank_zero_warning(NO_EXEMPLARS)
            train_set.more = {**train_set.more, "texture": self._textures["train"].features}
        if cfg.losses.on and cfg.losses.real == "picture":
            assert isinstance(train_set, LatentPairs)
            train_set.more = {**train_set.more, "face": train_set.pairs.face}
        self.picture_losses = build_losses(cfg.losses, cfg.train.seed)
        self.term_weights = LossWeights(
            cfg.losses.wanted, cfg.losses.by == "ratio", cfg.losses.measure_every if cfg.losses.on else 0
        )
        self._shown: Shown | None = None
        self._accuracy = {f"accuracy_{kind}": torch.tensor(float("nan")) for kind in ("real", "fake")}
        if self.picture_losses is not None:
            self.model.first_stage_model.decoder.recompute(cfg.losses.recompute)
            if self.picture_losses.discriminator is not None:
                self.discriminator = self.picture_losses.discriminator.to(memory_format=torch.channels_last)
            print(describe(cfg.losses, cfg.train.batch_size), flush=True)

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, given: Conditions | None) -> Tensor:
        assert given is not None and given.skulls is not None
        size = given.skulls.shape[-2:]
        acting = encode(self.controlled, given, len(x_t), *size).acting()
        assert acting is not None
        return self.controlled.eps(x_t, t, context, acting.hint, texture=acting.texture, active=acting.active)

    def conditions_of(self, batch: dict[str, Any]) -> Conditions:
        """What a training batch is shown: each condition is left out as often as its dropout says."""
        skull, index = batch["skull"].contiguous(memory_format=torch.channels_last), batch["index"]
        present = landmarks = texture = None
        if self.cfg.partial.share > 0:
            skull = with_missing_bone(skull, self.cfg.partial, self.draw("partial"))
        if self.cfg.skull.dropout > 0:
            present = torch.rand(len(skull), generator=self.draw("skull")) >= self.cfg.skull.dropout
            present = present.to(skull.device)
        if self._landmarks:
            landmarks = self._landmarks["train"].for_training(index, self.draw("landmarks")).to(skull.device)
        if self._textures:
            textures = self._textures["train"]
            texture = textures.for_training(index, batch["texture"], self.draw("texture")).to(skull.device)
        given = Conditions(skull, present, landmarks, texture)
        if (chance := self.cfg.diffusion.control_dropout) > 0:
            kept = torch.rand(len(skull), generator=self.draw("control")) >= chance
            given = given.where(kept.to(skull.device))
        return given

    # --- losses of the decoded face -----------------------------------------------------------------------

    def turns(self) -> list[Turn]:
        if self.picture_losses is None or self.picture_losses.discriminator is None:
            return super().turns()
        cfg, name = self.cfg.losses.discriminator, DISCRIMINATOR
        parameters = dict(self.discriminator.named_parameters(prefix=name))
        return [*super().turns(), Turn(name, parameters, cfg.optim, cfg.every, f"losses.{name}.optim")]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self._discriminator_loss(len(batch["index"])) if turn == DISCRIMINATOR else self.loss_of(batch)

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The noise loss and, of the samples whose t lets a face be told, those of the decoded clean latent."""
        found = self.predicted(batch)
        scalars = self.noise_loss(found)
        return (
            scalars
            if self.picture_losses is None
            else scalars | self._picture_loss(batch, found, scalars["loss"])
        )

    def _picture_loss(self, batch: dict[str, Any], found: Predicted, noise: Tensor) -> dict[str, Tensor]:
        """``loss`` in all, each term (its sum over the decoded samples divided by the batch size), norms, weights."""
        assert self.picture_losses is not None
        cfg, num, follow = self.cfg.losses, len(found.z), self.term_weights
        rows = gated_rows(found.drawn, cfg.min_t, cfg.max_t, cfg.sub_batch, self.draw("gate")).to(
            found.z.device
        )
        x_0_hat = predict_x0(found.x_t[rows], found.t[rows], found.eps_hat[rows], self.model.alphas_cumprod)
        measure = follow.due(self.updates, self._micro)
        terms = follow.wanted
        values = {name: noise.new_zeros(()) for name in terms}
        gradients: dict[str, Tensor] = {}
        self._shown = None
        if len(rows):
            assert found.given is not None
            pictures = Pictures(shown_skulls(found.given), lambda some: self._real_faces(batch, found, some))
            judged, self._shown = self.picture_losses.judge(
                self.model.decode, x_0_hat, rows, pictures, None if measure else self._weights()
            )
            values = {name: value.sum() / num for name, value in judged.values.items()}
            gradients = {name: gradient / num for name, gradient in judged.gradients.items()}
        if measure:
            each = {name: (x_0_hat * gradients[name]).sum() if gradients else None for name in terms}
            follow.measured(
                gradient_norms({NOISE: cfg.noise * noise, **each}, [*self.trained_parameters().values()])
            )
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
        """Of the terms, at this step."""
        steps = self.cfg.losses.ramp_steps
        ramp = min(1.0, (self.updates + 1) / steps) if steps else 1.0
        return {name: ramp * weight for name, weight in self.term_weights.weights().items()}

    def _real_faces(self, batch: dict[str, Any], found: Predicted, rows: Tensor) -> Tensor:
        """True faces (n, 3, H, W), about [-1, 1], of rows (n,) of a batch."""
        return self.model.decode(found.z[rows]) if self.cfg.losses.real == "decoded" else batch["face"][rows]

    def _discriminator_loss(self, num: int) -> dict[str, Tensor]:
        """Of the faces that the generator's turn decoded of the same micro-batch, detached; zero if there were none.

        The accuracies are those of the last micro-batch that had any.
        """
        assert self.picture_losses is not None
        if self._shown is None:  # a gradient of zero, so that scalers and other processes find one
            nothing = torch.stack([p.float().sum() for p in self.discriminator.parameters()]).sum() * 0
            return {
                "loss": nothing,
                **{name: value.to(self.device) for name, value in self._accuracy.items()},
            }
        scalars = self.picture_losses.discriminator_loss(self._shown, num)
        self._accuracy = {name: value.detach() for name, value in scalars.items() if name != "loss"}
        return scalars

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.picture_losses is None:
            return
        self.model.first_stage_model.to(memory_format=decoder_layout(self.device))
        if self.picture_losses.reader is not None:
            self.picture_losses.reader.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["loss_weights"] = self.term_weights.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "loss_weights" in checkpoint:  # one from before there were any has none
            self.term_weights.load_state_dict(checkpoint["loss_weights"])

    def export(self, path: Path) -> None:
        """As of every stage; and the discriminator of the last step, in a file beside it."""
        super().export(path)
        if DISCRIMINATOR in dict(self.named_children()):
            more = {"stage": self.cfg.stage, "real": self.cfg.losses.real, "git": git_revision()}
            self.discriminator.save(path.with_name(f"{DISCRIMINATOR}.safetensors"), more=more)

    # --- validation ---------------------------------------------------------------------------------------

    def validation_landmarks(self, batch: dict[str, Any]) -> Landmarks | None:
        if not self._landmarks:
            return None
        return self._landmarks["valid"].for_validation(batch["index"]).to(batch["skull"].device)

    def validation_texture(self, batch: dict[str, Any]) -> Texture | None:
        if not self._textures:
            return None
        return self._textures["valid"].for_validation(batch["index"]).to(batch["skull"].device)

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
        skull = batch["skull"]
        shown = Conditions(skull, None, self.validation_landmarks(batch), self.validation_texture(batch))
        z, h, w = self.model.cfg.latent_shape
        x_t = torch.randn((len(skull), z, h, w), generator=torch.Generator().manual_seed(0)).to(skull.device)
        t = torch.full((len(skull),), self.model.cfg.schedule.num_timesteps // 2, device=skull.device)
        context = self.context_of(list(batch["prompt"]))

        def eps(given: Conditions) -> Tensor:
            return self.predict(x_t, t, context, given).float()

        own = eps(shown)
        others = {"skull": eps(replace(shown, skulls=skull.roll(1, dims=0)))}
        if shown.landmarks is not None:
            others["landmark"] = eps(replace(shown, landmarks=shown.landmarks.rolled()))
        if shown.texture is not None:
            others["texture"] = eps(replace(shown, texture=shown.texture.rolled()))
        return {
            f"valid/{name}_effect": float((own - other).abs().mean() / own.abs().mean())
            for name, other in others.items()
        }

    def trained_branches(self) -> frozenset[str]:
        """Return the names of the branches that this run trains: its data have the condition, and show it."""
        shown = {"skull": self.cfg.skull.dropout < 1}
        if self._landmarks:
            shown["landmarks"] = self.cfg.landmarks.dropout < 1 and self._landmarks["train"].any
        if self._textures:
            shown["texture"] = self.cfg.texture.dropout < 1 and self._textures["train"].any
        return frozenset(name for name, trains in shown.items() if trains)

    def export_metadata(self) -> dict[str, str]:
        """As of every stage; the sampler settings it was validated with, which sample.py then takes up; and how often
        each condition was left out or damaged.
        """
        parts = ("skull", "partial", "texture", "landmarks")
        conditions = {part: getattr(self.cfg, part).model_dump() for part in parts}
        conditions["landmarks"].pop("predicted")  # file names, which tell of a machine
        return {
            **super().export_metadata(),
            "sampling": json.dumps(self.cfg.sampling.model_dump()),
            "conditions": json.dumps(conditions),
            **untrained_metadata(self.controlled.untrained_branches - self.trained_branches()),
        }

    def scores(self, faces: Tensor, truths: Tensor) -> dict[str, float]:
        return {
            "valid/l1": float((faces - truths).abs().mean()),
            "valid/rank_1": float(rank_one(small_grey(faces, 64), small_grey(truths, 64))),
        }


@rank_zero_only
def rank_zero_warning(message: str) -> None:
    """Print a warning on stderr, on one process only."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def shown_skulls(given: Conditions) -> Tensor:
    """The skulls (B, 3, H, W) in [0, 1] as the network was shown them: black where a sample had none."""
    assert given.skulls is not None
    if given.skull_present is None:
        return given.skulls
    return torch.where(given.skull_present[:, None, None, None], given.skulls, torch.zeros_like(given.skulls))


def describe(cfg: LossesConfig, batch_size: int) -> str:
    """A line for the user: which terms, how strong, on how many samples."""
    kind = "of the noise loss's gradient" if cfg.by == "ratio" else "as weights"
    terms = ", ".join(f"{name} {value:g}" for name, value in cfg.wanted.items())
    return (
        f"losses of the decoded face: {terms} ({kind}); up to {min(cfg.sub_batch, batch_size)} of {batch_size} faces "
        f"with {cfg.min_t} <= t <= {cfg.max_t}"
    )
