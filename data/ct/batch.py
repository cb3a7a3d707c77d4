"""A folder of patients becomes pairs and a manifest, by several processes; a stopped run goes on where it stopped.

Layout under OUT: ``pairedCS/{skull,craniofacial}/<code>.png``, ``meshes/{skull,face}/<code>.ply``,
``reports/<code>.json`` (written last: it marks a finished scan), ``split_data/all.json`` (JSON lines),
``summary.csv`` and ``summary.json`` (status, flags), ``ct.json`` (the settings). Nothing under OUT names a patient.
"""

from __future__ import annotations

import csv
import faulthandler
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from pydantic import BaseModel
from tqdm import tqdm

from data.ct.config import CtConfig
from data.ct.drawing import bytes_of, draw_scan, refused
from data.ct.findings import SEVERITIES, ScanError
from data.ct.people import SALT_BYTES, PeopleError, Person, make_salt, read_people, read_salt, write_codes
from data.ct.reading.decoding import LONGEST_S
from data.ct.reading.kinds import suffix_of
from data.ct.reference import reference
from data.files import check_output, write_text
from data.workers import JOBS_EACH, alone, claim, make_folders, work_off
from settings.parsing import ContentError, read_json

SPLITS = "split_data"
FOLDERS = {
    "skull.png": "pairedCS/skull",
    "face.png": "pairedCS/craniofacial",
    "skull.ply": "meshes/skull",
    "face.ply": "meshes/face",
    "report.json": "reports",
}
STATUSES = ("ok", "flagged", "refused")
_LISTED = 10  # ids in a message
KILLED = (
    "the process that worked on it was killed, also when it was alone: the scan is damaged, larger than the memory (a "
    "smaller max_gib refuses it), or takes more than an hour; to try again, delete its report"
)


class _Finding(BaseModel):
    name: str
    severity: str
    text: str


class _Report(BaseModel):
    status: Literal["ok", "flagged", "refused"]
    findings: list[_Finding]


def run_batch(patients: Path, out: Path, config: CtConfig, progress: bool = True) -> dict[str, int]:
    """Draw everyone in the CSV who is not drawn yet. Return how many are ok, flagged and refused.

    Raises:
        PeopleError: the CSV, the salt, or patients without a scan.
        ValueError: ``out`` belongs to another run, holds ``private``, or cannot be written to.
    """
    reference()  # fails here, not in a worker
    private = Path(config.private) if config.private else out.with_name(out.name + ".private")
    if private.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"private={private} lies in {out}, which is meant to be shared: choose a folder outside it"
        )
    check_output(private, 0)
    check_output(out, bytes_of(config))
    salt = read_salt(private)
    people = read_people(Path(config.biometrics), salt or bytes(SALT_BYTES))
    scans = find_scans(patients, people)
    claim(out / "ct.json", config.identity())
    if salt is None:  # all that may be refused was accepted
        people = read_people(Path(config.biometrics), make_salt(private))
    write_codes(private, people)
    with alone(out / "ct.json"):
        folders = [folder for name, folder in FOLDERS.items() if config.meshes or not name.endswith(".ply")]
        make_folders(out, ("", SPLITS, *folders))
        for folder in folders:
            check_output(out / folder, 0)
        jobs = [
            (p.code, scans[p.identity]) for p in people if not _paths(out, p.code)["report.json"].is_file()
        ]
        check_output(out, bytes_of(config) * len(jobs))
        finished = len(people) - len(jobs)
        with tqdm(total=len(people), initial=finished, unit="scan", disable=not progress) as bar:
            _draw_all(out, config, jobs, bar)
        make_folders(out, folders)  # what a killed process left
        return _write_lists(out, people)


