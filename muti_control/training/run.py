"""A training run: what makes two starts the same run, and going from the first step to the exported file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cldm.record import check_creatable
from data.partial import REGIONS
from ldm.checkpoint import sha256
from muti_control.losses.config import LossesConfig
from muti_control.rank_zero import end_with_parent
from muti_control.training.build import build_stage, check_files
from muti_control.training.callbacks import SIGNALS, SaveLast, tell
from muti_control.training.checkpoints import LAST, BestCheckpoints, read_run
from muti_control.training.config import ExperimentConfig
from muti_control.training.optimizers import odd_settings
from muti_control.training.stage import Stage
from muti_control.training.trainer import build_trainer, check_machine
from settings.messages import ConfigError
from settings.reading import to_yaml

# Parts of the config that must not change when a run goes on.
FINGERPRINTED = (
    "optim", "autoencoder", "diffusion", "skull", "landmarks", "texture", "partial", "pipnet",
)  # fmt: skip
OF_ONE_STAGE = ("pix2pix", "guidance_decoder", "grain")  # the same for the stages that bear the part's name
# What a checkpoint from before a part existed meant by it.
BEFORE = {
    "losses": "off",
    "autoencoder.texture_weight": "0.0",
    "autoencoder.gan": "0.0",
    "diffusion.unlocked": "none",
    "diffusion.control_dropout": "0.0",
    "skull.dropout": "0.0",
    "partial.share": "0.0",
    "partial.regions": str(list(REGIONS)),
    "texture.dropout": "0.2",
}


def fingerprint(cfg: ExperimentConfig, stage: Stage) -> dict[str, str]:
    """What a resumed run must have in common with its beginning, by the name a user would look for."""
    facts = {
        "stage": cfg.stage,
        "init": "" if cfg.init is None else sha256(cfg.init),
        "model": json.dumps(stage.architecture(), sort_keys=True),
        "data.train": sha256(Path(cfg.data.root) / "split_data" / cfg.data.train),
    }
    facts |= {f"train.{key}": str(getattr(cfg.train, key)) for key in ("batch_size", "accumulate", "seed")}
    own = (cfg.stage,) if cfg.stage in OF_ONE_STAGE else ()
    for part in (*FINGERPRINTED, *own):
        facts |= {f"{part}.{key}": str(value) for key, value in getattr(cfg, part).model_dump().items()}
    if not cfg.autoencoder.gan:  # what only realism has
        del facts["autoencoder.discriminator"], facts["autoencoder.gan_ramp_steps"]
    facts["losses"] = _losses_facts(cfg.losses)
    return facts


def _losses_facts(cfg: LossesConfig) -> str:
    """What must not change of the picture losses; files count by their contents."""
    if not cfg.on:
        return BEFORE["losses"]
    facts = cfg.model_dump()
    facts["pipnet"] = sha256(Path(cfg.pipnet)) if cfg.lm else ""
    init = cfg.discriminator.init
    facts["discriminator"]["init"] = "" if init is None else sha256(Path(init))
    for key in ("chunk", "recompute"):  # memory only
        del facts[key]
    return json.dumps(facts, sort_keys=True)


def check_same_run(saved: dict[str, str], stage: Stage) -> None:
    """Raises ConfigError if a checkpoint's fingerprint ``saved`` is of another run than this one."""
    for key, now in stage.fingerprint.items():
        if (was := saved.get(key, BEFORE.get(key))) == now:
            continue
        if key == "init":
            change = (
                f"{stage.cfg.init} is not the file the run began with (sha256 {now[:12]}, then {str(was)[:12]}): its "
                "frozen part would not fit what was trained on the other"
            )
        else:
            short = len(now) < 40 and len(str(was)) < 40
            change = f"was {was}, now {now}" if short else "is not what the run began with"
        raise ConfigError(f"{key}: {change}; undo that to continue {stage.cfg.run_dir}, or pass name=NEW")


