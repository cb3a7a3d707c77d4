"""The control stage (skull + text -> face), on cached latents."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion
from data.paired import PairedDataset
from muti_control.config import ExperimentConfig
from muti_control.diffusion_stages import DiffusionStage
from muti_control.landmark_condition import PairLandmarks
from muti_control.latents import LatentPairs
from muti_control.pictures import rank_one, small_grey


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
