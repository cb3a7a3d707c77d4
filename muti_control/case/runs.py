"""What a run of ``sample.py`` leaves in the log of its folder, and its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data.files import ASIDE
from muti_control.case.contents import MAX_SKULLS, REPORTS, Heading
from muti_control.case.log import append, read_log
from muti_control.case.pages import check_installed
from muti_control.case.report import write_report
from muti_control.conditions.case_landmarks import StoredLandmarks
from muti_control.record import RECORD, EarlierRun, claim_folder, read_record

if TYPE_CHECKING:
    from muti_control.sampling.job import Job


def claim_case(folder: Path, overwrite: bool = False, resume: bool = False) -> EarlierRun | None:
    """Return what ``claim_folder`` does; the reports that the log names are files of the earlier run."""
    earlier = claim_folder(folder, overwrite, resume)
    if earlier is None:
        return None
    reports = [folder / name for name in REPORTS if name in read_log(folder).files]
    return replace(earlier, files=[*earlier.files, *filter(Path.is_file, reports)])


@contextmanager
def logged(job: Job) -> Iterator[None]:
    """Log that a run begins, before anything is written, and that it ends; log edited landmarks where they lie.

    After an error the log says so too: what is in the folder then, of this run or of the earlier one, is as logged.

    Raises:
        ValueError: a report is wanted that cannot be made. OSError: the folder cannot be written to.
    """
    if not job.team.is_first:
        yield
        return
    wanted, folder = yaml.safe_load(job.config)["report"], job.folder.path
    if wanted:
        check_installed(wanted == "pdf")
        if len(job.cases) > MAX_SKULLS:
            raise ValueError(
                f"report: got {len(job.cases)} skulls, expected at most {MAX_SKULLS}; limit=N takes fewer"
            )
    folder.mkdir(parents=True, exist_ok=True)
    details: dict[str, Any] = {
        "skulls": [
            {"file": case.skull_path.name, "sha256": job.hashes[case.skull_path]}
            for case in job.cases
            if case.skull_path
        ],
        "seeds": list(job.seeds),
        "weights": dict(job.weights),
        "sampling": job.sampling.model_dump(),
        "spgd": None if job.spgd is None else job.spgd.describe(),
        "landmarks": _edited(job),
        "faces_kept": len(job.folder.done),
        "writes": sorted(
            {*job.files, *(path.name for path in (*job.folder.outdated, *(folder / ASIDE).glob("*")))}
        ),
    }
    unlogged = _unlogged(folder)
    append(folder, "drawing resumed" if job.folder.earlier_runs else "drawing begun", details, unlogged)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            append(folder, "drawing broken off", wrote=[*details["writes"], *unlogged])
        raise
    append(folder, "faces drawn", {"faces": len(job.draws)}, details["writes"])


def report_of(job: Job) -> list[Path]:
    """Write the report that the settings of a finished run ask for, and return its files."""
    config = yaml.safe_load(job.config)
    heading = Heading(config["case_number"], config["examiner"])
    return write_report(job.folder.path, heading, config["report"]) if config["report"] else []


def _unlogged(folder: Path) -> list[str]:
    """Return the files of an unfinished run in the folder that differ from its log for a sound reason.

    These are all that it writes, if it was killed, and else faces that were removed so that they are drawn again.
    """
    if not (folder / RECORD).is_file():
        return []
    record = read_record(folder, local_paths=False)
    runs = [entry for entry in read_log(folder).entries if entry["action"].startswith("drawing")]
    if record["finished"] or not runs:
        return []
    gone = [name for name in record["files"] if not (folder / name).exists()]
    return list(runs[-1]["details"].get("writes", gone))


def _edited(job: Job) -> list[dict[str, Any]]:
    """Return the given landmarks with their hashes, and the hash of each before it was edited, where a log has it."""
    if not isinstance(job.landmarks, StoredLandmarks) or job.landmarks.source != "given":
        return []
    folder = next(iter(job.landmarks.files.values())).parent
    before = read_log(folder).files
    entries: list[dict[str, Any]] = [
        {
            "file": file.name,
            "before": before.get(file.name, {}).get("sha256"),
            "sha256": job.landmarks.hashes[name],
        }
        for name, file in job.landmarks.files.items()
    ]
    edited = [entry for entry in entries if entry["before"] not in (None, entry["sha256"])]
    if edited:
        append(folder, "landmarks edited", {"landmarks": edited}, [entry["file"] for entry in edited])
    return entries
