"""The pipnet stage: pictures -> landmarks, on faces or on skulls with biometrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.manifest import Record, check_disjoint, read_manifest
from ldm.checkpoint import git_revision, load_strict, read_state_dict
from muti_control.conditions.partial import with_missing_bone
from muti_control.networks.config import PipNetConfig
from muti_control.networks.pipnet.attributes import vocabulary
from muti_control.networks.pipnet.augment import augment
from muti_control.networks.pipnet.drawing import draw_points
from muti_control.networks.pipnet.losses import losses
from muti_control.networks.pipnet.meanface import flip_table, mean_face, write_meanface
from muti_control.networks.pipnet.measures import ced_area, eye_corners, nme
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import MEANFACE, LandmarkReader
from muti_control.training.config import ExperimentConfig
from muti_control.training.landmark_pairs import LandmarkDataset, collate, fold_of
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
        """Build network and data."""
        return build_pip_stage(cfg)

    def averaged_tensors(self) -> dict[str, Tensor]:
        """The weights, and with them the running means and variances of the normalisations."""
        statistics = {name: b for name, b in self.net.named_buffers() if "running_" in name}
        return {**self.trained_parameters(), **statistics}

    def architecture(self) -> dict[str, Any]:
        return self.reader[0].net.cfg.model_dump()

    # --- training -----------------------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """PIPNet's losses on augmented pictures; of a share of the skulls bone is missing."""
        cfg, reader = self.cfg.pipnet, self.reader[0]
        pictures = batch["picture"].float() / 255  # (B, 1 or 3, H, W)
        if self.cfg.partial.share > 0:
            pictures = with_missing_bone(pictures, self.cfg.partial, self.draw("partial"))
        pictures, points = augment(pictures, batch["points"], cfg.augment, self.flip, self.draw("augment"))
        attributes = present = None
        if reader.takes_biometrics:
            attributes = batch["attributes"]
            kept = torch.rand(len(attributes), generator=self.draw("biometrics")) >= cfg.drop_biometrics
            present = kept.to(attributes.device)
        maps = self.net(pictures, attributes, present)
        found = losses(maps, points, reader.nearest.to(points.device))
        return {"loss": found.pop("loss"), **{name: value.detach() for name, value in found.items()}}

    # --- validation ---------------------------------------------------------------------------------------

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        reader = self.reader[0]
        pictures = batch["picture"].float() / 255
        points, _ = reader(pictures, batch["attributes"] if reader.takes_biometrics else None)
        errors = nme(points, batch["points"], self.corners).cpu().tolist()
        self.keep("points", batch["index"].tolist(), zip(errors, points.cpu(), strict=True))

    def validation_scores(self) -> dict[str, float]:
        """``valid/nme`` and the area under its cumulative distribution; the errors by picture go to a CSV file."""
        found = self.gather("points")
        errors = [error for error, _ in found]
        shown = range(min(NUM_SHOWN, len(found)))
        pictures = torch.stack([self.valid_set.picture(i).expand(3, -1, -1).float() / 255 for i in shown])
        points = torch.stack([found[i][1] for i in shown])
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

    def export_metadata(self) -> dict[str, str]:
        return {
            "format": "iccr-diff",
            "stage": self.cfg.stage,
            "step": str(self.updates),
            "git": git_revision(),
            "eye_corners": f"{self.corners[0]},{self.corners[1]}",
        }

    def export(self, path: Path) -> None:
        """Write the averaged network as one file, and its mean face beside it."""
        with self.ema.applied(self.averaged_tensors()):
            self.reader[0].save(path, getattr(torch, self.cfg.train.export_dtype), self.export_metadata())
        write_meanface(path.parent / MEANFACE, self.reader[0].mean)


def build_pip_stage(cfg: ExperimentConfig) -> PipStage:
    """Network and data of a run, ready for ``Trainer.fit``.

    Raises:
        ConfigError: settings that do not fit the data.
        ValueError: lists, pictures or landmarks that cannot be used (ManifestError, LandmarksError).
    """
    part = cfg.pipnet
    train, valid = (read_records(cfg, name) for name in (cfg.data.train, cfg.data.valid))
    check_disjoint({"train": train, "valid": valid})
    if part.folds:
        train = [
            r
            for r, fold in zip(train, fold_of(train, part.folds, cfg.train.seed), strict=True)
            if fold != part.fold
        ]
    known = vocabulary(r.biometrics for r in train) if part.role == "skull" and part.biometrics else None
    if part.network.ethnicities is not None:  # wider than the data may be wanted
        known = part.network.ethnicities if known is not None else None
    size = max(256, part.network.image_size)
    train_set = LandmarkDataset(train, part.role, size, known)
    valid_set = LandmarkDataset(valid[: cfg.train.num_valid], part.role, size, known)
    num = train_set.points.shape[1]
    if valid_set.points.shape[1] != num:
        raise ConfigError(f"data.valid: {valid_set.points.shape[1]} landmarks, but {num} in data.train")
    mean = mean_face(train_set.points.numpy())
    network = part.network.with_(
        num_landmarks=num,
        num_neighbours=min(part.network.num_neighbours, num - 1),
        ethnicities=known,
    )
    try:
        corners = eye_corners(num, (part.eye_corners[0], part.eye_corners[1]) if part.eye_corners else None)
        flip = torch.from_numpy(flip_table(mean)) if part.augment.flip > 0 else None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    reader = LandmarkReader(_network(cfg, network), mean, part.role)
    return PipStage(cfg, reader, train_set, valid_set, flip, corners)


def read_records(cfg: ExperimentConfig, name: str) -> list[Record]:
    """The pairs of one of the run's lists. Raises: ManifestError."""
    return read_manifest(
        Path(cfg.data.root) / "split_data" / name,
        skull_folder=cfg.data.skull_folder,
        face_folder=cfg.data.face_folder,
    )


def _network(cfg: ExperimentConfig, network: PipNetConfig) -> PipNet:
    """Fresh from ``train.seed``, or of ``init``'s weights; what biometrics add may be missing there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        net = PipNet(network)
    if cfg.init is not None:
        state, _ = read_state_dict(cfg.init)
        floats = {
            name: value.float() if value.is_floating_point() else value for name, value in state.items()
        }
        load_strict(
            net, floats, allow_missing=(r"^biometrics\.",), allow_unexpected=(r"^fc\.", r"^biometrics\.")
        )
    return net
