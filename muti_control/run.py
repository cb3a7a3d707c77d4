"""A training run: what makes two starts the same run, and going from the first step to the exported file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from cldm.record import check_creatable
from ldm.checkpoint import CheckpointError, sha256
from ldm.config import ConfigError
from ldm.containers import load_pickle
from muti_control.build import build_stage, build_trainer, check_files, check_machine
from muti_control.callbacks import SaveLast
from muti_control.config import ExperimentConfig
from muti_control.stage import Stage


def fingerprint(cfg: ExperimentConfig, stage: Stage) -> dict[str, str]:
    """What a resumed run must have in common with its beginning, by the name a user would look for."""
    facts = {
        "stage": cfg.stage,
        "init": "" if cfg.init is None else sha256(cfg.init),
        "model": json.dumps(asdict(stage.net.cfg), sort_keys=True),
        "data.train": sha256(Path(cfg.data.root) / "split_data" / cfg.data.train),
    }
    facts |= {f"train.{key}": str(getattr(cfg.train, key)) for key in ("batch_size", "accumulate", "seed")}
    for part in ("optim", "autoencoder", "diffusion"):
        facts |= {f"{part}.{key}": str(value) for key, value in asdict(getattr(cfg, part)).items()}
    return facts


def check_resumable(last: Path, stage: Stage) -> int:
    """How many steps ``last`` has done; ConfigError if it is of another run, or no checkpoint of ours."""
    content = _read_last(last)
    saved = content["fingerprint"]
    for key, value in stage.fingerprint.items():
        if saved.get(key) != value:
            short = len(value) < 40 and len(str(saved.get(key))) < 40
            change = f"was {saved.get(key)}, now {value}" if short else "is not what the run began with"
            raise ConfigError(
                f"{key}: {change}; undo that to continue {last.parent.parent}, or pass name=NEW"
            )
    return int(content["updates"])


def _read_last(last: Path) -> dict[str, Any]:
    try:
        content = load_pickle(last)
    except CheckpointError as error:
        raise ConfigError(f"{error} Without it the run cannot go on; name=NEW starts another.") from error
    known = {"fingerprint": dict, "updates": int}
    if not isinstance(content, dict) or not all(isinstance(content.get(k), t) for k, t in known.items()):
        raise ConfigError(f"{last} is no checkpoint of this program; name=NEW starts another run")
    return content


@dataclass
class Training:
    """A run that was checked and can start. steps_done: of the checkpoint it goes on from, 0 if it begins."""

    cfg: ExperimentConfig
    stage: Stage
    trainer: pl.Trainer
    save_last: SaveLast
    steps_done: int

    def fit(self) -> Path | None:
        """Train to ``max_steps`` and export; returns the exported file.

        None: the run was asked to stop (Ctrl-C, SIGTERM) before its end and goes on from ``last.ckpt``.

        Raises:
            KeyboardInterrupt: a second Ctrl-C; the last checkpoint written stays.
        """
        cfg, trainer, last = self.cfg, self.trainer, self.save_last.path
        if self.steps_done >= cfg.train.max_steps and exported_path(cfg).is_file():
            print(
                f"{cfg.run_dir} is finished at step {self.steps_done} ({exported_path(cfg)}); "
                "a larger train.max_steps continues it, name=NEW starts another run",
                flush=True,
            )
            return exported_path(cfg)
        _write_config(cfg)
        trained = sum(p.numel() for p in self.stage.trained_parameters().values()) / 1e6
        total = sum(p.numel() for p in self.stage.net.parameters()) / 1e6
        print(
            f"{cfg.stage} stage: {trained:.1f} of {total:.1f} M parameters trained, on "
            f"{trainer.strategy.root_device}, {trainer.precision}; everything goes to {cfg.run_dir}",
            flush=True,
        )
        if self.steps_done:
            print(f"continuing {cfg.run_dir} from step {self.steps_done}", flush=True)
        try:
            trainer.fit(self.stage, ckpt_path=str(last) if self.steps_done else None, weights_only=True)
        except (
            SystemExit
        ) as error:  # Lightning's answer to a second Ctrl-C; mid-step weights are not worth saving
            raise KeyboardInterrupt from error
        if self.save_last.stopped:
            print(
                f"stopped at step {self.stage.updates} of {cfg.train.max_steps}; the same command continues"
            )
            return None
        trainer.save_checkpoint(last, False)  # False: with the optimizer
        if trainer.is_global_zero:
            _export(cfg, self.stage)
        return exported_path(cfg)


def prepare(cfg: ExperimentConfig) -> Training:
    """Check everything and build the run; a run begun before is found by its ``last.ckpt``.

    Raises:
        ValueError: what was given cannot be trained on (ConfigError, ManifestError, CheckpointError, ImageError).
    """
    check_files(cfg)
    check_creatable(cfg.run_dir)
    last = cfg.run_dir / "checkpoints" / "last.ckpt"
    if last.is_file() and not cfg.resume:
        raise ConfigError(
            f"{cfg.run_dir} holds a run already; resume=true continues it, name=NEW starts another"
        )
    check_machine(cfg)
    if last.is_file():
        _read_last(last)  # complain now if it is none of ours, before the faces are encoded
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    stage = build_stage(cfg)
    stage.fingerprint = fingerprint(cfg, stage)
    steps_done = check_resumable(last, stage) if last.is_file() else 0
    save_last = SaveLast(last, cfg.train.save_every)
    return Training(cfg, stage, build_trainer(cfg, stage, save_last), save_last, steps_done)


def exported_path(cfg: ExperimentConfig) -> Path:
    """The file with the trained model, written when the run is finished."""
    return cfg.run_dir / "model.safetensors"


def _export(cfg: ExperimentConfig, stage: Stage) -> None:
    """Write the averaged weights of the best validation (or the last ones, if none was made) for sampling."""
    best = cfg.run_dir / "checkpoints" / "best.ckpt"
    origin = "the last step"
    if cfg.train.export == "best" and best.is_file():
        content = torch.load(best, map_location="cpu", weights_only=True)
        stage.ema.load_state_dict(content["ema"])
        stage.updates = int(content["updates"])
        origin = f"the best validation ({stage.monitor})"
    stage.export(exported_path(cfg))
    print(f"finished; exported step {stage.updates}, {origin}: {exported_path(cfg)}", flush=True)


def _write_config(cfg: ExperimentConfig) -> None:
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    temporary = cfg.run_dir / f".config.yaml.{os.getpid()}.tmp"
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)), encoding="utf-8")
    os.replace(temporary, cfg.run_dir / "config.yaml")
