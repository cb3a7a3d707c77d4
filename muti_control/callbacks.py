"""Lightning callbacks: the progress bar and the graceful stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class TrainingProgress(TQDMProgressBar):
    """One bar over all micro-batches of the run; a resumed run starts where it stands, not at zero."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        bar = self.train_progress_bar
        bar.total = trainer.max_steps * trainer.accumulate_grad_batches
        bar.n = bar.initial = trainer.global_step * trainer.accumulate_grad_batches
        bar.set_description("training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands beside the bar; the loggers' version numbers say nothing here."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}


class StopGracefully(pl.Callback):
    """Ctrl-C or SIGTERM: finish the step in hand, save, leave. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nstopping after this step and saving; Ctrl-C again to stop at once", file=sys.stderr, flush=True
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._handle)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.asked:
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