def find_scans(patients: Path, people: list[Person]) -> dict[str, Path]:
    """Return each patient's scan: the folder named by the id, or the file whose name without its ending is the id.

    Raises: PeopleError naming the ids that have none or several.
    """
    if not patients.is_dir():
        raise PeopleError(f"{patients}: expected a folder with one folder or file a patient")
    scans: dict[str, list[Path]] = {}
    for path in sorted(patients.iterdir()):
        suffix = suffix_of(path) if path.is_file() else ""
        if (suffix or path.is_dir()) and not path.name.startswith("."):
            identity = normalize("NFC", path.name[: len(path.name) - len(suffix)])
            scans.setdefault(identity, []).append(path)
    ids = [person.identity for person in people]
    none, several = [i for i in ids if i not in scans], [i for i in ids if len(scans.get(i, [])) > 1]
    problems = [
        f"{what} for {', '.join(some[:_LISTED])}{' ...' if some[_LISTED:] else ''}"
        for what, some in (("no scan", none), ("several scans", several))
        if some
    ]
    if problems:
        raise PeopleError(f"{patients}: {'; '.join(problems)}: name each folder or file by the id in the CSV")
    spare = len(set(scans) - set(ids))
    if spare:
        print(f"data.ct: {spare} folders or files belong to nobody in the CSV: left out", file=sys.stderr)
    return {identity: scans[identity][0] for identity in ids}


def _paths(out: Path, code: str) -> dict[str, Path]:
    """Return where the files of a scan go, by their names in ``data.ct.drawing``."""
    return {name: out / folder / f"{code}{Path(name).suffix}" for name, folder in FOLDERS.items()}


def _draw_all(out: Path, config: CtConfig, jobs: list[tuple[str, Path]], bar: tqdm[Any]) -> None:
    """Draw all scans. Where a process is killed, those under way are drawn again in one process, one after the other.

    A scan that is first in the line when this process is killed as well is refused.
    """
    draw = partial(_in_time, _draw, LONGEST_S, out, config)
    suspects: list[tuple[str, Path]] = []
    while jobs:
        killed = False
        try:
            work_off(draw, suspects or jobs, 1 if suspects else config.num_workers, bar)
        except ChildProcessError:
            killed = True
        jobs = [job for job in jobs if not _paths(out, job[0])["report.json"].is_file()]
        if killed and suspects:
            code, _ = jobs.pop(0)
            refused(KILLED).write(_paths(out, code), subject=code)
        bar.n = (bar.total or 0) - len(jobs)
        under_way = suspects if suspects else jobs[: JOBS_EACH * config.num_workers]
        suspects = [job for job in jobs if job in under_way] if killed else []


def _in_time(work: Callable[..., None], seconds: float, *arguments: Any) -> None:
    """Do ``work`` in a worker without stderr. If it takes longer, as a decoder that hangs, the process ends itself."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)  # decoders written in C write warnings there that quote file names
    faulthandler.dump_traceback_later(seconds, exit=True)
    work(*arguments)
    faulthandler.cancel_dump_traceback_later()


def _draw(out: Path, config: CtConfig, job: tuple[str, Path]) -> None:
    """Draw one scan, its refusal included; ``job``: a study code and where the scan is."""
    code, path = job
    try:
        drawing = draw_scan(path, config)
    except ScanError as error:
        drawing = refused(str(error))
    except Exception as error:  # a batch goes on; the error may quote the scan, so only its kind is kept
        drawing = refused(
            f"it could not be worked on ({type(error).__name__}): run this scan alone to see why"
        )
    drawing.write(_paths(out, code), subject=code)


def _write_lists(out: Path, people: list[Person]) -> dict[str, int]:
    """Write the manifest and both summaries from the reports; return how many scans have each status."""
    lines: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["code", "status", "refused_because", "flags", "notes"])
    for person in sorted(people, key=lambda p: p.code):
        try:
            report = read_json(_paths(out, person.code)["report.json"], _Report)
        except ContentError as error:
            raise ContentError(f"{error}; delete it and the scan is drawn again") from error
        code, status, findings = person.code, report.status, report.findings
        named: dict[str, list[str]] = {s: [f.name for f in findings if f.severity == s] for s in SEVERITIES}
        why = "; ".join(f.text for f in findings if f.severity == "refuse")
        rows.append({"code": code, "status": status, "refused_because": why, **named})
        writer.writerow([code, status, why, " ".join(named["flag"]), " ".join(named["note"])])
        if status != "refused":
            extra = {"ct": {"status": status, "flags": named["flag"]}}
            name = f"{code}.png"
            lines.append({"source": name, "target": name, **person.manifest_fields(), "extra": extra})
    tally = Counter(row["status"] for row in rows)
    counts = {status: tally[status] for status in STATUSES}
    write_text(out / SPLITS / "all.json", "".join(json.dumps(line) + "\n" for line in lines))
    write_text(out / "summary.json", json.dumps({"counts": counts, "scans": rows}, indent=1) + "\n")
    write_text(out / "summary.csv", table.getvalue())
    return counts
