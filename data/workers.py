"""Processes that work off jobs: one thread each, none outlives its parent, and only one run at a time in a folder."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# How a sum is divided over threads changes its last bits: one thread gives the same bytes for any number of workers,
# and leaves the cores to the processes.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@contextmanager
def processes(
    count: int, start: Callable[..., None], arguments: tuple[Any, ...], killed: str
) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes call ``start(*arguments)`` first; jobs that still wait at the end are dropped.

    Raises:
        ChildProcessError: with the text ``killed``, where one of them was killed.
    """
    context = multiprocessing.get_context("spawn")  # a fresh process reads ONE_THREAD before it imports numpy
    with _one_thread(), ProcessPoolExecutor(count, context, start, arguments) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise ChildProcessError(killed) from error
        finally:
            pool.shutdown(cancel_futures=True)


def begin() -> None:
    """To be called by ``start``: the process leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def alone(record: Path) -> Iterator[None]:
    """Nobody else writes beside ``record`` meanwhile, so that what a killed run left half-written may be cleared away.

    Raises:
        ValueError: another run is at work there.
    """
    with record.open("rb") as file:
        if sys.platform != "win32":  # which has no such locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{record.parent}: another run is at work there; wait for it, or stop it"
                ) from error
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and one that waits for work would never notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
