"""Lightning callbacks and the checkpoint writer: progress, saving, stopping."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import TQDMProgressBar

from muti_control.stage import Stage


class TrainingProgress(TQDMProgressBar):
    """One bar over all micro-batches of the run; a resumed run starts where it stands, not at zero."""

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self._place(trainer)  # a run resumed within its epoch gets no epoch start

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._place(trainer)

    def _place(self, trainer: pl.Trainer) -> None:
        bar = self.train_progress_bar
        bar.total = trainer.max_steps * trainer.accumulate_grad_batches
        bar.n = bar.initial = trainer.global_step * trainer.accumulate_grad_batches
        bar.set_description("training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands beside the bar; the loggers' version numbers say nothing here."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target, forces it to disk, then renames it: never half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """A reader sees the old checkpoint or the whole new one, whatever interrupts the writing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)


class SaveLast(pl.Callback):
    """Keeps ``last.ckpt``: every ``every`` optimizer steps, and when Ctrl-C or SIGTERM asks to stop.

    It saves between optimizer steps only, so that a checkpoint never stands in the middle of an accumulation.
    A second Ctrl-C interrupts at once, without saving.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.asked = False
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nsaving after this step, then stopping; Ctrl-C again to stop at once",
            file=sys.stderr,
            flush=True,
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._handle)

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *args: Any) -> None:
        assert isinstance(stage, Stage)
        if not stage.between_steps:
            return
        stop = trainer.strategy.reduce_boolean_decision(self.asked, all=False)  # all ranks or none
        if stop or stage.updates % self.every == 0:
            trainer.save_checkpoint(self.path, False)  # False: with the optimizer
        if stop:
            self.stopped = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops
            trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
