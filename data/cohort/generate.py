"""Writes a cohort: pictures and landmarks by several processes, then the manifests.

Layout under OUT: ``pairedCS/{skull,craniofacial}/<name>.png``, ``pairedCS/landmarks/<name>.json`` (further pictures in
the folders ``views``, ``variants``, ``ceiling`` and ``ceiling_neutral`` of these), ``subjects/<name>.json`` (the record
of a picture; written last, it marks a finished one), ``split_data/*.json`` (JSON lines) and ``cohort.json`` (how the
cohort was made).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data.cohort.config import FACE_DIR, LANDMARK_DIR, SKULL_DIR, SPLIT_DIR, SUBJECT_DIR, CohortConfig
from data.cohort.heads.template import HeadTemplate
from data.cohort.lists import wanted_names, write_lists
from data.cohort.pair import Pair
from data.cohort.variants import EXPECTED, draw_pairs
from data.files import write_text
from data.images import write_png
from data.pack import PackConfig, pack
from data.workers import alone, claim, make_folders, work_off


def generate(out: Path, config: CohortConfig, progress: bool = True) -> None:
    """Make the cohort that ``config`` describes in folder ``out``, continuing where an earlier run stopped.

    Raises:
        ValueError: ``out`` holds another cohort, or files of something else.
        FileNotFoundError: the head template is missing.
        FramingError: the camera cannot hold the heads.
        ChildProcessError: a worker was killed.
    """
    HeadTemplate.load()  # fails here, not in a worker
    claim(out / "cohort.json", config.identity())
    with alone(out / "cohort.json"):
        make_folders(out, _folders(config))
        total = config.num_subjects
        finished = total - sum(1 for _ in _jobs(out, config))
        with tqdm(total=total, initial=finished, unit="subject", disable=not progress) as bar:
            work_off(partial(_work, out, config), _jobs(out, config), config.num_workers, bar)
        write_lists(out, config)
        if config.shards:
            pack(out, out / "packed", PackConfig(overwrite=True), progress)


def _folders(config: CohortConfig) -> Iterator[str]:
    """Yield all folders of a cohort; variants and expected faces share the subject's skull."""
    faces = [*(["variants"] if config.variants else []), *(EXPECTED if config.ceiling else ())]
    pairs = ["", *(["views"] if config.views else [])]
    yield from ("", SUBJECT_DIR, SPLIT_DIR)
    yield from (f"{SKULL_DIR}/{name}" for name in pairs)
    yield from (f"{folder}/{name}" for folder in (FACE_DIR, LANDMARK_DIR) for name in (*pairs, *faces))


def _jobs(out: Path, config: CohortConfig) -> Iterator[tuple[int, frozenset[str]]]:
    """Yield the index of each unfinished subject and the names of its missing pictures."""
    finished = {entry.name for entry in os.scandir(out / SUBJECT_DIR)}
    for index, names in wanted_names(config):
        missing = frozenset(name for name in names if f"{name}.json" not in finished)
        if missing:
            yield index, missing


def _work(out: Path, config: CohortConfig, job: tuple[int, frozenset[str]]) -> None:
    index, names = job
    for pair in draw_pairs(HeadTemplate.load(), config, index, names):
        _write_pair(out, pair)


def _write_pair(out: Path, pair: Pair) -> None:
    """Write all files of one picture, each whole or not at all; ``subjects/<name>.json`` comes last."""
    if pair.skull is not None:
        write_png(out / SKULL_DIR / pair.source, pair.skull)
    record = pair.record()
    write_png(out / FACE_DIR / record["target"], pair.face)
    write_text(out / "pairedCS" / record["landmarks"], json.dumps(pair.landmark_record()) + "\n")
    write_text(out / SUBJECT_DIR / f"{pair.name}.json", json.dumps(record) + "\n")
