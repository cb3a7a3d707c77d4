"""A training run: its checks, its stage and trainer, and the exported file. ``train.py`` fits it."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from cldm.controlled import ControlledLatentDiffusion
from data.files import write_text
from data.workers import alone
from ldm.checkpoint import sha256
from ldm.compiled import check_compiler, compile_blocks
from ldm.containers import is_utf8
from ldm.device import compute_in_fp32, prefers_bf16
from muti_control.distributed import end_with_parent, is_first
from muti_control.record import check_creatable
from muti_control.training.checkpoints import LAST, LOCK, BestCheckpoints, WholeFiles, read_run
from muti_control.training.config import ExperimentConfig, check_files
from muti_control.training.loop import LogAndProgress, SaveLast, Validate
from muti_control.training.stage import Stage, warn
from muti_control.training.stages import BUILDERS
from settings.messages import ConfigError
from settings.reading import to_yaml

say = rank_zero_only(partial(print, flush=True))

# Parts of the config that must not change when a run is continued; the stage's own part is one of them.
LIGHTNING_PRECISIONS: dict[str, Literal["bf16-mixed", "16-mixed", "32-true"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
FINGERPRINTED = ("optim", "autoencoder", "diffusion", "skull", "landmarks", "texture", "partial", "pipnet")


@dataclass
class Training:
    """A run that was checked and can start. resumed: the checkpoint it goes on from. steps_done: by that checkpoint."""

    cfg: ExperimentConfig
    stage: Stage
    trainer: pl.Trainer
    save_last: SaveLast
    resumed: Path | None = None
    steps_done: int = 0

    def __post_init__(self) -> None:
        self._alone = ExitStack()
        self.exported = self.cfg.run_dir / "model.safetensors"  # written when the run is finished
        self.finished = self.steps_done >= self.cfg.train.max_steps and self.exported.is_file()

    def fit(self) -> Path | None:
        """Do what ``train.py`` does; return the exported file, or None if a signal stopped the run before its end.

        Raises:
            SystemExit: a second Ctrl-C (Lightning turns it into that); the last checkpoint written stays.
            ValueError: another process trains in the same folder.
        """
        with self:
            if not self.finished:
                self.trainer.fit(self.stage, ckpt_path=self.resumed, weights_only=True)
            return self.finish()

    def __enter__(self) -> Self:
        """Keep other trainings out of the folder, and start. Raises: ValueError: one is at work there."""
        if self.trainer.is_global_zero and not self.finished:
            lock = self.cfg.run_dir / LOCK
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
            self._alone.enter_context(alone(lock))
        try:
            self.start()
        except BaseException:
            self._alone.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._alone.close()

    def start(self) -> None:
        """Write the run's config, set a damaged checkpoint aside, and print what is trained, where."""
        cfg, trainer, stage, last = self.cfg, self.trainer, self.stage, self.save_last.path
        if self.finished:
            say(
                f"{cfg.run_dir} is finished at step {self.steps_done} ({self.exported}); "
                "a larger train.max_steps continues it, name=NEW starts another run"
            )
            return
        if trainer.is_global_zero:
            write_text(cfg.run_dir / "config.yaml", to_yaml(cfg))
            if self.resumed not in (None, last) and last.is_file():
                os.replace(last, last.with_name("damaged.ckpt"))
        trained = sum(p.numel() for p in stage.trained_parameters().values()) / 1e6
        total = sum(p.numel() for p in stage.net.parameters()) / 1e6
        where = f"{trainer.strategy.root_device}, {trainer.precision}"
        where += f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
        say(
            f"{cfg.stage} stage: {trained:.{1 if trained >= 0.1 else 3}f} of {total:.1f} M parameters trained, "
            f"on {where}; everything goes to {cfg.run_dir}"
        )
        if self.resumed is not None:
            say(f"continuing {cfg.run_dir} from step {self.steps_done}")
        for turn in stage.turns():
            for sentence in turn.optim.odd(cfg.train.max_steps, turn.key):
                warn(sentence)

    def finish(self) -> Path | None:
        """Export the averaged weights of the best validation, or the last ones; return their file.

        None: a signal stopped the run before its end.
        """
        cfg, stage = self.cfg, self.stage
        if self.save_last.stopped:
            say(f"stopped at step {stage.updates} of {cfg.train.max_steps}; the same command continues")
            return None
        if self.trainer.is_global_zero and not self.finished:
            origin = "the last step"
            folder, keep = self.save_last.path.parent, cfg.train.keep_best
            validations = BestCheckpoints(folder, stage.monitor, stage.monitor_mode, keep)
            if cfg.train.export == "best" and (best := validations.read_best()) is not None:
                stage.ema.load_state_dict(best["ema"])
                stage.updates = int(best["updates"])
                origin = f"the best validation ({stage.monitor} {best['scores'][stage.monitor]:.4g})"
            stage.export(self.exported)
            say(f"finished; exported step {stage.updates}, {origin}: {self.exported}")
        return self.exported


