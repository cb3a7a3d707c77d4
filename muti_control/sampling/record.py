"""What a run leaves beside its faces - record, text chunks, contact sheets - and how a later run continues from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from data.biometrics import ATTRIBUTES, BODY_MASS_WORDS, describe
from data.cases import Case, read_skull
from data.images import read_image, to_uint8, write_png
from data.sheet import NOTICE, SheetRow, contact_sheet
from muti_control.conditions.case_landmarks import StoredLandmarks
from muti_control.record import FORMAT, RECORD, EarlierRun, OutputError
from muti_control.sampling.checking import doubts, worst
from muti_control.sampling.job import ROWS_PER_SHEET, Job, RunFolder, face_name
from muti_control.sampling.trace import trace_names
from settings.parsing import parse_json

MEASURED = {"spread_factor", "coverage", "error_rates", "made_with"}  # of a calibration
ReadFace = Callable[[Case, int], np.ndarray]
TEXT_KEY = "iccr-diff"
MAY_DIFFER = ("environment.iccr_diff", "environment.git", "environment.torch", "environment.device")
"""What may differ between the beginning of a run and its end; the record keeps it for each."""
ABSENT = {"sampling.grain": True}
"""The value behind a face that is older than the setting."""


def run_record(job: Job) -> dict[str, Any]:
    """Return the record of a run under way: ``"finished": false``, no hashes of faces."""
    cases = [
        {
            "name": case.name,
            "skull": _picture(case.skull_path, job.hashes, case.picture),
            "note": None if case.skull_path is None else job.notes.get(case.skull_path),
            "true_face": _picture(case.face_path, job.hashes),
            "attributes": case.attributes.sources(case.biometrics),
            "biometrics": None if case.biometrics is None else asdict(case.biometrics),
            "prompt": case.prompt
            if case.biometrics or not case.attributes.known
            else None,  # None: each face's own
            "check": job.checks.get(case.name),
            "missing_bone": _missing(case),
            "mm_per_px": case.mm_per_px,
            "scan": None if case.scan is None else dict(case.scan),
            "landmarks": None if job.landmarks is None else job.landmarks.describe(case),
            "texture": None if job.textures is None else job.textures.describe(case),
            "spgd_target": None if job.spgd is None else job.spgd.target(case),
            "outputs": job.outputs_of(case),
            "faces": [
                {
                    "file": face_name(own, k),
                    "seed": seed,
                    "prompt": own.prompt,
                    "attributes": own.attributes.sources(own.biometrics),
                }
                for own, k, seed in job.draws_of(case)
            ],
        }
        for case in job.cases
    ]
    return {
        "format": FORMAT,
        "notice": NOTICE,
        "finished": False,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": dict(job.weights),
        "calibration": None if job.calibration is None else job.calibration.model_dump(include=MEASURED),
        "architecture": job.model.cfg.model_dump(),
        "manifest": None if job.manifest is None else dict(job.manifest),
        "sampling": job.sampling.model_dump(),
        "spgd": None if job.spgd is None else job.spgd.describe(),
        "config": yaml.safe_load(job.config),
        "environment": dict(job.environment),
        "earlier_runs": [dict(run) for run in job.folder.earlier_runs],
        "check": worst(job.checks),
        "not_drawn": [name for name, check in job.checks.items() if not check["drawn"]],
        "cases": cases,
        "files": job.files,
    }


def _picture(
    path: Path | None, hashes: Mapping[Path, str], in_memory: bytes | None = None
) -> dict[str, Any] | None:
    """Return path, SHA-256 and size in bytes; a file in a pack has no size."""
    if path is None:
        return None
    size = len(in_memory) if in_memory is not None else path.stat().st_size if path.is_file() else None
    return {"path": str(path), "sha256": hashes[path]} | ({} if size is None else {"size": size})


def _assumes(case: Case) -> bool:
    """Return whether a drawn face has values that nobody stated; the sources of others follow from the prompt."""
    return bool(case.attributes.known) and case.attributes.biometrics is None


def _missing(case: Case) -> dict[str, Any] | None:
    return None if case.missing is None else {"region": case.missing, "seed": case.missing_seed}


def face_text(job: Job, case: Case, seed: int) -> dict[str, Any]:
    """Return the settings of one picture, for its text chunk.

    Repeats give the same text: it holds no folder, no date and no number of a GPU.
    """
    skull = case.skull_path
    return {
        "notice": NOTICE,
        "skull": None if skull is None else {"file": skull.name, "sha256": job.hashes[skull]},
        "prompt": case.prompt,
        **({"attributes": case.attributes.sources(case.biometrics)} if _assumes(case) else {}),
        **({"prepared": job.checks[case.name]["prepared"]} if case.prepared else {}),
        **({} if case.missing is None else {"missing_bone": _missing(case)}),
        **({} if job.landmarks is None else {"landmarks": job.landmarks.describe(case)}),
        **({} if job.textures is None else {"texture": job.textures.describe(case)}),
        "seed": seed,
        "sampling": job.sampling.model_dump(),
        **({} if job.spgd is None else {"spgd": job.spgd.describe(case)}),
        "weights": dict(job.weights),
        "environment": {key: job.environment.get(key) for key in ("iccr_diff", "git", "torch")}
        | {"device": job.model.device.type, "precision": job.environment["precision"]},
    }


def write_sheet(job: Job, page: int) -> None:
    """Draw and write contact sheet ``page`` (from 0) from the faces in the run's folder."""
    cases = job.cases[page * ROWS_PER_SHEET : (page + 1) * ROWS_PER_SHEET]
    sheet = sheet_of(job, cases, partial(read_face, job))
    write_png(job.folder.path / job.sheet_names[page], sheet, {"Comment": NOTICE})


