"""Writes a cohort: pictures and landmarks by several processes, then the manifests.

Layout under OUT: ``pairedCS/{skull,craniofacial}/<name>.png``, ``pairedCS/landmarks/<name>.json`` (further pictures in
the folders ``views``, ``variants``, ``ceiling`` and ``ceiling_neutral`` of these), ``subjects/<name>.json`` (everything
known of a picture; written last, it marks a finished one), ``split_data/*.json`` (JSON lines) and ``cohort.json`` (how
it was made).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from data.cohort.config import FACE_DIR, LANDMARK_DIR, SKULL_DIR, SPLIT_DIR, SUBJECT_DIR, CohortConfig
from data.cohort.heads.template import HeadTemplate
from data.cohort.lists import wanted_names, write_lists
from data.cohort.pair import Pair
from data.cohort.variants import EXPECTED, make_pictures
from data.images import write_png
from data.pack import PackConfig, pack
from data.workers import alone, begin, processes

ASKED_BY = {"views": "views", "variants": "variants", **dict.fromkeys(EXPECTED, "ceiling")}  # folder: setting
Job = tuple[int, frozenset[str]]  # a subject's index and the names of the pictures to make of it


def generate(out: Path, config: CohortConfig, progress: bool = True) -> None:
    """Make the cohort that ``config`` describes in folder ``out``, continuing where an earlier run stopped.

    Raises:
        ValueError: ``out`` holds another cohort, or files that are no cohort.
        FileNotFoundError: the head template is missing.
        FramingError: the camera cannot hold the heads.
        ChildProcessError: a worker was killed.
    """
    HeadTemplate.load()  # fails here, not in a worker
    _claim(out, config)
    with alone(out / "cohort.json"):
        _make_folders(out, config)
        unfinished = sum(1 for _ in _jobs(out, config))
        total = config.num_subjects
        with tqdm(total=total, initial=total - unfinished, unit="subject", disable=not progress) as bar:
            if unfinished:
                for _ in _run_workers(out, config, min(config.num_workers, unfinished)):
                    bar.update()
        write_lists(out, config, _write_text)
        if config.shards:
            pack(out, out / "packed", PackConfig(overwrite=True), progress)


def _claim(out: Path, config: CohortConfig) -> None:
    """Write ``cohort.json``, or check that the one which is there describes the same cohort."""
    record = out / "cohort.json"
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{record} is no JSON ({error}): choose another folder or delete it") from error
        if not isinstance(found, dict):
            raise ValueError(f"{record} describes no cohort: choose another folder or delete it")
        wanted = config.identity()
        different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        if different:
            changes = ", ".join(
                f"{key} is {found.get(key)} there, asked for {wanted.get(key)}" for key in different
            )
            raise ValueError(f"{out} holds another cohort ({changes}): choose another folder or delete it")
        return
    begun = record.with_name(f".{record.name}.part")  # of a run that was killed at once
    if out.exists() and (not out.is_dir() or any(path != begun for path in out.iterdir())):
        raise ValueError(f"{out} is not empty and has no cohort.json: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_text(record, json.dumps(config.identity(), indent=2) + "\n")


def _make_folders(out: Path, config: CohortConfig) -> None:
    asked = ("", *(name for name, setting in ASKED_BY.items() if getattr(config, setting)))
    further = [f"{folder}/{name}" for folder in (SKULL_DIR, FACE_DIR, LANDMARK_DIR) for name in asked]
    # Variants and expected faces share the skull.
    skulls = [f"{SKULL_DIR}/{name}" for name in ASKED_BY if name != "views"]
    for folder in (*further, SUBJECT_DIR, SPLIT_DIR):
        if folder not in skulls:
            (out / folder).mkdir(parents=True, exist_ok=True)
            for left_over in (*(out / folder).glob(".*.tmp"), *(out / folder).glob(".*.part")):
                left_over.unlink(missing_ok=True)


def _jobs(out: Path, config: CohortConfig) -> Iterator[Job]:
    """What is still to be made."""
    finished = {entry.name for entry in os.scandir(out / SUBJECT_DIR)}
    for index, names in wanted_names(config):
        missing = frozenset(name for name in names if f"{name}.json" not in finished)
        if missing:
            yield index, missing


def _run_workers(out: Path, config: CohortConfig, workers: int) -> Iterator[int]:
    """Yields the index of each subject once its files are there; only a few are under way at any time."""
    killed = (
        f"a worker process was killed (out of memory?): use fewer than num_workers={config.num_workers}; "
        "the same command goes on"
    )
    with processes(workers, _start_worker, (out, config), killed) as pool:
        jobs = _jobs(out, config)
        waiting = {pool.submit(_work, job) for job in islice(jobs, 4 * workers)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(_work, job) for job in islice(jobs, len(done))}
            for future in done:
                yield future.result()


_job: tuple[HeadTemplate, Path, CohortConfig]  # of this worker process


def _start_worker(out: Path, config: CohortConfig) -> None:
    global _job
    begin()
    _job = HeadTemplate.load(), out, config


def _work(job: Job) -> int:
    template, out, config = _job
    index, names = job
    for pair in make_pictures(template, config, index, names):
        write_pair(out, pair)
    return index


def write_pair(out: Path, pair: Pair) -> None:
    """All files of one picture, each whole or not at all; ``subjects/<name>.json`` comes last."""
    if pair.skull is not None:
        write_png(out / SKULL_DIR / pair.source, pair.skull)
    record = pair.record()
    write_png(out / FACE_DIR / record["target"], pair.face)
    _write_text(out / "pairedCS" / record["landmarks"], json.dumps(pair.landmark_record()) + "\n")
    _write_text(out / SUBJECT_DIR / f"{pair.name}.json", json.dumps(record) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
