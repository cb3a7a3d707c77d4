"""A folder of patients becomes pairs and a manifest, by several processes; a stopped run is gone on with.

Layout under OUT: ``pairedCS/{skull,craniofacial}/<code>.png``, ``meshes/{skull,face}/<code>.ply``,
``reports/<code>.json`` (written last: it marks a finished scan), ``split_data/all.json`` (JSON lines),
``summary.csv`` and ``summary.json`` (status, flags), ``ct.json`` (the settings). Nothing under OUT names a patient.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.ct.config import CtConfig
from data.ct.drawing import CaseFiles, make_case, refused, write_case, write_text
from data.ct.people import PeopleError, Person, read_people, read_salt, write_codes
from data.ct.reading.scan import ScanError
from data.ct.reading.volumes import suffix_of
from data.ct.reference import reference
from data.workers import alone, begin, processes

SKULLS, FACES, REPORTS, SPLITS = "pairedCS/skull", "pairedCS/craniofacial", "reports", "split_data"
SKULL_MESHES, FACE_MESHES = "meshes/skull", "meshes/face"
Job = tuple[str, Path]  # a study code and where its scan is


def run_batch(patients: Path, out: Path, config: CtConfig, progress: bool = True) -> dict[str, int]:
    """Draw everyone in the CSV who is not drawn yet. Returns how many are ok, flagged and refused.

    Raises:
        PeopleError: the CSV, the salt, or patients without a scan.
        ValueError: ``out`` belongs to another run, or holds ``private``.
        ChildProcessError: a worker was killed.
    """
    reference()  # fails here, not in a worker
    private = Path(config.private) if config.private else out.with_name(out.name + ".private")
    if out.resolve() in (private.resolve(), *private.resolve().parents):
        raise ValueError(
            f"private={private} lies in {out}, which is meant to be shared: choose a folder outside it"
        )
    salt = read_salt(private)
    people = read_people(Path(config.biometrics), salt)
    scans = find_scans(patients, people)
    write_codes(private, people)
    _claim(out, config)
    with alone(out / "ct.json"):
        for folder in (
            SKULLS,
            FACES,
            REPORTS,
            SPLITS,
            *((SKULL_MESHES, FACE_MESHES) if config.meshes else ()),
        ):
            (out / folder).mkdir(parents=True, exist_ok=True)
            for left_over in (out / folder).glob(".*.tmp"):
                left_over.unlink(missing_ok=True)
        jobs = [
            (p.code, scans[p.identity]) for p in people if not (out / REPORTS / f"{p.code}.json").is_file()
        ]
        with tqdm(
            total=len(people), initial=len(people) - len(jobs), unit="scan", disable=not progress
        ) as bar:
            for _ in _run_workers(out, config, jobs):
                bar.update()
        return _write_lists(out, people)


def find_scans(patients: Path, people: list[Person]) -> dict[str, Path]:
    """Where each patient's scan is: the folder named by the id, or the file whose name without its ending is the id.

    Raises: PeopleError naming the ids that have none, and counting what nobody in the CSV belongs to.
    """
    if not patients.is_dir():
        raise PeopleError(f"{patients}: expected a folder with one folder or file a patient")
    found: dict[str, list[Path]] = {}
    for path in sorted(patients.iterdir()):
        suffix = suffix_of(path) if path.is_file() else ""
        if suffix is not None and not path.name.startswith("."):
            found.setdefault(path.name[: len(path.name) - len(suffix)], []).append(path)
    wanted = [person.identity for person in people]
    missing = [identity for identity in wanted if identity not in found]
    double = [identity for identity in wanted if len(found.get(identity, [])) > 1]
    if missing or double:
        parts = (
            [f"no scan for {', '.join(missing[:10])}" + (" ..." if len(missing) > 10 else "")]
            if missing
            else []
        )
        parts += [f"several scans for {', '.join(double[:10])}"] if double else []
        raise PeopleError(f"{patients}: {'; '.join(parts)}: name each folder or file by the id in the CSV")
    spare = len(set(found) - set(wanted))
    if spare:
        print(
            f"data.ct: {spare} folders or files are of nobody in the CSV, and are left out", file=sys.stderr
        )
    return {identity: found[identity][0] for identity in wanted}


def _claim(out: Path, config: CtConfig) -> None:
    """Write ``ct.json``, or check that the one which is there has the same settings."""
    record = out / "ct.json"
    wanted = config.identity()
    if record.is_file():
        stored = json.loads(record.read_text(encoding="utf-8"))
        different = [key for key in sorted({*stored, *wanted}) if stored.get(key) != wanted.get(key)]
        if different:
            raise ValueError(
                f"{out} was made with other settings ({', '.join(different)}): choose another folder or delete it"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and has no ct.json: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(wanted, indent=1) + "\n")


def _run_workers(out: Path, config: CtConfig, jobs: list[Job]) -> Iterator[str]:
    """Yields the code of each scan once its files are there."""
    if not jobs:
        return
    killed = (
        f"a worker process was killed (out of memory?): use fewer than num_workers={config.num_workers}, or a "
        "smaller max_gib; the same command goes on"
    )
    with processes(min(config.num_workers, len(jobs)), _start_worker, (out, config), killed) as pool:
        for future in as_completed([pool.submit(_work, job) for job in jobs]):
            yield future.result()


_job: tuple[Path, CtConfig]  # of this worker process


def _start_worker(out: Path, config: CtConfig) -> None:
    global _job
    begin()
    # Decoders written in C complain on their own, and quote file names: nobody is to read them in a log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _job = out, config


def _work(job: Job) -> str:
    out, config = _job
    code, path = job
    draw(path, code, out, config)
    return code


def draw(path: Path, code: str, out: Path, config: CtConfig) -> None:
    """One scan of a batch, its refusal included."""
    try:
        case = make_case(path, config)
    except ScanError as error:
        case = refused(error)
    except (
        Exception
    ) as error:  # a batch goes on; what the error says may quote the scan, so only its kind is kept
        kind = type(error).__name__
        case = refused(ScanError(f"it could not be worked on ({kind}): run this scan alone to see why"))
    files = CaseFiles(
        skull=out / SKULLS / f"{code}.png",
        face=out / FACES / f"{code}.png",
        bone=out / SKULL_MESHES / f"{code}.ply" if config.meshes else None,
        skin=out / FACE_MESHES / f"{code}.ply" if config.meshes else None,
        report=out / REPORTS / f"{code}.json",
    )
    write_case(case, files, subject=code)


def _write_lists(out: Path, people: list[Person]) -> dict[str, int]:
    counts = {"ok": 0, "flagged": 0, "refused": 0}
    lines, rows = [], []
    for person in sorted(people, key=lambda p: p.code):
        report: dict[str, Any] = json.loads(
            (out / REPORTS / f"{person.code}.json").read_text(encoding="utf-8")
        )
        status = str(report["status"])
        counts[status] += 1
        named = {
            severity: [f["name"] for f in report["findings"] if f["severity"] == severity]
            for severity in ("refuse", "flag", "note")
        }
        why = "; ".join(f["text"] for f in report["findings"] if f["severity"] == "refuse")
        rows.append({"code": person.code, "status": status, "refused_because": why, **named})
        if status != "refused":
            name = f"{person.code}.png"
            extra = {"ct": {"status": status, "flags": named["flag"]}}
            lines.append({"source": name, "target": name, **person.manifest_fields(), "extra": extra})
    write_text(out / SPLITS / "all.json", "".join(json.dumps(line) + "\n" for line in lines))
    write_text(out / "summary.json", json.dumps({"counts": counts, "scans": rows}, indent=1) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["code", "status", "refused_because", "flags", "notes"])
    for row in rows:
        writer.writerow(
            [row["code"], row["status"], row["refused_because"], " ".join(row["flag"]), " ".join(row["note"])]
        )
    write_text(out / "summary.csv", table.getvalue())
    return counts