def prepare(cfg: ExperimentConfig) -> Training:
    """Check everything and build the run; a run begun before is continued from its checkpoints.

    Raises:
        ValueError: settings or files that cannot be used (ConfigError, ManifestError, CheckpointError, ImageError).
    """
    end_with_parent()
    check_files(cfg)
    if cfg.train.logger == "tensorboard" and not is_utf8(cfg.run_dir):
        raise ConfigError(
            f"out: TensorBoard takes names in UTF-8 alone, got {cfg.run_dir}; rename it, or give train.logger=csv"
        )
    check_creatable(cfg.run_dir)
    if is_first() and (cfg.run_dir / LOCK).is_file():
        with alone(cfg.run_dir / LOCK):  # a second run is refused before the faces are encoded
            pass
    folder = cfg.run_dir / "checkpoints"
    if (folder / LAST).is_file() and not cfg.resume:
        raise ConfigError(
            f"{cfg.run_dir} holds a run already; resume=true continues it, name=NEW starts another"
        )
    check_machine(cfg)
    begun = read_run(folder)  # complain before the faces are encoded
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    stage = build_stage(cfg)
    stage.fingerprint = fingerprint(cfg, stage)
    if begun is None:
        return Training(cfg, stage, *build_trainer(cfg, stage))
    path, content = begun
    check_same_run(content["fingerprint"], stage)
    trainer, save_last = build_trainer(cfg, stage)
    if (before := int(content["world_size"])) != (now := trainer.world_size):
        warn(
            f"the run was on {before} processes and goes on with {now}: a step sees {now}/{before} of the "
            "pictures it saw (train.accumulate under a new name= makes up for it), and its losses are other ones",
        )
    return Training(cfg, stage, trainer, save_last, path, int(content["updates"]))


def build_stage(cfg: ExperimentConfig) -> Stage:
    """Build network and data of a run; recompute, cast and compile parts of the network as ``memory`` says."""
    memory = cfg.memory
    if memory.compile:
        check_compiler()
    stage = BUILDERS[cfg.stage](cfg, device_of(cfg))
    if isinstance(net := stage.net, ControlledLatentDiffusion):
        net.control_model.recomputes |= memory.recompute_control
        net.unet.recomputes |= memory.recompute_unet
        locked = cfg.stage == "control" and cfg.diffusion.unlocked == "none"
        if memory.half_unet and locked and pick_precision(cfg) == "bf16-mixed":
            net.model.to(torch.bfloat16)
        if memory.compile:
            compile_blocks(net)
    return stage


def fingerprint(cfg: ExperimentConfig, stage: Stage) -> dict[str, str]:
    """Return what a resumed run shares with its beginning, by the name a user would look for; files as hashes."""
    facts = {
        "stage": cfg.stage,
        "init": sha256(cfg.init) if cfg.init else "",
        "model": json.dumps(stage.architecture(), sort_keys=True),
        "data.train": sha256(Path(cfg.data.root) / "split_data" / cfg.data.train),
    }
    names = (*FINGERPRINTED, cfg.stage)
    parts = {part: getattr(cfg, part).model_dump() for part in names if hasattr(cfg, part)}
    parts["train"] = cfg.train.model_dump(include={"batch_size", "accumulate", "seed"})
    if (losses := cfg.losses).on:
        parts["losses"] = losses.model_dump(exclude={"chunk", "recompute"})  # these change the memory only
        parts["losses"]["pipnet"] = sha256(Path(losses.pipnet)) if losses.lm else ""
        init = losses.discriminator.init
        parts["losses"]["discriminator"]["init"] = sha256(Path(init)) if init else ""
    if cfg.data.augment:
        parts["data"] = {"augment": cfg.data.augment}
    return facts | {f"{part}.{key}": str(x) for part, values in parts.items() for key, x in values.items()}


def check_same_run(saved: dict[str, str], stage: Stage) -> None:
    """Raise ConfigError if a checkpoint's fingerprint ``saved`` is of another run than this one."""
    for key in stage.fingerprint | saved:
        before, now = saved.get(key, "off"), stage.fingerprint.get(key, "off")
        if before == now:
            continue
        short = len(now) < 40 and len(before) < 40
        change = f"was {before}, now {now}" if short else "is not what the run began with"
        if key == "init":
            change = (
                f"{stage.cfg.init} is not the file the run began with (sha256 {now[:12]}, then {before[:12]}): its "
                "frozen part would not fit what was trained on the other"
            )
        raise ConfigError(f"{key}: {change}; undo that to continue {stage.cfg.run_dir}, or pass name=NEW")


