"""What a run of ``sample.py`` leaves in the log of its folder, and its report."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from muti_control.case.contents import MAX_SKULLS, REPORTS, Heading
from muti_control.case.log import append, read_log
from muti_control.case.pages import check_installed
from muti_control.case.report import write_report
from muti_control.conditions.case_landmarks import StoredLandmarks
from muti_control.record import RECORD, read_record

if TYPE_CHECKING:
    from muti_control.sampling.job import Job


def begin(job: Job) -> None:
    """Log that a run begins, before anything else is written; log edited landmarks where they were written.

    Raises:
        ValueError: a report is wanted that cannot be made. OSError: the folder cannot be written to.
    """
    wanted, folder = yaml.safe_load(job.config)["report"], job.folder.path
    if wanted:
        check_installed(wanted == "pdf")
        if len(job.cases) > MAX_SKULLS:
            raise ValueError(
                f"report: got {len(job.cases)} skulls, expected at most {MAX_SKULLS}; limit=N takes fewer"
            )
    folder.mkdir(parents=True, exist_ok=True)
    before = read_record(folder) if (folder / RECORD).is_file() else {"finished": True, "files": ()}
    for name in (reports := stale(folder)):
        (folder / name).unlink(missing_ok=True)
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
    }
    action = "drawing resumed" if job.folder.earlier_runs else "drawing begun"
    append(folder, action, details, [*reports, *(() if before["finished"] else before["files"])])


def stale(folder: Path) -> list[str]:
    """Return the names of the reports of the run in a folder, which another run there replaces."""
    return [name for name in REPORTS if name in read_log(folder).files]


def end(job: Job) -> list[Path]:
    """Log that a run ended, and write the report that its settings ask for. Return the files of the report."""
    folder, config = job.folder.path, yaml.safe_load(job.config)
    append(
        folder,
        "faces drawn",
        {"faces": len(job.draws)},
        [*job.files, *(path.name for path in job.folder.outdated)],
    )
    heading = Heading(config["case_number"], config["examiner"])
    return write_report(folder, heading, config["report"]) if config["report"] else []


def _edited(job: Job) -> list[dict[str, str | None]]:
    """Return the given landmarks with their hashes, and the hash of each before it was edited, where a log has it."""
    if not isinstance(job.landmarks, StoredLandmarks) or job.landmarks.source != "given":
        return []
    logs = {
        folder: read_log(folder).files for folder in {file.parent for file in job.landmarks.files.values()}
    }
    entries, edited = [], defaultdict[Path, list[dict[str, str | None]]](list)
    for name, file in job.landmarks.files.items():
        before = logs[file.parent].get(file.name, {}).get("sha256")
        entries.append({"file": file.name, "before": before, "sha256": job.landmarks.hashes[name]})
        if before not in (None, job.landmarks.hashes[name]):
            edited[file.parent].append(entries[-1])
    for folder, changes in edited.items():
        append(
            folder, "landmarks edited", {"landmarks": changes}, [str(change["file"]) for change in changes]
        )
    return entries
