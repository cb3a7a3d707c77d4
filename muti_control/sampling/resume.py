"""Going on with a run that broke off: which of its faces are there, and would be drawn the same again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from cldm.record import RECORD, EarlierRun, OutputError
from muti_control.sampling.job import Job, RunFolder, face_name
from muti_control.sampling.record import TEXT_KEY, face_text
from muti_control.sampling.trace import trace_names

_ELSEWHERE = ("environment.iccr_diff", "environment.git", "environment.torch", "environment.device")
"""What may differ between the beginning of a run and its end; the record keeps it for each."""
_BEFORE = {"sampling.grain": True}
"""What a face from before a setting existed was drawn with."""


def resumed(job: Job, earlier: EarlierRun) -> RunFolder:
    """The folder of ``job`` with what ``earlier`` has done of it.

    Every face carries what it was drawn with; one that differs in anything but the versions and the machine
    belongs to another run. A face whose traces are wanted but not there is drawn again, for them.

    Raises:
        OutputError: the earlier run is another one, or one of its faces cannot be read.
    """
    path = job.folder.path
    try:
        names = {face["file"] for case in earlier.record["cases"] for face in case["faces"]}
        before = {key: earlier.record[key] for key in ("date", "environment")}
        runs = list(earlier.record.get("earlier_runs", []))
    except (KeyError, TypeError) as error:
        raise OutputError(
            f"out: {path / RECORD} lacks what is needed to continue ({error}); overwrite=true begins again"
        ) from error
    draws = {face_name(case, k): (case, seed) for case, k, seed in job.draws}
    if not names <= set(draws):
        raise OutputError(
            f"out: the run in {path} has faces that this one has not ({min(names - set(draws))}); resume=true "
            "continues a run with its own skulls and number of samples: give those, or another out=FOLDER"
        )
    there = {file.name for file in earlier.files}
    done: set[str] = set()
    kept: set[str] = set()
    traced = job.guidance is not None and job.guidance.cfg.trace
    for file in earlier.files:
        if file.name in draws:
            case, seed = draws[file.name]
            _check_same(file, face_text(job, case, seed))
            traces = trace_names(file.name) if traced else ()
            if there.issuperset(traces):
                done.add(file.name)
                kept.update((file.name, *traces))
    outdated = [file for file in earlier.files if file.name not in kept]
    earlier_runs = [*runs, before | {"faces_kept": len(done)}]
    return RunFolder(path, outdated, frozenset(done), earlier_runs, frozenset(kept))


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    try:
        with Image.open(path) as image:
            image.load()
            found = dict(_flat(json.loads(image.info[TEXT_KEY])))
    except (OSError, ValueError, KeyError, SyntaxError, AttributeError) as error:
        raise OutputError(
            f"out: {path} is no whole face of an earlier run ({type(error).__name__}: {error}); "
            "remove it, and it is drawn again"
        ) from error
    now = dict(_flat(wanted))
    for key in (*now, *(key for key in found if key not in now)):
        if key not in _ELSEWHERE and found.get(key, _BEFORE.get(key)) != now.get(key):
            raise OutputError(
                f"out: {path} was drawn with {key} {found.get(key)}, now it is {now.get(key)}; resume=true continues a "
                "run with its own settings: undo that, or give another out=FOLDER"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
