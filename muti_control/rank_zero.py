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

PATIENCE = 900.0  # seconds without a sign of life; a part of the latents takes far less
_PAUSE = 0.5  # seconds between two looks


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is process 0 of the run, however it was started: alone, by Lightning, torchrun or srun."""
    number = next(
        (environment[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in environment), "0"
    )
    return int(number) == 0


def end_with_parent(seconds: float = 2.0) -> None:
    """In a process that Lightning started beside the user's: end when that one is gone, however it went.

    It would wait for it in a collective, and hold its GPU. torchrun and srun see to that themselves.
    """
    known = os.environ
    from_outside = "TORCHELASTIC_RUN_ID" in known or "SLURM_STEP_NUM_TASKS" in known
    if "LOCAL_RANK" not in known or from_outside:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def wait_for(look: Callable[[], T | None], folder: Path, what: str, patience: float = PATIENCE) -> T:
    """What ``look`` finds, once it finds something.

    Args:
        look: cheap; None as long as there is nothing.
        folder: where the first process writes; while anything changes there, it is alive.
        what: is waited for, for the message.

    Raises:
        ConfigError: nothing was found, and nothing changed in ``folder``, for ``patience`` seconds.
    """
    last_change, seen = time.monotonic(), _newest(folder)
    while (found := look()) is None:
        time.sleep(_PAUSE)
        newest = _newest(folder)
        if newest != seen:
            last_change, seen = time.monotonic(), newest
        elif time.monotonic() - last_change > patience:
            raise ConfigError(
                f"waited {patience:.0f} s for the first process to write {what} into {folder}, and nothing came: "
                "look at its messages; on several machines, out= must be a folder that all of them see"
            )
    return found


def _newest(folder: Path) -> int:
    paths = [folder, *folder.glob("*"), *folder.glob("*/*")]
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:  # a temporary file that got its name meanwhile
            continue
    return max(times, default=0)
