"""The grain stage: a head beside the frozen decoder learns how much grain a decoded picture lacks, and where."""

from __future__ import annotations

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cldm.controlled import model_metadata
from cldm.texture import NUM_FEATURES
from data.paired import PairedDataset
from ldm.autoencoder import GRAIN, AutoencoderKL
from ldm.checkpoint import git_revision, read_state_dict, write_state_dict
from ldm.config import TextureConfig
from ldm.grain import MARGIN, Grain, grain_noise, grey_of, inside, log_energies, summary
from muti_control.conditions.config import TextureConditionConfig
from muti_control.conditions.pair_textures import PairTextures
from muti_control.losses.autoencoder import texture_loss
from muti_control.training.config import ExperimentConfig
from muti_control.training.model import FirstStage, read_lists
from muti_control.training.stage import Stage
from settings.messages import ConfigError

NUM_MEASURED = 64  # training faces that tell which summaries are usual
NUM_SHOWN = 8
AT_ONCE = 8  # faces
# Pictures of a validation face beside the true one: as it is decoded, with grain that follows from what is decoded, and
# with grain that an exemplar asks for. The second bears the bare names of the figures.
MEAN, OWN, ASKED = "_without", "", "_exemplar"
# Of a validation face: the texture loss and the log energies of each picture, by name; of the true one as well.
_Scores = tuple[dict[str, float], dict[str, Tensor]]
_TRUE = "true"


class Faces(Dataset[dict[str, Any]]):
    """The faces of pairs, without the skulls: ``face`` (3, H, W) in [-1, 1], ``index``; ``texture``: of an exemplar."""

    def __init__(self, pairs: PairedDataset, textures: PairTextures | None = None) -> None:
        self.pairs, self.textures = pairs, textures

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"face": self.pairs.face(index), "index": index}
        return item if self.textures is None else item | {"texture": self.textures.features(index)}


