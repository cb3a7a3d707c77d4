"""Measures all pictures of a data set, by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data.check.cases import CheckError, DataSet
from data.check.facts import PairFacts, PictureFacts, examine

_ALONE = 200  # pairs up to which starting processes takes longer than the work
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)  # the cores are for the processes
Job = tuple[Path | None, Path | None]
Result = tuple[PictureFacts | None, PictureFacts | None, PairFacts | None]


def measure(data: DataSet, num_workers: int, progress: bool = True) -> None:
    """Fill ``data.pictures`` and ``data.pairs``.

    Raises:
        CheckError: a process was killed.
    """
    jobs = list(dict.fromkeys((case.skull, case.face) for case in data.cases if case.skull or case.face))
    with tqdm(total=len(jobs), unit="pair", desc="measuring", mininterval=0.5, disable=not progress) as bar:
        for job, (bone, skin, pair) in zip(jobs, _results(jobs, num_workers), strict=True):
            for facts in (bone, skin):
                if facts is not None:
                    data.pictures.setdefault(facts.path, facts)
            if pair is not None and job[0] is not None and job[1] is not None:
                data.pairs[job[0], job[1]] = pair
            bar.update()


def _results(jobs: list[Job], num_workers: int) -> Iterator[Result]:
    """In the order of ``jobs``."""
    if num_workers == 1 or len(jobs) <= _ALONE:
        yield from map(_work, jobs)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # a fresh process reads the number of threads before NumPy does
    with _one_thread(), ProcessPoolExecutor(num_workers, context, _start_worker) as pool:
        try:
            yield from pool.map(_work, jobs, chunksize=16)
        except BrokenProcessPool as error:
            raise CheckError(
                f"a process was killed (out of memory?): use fewer than num_workers={num_workers}"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


def _work(job: Job) -> Result:
    return examine(*job)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
