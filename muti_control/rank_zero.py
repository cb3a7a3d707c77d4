"""Work that one process of a run does for all: the first computes and writes, the others wait for its files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from settings.messages import ConfigError

T = TypeVar("T")

PATIENCE = 900.0  # seconds without a change in the folder; a part of the latents takes far less
_PAUSE = 0.5  # seconds between two looks


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is process 0 of the run, however it was started: alone, by Lightning, torchrun or srun."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((environment[name] for name in names if name in environment), "0")) == 0


def end_with_parent(seconds: float = 2.0) -> None:
    """Make a process that Lightning launched end when the user's own process ends, however it ends.

    Otherwise it would wait for it in a collective, and hold its GPU. torchrun and srun do this themselves.
    """
    env = os.environ
    if "LOCAL_RANK" not in env or "TORCHELASTIC_RUN_ID" in env or "SLURM_STEP_NUM_TASKS" in env:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def wait_for(look: Callable[[], T | None], folder: Path, what: str, patience: float = PATIENCE) -> T:
    """Return the first result of ``look`` that is not None.

    Args:
        look: a cheap call; None as long as there is nothing.
        folder: where the first process writes; while anything changes there, it is alive.
        what: the thing to wait for, for the message.

    Raises:
        ConfigError: there was no result, and no change in ``folder``, for ``patience`` seconds.
    """
    last_change, newest = time.monotonic(), _newest(folder)
    while (result := look()) is None:
        time.sleep(_PAUSE)
        if (now := _newest(folder)) != newest:
            last_change, newest = time.monotonic(), now
        elif time.monotonic() - last_change > patience:
            raise ConfigError(
                f"waited {patience:.0f} s for the first process to write {what} into {folder}, and nothing came: "
                "look at its messages; on several machines, out= must be a folder that all of them see"
            )
    return result


def _newest(folder: Path) -> int:
    times = [0]
    for path in (folder, *folder.glob("*"), *folder.glob("*/*")):
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:  # a temporary file that has its name by now
            continue
    return max(times)
