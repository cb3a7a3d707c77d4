"""The pipnet stage: pictures -> landmarks, on faces or on skulls with biometrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.manifest import check_disjoint
from ldm.checkpoint import load_strict, read_state_dict
from muti_control.conditions.partial import with_missing_bone
from muti_control.networks.config import PipNetConfig
from muti_control.networks.files import as_fp32
from muti_control.networks.pipnet.augment import augment
from muti_control.networks.pipnet.meanface import flip_table, mean_face, write_meanface
from muti_control.networks.pipnet.measures import ced_area, draw_points, eye_corners, nme
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import MEANFACE, LandmarkReader
from muti_control.networks.pipnet.readout import losses
from muti_control.training.config import ExperimentConfig
from muti_control.training.landmark_pairs import LandmarkDataset, collate, fold_of
from muti_control.training.model import file_facts, read_list
from muti_control.training.stage import Stage
from settings.messages import ConfigError

NUM_SHOWN = 8


class PipStage(Stage):
    """Trains a landmark network; the best checkpoint has the lowest error on validation pictures."""

    monitor = "valid/nme"
    monitor_mode = "min"
    collate = staticmethod(collate)
    flip: Tensor | None
    valid_set: LandmarkDataset

    def __init__(
        self,
        cfg: ExperimentConfig,
        reader: LandmarkReader,
        train_set: LandmarkDataset,
        valid_set: LandmarkDataset,
        flip: Tensor | None,
        corners: tuple[int, int],
    ) -> None:
        super().__init__(cfg, reader.net, train_set, valid_set, trained=("",))
        self.reader = [reader]  # in a list: its weights are self.net's, and are to be registered once
        self.register_buffer("flip", flip, persistent=False)
        self.corners = corners

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> PipStage:
        """Build network and data.

        Raises:
            ConfigError: settings that do not fit the data.
            ValueError: lists, pictures or landmarks that cannot be used (ManifestError, LandmarksError).
        """
        part = cfg.pipnet
        train, valid = (read_list(cfg.data, name) for name in (cfg.data.train, cfg.data.valid))
        check_disjoint({"train": train, "valid": valid})
        if part.folds:
            folds = fold_of(train, part.folds, cfg.train.seed)
            train = [record for record, fold in zip(train, folds, strict=True) if fold != part.fold]
        words = None
        if part.role == "skull" and part.biometrics:  # the network may know more words than the data have
            words = part.network.ethnicities or sorted({record.biometrics.ethnicity for record in train})
        size = max(256, part.network.image_size)
        train_set = LandmarkDataset(train, part.role, size, words, cfg.data.augment, cfg.train.seed)
        valid_set = LandmarkDataset(valid[: cfg.train.num_valid], part.role, size, words)
        num = train_set.points.shape[1]
        if valid_set.points.shape[1] != num:
            raise ConfigError(f"data.valid: {valid_set.points.shape[1]} landmarks, but {num} in data.train")
        mean = mean_face(train_set.points.numpy())
        neighbours = min(part.network.num_neighbours, num - 1)
        network = part.network.with_(num_landmarks=num, num_neighbours=neighbours, ethnicities=words)
        try:
            corners = eye_corners(num, part.eye_corners)
            flip = torch.from_numpy(flip_table(mean)) if part.augment.flip > 0 else None
        except ValueError as error:
            raise ConfigError(str(error)) from error
        reader = LandmarkReader(_network(cfg, network), mean, part.role)
        return cls(cfg, reader, train_set, valid_set, flip, corners)

    def averaged_tensors(self) -> dict[str, Tensor]:
        """Return the weights, and with them the running means and variances of the normalisations."""
        statistics = {name: b for name, b in self.net.named_buffers() if "running_" in name}
        return {**self.trained_parameters(), **statistics}

    def architecture(self) -> dict[str, Any]:
        return self.reader[0].net.cfg.model_dump()

    # --- training -----------------------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return PIPNet's losses on augmented pictures; of a share of the skulls bone is missing."""
        cfg, reader = self.cfg.pipnet, self.reader[0]
        pictures = batch["picture"].float() / 255  # (B, 1 or 3, H, W)
        if self.cfg.partial.share > 0:
            pictures = with_missing_bone(pictures, self.cfg.partial, self.draw("partial"))
        pictures, points = augment(pictures, batch["points"], cfg.augment, self.flip, self.draw("augment"))
        attributes = present = None
        if reader.takes_biometrics:
            attributes = batch["attributes"]
            chance = torch.rand(len(attributes), generator=self.draw("biometrics"))
            present = (chance >= cfg.drop_biometrics).to(attributes.device)
        maps = self.net(pictures, attributes, present)
        terms = losses(maps, points, reader.nearest.to(points.device))
        return {"loss": terms.pop("loss"), **{name: value.detach() for name, value in terms.items()}}

    # --- validation ---------------------------------------------------------------------------------------

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        reader = self.reader[0]
        pictures = batch["picture"].float() / 255
        points, _ = reader(pictures, batch["attributes"] if reader.takes_biometrics else None)
        errors = nme(points, batch["points"], self.corners).cpu().tolist()
        self.keep("points", batch["index"].tolist(), zip(errors, points.cpu(), strict=True))

    def validation_scores(self) -> dict[str, float]:
        """Return ``valid/nme`` and the area under its distribution; the errors by picture go to a CSV file."""
        results = self.gather("points")
        errors = [error for error, _ in results]
        shown = range(min(NUM_SHOWN, len(results)))
        pictures = torch.stack([self.valid_set.picture(i).expand(3, -1, -1).float() / 255 for i in shown])
        points = torch.stack([results[i][1] for i in shown])
        self.show("landmarks", [draw_points(pictures, points, self.valid_set.points[: len(shown)])])
        if self.trainer.is_global_zero:
            pairs = zip(self.valid_set.records, errors, strict=True)
            lines = [f"{record.source},{error:.6f}" for record, error in pairs]
            text = "\n".join(["source,nme", *lines]) + "\n"
            (self.cfg.run_dir / "valid_nme.csv").write_text(text, encoding="utf-8")
        measured = torch.tensor(errors)
        return {"valid/nme": float(measured.mean()), "valid/ced_area": ced_area(measured)}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.reader[0].to(self.device)

    # --- what is written at the end -----------------------------------------------------------------------

    def export(self, path: Path) -> None:
        """Write the averaged network as one file, and its mean face beside it."""
        facts = {"format": "iccr-diff", **file_facts(self), "eye_corners": "{},{}".format(*self.corners)}
        with self.ema.applied(self.averaged_tensors()):
            self.reader[0].save(path, getattr(torch, self.cfg.train.export_dtype), facts)
        write_meanface(path.parent / MEANFACE, self.reader[0].mean)


def _network(cfg: ExperimentConfig, network: PipNetConfig) -> PipNet:
    """Return a network with weights of ``init``, which may lack ``biometrics.*``, or fresh ones of ``train.seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        net = PipNet(network)
    if cfg.init is not None:
        state, _ = read_state_dict(cfg.init)
        own = r"^biometrics\."
        load_strict(net, as_fp32(state), allow_missing=(own,), allow_unexpected=(r"^fc\.", own))
    return net
