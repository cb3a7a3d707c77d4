"""Checkpoint files of a run: written whole or not at all, read with a fallback, the best ones kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ldm.checkpoint import CheckpointError
from ldm.containers import load_pickle
from muti_control.record import write_json
from settings.messages import ConfigError
from settings.parsing import ContentError, read_json

FORMAT = 2  # of last.ckpt; up to commit 62346ae it had no number
LAST, PREVIOUS, BEST_INDEX = "last.ckpt", "previous.ckpt", "best.json"
LOCK = ".lock"  # in the run's folder; a process that trains there has it locked


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
    except (OSError, RuntimeError) as error:  # torch has an error of its own for a full disk
        with suppress(OSError):
            temporary.unlink()
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        old = f"the {target.name} before it is whole" if target.is_file() else "there is none yet"
        raise OSError(
            f"{target} could not be written ({reason}); {old}. Make room (is the disk full?), then give the same "
            "command again."
        ) from error


class WholeFiles(TorchCheckpointIO):
    """Writes as :func:`write_checkpoint`; a new ``last.ckpt`` leaves that of an earlier step as ``previous.ckpt``.

    Lightning 2.6 writes in place: a kill or a full disk leaves half a file and no other.
    """

    def __init__(self) -> None:
        self._step: int | None = None  # of the last file written

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        second = target.with_name(f".{PREVIOUS}.tmp")
        if target.name == LAST and target.is_file() and checkpoint["updates"] != self._step:
            # Give the old file a second name before it loses its first; without hard links there is no previous.
            second.unlink(missing_ok=True)
            with suppress(OSError):
                os.link(target, second)
        try:
            write_checkpoint(checkpoint, target)
            if second.is_file():
                os.replace(second, target.with_name(PREVIOUS))
        finally:
            second.unlink(missing_ok=True)
        self._step = checkpoint["updates"]


def read_run(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable checkpoint in ``folder`` and its content; None if there is none.

    It falls back from a damaged ``last.ckpt`` to ``previous.ckpt``, and says so on stderr.

    Raises:
        ConfigError: no file can be read, or it is not of this program, or of an older version of it.
    """
    problems = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            content = load_pickle(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        version = content.get("format", 1) if isinstance(content, dict) else None
        if version != FORMAT:
            raise ConfigError(
                f"{path}: got format {version}, expected {FORMAT}; commit 62346ae is the last version that continues "
                "format 1. name=NEW starts another run (init= takes an older run's model.safetensors)"
            )
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        if path.name != LAST:
            print(f"going on from {path}, of step {content['updates']}, instead", file=sys.stderr)
        return path, content
    if problems:
        raise ConfigError(f"{problems[0]} Without it the run cannot go on; name=NEW starts another.")
    return None


class _Entry(BaseModel):
    step: int
    score: float
    file: str


class _Index(BaseModel):
    best: list[_Entry]


class BestCheckpoints:
    """The averaged weights of the ``keep`` best validations, with an index ``best.json``, best first.

    Whatever interrupts it, the index names whole files only. A validation that is made again replaces its own entry.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, keep: int) -> None:
        self.folder, self.monitor, self.keep = folder, monitor, keep
        self.sign = 1 if mode == "min" else -1

    def entries(self) -> list[dict[str, Any]]:
        """Return ``step``, ``score`` and ``file`` of the kept validations whose files exist, best first."""
        path = self.folder / BEST_INDEX
        try:
            listed = read_json(path, _Index).best if path.is_file() else []
        except ContentError as error:
            raise ConfigError(f"{error}; delete it to go on without the best checkpoints so far") from error
        return [entry.model_dump() for entry in listed if (self.folder / entry.file).is_file()]

    def offer(self, step: int, score: float, content: Mapping[str, Any]) -> bool:
        """Keep ``content`` if it is among the best; return whether it is. A score that is NaN never is."""
        new: dict[str, Any] = {"step": step, "score": score, "file": f"best-{step:07d}.ckpt"}
        others = [entry for entry in self.entries() if entry["step"] != step]
        ranking = sorted([*others, new], key=lambda e: (self.sign * e["score"], e["step"]))[: self.keep]
        if score != score or new not in ranking:
            return False
        write_checkpoint(content, self.folder / new["file"])
        write_json(self.folder / BEST_INDEX, {"monitor": self.monitor, "best": ranking})
        files = {entry["file"] for entry in ranking}
        for path in self.folder.glob("best-*.ckpt"):
            if path.name not in files:
                path.unlink()
        return True

    def read_best(self) -> dict[str, Any] | None:
        """Return the content of the best one that can be read, None without one; report the others on stderr."""
        for entry in self.entries():
            try:
                return load_pickle(self.folder / entry["file"])
            except CheckpointError as error:
                print(f"{error} It is passed over.", file=sys.stderr)
        return None
