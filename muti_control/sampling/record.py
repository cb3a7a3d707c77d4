"""What a sampling run leaves beside its faces: the record, each face's own settings, the contact sheets."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from cldm.record import FORMAT
from data.biometrics import describe_briefly
from data.cases import Case, read_skull
from data.images import read_image, to_uint8, write_png
from data.sheet import NOTICE, SheetRow, contact_sheet
from ldm.checkpoint import sha256
from muti_control.sampling.job import ROWS_PER_SHEET, Job, face_name

TEXT_KEY = "iccr-diff"


def run_record(job: Job) -> dict[str, Any]:
    """The record as it stands while the run is under way: ``"finished": false``, no hashes of faces."""
    cases = [
        {
            "name": case.name,
            "skull": None
            if case.skull_path is None
            else {"path": str(case.skull_path), "sha256": job.hashes[case.skull_path]},
            "note": None if case.skull_path is None else job.notes.get(case.skull_path),
            "true_face": None
            if case.face_path is None
            else {"path": str(case.face_path), "sha256": job.hashes[case.face_path]},
            "biometrics": None if case.biometrics is None else asdict(case.biometrics),
            "prompt": case.prompt,
            "missing_bone": _missing(case),
            "landmarks": None if job.landmarks is None else job.landmarks.describe(case),
            "texture": None if job.textures is None else job.textures.describe(case),
            "guidance_target": None if job.guidance is None else job.guidance.target(case),
            "faces": [
                {"file": face_name(case, k), "seed": seed + case.seed_offset}
                for k, seed in enumerate(job.seeds)
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
        "architecture": job.model.cfg.model_dump(),
        "manifest": None if job.manifest is None else dict(job.manifest),
        "sampling": job.sampling.model_dump(),
        "guidance": None if job.guidance is None else job.guidance.describe(),
        "config": yaml.safe_load(job.config),
        "environment": dict(job.environment),
        "earlier_runs": [dict(run) for run in job.folder.earlier_runs],
        "cases": cases,
        "files": job.files,
    }


def face_text(job: Job, case: Case, seed: int) -> dict[str, Any]:
    """The settings of one picture, for its text chunk: no folder names, date or number of a GPU, so that repeats are
    identical."""
    return {
        "notice": NOTICE,
        "skull": None
        if case.skull_path is None
        else {"file": case.skull_path.name, "sha256": job.hashes[case.skull_path]},
        "prompt": case.prompt,
        **({} if case.missing is None else {"missing_bone": _missing(case)}),
        **({} if job.landmarks is None else {"landmarks": job.landmarks.describe(case)}),
        **({} if job.textures is None else {"texture": job.textures.describe(case)}),
        "seed": seed,
        "sampling": job.sampling.model_dump(),
        **({} if job.guidance is None else {"guidance": job.guidance.describe(case)}),
        "weights": dict(job.weights),
        "environment": {key: job.environment.get(key) for key in ("iccr_diff", "git", "torch")}
        | {"device": job.model.device.type, "precision": job.environment["precision"]},
    }


def _missing(case: Case) -> dict[str, Any] | None:
    return None if case.missing is None else {"region": case.missing, "seed": case.missing_seed}


def add_hashes(record: dict[str, Any], folder: Path) -> None:
    """Enter the sha256 of every face of ``record`` into it."""
    for case_record in record["cases"]:
        for face_record in case_record["faces"]:
            face_record["sha256"] = sha256(folder / face_record["file"])


def sheet_footer(job: Job) -> list[str]:
    """The small lines below a contact sheet: what the faces were drawn with."""
    sampling = job.sampling
    guided = []
    if job.guidance is not None:
        guided = [f"guided: {job.guidance.cfg.summary}"]
    return [
        f"weights {job.weights['file']} (sha256 {job.weights['sha256'][:12]}), {sampling.steps} {sampling.sampler} "
        f"steps ({sampling.spacing}), eta {sampling.eta:g}, guidance {sampling.guidance_summary}",
        *guided,
    ]


def write_sheet(job: Job, page: int) -> None:
    """Draw and write contact sheet ``page`` (from 0) from the faces in the run's folder."""
    cases = job.cases[page * ROWS_PER_SHEET : (page + 1) * ROWS_PER_SHEET]
    sheet = contact_sheet([_sheet_row(job, case) for case in cases], sheet_footer(job))
    write_png(job.folder.path / job.sheet_names[page], sheet, {"Comment": NOTICE})


def _sheet_row(job: Job, case: Case) -> SheetRow:
    size, person = job.model.cfg.image_size, case.biometrics
    exemplar = None if job.textures is None else job.textures.path(case)
    skin = "" if exemplar is None else f", skin as in {exemplar.stem}"
    faces = []
    for k in range(len(job.seeds)):
        with Image.open(job.folder.path / face_name(case, k)) as image:
            faces.append(np.asarray(image))
    return SheetRow(
        title=case.name,
        detail=describe_briefly(person) if person else "nothing known of the person",
        skull=to_uint8(read_skull(case, size)),
        faces=faces,
        face_labels=[f"seed {seed + case.seed_offset}{skin}" for seed in job.seeds],
        truth=None if case.face_path is None else to_uint8(read_image(case.face_path, size)[0]),
    )
