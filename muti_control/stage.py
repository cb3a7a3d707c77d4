"""What every training stage shares: optimizer, averages, own batch counter, small checkpoints, export."""

from __future__ import annotations

import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cldm.controlled import model_metadata
from ldm.checkpoint import git_revision, write_state_dict
from ldm.latent_diffusion import LatentDiffusion, ModelConfig
from muti_control.config import ExperimentConfig, OptimConfig
from muti_control.draws import EndlessBatches, generator
from muti_control.ema import Ema
from muti_control.pictures import write_grid


def learning_rate_factor(step: int, cfg: OptimConfig, max_steps: int) -> float:
    """Factor on the peak learning rate at an optimizer step: linear warm-up, then constant or cosine."""
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, max_steps - cfg.warmup_steps))
    cosine = 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
    return cfg.final_lr_ratio + (1 - cfg.final_lr_ratio) * cosine


class Stage(pl.LightningModule):
    """Trains the parameters of ``net`` whose names start with one of ``trained``; all others are frozen.

    Subclasses give ``loss_of(batch)``, ``validation_step`` and the name of the metric that picks the best
    checkpoint (``monitor``, with ``monitor_mode``).
    """

    monitor: str
    monitor_mode: str

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: LatentDiffusion,
        train_set: Dataset[Any],
        valid_set: Dataset[Any],
        trained: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.net = net.to(memory_format=torch.channels_last)
        self.train_set, self.valid_set = train_set, valid_set
        for name, p in self.net.named_parameters():
            p.requires_grad_(name.startswith(trained))
        self.ema = Ema(self.trained_parameters(), cfg.optim.ema_decay)
        self.updates = 0  # optimizer steps done, over all resumptions
        self._micro = 0  # micro-batches since the last optimizer step
        self._last_update = time.perf_counter()
        self.fingerprint: dict[str, str] = {}  # what a resumed run must have in common with its beginning

    # --- to be given by a stage ---------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars to log; the one called ``loss`` is minimised."""
        raise TypeError(f"{type(self).__name__} defines no loss_of")

    @property
    def between_steps(self) -> bool:
        """No micro-batch has been accumulated since the last optimizer step."""
        return self._micro == 0

    # --- the training step --------------------------------------------------------------------------------

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their name in ``net``."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def draw(self, stream: str) -> torch.Generator:
        """The generator of one purpose for the micro-batch in hand."""
        batch = self.updates * self.cfg.train.accumulate + self._micro
        return generator(self.cfg.train.seed, self.global_rank, batch, stream)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        scalars = self.loss_of(batch)
        self._micro += 1
        for name, value in scalars.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=self.cfg.train.batch_size)
        return scalars["loss"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # runs the closure: forward, backward, step
        self.updates += 1
        self._micro = 0
        self.ema.update(self.trained_parameters())
        now = time.perf_counter()
        seen = self.cfg.train.batch_size * self.cfg.train.accumulate * self.trainer.world_size
        self.log("samples_per_s", seen / (now - self._last_update), prog_bar=True, batch_size=1)
        self._last_update = now

    def configure_optimizers(self) -> Any:
        optim = self.cfg.optim
        parameters = self.trained_parameters().values()
        groups = [  # norms and biases are not decayed
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, optim, self.cfg.train.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- data ---------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless batches that go on where a resumed run left off."""
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

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation pairs, in order."""
        return self._loader(self.valid_set, batch_size=self.cfg.train.batch_size)

    def _loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        workers = self.cfg.data.num_workers
        pin = self.device.type == "cuda"
        return DataLoader(
            dataset, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin, **kwargs
        )

    # --- validation on the averaged weights ---------------------------------------------------------------

    def on_validation_start(self) -> None:
        self.ema.swap_in(self.trained_parameters())

    def on_validation_end(self) -> None:
        self.ema.swap_out(self.trained_parameters())
        self._last_update = time.perf_counter()

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = self.ema.swapped_out or {k: p.detach() for k, p in self.trained_parameters().items()}
        broken = [name for name, value in own.items() if not torch.isfinite(value).all()]
        if broken:
            raise FloatingPointError(
                f"{broken[0]} is not finite at step {self.updates}; last.ckpt is from before that. "
                "Lower optim.lr, or use train.precision=32-true, under a new name="
            )
        checkpoint["state_dict"] = {f"net.{name}": value for name, value in own.items()}
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["updates"] = self.updates
        checkpoint["fingerprint"] = self.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        self.ema.load_state_dict(checkpoint["ema"])
        self.updates = int(checkpoint["updates"])

    def on_fit_start(self) -> None:
        # The averages follow the parameters to their device; restoring may have left them on the CPU.
        parameters = self.trained_parameters()
        self.ema.average = {k: v.to(parameters[k].device) for k, v in self.ema.average.items()}

    def exported_config(self) -> ModelConfig:
        """The architecture as the exported file shall carry it."""
        return self.net.cfg

    def export_metadata(self) -> dict[str, str]:
        """What the exported file says of itself."""
        return {
            **model_metadata(self.exported_config()),
            "stage": self.cfg.stage,
            "step": str(self.updates),
            "git": git_revision(),
        }

    def export(self, path: Path) -> None:
        """Write the whole model, averaged weights in place of the trained ones, as one file.

        Parameters come in ``train.export_dtype``, buffers as they are. A stage before ``control`` leaves the
        untouched control network out: tool_add_control.py adds it.
        """
        dtype = getattr(torch, self.cfg.train.export_dtype)
        left_out = () if self.cfg.stage == "control" else ("control_model.", "logvar")
        with self.ema.applied(self.trained_parameters()):
            metadata = self.export_metadata()
            parameters = dict(self.net.named_parameters())
            state = {
                name: value.to(dtype) if name in parameters else value
                for name, value in self.net.state_dict().items()
                if not name.startswith(left_out)
            }
            write_state_dict(path, state, metadata)
