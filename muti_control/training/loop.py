"""Callbacks of a run: saving and stopping, validation, log and progress."""

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

from muti_control.training.checkpoints import LAST, BestCheckpoints
from muti_control.training.config import TrainConfig, WatchConfig
from muti_control.training.stage import Stage, warn

WINDOW = 100  # steps between looks at the loader
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def largest(trainer: pl.Trainer, *numbers: int) -> list[int]:
    """Return each number's maximum over the processes: so they agree to save or to stop. All must call it together."""
    tensor = torch.tensor(numbers, device=trainer.strategy.root_device)
    return [int(number) for number in trainer.strategy.reduce(tensor, reduce_op="max").tolist()]


class SaveLast(pl.Callback):
    """Writes ``last.ckpt`` every so many steps or minutes, at the end, and when a signal asks the run to stop.

    Ctrl-C, SIGTERM (SLURM, spot machines) and SIGUSR1 (SLURM's warning) save and stop, in whichever process they
    arrive; a second Ctrl-C interrupts at once. It saves between steps only, and it ends the run at ``max_steps``:
    Lightning 2.6 saves at a signal within an accumulation, and its ``global_step`` counts both optimizers.
    """

    def __init__(self, folder: Path, cfg: TrainConfig) -> None:
        self.path, self.cfg = folder / LAST, cfg
        self.signal = 0  # the one that asked to stop
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

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:  # type: ignore[override]
        for signum in SIGNALS:  # after Lightning set its own, which it takes back at the end
            signal.signal(signum, self._handle)
        trainer.should_stop = stage.updates >= self.cfg.max_steps  # a validation or the export may be left
        self.saved_at = stage.updates if stage.updates else -1
        self._saved_time = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, *args: Any) -> None:  # type: ignore[override]
        if not stage.between_steps:
            return
        late = 0 < self.cfg.save_minutes <= (time.monotonic() - self._saved_time) / 60
        # Only the handler writes self.signal: a signal that comes while the processes agree counts the next time.
        signum, due = largest(trainer, self.signal, late)
        if due or stage.updates % self.cfg.save_every == 0:
            self.save(trainer, stage)
        if signum:
            self.stop(trainer, stage, signum)
        elif stage.updates >= self.cfg.max_steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, stage: Stage) -> None:  # type: ignore[override]
        self.save(trainer, stage)  # with the last validation

    def save(self, trainer: pl.Trainer, stage: Stage) -> None:
        """Write ``last.ckpt``, unless it is of this step already."""
        if self.saved_at != stage.updates:
            trainer.save_checkpoint(self.path)
            self.saved_at, self._saved_time = stage.updates, time.monotonic()

    def stop(self, trainer: pl.Trainer, stage: Stage, signum: int) -> None:
        """Save and leave the training loop in all processes, as a signal to one of them asked."""
        self.save(trainer, stage)
        self.stopped, self.signal = True, signum
        trainer.should_stop = True


class Validate(pl.Callback):
    """Validates the averaged weights every ``val_every`` steps, shared among the processes, and keeps the best.

    A signal breaks it off after the current batch, and the resumed run makes it anew: Lightning 2.6 never repeats a
    validation that a kill cut off.
    """

    def __init__(self, save_last: SaveLast, best: BestCheckpoints, cfg: TrainConfig) -> None:
        self.save_last, self.best, self.cfg = save_last, best, cfg

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, *args: Any) -> None:  # type: ignore[override]
        step = stage.updates
        due = step > 0 and step % self.cfg.val_every == 0 and stage.validated != step
        if not due or not stage.between_steps or self.save_last.stopped:
            return
        scores = self._validate(trainer, stage)
        if isinstance(scores, int):
            self.save_last.stop(trainer, stage, scores)
            return
        stage.validated = step
        self.save_last.saved_at = -1  # a checkpoint of this step does not know of the validation yet
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=step - 1)
        if trainer.is_global_zero:
            content = {"ema": stage.ema.state_dict(), "updates": step, "scores": scores}
            self.best.offer(step, scores[stage.monitor], content)

    on_train_start = on_train_batch_end  # type: ignore[assignment]  # due in a resumed run

    @torch.no_grad()
    def _validate(self, trainer: pl.Trainer, stage: Stage) -> dict[str, float] | int:
        """Return the scores, or the signal that broke the validation off."""
        loader = stage.valid_loader()
        (num_batches,) = largest(trainer, len(loader))  # of the process that has the most
        batches = iter(loader)
        stage.eval()
        try:
            with stage.ema.applied(stage.averaged_tensors()), trainer.precision_plugin.val_step_context():
                for index in range(num_batches):
                    batch = next(batches, None)
                    if batch is not None:
                        stage.validate_batch(stage.transfer_batch_to_device(batch, stage.device, 0), index)
                    (signum,) = largest(trainer, self.save_last.signal)
                    if signum:
                        return signum
                return stage.validation_scores()
        finally:
            stage.train()


