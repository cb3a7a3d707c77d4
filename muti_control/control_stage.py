"""The control stage (skull + text -> face), on cached latents."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cldm.branches import Landmarks
from cldm.conditions import Conditions, encode
from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import Texture
from data.paired import PairedDataset
from muti_control.config import ExperimentConfig
from muti_control.diffusion_stages import DiffusionStage
from muti_control.landmark_condition import PairLandmarks
from muti_control.latents import LatentPairs
from muti_control.pictures import rank_one, small_grey
from muti_control.texture_condition import PairTextures


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
        self._textures: dict[str, PairTextures] = {}
        if net.cfg.control.landmarks is not None:
            assert isinstance(train_set, LatentPairs) and isinstance(valid_set, PairedDataset)
            num = net.cfg.control.landmarks.num_points
            for part, pairs in (("train", train_set.pairs), ("valid", valid_set)):
                self._landmarks[part] = PairLandmarks(pairs.records, num, cfg.landmarks)
                print(f"{part}: {self._landmarks[part]}", flush=True)
        if net.cfg.control.texture is not None:
            assert isinstance(train_set, LatentPairs) and isinstance(valid_set, PairedDataset)
            for part, pairs in (("train", train_set.pairs), ("valid", valid_set)):
                branch, size = net.cfg.control.texture, pairs.size
                self._textures[part] = PairTextures(pairs.records, size, branch, cfg.texture)
                print(f"{part}: {self._textures[part]}", flush=True)
            train_set.more = {**train_set.more, "texture": self._textures["train"].features}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, batch: dict[str, Any]) -> Tensor:
        return self._eps(x_t, t, context, self.conditions_of(batch))

    def _eps(self, x_t: Tensor, t: Tensor, context: Tensor, given: Conditions) -> Tensor:
        assert given.skulls is not None
        size = given.skulls.shape[-2:]
        acting = encode(self.controlled, given, len(x_t), *size).acting()
        assert acting is not None
        return self.controlled.eps(x_t, t, context, acting.hint, texture=acting.texture, active=acting.active)

    def conditions_of(self, batch: dict[str, Any]) -> Conditions:
        """What a training batch is shown: each condition is left out as often as its dropout says."""
        skull, index = batch["skull"].contiguous(memory_format=torch.channels_last), batch["index"]
        present = landmarks = texture = None
        if self.cfg.skull.dropout > 0:
            present = torch.rand(len(skull), generator=self.draw("skull")) >= self.cfg.skull.dropout
            present = present.to(skull.device)
        if self._landmarks:
            landmarks = self._landmarks["train"].for_training(index, self.draw("landmarks")).to(skull.device)
        if self._textures:
            textures = self._textures["train"]
            texture = textures.for_training(index, batch["texture"], self.draw("texture")).to(skull.device)
        return Conditions(skull, present, landmarks, texture)

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
            return self._eps(x_t, t, context, given).float()

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

    def export_metadata(self) -> dict[str, str]:
        """As of every stage, and the sampler settings it was validated with, which sample.py then takes up."""
        return {**super().export_metadata(), "sampling": json.dumps(asdict(self.cfg.sampling))}

    def scores(self, faces: Tensor, truths: Tensor) -> dict[str, float]:
        return {
            "valid/l1": float((faces - truths).abs().mean()),
            "valid/rank_1": float(rank_one(small_grey(faces, 64), small_grey(truths, 64))),
        }