class GrainStage(Stage):
    """Trains the grain head; the best checkpoint's faces are the most alike in roughness, place by place.

    Beside that stands what it is without grain, and whether those whose skin is the roughest get the most: the
    correlation over people of the true and the drawn :func:`ldm.grain.log_energies`, the mean over their lags; and the
    same where an exemplar of the same style, another's face, says how the surface shall look.
    """

    monitor = "valid/texture"
    monitor_mode = "min"
    net: FirstStage

    def __init__(
        self, cfg: ExperimentConfig, net: FirstStage, train_set: Dataset[Any], valid_set: Dataset[Any]
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained=(GRAIN,))
        self._shown: list[Tensor] = []

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> GrainStage:
        """Build network and data: of ``init`` the autoencoder alone, of the pairs the faces and their exemplars."""
        first_stage = FirstStage.of(cfg, cfg.grain.filters, NUM_FEATURES if cfg.grain.exemplars else 0)
        size, branch = first_stage.cfg.image_size, first_stage.cfg.control.texture or TextureConfig()
        condition = TextureConditionConfig(dropout=1 - cfg.grain.exemplars)
        faces = {}
        for part, records in read_lists(cfg).items():
            textures = PairTextures(records, size, branch, condition) if cfg.grain.exemplars else None
            if textures is not None and not textures.any:
                raise ConfigError(
                    f"grain.exemplars: got {cfg.grain.exemplars}, but no pair of the {part} list has a 'texture' field "
                    "(the name of another face of the same style); grain.exemplars=0 trains without"
                )
            faces[part] = Faces(PairedDataset(records, size=size), textures)
        return cls(cfg, first_stage, faces["train"], faces["valid"])

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
        return self.net.cfg.first_stage.model_dump()

    # --- training -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self.head.measured:  # neither in the run's checkpoint nor in init
            with self.trainer.precision_plugin.val_step_context():
                self.head.measure(self.summaries(NUM_MEASURED))

    @torch.no_grad()
    def summaries(self, num: int) -> Tensor:
        """Return the summaries of the first ``num`` training faces, decoded: (num, F)."""
        assert isinstance(self.train_set, Sized)
        faces = torch.stack([self.train_set[i]["face"] for i in range(min(num, len(self.train_set)))])
        parts = []
        for part in faces.to(self.device).split(AT_ONCE):
            z, picture, _ = self.decoded(part)
            parts.append(summary(picture, z))
        return torch.cat(parts)

    @torch.no_grad()
    def decoded(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for faces (B, 3, H, W) in [-1, 1], their latents, the decoded pictures and the last features."""
        z = self.first_stage.encode(faces.contiguous(memory_format=torch.channels_last)).mode()
        return z, *self.first_stage.decode_with_features(z)

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the texture loss of random windows of the decoded pictures with grain; several of each picture."""
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
        exemplars = shown = None
        if (textures := self._textures(self.train_set)) is not None:
            texture = textures.for_training(batch["index"], batch["texture"], self.draw("texture"))
            exemplars, shown = (x.to(faces.device)[rows] for x in (texture.features, texture.present))
        mean = cut(pictures).float()
        whole = summary(pictures, z)[rows.to(faces.device)]
        grain = self.head(cut(features), mean, whole, noise, exemplars, shown)
        true = cut(faces)
        loss = texture_loss((mean + grain).clamp(-1, 1), true)
        without = texture_loss(mean.clamp(-1, 1), true)
        return {"loss": loss, "without": without.detach(), "grain": grain.detach().square().mean().sqrt()}

    # --- validation ---------------------------------------------------------------------------------------

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        faces, indices = batch["face"], batch["index"].tolist()
        z, decoded, features = self.decoded(faces)
        whole, mean = summary(decoded, z), decoded.float()
        noise = grain_noise(indices, *faces.shape[2:]).to(faces.device)
        drawn = {MEAN: mean, OWN: mean + self.head(features, mean, whole, noise)}
        if (textures := self._textures(self.valid_set)) is not None:
            texture = textures.for_validation(batch["index"]).to(faces.device)
            drawn[ASKED] = mean + self.head(features, mean, whole, noise, texture.features, texture.present)
        pictures = {name: x.clamp(-1, 1) for name, x in drawn.items()}
        where = inside(grey_of(faces))
        energies = {
            name: log_energies(grey_of(x), where).cpu() for name, x in {_TRUE: faces, **pictures}.items()
        }
        for k, index in enumerate(indices):
            losses = {
                name: float(texture_loss(x[k : k + 1], faces[k : k + 1])) for name, x in pictures.items()
            }
            self.keep("faces", [index], [(losses, {name: values[k] for name, values in energies.items()})])
        if batch_idx == 0:
            self._shown = [(x[:NUM_SHOWN] + 1) / 2 for x in (faces, *pictures.values())]

    def validation_scores(self) -> dict[str, float]:
        """Return, for each picture, the texture loss, and correlation and bias of its log energies."""
        results = self.gather("faces")
        self.show("true_decoded_grain", self._shown)
        true = torch.stack([energies[_TRUE] for _, energies in results])
        scores = {}
        for name in results[0][0]:
            drawn = torch.stack([energies[name] for _, energies in results])
            scores[f"valid/texture{name}"] = sum(losses[name] for losses, _ in results) / len(results)
            scores[f"valid/correlation{name}"] = correlation(true, drawn)
            scores[f"valid/bias{name}"] = float((drawn - true).mean())
        return scores

    @staticmethod
    def _textures(dataset: Dataset[Any]) -> PairTextures | None:
        """Return the exemplars of its faces, if the head is to follow them."""
        return dataset.textures if isinstance(dataset, Faces) else None

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
            facts = {"step": self.updates, "git": git_revision(), **self.cfg.grain.model_dump()}
            metadata = {**metadata, **model_metadata(self.net.cfg), "grain": json.dumps(facts)}
            write_state_dict(path, {**state, **head}, metadata)


def correlation(one: Tensor, other: Tensor) -> float:
    """Return the mean over columns of the correlation over rows of (N, K) and (N, K)."""
    a, b = (x - x.mean(0) for x in (one, other))
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-12)).mean())
