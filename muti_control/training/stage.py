"""What every training stage shares: steps of its optimizers, averages, batches, validation and checkpoints."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sized
from contextlib import nullcontext
from itertools import chain
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ldm.checkpoint import CheckpointError
from muti_control.training.checkpoints import FORMAT
from muti_control.training.config import ExperimentConfig
from muti_control.training.ema import Ema
from muti_control.training.optimizers import Turn
from muti_control.training.pictures import log_picture, write_grid
from muti_control.training.seeded_batches import EndlessBatches, generator, leave_signals_to_the_parent

T = TypeVar("T")


@rank_zero_only
def warn(message: str) -> None:
    """Print a warning to stderr, on the first process only, beside the progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


class Stage(pl.LightningModule):
    """Trains the parameters of ``net`` whose names start with one of ``trained``; all others are frozen.

    A subclass defines ``loss_of``, ``validate_batch``, ``validation_scores``, ``architecture``, ``export`` and the
    score that picks the best checkpoints (``monitor``, with ``monitor_mode`` "min" or "max"). One with several
    optimizers also defines ``turns`` and ``turn_loss``.

    Optimisation is manual: Lightning's automatic one takes a single optimizer, and a run that a signal stops in the
    middle of an accumulation resumes up to ``accumulate - 1`` micro-batches off.
    """

    monitor: str
    monitor_mode: str
    leaves_unused = False  # whether a batch may give a trained parameter no gradient: DDP must look for those
    collate: Callable[[list[Any]], Any] | None = None  # how items become a batch; None: PyTorch's way

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: nn.Module,
        train_set: Dataset[Any],
        valid_set: Dataset[Any],
        trained: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.cfg = cfg
        self.net = net.to(memory_format=torch.channels_last)
        self.train_set, self.valid_set = train_set, valid_set
        self._trained = trained
        for name, p in self.net.named_parameters():
            p.requires_grad_(name.startswith(trained))
        on_cpu = torch.device("cpu") if cfg.memory.ema_on_cpu else None
        self.ema = Ema(self.averaged_tensors(), cfg.optim.ema_decay, on_cpu)
        self.updates = 0  # steps of the run over all resumptions, skipped ones included
        self.skipped = 0  # steps whose gradient was not finite
        self.skipped_in_a_row = 0  # those since the last good step
        self.validated = 0  # the step after which the last whole validation was made
        self.fingerprint: dict[str, str] = {}  # what a resumed run must have in common with its beginning
        self.scalars: dict[str, Tensor] = {}  # of the last step, means over its micro-batches, on the device
        self.step_ended = 0.0  # time.perf_counter() at the end of the last step
        self._micro = 0  # micro-batches since the last step
        self._turns: list[Turn] = []
        self._kept: defaultdict[str, list[tuple[int, Any]]] = defaultdict(list)  # by the validation under way

    # --- what a stage defines -----------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the scalars to log; the one called ``loss`` is minimised.

        A sum over a part of the samples is divided by the full batch size, so that any split of the batch over
        processes gives the same gradient.
        """
        raise NotImplementedError

    def turns(self) -> list[Turn]:
        """Return the optimizers; the first one, due at every step, trains what is averaged, validated and exported."""
        return [Turn("net", self.trained_parameters(), self.cfg.optim)]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the scalars of :meth:`loss_of` for the optimizer ``turn``; called in the order of ``turns``.

        Meanwhile only the parameters of that optimizer require a gradient.
        """
        return self.loss_of(batch)

    def averaged_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the moving average follows, by name; a stage may add running statistics."""
        return dict(self.trained_parameters())

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Evaluate one validation batch with the averaged weights, without gradients, and :meth:`keep` the results."""
        raise NotImplementedError

    def validation_scores(self) -> dict[str, float]:
        """Return the scores of all validation batches, ``monitor`` among them, from what was kept."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """Return the network's settings, for the run's fingerprint."""
        return self.net.cfg.model_dump()  # type: ignore[union-attr, operator]

    def export(self, path: Any) -> None:
        """Write the averaged weights as one file, for use after the training."""
        raise NotImplementedError

    # --- the training step --------------------------------------------------------------------------------

    @property
    def between_steps(self) -> bool:
        """Whether no micro-batch has been accumulated since the last step."""
        return self._micro == 0

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters of ``net`` by their names in it."""
        return {n: p for n, p in self.net.named_parameters() if n.startswith(self._trained)}

    def draw(self, stream: str) -> torch.Generator:
        """Return a fresh generator of one purpose for the current micro-batch."""
        batch = self.updates * self.cfg.train.accumulate + self._micro
        return generator(self.cfg.train.seed, self.global_rank, batch, stream)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Accumulate the gradients of one micro-batch; after ``train.accumulate`` of them, step."""
        num, strategy = self.cfg.train.accumulate, self.trainer.strategy
        if self.between_steps:
            self.scalars = {}
        for turn, optimizer in self._due():
            unsynced: Any = nullcontext()
            if self._micro + 1 < num and isinstance(strategy, ParallelStrategy):  # more micro-batches follow
                unsynced = strategy.block_backward_sync()
            with self.toggled_optimizer(optimizer), unsynced:
                scalars = self.turn_loss(turn.name, batch)
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(scalars["loss"] / num)
            prefix = "train/" if turn is self._turns[0] else f"train/{turn.name}/"
            for name, value in scalars.items():
                share = value.detach().float() / num
                self.scalars[prefix + name] = self.scalars.get(prefix + name, 0) + share
        self._micro += 1
        if self._micro == num:
            with torch.autocast(self.device.type, enabled=False):
                self._step()

    def _due(self) -> list[tuple[Turn, torch.optim.Optimizer]]:
        """Return the optimizers of this step."""
        both = zip(self._turns, self.trainer.optimizers, strict=True)
        return [(turn, optimizer) for turn, optimizer in both if turn.due(self.updates)]

    def _step(self) -> None:
        """Step all optimizers that are due or, if a gradient is not finite, none of them in any process."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        due, norms = self._due(), []
        for turn, optimizer in due:
            if scaler is not None:
                scaler.unscale_(optimizer)
            norms.append(turn.clip())
            turn.set_rate(optimizer, self.updates, self.cfg.train.max_steps)
        finite = bool(torch.stack(norms).isfinite().all())  # the one place that waits for the device
        for _, optimizer in due:
            if finite and scaler is not None:
                scaler.step(optimizer)
            elif finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()
        self.scalars["train/gradient_norm"] = norms[0]
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if finite:
            self.ema.update(self.averaged_tensors())
        self.updates += 1
        self._micro = 0
        self.step_ended = time.perf_counter()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._turns = self.turns()
        return [turn.make_optimizer() for turn in self._turns]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return endless batches that go on where a resumed run stopped; ``updates`` is the loader's whole state."""
        assert isinstance(self.train_set, Sized)
        batches = EndlessBatches(
            len(self.train_set),
            self.cfg.train.batch_size,
            self.cfg.train.seed,
            first_batch=self.updates * self.cfg.train.accumulate,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
            count_passes=self.cfg.data.augment > 0,
        )
        return self._loader(self.train_set, batch_sampler=batches)

    def valid_loader(self) -> DataLoader[Any]:
        """Return this process's share of the validation items, in order."""
        assert isinstance(self.valid_set, Sized)
        share = range(self.global_rank, len(self.valid_set), self.trainer.world_size)
        return self._loader(Subset(self.valid_set, share), batch_size=self.cfg.train.batch_size)

    def _loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        workers = self.cfg.data.num_workers
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_parent,
            collate_fn=type(self).collate,
            **kwargs,
        )

    def keep(self, name: str, indices: Iterable[int], results: Iterable[Any]) -> None:
        """Store results (picklable, on the CPU) of validation items until the validation ends."""
        self._kept[name] += zip(indices, results, strict=True)

    def gather(self, name: str) -> list[Any]:
        """Return the results kept as ``name`` by all processes, in the order of their indices, and drop them."""
        results = of_all(self._kept.pop(name, []))
        return [result for _, result in sorted(chain(*results), key=lambda item: item[0])]

    def show(self, name: str, rows: list[Tensor]) -> None:
        """Write a picture grid, ``rows`` of (N, 3, H, W) in [0, 1], to a PNG file and to the logger."""
        if self.trainer.is_global_zero:
            grid = write_grid(self.cfg.run_dir / "images" / f"{name}_{self.updates:07d}.png", rows)
            log_picture(self.loggers, name, grid, self.updates)

    def trained_state(self) -> dict[str, Tensor]:
        """Return what training changes, by name: parameters, and the buffers beside them (running statistics)."""
        names = {f"net.{name}" for name, _ in self.net.named_buffers() if name.startswith(self._trained)}
        names |= {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = self.trained_state()
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if broken:
            raise FloatingPointError(
                f"{broken[0]} is not finite at step {self.updates}; last.ckpt is from before that. "
                "Lower optim.lr, or use train.precision=fp32, under a new name="
            )
        checkpoint |= {
            "format": FORMAT,
            "state_dict": state,
            "ema": self.ema.state_dict(),
            "updates": self.updates,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "world_size": self.trainer.world_size,
            "validated": self.validated,
            "fingerprint": self.fingerprint,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, own = checkpoint["state_dict"], self.trained_state()
        if differing := sorted(saved.keys() ^ own.keys()):
            raise CheckpointError(
                f"the checkpoint has {len(saved)} trained tensors, this stage has {len(own)}; {differing[0]} is in one "
                "of them only. Continue with the version of this program that began the run, or pass name=NEW."
            )
        checkpoint["state_dict"] = {**self.state_dict(), **saved}
        self.ema.load_state_dict(checkpoint["ema"])
        self.updates = int(checkpoint["updates"])
        self.skipped, self.skipped_in_a_row = checkpoint["skipped"]
        self.validated = int(checkpoint["validated"])

    def on_fit_start(self) -> None:
        self.ema.follow(self.averaged_tensors())  # to their device; restoring may have left them on the CPU
        for number, other in enumerate(of_all(self.fingerprint), 1):
            if differing := [key for key, value in other.items() if value != self.fingerprint.get(key)]:
                raise CheckpointError(
                    f"process {number} began with another {differing[0]}: do all machines see the same files?"
                )


def of_all(value: T) -> list[T]:
    """Return ``value`` (picklable, on the CPU) of every process, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
