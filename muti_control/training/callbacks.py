"""Lightning callbacks of a run: signals, saving and stopping, validation, log and progress, warnings."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from muti_control.training import ranks
from muti_control.training.checkpoints import LAST, BestCheckpoints
from muti_control.training.config import TrainConfig, WatchConfig
from muti_control.training.stage import Stage
from muti_control.training.throughput import Pace, in_words

WINDOW = 100  # steps between looks at the loader
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def tell(trainer: pl.Trainer, message: str) -> None:
    """A line for the user, once for all processes, without tearing the progress bar."""
    if trainer.is_global_zero:
        tqdm.write(message, file=sys.stderr)


class SaveLast(pl.Callback):
    """Keeps ``last.ckpt``: every so many steps or minutes, and when a signal or the end of the run asks to stop.

    Ctrl-C, SIGTERM (SLURM, spot machines) and SIGUSR1 (SLURM's warning) save and stop, on whichever process they
    arrive; a second Ctrl-C interrupts at once. It saves between steps only: the step in hand is finished first.
    """

    def __init__(self, folder: Path, cfg: TrainConfig, pace: Pace) -> None:
        self.path, self.cfg, self.pace = folder / LAST, cfg, pace
        self.signal = 0  # that asked to stop
        self.stopped = False
        self.saved_at = -1  # step
        self._saved_time = self._asked_time = time.monotonic()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signal:
            # torchrun passes on a Ctrl-C that has come already: only a later one is a second one.
            if signum == signal.SIGINT and time.monotonic() - self._asked_time > 1:
                raise KeyboardInterrupt
            return
        self.signal, self._asked_time = signum, time.monotonic()
        hint = "; Ctrl-C again to stop at once" if signum == signal.SIGINT else ""
        text = f"\n{signal.Signals(signum).name}: saving after this step, then stopping{hint}\n"
        os.write(2, text.encode())  # print may be in the middle of another line, and is not reentrant

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, Stage)
        for signum in SIGNALS:  # after Lightning set its own, which do not save
            signal.signal(signum, self._handle)
        if stage.updates >= self.cfg.max_steps:
            trainer.should_stop = True  # only what comes after the last step is left
        self.saved_at = stage.updates if stage.updates else -1
        self._saved_time = time.monotonic()

    def asked(self, stage: Stage) -> int:
        """The signal that asked any of the processes to stop, or 0; all of them must call this together."""
        (signum,) = ranks.largest([self.signal], stage.device)
        return signum

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *args: Any) -> None:
        assert isinstance(stage, Stage)
        if not stage.between_steps:
            return
        minutes = (time.monotonic() - self._saved_time) / 60
        late = 0 < self.cfg.save_minutes <= minutes
        # Only the handler writes self.signal: one that comes while the processes agree counts the next time.
        signum, due = ranks.largest([self.signal, int(late)], stage.device)
        if signum or due or stage.updates % self.cfg.save_every == 0:
            self.save(trainer, stage)
        if signum:
            self.stop(trainer, stage, signum)
        elif stage.updates >= self.cfg.max_steps:
            trainer.should_stop = True

    def save(self, trainer: pl.Trainer, stage: Stage) -> None:
        """Write ``last.ckpt``, unless it is of this step already."""
        if self.saved_at != stage.updates:
            with self.pace.pause():
                trainer.save_checkpoint(self.path, False)  # False: with the optimizer
            self.saved_at, self._saved_time = stage.updates, time.monotonic()

    def stop(self, trainer: pl.Trainer, stage: Stage, signum: int) -> None:
        """Save and leave the training loop, as the signal asked for, on whichever process it came."""
        self.save(trainer, stage)
        self.stopped, self.signal = True, signum
        trainer.should_stop = True


class Validate(pl.Callback):
    """Validation on the averaged weights every ``val_every`` steps, shared among the processes; the best are kept.

    A signal breaks it off after the batch in hand; the resumed run makes it anew before it goes on.
    """

    def __init__(
        self, save_last: SaveLast, best: BestCheckpoints, cfg: TrainConfig, watch: WatchConfig
    ) -> None:
        self.save_last, self.best, self.cfg, self.watch = save_last, best, cfg, watch
        self.scores: dict[str, float] = {}  # of the last one
        self._warned = False

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        self._validate_if_due(trainer, stage)  # one that was broken off, or that a kill cut away

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *args: Any) -> None:
        self._validate_if_due(trainer, stage)

    def _validate_if_due(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, Stage)
        due = (
            stage.updates > 0 and stage.updates % self.cfg.val_every == 0 and stage.validated != stage.updates
        )
        if not stage.between_steps or self.save_last.stopped or not due:
            return
        with self.save_last.pace.pause():
            scores = self._validate(trainer, stage)
        if isinstance(scores, int):
            self.save_last.stop(trainer, stage, scores)
            return
        self.scores = scores
        stage.validated = stage.updates
        self.save_last.saved_at = -1  # that it was made is news to a checkpoint of this step
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=stage.updates - 1)
        if trainer.is_global_zero:
            content = {"ema": stage.ema.state_dict(), "updates": stage.updates, "scores": scores}
            self.best.offer(stage.updates, scores[stage.monitor], content)
        self._check_sensitivity(trainer, stage, scores)

    @torch.no_grad()
    def _validate(self, trainer: pl.Trainer, stage: Stage) -> dict[str, float] | int:
        """The scores, or the signal that broke it off."""
        loader = stage.valid_loader()
        (num_batches,) = ranks.largest([len(loader)], stage.device)  # of the process that has the most
        batches = iter(loader)
        stage.eval()
        try:
            with stage.ema.applied(stage.averaged_tensors()), trainer.precision_plugin.val_step_context():
                for index in range(num_batches):
                    batch = next(batches, None)
                    if batch is not None:
                        stage.validate_batch(stage.transfer_batch_to_device(batch, stage.device, 0), index)
                    if signum := self.save_last.asked(stage):
                        stage.forget_validation()
                        return signum
                return stage.validation_scores()
        finally:
            stage.train()

    def _check_sensitivity(self, trainer: pl.Trainer, stage: Stage, scores: dict[str, float]) -> None:
        effect = scores.get("valid/skull_effect")
        if effect is None or self._warned or stage.updates < self.watch.flat_after:
            return
        if effect < self.watch.flat_effect:
            self._warned = True
            tell(
                trainer,
                f"warning: after {stage.updates} steps the skull hardly matters: another person's skull changes the "
                f"predicted noise by {effect:.2%} (valid/skull_effect). Try diffusion.loss_weighting=x0, a larger "
                "optim.lr or batch, a higher diffusion.prompt_dropout; python -m data.check finds skulls that are "
                "not their faces'",
            )


class LogAndProgress(pl.Callback):
    """Means of every ``log_every``-th step into the logs, a bar (or, without a terminal, a line a minute) on stderr.

    Also warns of steps that were skipped and of a loader that is too slow, each once, and gives up
    when nothing but skipped steps come. The last callback: its clock starts when all others are done.
    """

    def __init__(self, pace: Pace, cfg: TrainConfig, watch: WatchConfig, num_workers: int) -> None:
        self.pace, self.cfg, self.watch, self.num_workers = pace, cfg, watch, num_workers
        self.log_every = cfg.log_every or max(1, min(10, cfg.val_every // 10))
        self._bar: tqdm[Any] | None = None
        self._ready = self._began = time.perf_counter()
        self._pauses = 0.0
        self._last_line = -math.inf
        self._warned_skip = self._warned_wait = False

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, Stage)
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(
                total=self.cfg.max_steps, initial=stage.updates, desc="training", file=sys.stderr,
                dynamic_ncols=True, bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )  # fmt: skip
        self._ready = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, stage: pl.LightningModule, *args: Any) -> None:
        assert isinstance(stage, Stage)
        if stage.between_steps:  # only then has the device nothing left to do
            self._began = time.perf_counter()
            self._pauses = self.pace.pauses

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *args: Any) -> None:
        assert isinstance(stage, Stage)
        if stage.between_steps:
            waited = (self._began - self._ready) * self.cfg.accumulate
            busy = time.perf_counter() - self._ready - (self.pace.pauses - self._pauses)
            self.pace.wait(waited, busy)
            self.pace.step()
            self._skipped(trainer, stage)
            self._starved(trainer)
            if stage.updates % self.log_every == 0:
                self._log(trainer, stage)
            if self._bar is not None:
                self._bar.update(1)
            self._ready = time.perf_counter()

    def _skipped(self, trainer: pl.Trainer, stage: Stage) -> None:
        in_a_row = stage.skipped_in_a_row
        if not in_a_row:
            return
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        loss = float(stage.scalars["train/loss"])
        if in_a_row > self.watch.max_skipped:
            raise FloatingPointError(
                f"the gradient was not finite in {in_a_row} steps in a row (loss {loss:.4g} at step {stage.updates}); "
                f"{self.cfg.max_steps - stage.updates} steps were left. The last checkpoint is from before the damage "
                "or holds finite weights. Lower optim.lr, or use train.precision=32-true, under a new name="
            )
        if not self._warned_skip and not scaled:  # a scaler looks for its scale by such steps
            self._warned_skip = True
            tell(
                trainer,
                f"warning: the gradient of step {stage.updates} is not finite (loss {loss:.4g}): the step is skipped, "
                f"as others will be; {self.watch.max_skipped + 1} in a row stop the run. Lower optim.lr if it "
                "happens again and again (train/skipped in the log)",
            )

    def _starved(self, trainer: pl.Trainer) -> None:
        if self._warned_wait or self.pace.steps == 0 or self.pace.steps % WINDOW:
            return
        share = self.pace.waiting_share()
        if share > self.watch.waiting_share:
            self._warned_wait = True
            tell(
                trainer,
                f"warning: {share:.0%} of the time the device waits for pictures: raise data.num_workers (now "
                f"{self.num_workers}; this machine has {os.cpu_count()} cores), put the pictures on a local disk, or "
                "pack them (python -m data.pack)",
            )

    def _log(self, trainer: pl.Trainer, stage: Stage) -> None:
        names = sorted(stage.scalars)
        means = ranks.mean_of_ranks(torch.stack([stage.scalars[n].float() for n in names])).tolist()
        if not trainer.is_global_zero:
            return
        row = dict(zip(names, means, strict=True))
        row["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["train/skipped"] = float(stage.skipped)
        speed = self.pace.steps_per_second()
        left = self.pace.seconds_left(self.cfg.max_steps - stage.updates)
        if speed is not None and left is not None:
            samples = self.cfg.batch_size * self.cfg.accumulate * trainer.world_size
            row |= {"time/samples_per_s": speed * samples, "time/hours_left": left / 3600}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=stage.updates - 1)
        self._tell(stage, row)

    def _tell(self, stage: Stage, row: dict[str, float]) -> None:
        parts = [f"loss {row['train/loss']:.4g}"]
        if "time/hours_left" in row:
            parts += [
                f"{row['time/samples_per_s']:.3g} samples/s",
                f"{in_words(row['time/hours_left'] * 3600)} left",
            ]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
        elif time.monotonic() - self._last_line >= 60:
            self._last_line = time.monotonic()
            print(
                f"step {stage.updates} of {self.cfg.max_steps}: {', '.join(parts)}",
                file=sys.stderr,
                flush=True,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
