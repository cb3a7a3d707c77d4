"""Writes a cohort: pictures and landmarks by several processes, then the split files.

Layout under OUT: ``pairedCS/{skull,craniofacial}/<name>.png``, ``pairedCS/landmarks/<name>.json``,
``subjects/<name>.json`` (manifest line and BMI; written last, it marks a finished subject),
``split_data/{train,valid,test}.json`` (JSON lines) and ``cohort.json`` (how it was made).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.cohort.config import FACE_DIR, LANDMARK_DIR, SKULL_DIR, SPLIT_DIR, SUBJECT_DIR, CohortConfig
from data.cohort.pair import Pair, make_pair
from data.cohort.subject import subject_name
from data.cohort.template import HeadTemplate
from data.images import write_png

# How a sum is divided over threads changes its last bits: one thread gives the same bytes for any number of workers,
# and leaves the cores to the processes.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def generate(out: Path, config: CohortConfig, progress: bool = True) -> None:
    """Make the cohort that ``config`` describes in folder ``out``, continuing where an earlier run stopped.

    Raises:
        ValueError: ``out`` holds another cohort, or files that are no cohort.
        FileNotFoundError: the head template is missing.
        FramingError: the camera cannot hold the heads.
    """
    HeadTemplate.load()  # fails here, not in a worker
    _claim(out, config)
    for folder in (SKULL_DIR, FACE_DIR, LANDMARK_DIR, SUBJECT_DIR, SPLIT_DIR):
        (out / folder).mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(config.num_subjects) if not (out / _subject_path(subject_name(i))).is_file()]
    done = config.num_subjects - len(missing)
    with tqdm(total=config.num_subjects, initial=done, unit="pair", disable=not progress) as bar:
        for _ in _run_workers(out, config, missing):
            bar.update()
    _write_splits(out, config)


def split_of_subjects(config: CohortConfig) -> dict[str, list[int]]:
    """Subject indices of train, valid and test: disjoint, sorted, and a function of the seed and the counts."""
    order = np.random.default_rng(np.random.SeedSequence(config.seed)).permutation(config.num_subjects)
    test, valid, train = np.split(order, [config.test_subjects, config.test_subjects + config.valid_subjects])
    return {"train": sorted(train.tolist()), "valid": sorted(valid.tolist()), "test": sorted(test.tolist())}


def _claim(out: Path, config: CohortConfig) -> None:
    """Write ``cohort.json``, or check that the one which is there describes the same cohort."""
    record = out / "cohort.json"
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        wanted = config.identity()
        different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        if different:
            changes = ", ".join(
                f"{key} is {found.get(key)} there, asked for {wanted.get(key)}" for key in different
            )
            raise ValueError(f"{out} holds another cohort ({changes}): choose another folder or delete it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and has no cohort.json: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_text(record, json.dumps(config.identity(), indent=2) + "\n")


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


def _run_workers(out: Path, config: CohortConfig, indices: list[int]) -> Iterator[int]:
    """Yields each index once its files are there."""
    if not indices:
        return
    context = multiprocessing.get_context("spawn")  # a fresh process reads ONE_THREAD before it imports numpy
    with (
        _one_thread(),
        context.Pool(min(config.num_workers, len(indices)), _start_worker, (out, config)) as pool,
    ):
        yield from pool.imap_unordered(_work, indices)


_job: tuple[HeadTemplate, Path, CohortConfig]  # of this worker process


def _start_worker(out: Path, config: CohortConfig) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it ends the workers
    _job = HeadTemplate.load(), out, config


def _work(index: int) -> int:
    template, out, config = _job
    write_pair(out, make_pair(template, config, index))
    return index


def write_pair(out: Path, pair: Pair) -> None:
    """All files of one subject, each whole or not at all; ``subjects/<name>.json`` comes last."""
    write_png(out / SKULL_DIR / pair.file_name, pair.skull)
    write_png(out / FACE_DIR / pair.file_name, pair.face)
    line = pair.manifest_line()
    _write_text(out / "pairedCS" / line["landmarks"], json.dumps(pair.landmark_record()) + "\n")
    _write_text(out / _subject_path(pair.subject.name), json.dumps({**line, "bmi": pair.subject.bmi}) + "\n")


def _subject_path(name: str) -> str:
    return f"{SUBJECT_DIR}/{name}.json"


def _write_splits(out: Path, config: CohortConfig) -> None:
    for split, indices in split_of_subjects(config).items():
        lines = [_manifest_line(out, subject_name(i)) for i in indices]
        _write_text(out / SPLIT_DIR / f"{split}.json", "".join(json.dumps(line) + "\n" for line in lines))


def _manifest_line(out: Path, name: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((out / _subject_path(name)).read_text(encoding="utf-8"))
    del line["bmi"]  # what the model is told is the level
    return line


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
