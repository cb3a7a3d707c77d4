"""What every training stage shares: optimizers, averages, own step counter, small checkpoints, batches.

Manual optimisation, so that one optimizer or several are the same case: a step is ``train.accumulate`` micro-batches,
every optimizer with a turn gets the gradient of its own loss of them all, at the same weights, then all step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ldm.checkpoint import CheckpointError
from muti_control.training import ranks
from muti_control.training.config import ExperimentConfig
from muti_control.training.ema import Ema
from muti_control.training.optimizers import Turn
from muti_control.training.pictures import write_grid
from muti_control.training.seeded_batches import EndlessBatches, generator, leave_signals_to_the_parent

T = TypeVar("T")


class Stage(pl.LightningModule):
    """Trains the parameters of ``net`` whose names start with one of ``trained``; all others are frozen.

    Subclasses give ``loss_of``, ``validate_batch``, ``validation_scores``, ``export`` and the name of the score
    that picks the best checkpoints (``monitor``, with ``monitor_mode`` "min" or "max"). One with several optimizers
    also gives ``turns`` and ``turn_loss``.
    """

    monitor: str
    monitor_mode: str

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
        self.updates = 0  # steps of the run, over all resumptions; those that were skipped count too
        self.skipped = 0  # steps whose gradient was not finite
        self.skipped_in_a_row = 0  # those since the last good one
        self.validated = 0  # the step after which the last whole validation was made
        self.fingerprint: dict[str, str] = {}  # what a resumed run must have in common with its beginning
        self.scalars: dict[str, Tensor] = {}  # of the last step, means over its micro-batches, on the device
        self._micro = 0  # micro-batches since the last step
        self._turns: list[Turn] = []

    # --- to be given by a stage ---------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars to log; the one called ``loss`` is minimised.

        A sum over a part of the samples is divided by the full batch size, so that any split of the batch over
        processes gives the same gradient.
        """
        raise TypeError(f"{type(self).__name__} defines no loss_of")

    def turns(self) -> list[Turn]:
        """The optimizers; the first trains what is averaged, validated and exported."""
        return [Turn("net", self.trained_parameters(), self.cfg.optim)]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        """As :meth:`loss_of`, for the optimizer of that name; asked for in the order of ``turns``.

        Only the parameters of its own turn require a gradient meanwhile.
        """
        return self.loss_of(batch)

    def averaged_tensors(self) -> dict[str, Tensor]:
        """What the moving average follows, by name; a stage may add running statistics."""
        return dict(self.trained_parameters())

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Look at one validation batch with the averaged weights, under ``no_grad``; keep what the scores need."""
        raise TypeError(f"{type(self).__name__} defines no validate_batch")

    def validation_scores(self) -> dict[str, float]:
        """Scores of all validation batches since the last call, ``monitor`` among them; shows pictures too."""
        raise TypeError(f"{type(self).__name__} defines no validation_scores")

    def forget_validation(self) -> None:
        """Drop what a validation kept that was broken off."""

    def architecture(self) -> dict[str, Any]:
        """Of the network, for the run's fingerprint."""
        raise TypeError(f"{type(self).__name__} defines no architecture")

    def export(self, path: Path) -> None:
        """Write the averaged weights as one file, for use after the training."""
        raise TypeError(f"{type(self).__name__} defines no export")

    # --- the training step --------------------------------------------------------------------------------

    @property
    def between_steps(self) -> bool:
        """No micro-batch has been accumulated since the last step."""
        return self._micro == 0

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of ``net`` by their name in it."""
        return {n: p for n, p in self.net.named_parameters() if n.startswith(self._trained)}

    def draw(self, stream: str) -> torch.Generator:
        """The generator of one purpose for the micro-batch in hand; every call gives it afresh."""
        batch = self.updates * self.cfg.train.accumulate + self._micro
        return generator(self.cfg.train.seed, self.global_rank, batch, stream)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.between_steps:
            self.scalars = {}
        for turn in self._turns:
            if turn.due(self.updates):
                with self._alone(turn):
                    scalars = self.turn_loss(turn.name, batch)
                    with torch.autocast(self.device.type, enabled=False):
                        self.manual_backward(scalars["loss"] / self.cfg.train.accumulate)
                self._add(turn, scalars)
        self._micro += 1
        if self._micro == self.cfg.train.accumulate:
            with torch.autocast(self.device.type, enabled=False):
                self._step()

    @contextmanager
    def _alone(self, turn: Turn) -> Iterator[None]:
        """Within the block no parameter of another turn takes a gradient."""
        others = [p for other in self._turns if other is not turn for p in other.parameters.values()]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    def _add(self, turn: Turn, scalars: dict[str, Tensor]) -> None:
        prefix = "" if turn is self._turns[0] else f"{turn.name}/"
        for name, value in scalars.items():
            share = value.detach().float() / self.cfg.train.accumulate
            key = f"train/{prefix}{name}"
            self.scalars[key] = self.scalars[key] + share if key in self.scalars else share

    def _step(self) -> None:
        """All optimizers that have their turn, or, if a gradient is not finite, none on any process."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        due = [
            (turn, optimizer)
            for turn, optimizer in zip(self._turns, self.trainer.optimizers, strict=True)
            if turn.due(self.updates)
        ]
        norms = []
        for turn, optimizer in due:
            ranks.average_gradients(list(turn.parameters.values()))
            if scaler is not None:
                scaler.unscale_(optimizer)
            norms.append(turn.clip())
            turn.set_rate(optimizer, self.updates, self.cfg.train.max_steps)
        finite = bool(torch.stack(norms).isfinite().all())  # the one place where the device is waited for
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
        if finite and due[0][0] is self._turns[0]:
            self.ema.update(self.averaged_tensors())
        self.updates += 1
        self._micro = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._turns = self.turns()
        if self._turns[0].every != 1:
            raise ValueError(f"{type(self).__name__}: the first optimizer has its turn at every step")
        return [turn.make_optimizer() for turn in self._turns]

    # --- data ---------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless batches that go on where a resumed run left off: ``updates`` is the loader's whole state."""
        assert isinstance(self.train_set, Sized)
        batches = EndlessBatches(
            len(self.train_set),
            self.cfg.train.batch_size,
            self.cfg.train.seed,
            first_batch=self.updates * self.cfg.train.accumulate,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader(self.train_set, batch_sampler=batches)

    def valid_loader(self) -> DataLoader[Any]:
        """This process's share of the validation items, in order."""
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
            **kwargs,
        )

    # --- validation ---------------------------------------------------------------------------------------

    def gather(self, items: Sequence[tuple[int, T]]) -> list[T]:
        """What all processes found of their validation items, given with each item's index and ordered by it."""
        return [found for _, found in sorted(ranks.gather(list(items)), key=lambda item: item[0])]

    def show(self, name: str, rows: list[Tensor]) -> None:
        """Write a picture grid: ``rows`` of (N, 3, H, W) in [0, 1], to a PNG file and to TensorBoard."""
        if not self.trainer.is_global_zero:
            return
        path = self.cfg.run_dir / "images" / f"{name}_{self.updates:07d}.png"
        grid = write_grid(path, rows)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, grid, self.updates, dataformats="HWC")

    # --- checkpoints: the trained part only ---------------------------------------------------------------

    def trained_state(self) -> dict[str, Tensor]:
        """What training changes, by its name in the stage: parameters, and buffers beside them (running statistics)."""
        names = {f"net.{name}" for name, _ in self.net.named_buffers() if name.startswith(self._trained)}
        names |= {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = self.trained_state()
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if broken:
            raise FloatingPointError(
                f"{broken[0]} is not finite at step {self.updates}; last.ckpt is from before that. "
                "Lower optim.lr, or use train.precision=32-true, under a new name="
            )
        checkpoint["state_dict"] = state
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["updates"] = self.updates
        checkpoint["skipped"] = [self.skipped, self.skipped_in_a_row]
        checkpoint["world_size"] = ranks.world_size()
        checkpoint["validated"] = self.validated
        checkpoint["fingerprint"] = self.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, own = checkpoint["state_dict"], self.trained_state()
        if differing := sorted(saved.keys() ^ own.keys()):
            raise CheckpointError(
                f"the checkpoint holds {len(saved)} trained tensors, this stage has {len(own)}; {differing[0]} is "
                "in one of them only. Go on with the version of this program that began the run, or pass name=NEW."
            )
        checkpoint["state_dict"] = {**self.state_dict(), **saved}
        self.ema.load_state_dict(checkpoint["ema"])
        self.updates = int(checkpoint["updates"])
        self.skipped, self.skipped_in_a_row = checkpoint["skipped"]
        self.validated = int(checkpoint["validated"])

    def on_fit_start(self) -> None:
        self.ema.follow(self.averaged_tensors())  # to their device; restoring may have left them on the CPU
        others = ranks.gather([self.fingerprint])
        for rank, other in enumerate(others):
            for key, value in other.items():
                if value != self.fingerprint.get(key):
                    raise CheckpointError(
                        f"process {rank + 1} of {len(others)} began with another {key}: do all machines see the "
                        "same files?"
                    )
