"""Measures all pictures of a data set, by several processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data.check.cases import DataSet
from data.check.facts import PairFacts, PictureFacts, examine
from data.workers import begin, processes

_ALONE = 200  # pairs up to which starting processes takes longer than the work
Job = tuple[Path | None, Path | None]
Result = tuple[PictureFacts | None, PictureFacts | None, PairFacts | None]


def measure(data: DataSet, num_workers: int, progress: bool = True) -> None:
    """Fill ``data.pictures`` and ``data.pairs``.

    Raises:
        ChildProcessError: a process was killed.
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
    killed = f"a process was killed (out of memory?): use fewer than num_workers={num_workers}"
    with processes(num_workers, begin, (), killed) as pool:
        yield from pool.map(_work, jobs, chunksize=16)


def _work(job: Job) -> Result:
    return examine(*job)
