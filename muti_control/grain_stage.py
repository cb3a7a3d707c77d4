"""The grain stage: a head beside the frozen decoder learns how much grain a decoded picture lacks, and where."""

from __future__ import annotations

import json
from collections.abc import Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cldm.controlled import model_metadata
from data.paired import PairedDataset
from ldm.autoencoder import GRAIN, AutoencoderKL
from ldm.checkpoint import git_revision, read_state_dict, write_state_dict
from ldm.grain import MARGIN, Grain, grain_noise, grey_of, inside, log_energies, summary
from muti_control.autoencoder_losses import texture_loss
from muti_control.config import ExperimentConfig
from muti_control.first_stage import FirstStage
from muti_control.stage import Stage

NUM_MEASURED = 64  # training faces that tell which summaries are usual
NUM_SHOWN = 8
AT_ONCE = 8  # faces
# Of a validation face: the texture losses and the log energies; both decoded and with grain, energies true as well.
_Seen = tuple[float, float, Tensor, Tensor, Tensor]


class Faces(Dataset[dict[str, Any]]):
    """The faces of pairs, without the skulls: ``face`` (3, H, W) in [-1, 1] and ``index``."""

    def __init__(self, pairs: PairedDataset) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"face": self.pairs.face(index), "index": index}


class GrainStage(Stage):
    """Trains the grain head; the best checkpoint's faces are the most alike in roughness, place by place.

    Beside that stands what it is without grain, and whether those whose skin is the roughest get the most: the
    correlation over people of the true and the drawn :func:`ldm.grain.log_energies`, the mean over their lags.
    """

    monitor = "valid/texture"
    monitor_mode = "min"
    net: FirstStage

    def __init__(
        self, cfg: ExperimentConfig, net: FirstStage, train_set: Dataset[Any], valid_set: Dataset[Any]
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained=(GRAIN,))
        self._seen: list[tuple[int, _Seen]] = []
        self._shown: list[Tensor] = []

    @property
    def first_stage(self) -> AutoencoderKL:
        """The autoencoder."""
        return self.net.first_stage_model

    @property
    def head(self) -> Grain:
        """The part of it that is trained."""
        assert self.first_stage.grain is not None
        return self.first_stage.grain

    def architecture(self) -> dict[str, Any]:
        return asdict(self.net.cfg.first_stage)

    # --- training -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self.head.measured:  # neither in the run's checkpoint nor in init
            with self.trainer.precision_plugin.val_step_context():
                self.head.measure(self.summaries(NUM_MEASURED))

    @torch.no_grad()
    def summaries(self, num: int) -> Tensor:
        """Of the first ``num`` training faces, decoded: (num, F)."""
        assert isinstance(self.train_set, Sized)
        faces = torch.stack([self.train_set[i]["face"] for i in range(min(num, len(self.train_set)))])
        found = []
        for part in faces.to(self.device).split(AT_ONCE):
            z, picture, _ = self.decoded(part)
            found.append(summary(picture, z))
        return torch.cat(found)

    @torch.no_grad()
    def decoded(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Faces (B, 3, H, W) in [-1, 1] -> their latents, the decoded pictures, and what these are made of."""
        z = self.first_stage.encode(faces.contiguous(memory_format=torch.channels_last)).mode()
        return z, *self.first_stage.decode_with_features(z)

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The texture loss of random windows of the decoded pictures with grain; several of each picture."""
        cfg, faces = self.cfg.grain, batch["face"]
        z, pictures, features = self.decoded(faces)
        side = min(cfg.crop_size, *faces.shape[2:])
        rows = torch.arange(len(faces)).repeat_interleave(cfg.crops)
        draws = self.draw("crop")
        tops, lefts = (
            torch.randint(0, size - side + 1, (len(rows),), generator=draws).tolist()
            for size in faces.shape[2:]
        )
        places = list(zip(rows.tolist(), tops, lefts, strict=True))

        def cut(x: Tensor) -> Tensor:
            return torch.stack([x[i, :, a : a + side, b : b + side] for i, a, b in places])

        noise = torch.randn(
            len(rows), 1, side + 2 * MARGIN, side + 2 * MARGIN, generator=self.draw("noise")
        ).to(faces.device)
        mean = cut(pictures).float()
        grain = self.head(cut(features), mean, summary(pictures, z)[rows.to(faces.device)], noise)
        true = cut(faces)
        loss = texture_loss((mean + grain).clamp(-1, 1), true)
        without = texture_loss(mean.clamp(-1, 1), true)
        return {"loss": loss, "without": without.detach(), "grain": grain.detach().square().mean().sqrt()}

    # --- validation ---------------------------------------------------------------------------------------

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        faces, indices = batch["face"], batch["index"].tolist()
        z, pictures, features = self.decoded(faces)
        noise = grain_noise(indices, *faces.shape[2:]).to(faces.device)
        mean = pictures.float()
        drawn = (mean + self.head(features, mean, summary(pictures, z), noise)).clamp(-1, 1)
        mean = mean.clamp(-1, 1)
        where = inside(grey_of(faces))
        true, without, with_grain = (log_energies(grey_of(x), where).cpu() for x in (faces, mean, drawn))
        for k, index in enumerate(indices):
            losses = [float(texture_loss(x[k : k + 1], faces[k : k + 1])) for x in (mean, drawn)]
            self._seen.append((index, (losses[0], losses[1], true[k], without[k], with_grain[k])))
        if batch_idx == 0:
            self._shown = [(x[:NUM_SHOWN] + 1) / 2 for x in (faces, mean, drawn)]

    def validation_scores(self) -> dict[str, float]:
        """Texture losses, and correlation and bias of log energies, with grain and without."""
        seen, shown = self.gather(self._seen), self._shown
        self.forget_validation()
        self.show("true_decoded_grain", shown)
        num = len(seen)
        true, mean, drawn = (torch.stack(x) for x in zip(*((a, b, c) for _, _, a, b, c in seen), strict=True))
        return {
            "valid/texture": sum(drawn_loss for _, drawn_loss, *_ in seen) / num,
            "valid/texture_without": sum(mean_loss for mean_loss, *_ in seen) / num,
            "valid/correlation": correlation(true, drawn),
            "valid/correlation_without": correlation(true, mean),
            "valid/bias": float((drawn - true).mean()),
            "valid/bias_without": float((mean - true).mean()),
        }

    def forget_validation(self) -> None:
        self._seen, self._shown = [], []

    # --- what is written at the end -----------------------------------------------------------------------

    def export(self, path: Path) -> None:
        """Write the whole of ``init`` with the averaged head: all its other tensors and its metadata as they are."""
        assert self.cfg.init is not None
        state, metadata = read_state_dict(self.cfg.init)
        dtype = getattr(torch, self.cfg.train.export_dtype)
        with self.ema.applied(self.averaged_tensors()):
            buffers = dict(self.net.named_buffers())
            head = {
                name: value if name in buffers else value.to(dtype)
                for name, value in self.net.state_dict().items()
                if name.startswith(GRAIN)
            }
            facts = {"step": self.updates, "git": git_revision(), **asdict(self.cfg.grain)}
            metadata = {**metadata, **model_metadata(self.net.cfg), "grain": json.dumps(facts)}
            write_state_dict(path, {**state, **head}, metadata)


def correlation(one: Tensor, other: Tensor) -> float:
    """The mean over columns of the correlation over rows of (N, K) and (N, K)."""
    a, b = (x - x.mean(0) for x in (one, other))
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-12)).mean())
