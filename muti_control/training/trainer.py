"""The Lightning trainer of a run: devices, precision, loggers and what Lightning leaves to our callbacks."""

from __future__ import annotations

import os
from typing import Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ldm.device import compute_in_fp32, prefers_bf16
from muti_control.training.callbacks import LogAndProgress, SaveLast, Validate
from muti_control.training.checkpoints import BestCheckpoints, WholeFiles
from muti_control.training.config import ExperimentConfig
from muti_control.training.ranks import PlainDdp, layout
from muti_control.training.stage import Stage
from muti_control.training.throughput import Pace
from settings.messages import ConfigError


def device_of(cfg: ExperimentConfig) -> torch.device:
    """Where this process computes."""
    if cfg.train.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        return torch.device("cuda", int(local_rank) % torch.cuda.device_count())
    return torch.device("cpu")


def pick_precision(cfg: ExperimentConfig) -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    """For ``auto``: bf16-mixed where the hardware is faster by it, else fp32.

    Raises:
        ConfigError: 16-mixed without a CUDA device.
    """
    wanted = cfg.train.precision
    if wanted == "16-mixed" and device_of(cfg).type != "cuda":
        raise ConfigError(
            "train.precision: got 16-mixed, which needs a CUDA device; use train.precision=auto (bf16-mixed or 32-true)"
        )
    if wanted == "auto":
        return "bf16-mixed" if prefers_bf16(device_of(cfg)) else "32-true"
    return {"bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}.get(wanted, "32-true")  # type: ignore[return-value]


def check_machine(cfg: ExperimentConfig) -> None:
    """Raises ConfigError if this machine has not what ``train`` asks for: accelerator, devices, precision."""
    devices, machines = layout(cfg.train.devices)
    pick_precision(cfg)
    try:
        pl.Trainer(
            accelerator=cfg.train.accelerator,
            devices=devices,
            num_nodes=machines,
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


def build_trainer(cfg: ExperimentConfig, stage: Stage) -> tuple[pl.Trainer, SaveLast]:
    """The trainer, and its callback that saves and stops.

    Lightning moves things to devices, starts processes, calls autocast and keeps the optimizers' state. Steps, their
    number, validation and saving are ours: its own would count every optimizer's steps, and shift
    validation and accumulation when a run is resumed.
    """
    folder = cfg.run_dir / "checkpoints"
    pace = Pace()
    save_last = SaveLast(folder, cfg.train, pace)
    best = BestCheckpoints(folder, stage.monitor, stage.monitor_mode, cfg.train.keep_best)
    devices, machines = layout(cfg.train.devices)
    precision = pick_precision(cfg)
    if precision == "32-true":
        compute_in_fp32()
    trainer = pl.Trainer(
        accelerator=cfg.train.accelerator,
        devices=devices,
        num_nodes=machines,
        strategy=PlainDdp() if devices * machines > 1 else "auto",
        precision=precision,
        max_steps=-1,  # SaveLast stops it
        max_epochs=-1,
        limit_val_batches=0,  # Validate does it
        num_sanity_val_steps=0,
        enable_model_summary=False,  # the run says in one line what it trains
        enable_progress_bar=False,  # LogAndProgress draws it
        enable_checkpointing=False,  # SaveLast and Validate write them
        use_distributed_sampler=False,
        inference_mode=False,  # what validation computes (text embeddings) is used again in training
        plugins=[WholeFiles()],
        callbacks=[
            save_last,
            Validate(save_last, best, cfg.train, cfg.watch),
            LogAndProgress(pace, cfg.train, cfg.watch, cfg.data.num_workers),
        ],
        logger=[
            # Every start of the run gets a log of its own: version_0, version_1, ...
            CSVLogger(cfg.run_dir, name="csv", flush_logs_every_n_steps=1),
            TensorBoardLogger(cfg.run_dir, name="", version="tensorboard"),
        ],
    )
    # With several processes Lightning asks all of them before every batch whether one got SIGTERM; SaveLast does.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer, save_last
