"""Checkpoint files of a run: written whole or not at all, the newest readable one found again, the best ones kept."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from ldm.checkpoint import CheckpointError
from ldm.containers import load_pickle
from settings.messages import ConfigError

LAST, PREVIOUS, BEST_INDEX = "last.ckpt", "previous.ckpt", "best.json"


def write_checkpoint(content: Mapping[str, Any], target: Path) -> None:
    """Write beside the target, force it to disk, rename: a reader sees the old file or the whole new one.

    Raises:
        OSError: it could not be written (a full disk); the old file is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:  # torch has words of its own for a disk that is full
        with suppress(OSError):
            temporary.unlink()
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        )
        kept = f"the {target.name} before it is whole" if target.is_file() else "there is none yet"
        raise OSError(
            f"{target} could not be written ({reason}); {kept}. Make room (is the disk full?), then give the same "
            "command again."
        ) from error
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    """Make renames in it outlast a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class WholeFiles(TorchCheckpointIO):
    """Writes as :func:`write_checkpoint`; a new ``last.ckpt`` leaves that of an earlier step as ``previous.ckpt``."""

    def __init__(self) -> None:
        self._step: int | None = None  # that was written last

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        second = None
        if target.name == LAST and target.is_file() and checkpoint["updates"] != self._step:
            # A second name for the old file, before it loses its first.
            second = target.with_name(f".{PREVIOUS}.tmp")
            with suppress(FileNotFoundError):
                second.unlink()
            try:
                os.link(target, second)
            except OSError:  # a file system without hard links
                second = None
        write_checkpoint(checkpoint, target)
        if second is not None:
            os.replace(second, target.with_name(PREVIOUS))
        self._step = checkpoint["updates"]


def read_run(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` that can be read, and its content; None if there is none at all.

    Falls back from a damaged ``last.ckpt`` to ``previous.ckpt``, and says so on stderr.

    Raises:
        ConfigError: none of those that are there can be read, or one is none of this program's.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.is_file():
            try:
                content = load_pickle(path)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            _check_own(path, content)
            for problem in problems:
                print(f"warning: {problem}", file=sys.stderr)
            if name != LAST:
                print(f"going on from {path}, of step {content['updates']}, instead", file=sys.stderr)
            return path, content
    if problems:
        raise ConfigError(f"{problems[0]} Without it the run cannot go on; name=NEW starts another.")
    return None


def _check_own(path: Path, content: Any) -> None:
    known = {"fingerprint": dict, "updates": int, "state_dict": dict, "ema": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(k), t) for k, t in known.items()):
        raise ConfigError(f"{path} is no checkpoint of this program; name=NEW starts another run")


@dataclass(frozen=True)
class Best:
    """One kept validation: of which step, its score, its file in the same folder."""

    step: int
    score: float
    file: str


class BestCheckpoints:
    """The averaged weights of the ``keep`` best validations, with an index ``best.json``, best first.

    Whatever interrupts it, the index names whole files only. A validation that is made again replaces its own entry.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, keep: int) -> None:
        self.folder, self.monitor, self.keep = folder, monitor, keep
        self.sign = 1 if mode == "min" else -1

    def entries(self) -> list[Best]:
        """What is kept, best first; files that have gone since are left out."""
        try:
            listed = json.loads((self.folder / BEST_INDEX).read_text(encoding="utf-8"))["best"]
            entries = [Best(int(e["step"]), float(e["score"]), str(e["file"])) for e in listed]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.folder / BEST_INDEX} cannot be read ({error}); delete it to go on without the best "
                "checkpoints so far"
            ) from error
        return [entry for entry in entries if (self.folder / entry.file).is_file()]

    def offer(self, step: int, score: float, content: Mapping[str, Any]) -> bool:
        """Keep ``content`` if it is among the best; returns whether it is. A score that is NaN never is."""
        new = Best(step, score, f"best-{step:07d}.ckpt")
        others = [entry for entry in self.entries() if entry.step != step]
        ranking = sorted([*others, new], key=lambda e: (self.sign * e.score, e.step))[: self.keep]
        if score != score or new not in ranking:
            return False
        write_checkpoint(content, self.folder / new.file)
        index = {"monitor": self.monitor, "best": [vars(entry) for entry in ranking]}
        temporary = self.folder / f".{BEST_INDEX}.tmp"
        temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(temporary, self.folder / BEST_INDEX)
        kept = {entry.file for entry in ranking}
        for path in self.folder.glob("best-*.ckpt"):
            if path.name not in kept:
                path.unlink()
        return True

    def read_best(self) -> dict[str, Any] | None:
        """The content of the best one that can be read (each that cannot is told on stderr); None: there is none."""
        for entry in self.entries():
            try:
                content = load_pickle(self.folder / entry.file)
            except CheckpointError as error:
                print(f"{error} It is passed over.", file=sys.stderr)
                continue
            return content
        return None