def sheet_of(job: Job, cases: Sequence[Case], read: ReadFace) -> np.ndarray:
    """Return the contact sheet of some cases, (H, W, 3) uint8; ``read`` returns face k of a case."""
    sampling = job.sampling
    footer = [
        f"weights {job.weights['file']} (sha256 {job.weights['sha256'][:12]}), {sampling.steps} {sampling.sampler} "
        f"steps ({sampling.spacing}), eta {sampling.eta:g}, guidance {sampling.guidance_summary}"
    ]
    if job.spgd is not None:
        footer.append(f"SPGD: {job.spgd.cfg.summary}")
    return contact_sheet([_sheet_row(job, case, read) for case in cases], footer)


def _sheet_row(job: Job, case: Case, read: ReadFace) -> SheetRow:
    size = job.model.cfg.image_size
    draws, person = job.draws_of(case), case.attributes.biometrics
    return SheetRow(
        title=case.name,
        detail=(describe(person) if person else str(case.attributes)) + doubts(job.checks.get(case.name)),
        skull=to_uint8(read_skull(case, size)),
        faces=[read(own, k) for own, k, _ in draws],
        face_labels=[f"seed {seed}{_shaped_by(job, own)}" for own, _, seed in draws],
        truth=None if case.face_path is None else to_uint8(read_image(case.face_path, size)[0]),
    )


def read_face(job: Job, case: Case, k: int) -> np.ndarray:
    """Return face ``k`` of a case as it was written, (H, W, 3) uint8."""
    with Image.open(job.folder.path / face_name(case, k)) as image:
        return np.asarray(image)


def _shaped_by(job: Job, case: Case) -> str:
    """Return what shaped a face beside skull, prompt and landmarks that were read off the skull, for its caption."""
    parts = []
    if _assumes(case) and case.biometrics is not None:
        known = case.attributes.known
        values = {**vars(case.biometrics), "age": f"{case.biometrics.age:g} y"}
        values["body_mass"] = BODY_MASS_WORDS[case.biometrics.body_mass]
        told = [
            str(values[name]) for name in ATTRIBUTES if name not in known or isinstance(known[name], tuple)
        ]
        parts.append(f"assumed {', '.join(told)}")
    if isinstance(job.landmarks, StoredLandmarks):
        parts.append("own landmarks" if job.landmarks.source == "given" else "landmarks of the true face")
    elif job.landmarks is None and job.model.has_trained("landmarks"):
        parts.append("no landmarks")
    exemplar = None if job.textures is None else job.textures.path(case)
    parts += [] if exemplar is None else [f"skin as in {exemplar.stem}"]
    parts += [] if case.missing is None else [f"without {case.missing} bone"]
    parts += [] if job.spgd is None else [f"SPGD {job.spgd.cfg.mode}"]
    return "".join(f", {part}" for part in parts)


def resumed(job: Job, earlier: EarlierRun) -> RunFolder:
    """Return the folder of ``job`` with the faces of ``earlier`` that it can keep.

    Every face carries the settings behind it; a face with others belongs to another run, but for versions and machine.
    A face without its trace is drawn again where traces are wanted.

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
    present = {file.name for file in earlier.files}
    done: set[str] = set()
    retained: set[str] = set()
    for name in sorted(present & set(draws)):
        _check_same(path / name, face_text(job, *draws[name]))
        traces = trace_names(name) if job.traced else ()
        if present.issuperset(traces):
            done.add(name)
            retained.update((name, *traces))
    return RunFolder(
        path,
        outdated=[file for file in earlier.files if file.name not in retained],
        done=frozenset(done),
        earlier_runs=[*runs, before | {"faces_kept": len(done)}],
    )


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise OutputError unless the face carries these settings."""
    try:
        with Image.open(path) as image:
            image.load()
            text = parse_json(image.info[TEXT_KEY], TEXT_KEY)
            text["spgd"] = text.get("spgd", text.pop("guidance", None))  # as it was called at first
            old = dict(_flat(text))
    except (OSError, ValueError, KeyError, SyntaxError, AttributeError, TypeError) as error:
        raise OutputError(
            f"out: {path} is no whole face of an earlier run ({type(error).__name__}: {error}); "
            "remove it, and it is drawn again"
        ) from error
    new = dict(_flat(settings))
    for key in (*new, *(key for key in old if key not in new)):
        if key not in MAY_DIFFER and old.get(key, ABSENT.get(key)) != new.get(key):
            raise OutputError(
                f"out: {path} was drawn with {key} {old.get(key)}, now it is {new.get(key)}; resume=true continues a "
                "run with its own settings: undo that, or give another out=FOLDER"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
