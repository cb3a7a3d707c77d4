"""Processes that work off jobs: one thread each, none outlives its parent, and only one run at a time in a folder."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data.files import write_text
from settings.parsing import ContentError, read_json

Job = TypeVar("Job")
# How a sum is divided over threads changes its last bits: one thread gives the same bytes for any number of workers,
# and leaves the cores to the processes.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}

JOBS_EACH = 4  # jobs that are under way or wait, for each process


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


def work_off(
    work: Callable[[Job], None], jobs: Iterable[Job], num_workers: int, bar: tqdm[Any], remedy: str = ""
) -> None:
    """Do each job in one of ``num_workers`` processes; only a few jobs a process are under way at any time.

    Args:
        bar: of all jobs, finished ones included; it decides how many processes are of use.
        remedy: what else helps, beside fewer workers, where a process was killed.

    Raises:
        ChildProcessError: a process was killed.
    """
    count = min(num_workers, int((bar.total or 0) - bar.n))
    if not count:
        return
    killed = f"a worker process was killed (out of memory?): use fewer than num_workers={num_workers}{remedy}"
    jobs = iter(jobs)
    with processes(count, begin, (), f"{killed}; the same command goes on") as pool:
        waiting = {pool.submit(work, job) for job in islice(jobs, JOBS_EACH * count)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(work, job) for job in islice(jobs, len(done))}
            for future in done:
                future.result()
                bar.update()


def begin() -> None:
    """To be called by ``start``: the process leaves Ctrl-C and SIGTERM to its parent, and ends with it."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def claim(record: Path, settings: Mapping[str, Any]) -> None:
    """Begin a folder of results: write its settings to ``record``, or check that an earlier run wrote the same.

    Raises:
        ValueError: the folder belongs to a run with other settings, or holds files of something else.
    """
    out = record.parent
    if record.is_file():
        try:
            stored = read_json(record, dict[str, Any])
        except ContentError as error:
            raise ValueError(
                f"{error}; it should hold settings: choose another folder or delete it"
            ) from error
        changes = ", ".join(
            f"{key} is {stored.get(key)} there, asked for {settings.get(key)}"
            for key in sorted({*stored, *settings})
            if stored.get(key) != settings.get(key)
        )
        if changes:
            raise ValueError(
                f"{out} was made with other settings ({changes}): choose another folder or delete it"
            )
        return
    if out.exists() and not (out.is_dir() and all(is_left_over(path) for path in out.iterdir())):
        raise ValueError(f"{out} is not empty and has no {record.name}: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(settings, indent=2) + "\n")


def make_folders(out: Path, folders: Iterable[str]) -> None:
    """Make folders below ``out``, and clear away what a killed run left half-written in them."""
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
        for path in filter(is_left_over, (out / folder).iterdir()):
            path.unlink(missing_ok=True)


def is_left_over(path: Path) -> bool:
    """Return whether a file is one that ``data.files.replacing`` did not finish."""
    return path.name.startswith(".") and path.suffix == ".tmp"


@contextmanager
def alone(record: Path) -> Iterator[None]:
    """Nobody else writes beside ``record`` meanwhile, so that what a killed run left half-written may be cleared away.

    The lock is on the file, and it goes when the process ends, however it ends.

    Raises:
        ValueError: another run is at work there; the message says which process, if this machine runs it.
    """
    with record.open("r+b") as file:  # NFS locks only what may be written
        if sys.platform != "win32":  # which has no such locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{record.parent}: another run{_holder(file.fileno())} is at work there; wait for it, or stop it"
                ) from error
            except OSError as error:
                print(
                    f"note: {record.parent} has no locks ({error.strerror}): start no second run there",
                    file=sys.stderr,
                )
        _locks.add(file.fileno())
        try:
            yield
        finally:
            _locks.discard(file.fileno())


_locks: set[int] = set()


def _drop_locks() -> None:
    """Close the locks in a forked process, which would hold them after the end of its parent."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)


def _holder(file: int) -> str:
    """Return `` (process 123)``, of the one that has the lock on an open file; "" where that is not to be learnt."""
    try:
        inode = os.fstat(file).st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        number = next(words[4] for words in locks if words[1] == "FLOCK" and words[5].endswith(f":{inode}"))
    except (OSError, StopIteration, IndexError):
        return ""
    return f" (process {number})"


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ[name] for name in ONE_THREAD if name in os.environ}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name in ONE_THREAD:
            del os.environ[name]
        os.environ.update(before)


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and one that waits for work would never notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