class LogAndProgress(pl.Callback):
    """Logs the scalars of every ``log_every``-th step; shows a bar or, without a terminal, a line a minute on stderr.

    It warns once of skipped steps and of a slow loader, and gives up when only skipped steps come. It must be the last
    callback: its clock starts when all others are done. The first two steps of a start, which are slow, do not count.
    """

    def __init__(self, cfg: TrainConfig, watch: WatchConfig, num_workers: int) -> None:
        self.cfg, self.watch, self.num_workers = cfg, watch, num_workers
        self.log_every = cfg.log_every or max(1, min(10, cfg.val_every // 10))
        self._bar: tqdm[Any] | None = None
        self._steps = -2  # counted steps
        self._busy = 0.0  # seconds of counted steps, without saves and validations
        self._waited = 0.0  # of these, for pictures
        self._logged = (0, 0.0)  # counted steps and their seconds at the last log
        self._ready = self._began = self._start = time.perf_counter()
        self._last_line = -math.inf
        self._warned_skip = self._warned_wait = False

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:  # type: ignore[override]
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=self.cfg.max_steps, initial=stage.updates, desc="training")
        self._ready = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, stage: Stage, *args: Any) -> None:  # type: ignore[override]
        if stage.between_steps:  # only then has the device nothing left to do
            self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, *args: Any) -> None:  # type: ignore[override]
        if not stage.between_steps:
            return
        self._steps += 1
        if self._steps > 0:
            self._busy += stage.step_ended - self._ready
            self._waited += (self._began - self._ready) * self.cfg.accumulate
        else:
            self._start = time.perf_counter()
        self._check_skipped(trainer, stage)
        self._check_loader()
        if stage.updates % self.log_every == 0:
            self._log(trainer, stage)
        if self._bar is not None:
            self._bar.update(1)
        self._ready = time.perf_counter()

    def _check_skipped(self, trainer: pl.Trainer, stage: Stage) -> None:
        in_a_row = stage.skipped_in_a_row
        if not in_a_row:
            return
        what = f"the gradient of step {stage.updates} is not finite (loss {float(stage.scalars['train/loss']):.4g})"
        if in_a_row > self.watch.max_skipped:
            raise FloatingPointError(
                f"{what}, nor were those of the {in_a_row - 1} steps before. The last checkpoint has finite weights. "
                "Lower optim.lr, or use train.precision=fp32, under a new name="
            )
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not self._warned_skip and not scaled:  # a scaler finds its scale by such steps
            self._warned_skip = True
            warn(
                f"{what}: this step is skipped, and so are others like it (train/skipped in the log); "
                f"{self.watch.max_skipped + 1} in a row stop the run. Lower optim.lr if it happens often",
            )

    def _check_loader(self) -> None:
        if self._warned_wait or self._steps < WINDOW or self._steps % WINDOW:
            return
        share = min(1.0, self._waited / self._busy)
        if share > self.watch.waiting_share:
            self._warned_wait = True
            warn(
                f"{share:.0%} of the time the device waits for pictures: raise data.num_workers (now "
                f"{self.num_workers}; this machine has {os.cpu_count()} cores), put the pictures on a local disk, or "
                "pack them (python -m data.pack)",
            )

    def _log(self, trainer: pl.Trainer, stage: Stage) -> None:
        names = sorted(stage.scalars)
        means = trainer.strategy.reduce(
            torch.stack([stage.scalars[n].float() for n in names]), reduce_op="mean"
        )
        if not trainer.is_global_zero:
            return
        row = dict(zip(names, means.tolist(), strict=True))
        row["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["train/skipped"] = float(stage.skipped)
        text = f"loss {row['train/loss']:.4g}"
        steps, busy = self._steps - self._logged[0], self._busy - self._logged[1]
        if self._steps > 0 and busy > 0:
            self._logged = (self._steps, self._busy)
            speed = steps / busy * self.cfg.batch_size * self.cfg.accumulate * trainer.world_size
            left = (time.perf_counter() - self._start) / self._steps * (self.cfg.max_steps - stage.updates)
            row |= {"time/samples_per_s": speed, "time/hours_left": left / 3600}
            text += f", {speed:.3g} samples/s, {tqdm.format_interval(left)} left"
        for logger in trainer.loggers:
            logger.log_metrics(row, step=stage.updates - 1)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif time.monotonic() - self._last_line >= 60:
            self._last_line = time.monotonic()
            print(f"step {stage.updates} of {self.cfg.max_steps}: {text}", file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
