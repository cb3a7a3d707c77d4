"""Network, data and trainer of a run, from its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import Dataset

from cldm.controlled import (
    ControlledLatentDiffusion,
    check_complete,
    check_fit,
    model_config_of,
    restore_buffers,
)
from data.manifest import check_disjoint, read_manifest
from data.paired import PairedDataset
from ldm.checkpoint import SD_OPTIONAL, load_strict, read_state_dict
from ldm.config import ConfigError
from ldm.device import computes_in_bf16
from muti_control.autoencoder_stage import AutoencoderStage
from muti_control.callbacks import SaveLast, TrainingProgress, WholeFiles
from muti_control.config import ExperimentConfig
from muti_control.diffusion_stages import BaseStage, ControlStage
from muti_control.latents import LatentPairs, face_moments
from muti_control.stage import Stage

MakeStage = Callable[[ExperimentConfig, ControlledLatentDiffusion, Dataset[Any], Dataset[Any]], Stage]

STAGE_CLASSES: dict[str, MakeStage] = {
    "autoencoder": AutoencoderStage,
    "base": BaseStage,
    "control": ControlStage,
}


def check_files(cfg: ExperimentConfig) -> None:
    """Raises ConfigError naming every file or folder the run needs and lacks, and how to get each."""
    lacking = []
    if cfg.init is not None and not Path(cfg.init).is_file():
        lacking.append(f"init: {cfg.init} not found. {cfg.how_to_get_init}".strip())
    for name in (cfg.data.train, cfg.data.valid):
        manifest = Path(cfg.data.root) / "split_data" / name
        if not manifest.is_file():
            lacking.append(f"data.root: {manifest} not found. {cfg.data.how_to_get}".strip())
            break
    if lacking:
        raise ConfigError("this run needs files that are not there:\n  " + "\n  ".join(lacking))


def build_model(cfg: ExperimentConfig) -> ControlledLatentDiffusion:
    """The network of the run: of ``cfg.init``'s weights and architecture, or fresh from ``cfg.model``.

    The seed of fresh weights is ``train.seed``. Raises CheckpointError or ConfigError for files that do not fit.
    """
    state: dict[str, torch.Tensor] | None = None
    model_cfg = cfg.model
    if cfg.init is not None:
        state, metadata = read_state_dict(cfg.init)
        model_cfg = cfg.model or model_config_of(cfg.init, metadata)
        if model_cfg is None:
            raise ConfigError(
                f"init: {cfg.init} does not say its architecture; give it as model: (models/cldm_v15.yaml is SD1.5's)"
            )
        if model_cfg is cfg.model and "config" in metadata:
            # The measured scale of the latents belongs to the weights, not to the architecture.
            saved = model_config_of(cfg.init, metadata)
            assert saved is not None
            model_cfg.scale_factor = saved.scale_factor
        if cfg.stage == "control":
            check_complete(cfg.init, state)
        optional = (*SD_OPTIONAL, *(() if cfg.stage == "control" else (r"^control_model\.",)))
        check_fit(cfg.init, state, model_cfg, optional)
    assert model_cfg is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        model = ControlledLatentDiffusion(model_cfg)
    if state is not None:
        load_strict(model, state, allow_missing=optional, allow_unexpected=SD_OPTIONAL)
        restore_buffers(model)  # a half-precision file would spoil them
    return model


def build_stage(cfg: ExperimentConfig) -> Stage:
    """Network and data of a run, ready for ``Trainer.fit``."""
    model = build_model(cfg)
    size = model.cfg.image_size
    sets = {}
    lists = {
        part: read_manifest(
            Path(cfg.data.root) / "split_data" / name,
            skull_folder=cfg.data.skull_folder,
            face_folder=cfg.data.face_folder,
        )
        for part, name in (("train", cfg.data.train), ("valid", cfg.data.valid))
    }
    check_disjoint(lists)
    for part, records in lists.items():
        sets[part] = PairedDataset(records[: cfg.train.num_valid] if part == "valid" else records, size=size)
    if len(sets["valid"]) < 2:
        raise ConfigError(f"data.valid: {cfg.data.valid} lists one pair, expected at least two to compare")
    if cfg.stage != "autoencoder":
        cfg.sampling.scales_for(
            model.cfg.unet.num_control_outputs
        )  # complain now, not at the first validation
    train_set: Any = sets["train"]
    if cfg.stage != "autoencoder":
        moments = face_moments(model, sets["train"], Path(cfg.out) / "cache", _device(cfg))
        train_set = LatentPairs(sets["train"], moments, with_skull=cfg.stage == "control")
    return STAGE_CLASSES[cfg.stage](cfg, model, train_set, sets["valid"])


def _device(cfg: ExperimentConfig) -> torch.device:
    """Where this process computes."""
    if cfg.train.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def pick_precision(cfg: ExperimentConfig) -> Literal["bf16-mixed", "32-true"]:
    """For ``auto``: bf16-mixed where the hardware computes in bf16, else fp32."""
    if cfg.train.precision != "auto":
        return "bf16-mixed" if cfg.train.precision == "bf16-mixed" else "32-true"
    return "bf16-mixed" if computes_in_bf16(_device(cfg)) else "32-true"


def check_machine(cfg: ExperimentConfig) -> None:
    """Raises ConfigError if this machine has not what ``train.accelerator`` and ``train.devices`` ask for."""
    try:
        pl.Trainer(
            accelerator=cfg.train.accelerator,
            devices=cfg.train.devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, MisconfigurationException) as error:
        got = f"train.accelerator={cfg.train.accelerator}, train.devices={cfg.train.devices}"
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{got}: {reason.rstrip('.')}; use train.accelerator=auto train.devices=1"
        ) from error


def build_trainer(cfg: ExperimentConfig, stage: Stage, save_last: SaveLast) -> pl.Trainer:
    """The Lightning trainer: loggers, checkpoints ``last`` and ``best``, progress bar, graceful stop."""
    best = ModelCheckpoint(
        dirpath=cfg.run_dir / "checkpoints",
        filename="best",
        monitor=stage.monitor,
        mode=stage.monitor_mode,
        save_top_k=1,
        save_weights_only=True,  # nothing is resumed from it
        enable_version_counter=False,
    )
    return pl.Trainer(
        accelerator=cfg.train.accelerator,
        devices=cfg.train.devices,
        precision=pick_precision(cfg),
        max_steps=cfg.train.max_steps,
        max_epochs=-1,
        val_check_interval=cfg.train.val_every * cfg.train.accumulate,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=cfg.train.accumulate,
        gradient_clip_val=cfg.optim.clip_norm or None,
        num_sanity_val_steps=0,
        enable_model_summary=False,  # the run says in one line what it trains
        log_every_n_steps=max(1, min(10, cfg.train.val_every // 10)),
        use_distributed_sampler=False,
        inference_mode=False,  # what validation computes (text embeddings) is used again in training
        plugins=[WholeFiles()],
        callbacks=[save_last, best, TrainingProgress(refresh_rate=10)],
        logger=[
            # Every start of the run gets a log of its own: version_0, version_1, ...
            CSVLogger(cfg.run_dir, name="csv", flush_logs_every_n_steps=1),
            TensorBoardLogger(cfg.run_dir, name="", version="tensorboard"),
        ],
    )