def device_of(cfg: ExperimentConfig) -> torch.device:
    """Return where this process computes."""
    if cfg.train.device in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        return torch.device("cuda", int(local_rank) % torch.cuda.device_count())
    return torch.device("cpu")


def pick_precision(cfg: ExperimentConfig) -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    """Return Lightning's name of the precision; for ``auto``, bf16-mixed where the hardware is faster with it.

    Raises:
        ConfigError: fp16 without a CUDA device.
    """
    precision, device = cfg.train.precision, device_of(cfg)
    if precision == "auto":
        precision = "bf16" if prefers_bf16(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision: got fp16, which needs a CUDA device; use train.precision=auto")
    return LIGHTNING_PRECISIONS[precision]


def layout(devices: int) -> tuple[int, int]:
    """Return processes on each machine and machines: as torchrun or srun started them, else ``devices`` on this one.

    Raises:
        ConfigError: ``devices`` contradicts what was started.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        how, local = "torchrun", int(env["LOCAL_WORLD_SIZE"])
        machines = int(env["WORLD_SIZE"]) // local
    elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun; a batch script alone is one process
        how, machines = "srun", int(env.get("SLURM_STEP_NUM_NODES", 1))
        local = int(env["SLURM_STEP_NUM_TASKS"]) // machines
    else:
        return devices, 1
    if devices not in (1, local):
        raise ConfigError(
            f"train.devices: got {devices}, but {how} started {local} processes on each machine; leave it out"
        )
    return local, machines


def check_machine(cfg: ExperimentConfig) -> None:
    """Raise ConfigError if this machine lacks what ``train`` asks for: device, devices, precision, logger."""
    pick_precision(cfg)
    if cfg.train.logger == "wandb" and find_spec("wandb") is None:
        raise ConfigError(
            "train.logger: got wandb, which is not installed: pip install wandb, or use tensorboard"
        )
    settings = trainer_settings(cfg)
    try:
        pl.Trainer(**settings, logger=False)
    except (ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"train.device={cfg.train.device}, train.devices={cfg.train.devices}: {reason}; use "
            "train.device=auto train.devices=1"
        ) from error


def trainer_settings(cfg: ExperimentConfig) -> dict[str, Any]:
    """Return the Trainer's settings: the devices, and what our callbacks or the stage do instead of it."""
    devices, machines = layout(cfg.train.devices)
    return {
        "accelerator": cfg.train.device,
        "devices": devices,
        "num_nodes": machines,
        "max_steps": -1,  # SaveLast counts them
        "max_epochs": -1,
        "limit_val_batches": 0,  # Validate makes validations
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,  # the run says in one line what it trains
        "enable_progress_bar": False,  # LogAndProgress has one
        "enable_checkpointing": False,  # SaveLast and Validate write them
        "use_distributed_sampler": False,  # EndlessBatches shares the items
        "inference_mode": False,  # training uses what validation computes (text embeddings)
    }


def build_trainer(cfg: ExperimentConfig, stage: Stage) -> tuple[pl.Trainer, SaveLast]:
    """Return Lightning's trainer, and its callback that saves and stops."""
    save_last = SaveLast(cfg.run_dir / "checkpoints", cfg.train)
    precision = pick_precision(cfg)
    if precision == "32-true":
        compute_in_fp32()
    # One optimizer's backward pass leaves the other's parameters unused. Buffers are a run's own, or the same anyway.
    unused = stage.leaves_unused or len(stage.turns()) > 1
    ddp = DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False)
    # CSV is always written, one log for every start of the run: version_0, version_1, ...
    loggers: list[Logger] = [CSVLogger(cfg.run_dir, name="csv", flush_logs_every_n_steps=1)]
    if cfg.train.logger == "tensorboard":
        loggers.append(TensorBoardLogger(cfg.run_dir, name="", version="tensorboard"))
    elif cfg.train.logger == "wandb":
        loggers.append(WandbLogger(cfg.name, save_dir=cfg.run_dir, offline=True))
    settings = trainer_settings(cfg)
    several = settings["devices"] * settings["num_nodes"] > 1
    best = BestCheckpoints(save_last.path.parent, stage.monitor, stage.monitor_mode, cfg.train.keep_best)
    best.entries()  # a damaged index is refused now, not at the first validation
    trainer = pl.Trainer(
        strategy=ddp if several or cfg.train.strategy == "ddp" else "auto",
        precision=precision,
        plugins=[WholeFiles()],
        callbacks=[
            save_last,
            Validate(save_last, best, cfg.train),
            LogAndProgress(cfg.train, cfg.watch, cfg.data.num_workers),
        ],
        logger=loggers,
        **settings,
    )
    return trainer, save_last