@dataclass
class Training:
    """A run that was checked and can start. resumed: the checkpoint it goes on from. steps_done: by it."""

    cfg: ExperimentConfig
    stage: Stage
    trainer: pl.Trainer
    save_last: SaveLast
    resumed: Path | None = None
    steps_done: int = 0

    def fit(self) -> Path | None:
        """Train to ``max_steps`` and export; returns the exported file.

        None: a signal (``save_last.signal``) stopped the run before its end; it goes on from ``last.ckpt``.

        Raises:
            KeyboardInterrupt: a second Ctrl-C; the last checkpoint written stays.
        """
        cfg, trainer = self.cfg, self.trainer
        if self.steps_done >= cfg.train.max_steps and exported_path(cfg).is_file():
            self._say(
                f"{cfg.run_dir} is finished at step {self.steps_done} ({exported_path(cfg)}); "
                "a larger train.max_steps continues it, name=NEW starts another run"
            )
            return exported_path(cfg)
        if trainer.is_global_zero:
            _write_config(cfg)
            if self.resumed not in (None, self.save_last.path) and self.save_last.path.is_file():
                os.replace(self.save_last.path, self.save_last.path.with_name("damaged.ckpt"))
        self._introduce()
        with handlers_restored():
            try:
                ckpt_path = None if self.resumed is None else str(self.resumed)
                trainer.fit(self.stage, ckpt_path=ckpt_path, weights_only=True)
            except (
                SystemExit
            ) as error:  # Lightning's answer to a Ctrl-C; mid-step weights are not worth saving
                raise KeyboardInterrupt from error
            if self.save_last.stopped:
                self._say(
                    f"stopped at step {self.stage.updates} of {cfg.train.max_steps}; the same command continues"
                )
                return None
            self.save_last.save(trainer, self.stage)  # with the last validation
        if trainer.is_global_zero:
            _export(cfg, self.stage)
        return exported_path(cfg)

    def _introduce(self) -> None:
        cfg, trainer = self.cfg, self.trainer
        trained = sum(p.numel() for p in self.stage.trained_parameters().values()) / 1e6
        total = sum(p.numel() for p in self.stage.net.parameters()) / 1e6
        trained_text = f"{trained:.1f}" if trained >= 0.1 else f"{trained:.3f}"
        where = f"{trainer.strategy.root_device}, {trainer.precision}"
        where += f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
        self._say(
            f"{cfg.stage} stage: {trained_text} of {total:.1f} M parameters trained, on {where}; "
            f"everything goes to {cfg.run_dir}"
        )
        if self.resumed is not None:
            self._say(f"continuing {cfg.run_dir} from step {self.steps_done}")
        for turn in self.stage.turns():
            for sentence in odd_settings(turn.optim, cfg.train.max_steps, turn.key):
                tell(trainer, f"warning: {sentence}")

    def _say(self, message: str) -> None:
        if self.trainer.is_global_zero:
            print(message, flush=True)


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Whatever handles signals within the block, afterwards it is what it was before."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def prepare(cfg: ExperimentConfig) -> Training:
    """Check everything and build the run; a run begun before is found by its checkpoints.

    Raises:
        ValueError: what was given cannot be trained on (ConfigError, ManifestError, CheckpointError, ImageError).
    """
    end_with_parent()
    check_files(cfg)
    check_creatable(cfg.run_dir)
    folder = cfg.run_dir / "checkpoints"
    if (folder / LAST).is_file() and not cfg.resume:
        raise ConfigError(
            f"{cfg.run_dir} holds a run already; resume=true continues it, name=NEW starts another"
        )
    check_machine(cfg)
    found = read_run(folder)  # complain now if it is none of ours, before the faces are encoded
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    stage = build_stage(cfg)
    stage.fingerprint = fingerprint(cfg, stage)
    if found is not None:
        check_same_run(found[1]["fingerprint"], stage)
    trainer, save_last = build_trainer(cfg, stage)
    if found is None:
        return Training(cfg, stage, trainer, save_last)
    _tell_of_other_world(trainer, found[1])
    return Training(cfg, stage, trainer, save_last, found[0], int(found[1]["updates"]))


def _tell_of_other_world(trainer: pl.Trainer, content: dict[str, Any]) -> None:
    was = int(content["world_size"])
    if was != trainer.world_size:
        tell(
            trainer,
            f"warning: the run was on {was} processes and goes on with {trainer.world_size}: a step sees "
            f"{trainer.world_size}/{was} of the pictures it saw (train.accumulate, under a new name=, can make up for "
            "it), and the losses are not those of an unbroken run",
        )


def exported_path(cfg: ExperimentConfig) -> Path:
    """The file with the trained model, written when the run is finished."""
    return cfg.run_dir / "model.safetensors"


def _export(cfg: ExperimentConfig, stage: Stage) -> None:
    """Write the averaged weights of the best validation (or the last ones, if none was made) for use after training."""
    kept = BestCheckpoints(
        cfg.run_dir / "checkpoints", stage.monitor, stage.monitor_mode, cfg.train.keep_best
    )
    best = kept.read_best() if cfg.train.export == "best" else None
    origin = "the last step"
    if best is not None:
        stage.ema.load_state_dict(best["ema"])
        stage.updates = int(best["updates"])
        origin = f"the best validation ({stage.monitor} {best['scores'][stage.monitor]:.4g})"
    stage.export(exported_path(cfg))
    print(f"finished; exported step {stage.updates}, {origin}: {exported_path(cfg)}", flush=True)


def _write_config(cfg: ExperimentConfig) -> None:
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    temporary = cfg.run_dir / f".config.yaml.{os.getpid()}.tmp"
    temporary.write_text(to_yaml(cfg), encoding="utf-8")
    os.replace(temporary, cfg.run_dir / "config.yaml")
