"""From cases to a folder of faces: batches through the sampler, pictures, contact sheets and the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tqdm import tqdm

from cldm.controlled import ControlledLatentDiffusion
from cldm.record import FORMAT, RECORD, write_json
from cldm.sampling import SamplingConfig, reconstruct
from data.biometrics import describe
from data.cases import Case
from data.images import read_image, to_uint8, write_png
from data.sheet import NOTICE, SheetRow, contact_sheet
from ldm.checkpoint import sha256

TEXT_KEY = "iccr-diff"
ROWS_PER_SHEET = 12


class ReconstructionError(ValueError):
    """The model gave something that is no picture."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes, and the files of an earlier run there that it replaces."""

    path: Path
    outdated: Sequence[Path] = ()

    def start(self) -> None:
        """Make the folder and remove the earlier run."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self.outdated:
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A run that was checked and can start.

    seeds: one face per case and seed. notes: what was done to a skull picture, by its path.
    weights: file name, sha256 and step. environment: of ``cldm.record``. config: the resolved settings as YAML.
    manifest: its path and sha256, where the skulls come from one.
    """

    model: ControlledLatentDiffusion
    cases: Sequence[Case]
    notes: Mapping[Path, str]
    seeds: Sequence[int]
    sampling: SamplingConfig
    batch_size: int
    folder: RunFolder
    weights: Mapping[str, str]
    environment: Mapping[str, Any]
    config: str
    manifest: Mapping[str, str] | None = None

    @property
    def draws(self) -> list[tuple[Case, int, int]]:
        """Every face of the run: its case, its number within the case, its seed."""
        return [(case, k, seed) for case in self.cases for k, seed in enumerate(self.seeds)]

    @property
    def sheet_names(self) -> list[str]:
        """File names of the contact sheets: one for each twelve cases."""
        pages = -(-len(self.cases) // ROWS_PER_SHEET)
        return ["contact_sheet.png"] + [f"contact_sheet-{page}.png" for page in range(2, pages + 1)]

    @property
    def files(self) -> list[str]:
        """Names of all files the run writes."""
        return [*self.sheet_names, *(face_name(case, k) for case, k, _ in self.draws), RECORD]

    def introduction(self) -> list[str]:
        """What the user should know before the run starts, a line each."""
        skulls, faces = len(self.cases), len(self.seeds)
        lines = [
            f"{skulls} skull{'s' * (skulls != 1)}, {faces} face{'s' * (faces != 1)} each: {self.sampling.steps} steps "
            f"on {self.environment['device']} ({self.environment['precision']}), weights {self.weights['file']}"
        ]
        lines += [f"note: {path}: {note}" for path, note in self.notes.items()]
        if any(case.biometrics is None for case in self.cases):
            lines.append(
                "note: no sex, age or body mass given: the prompt is empty, only the skull shapes the face"
            )
        assumed = sorted(
            {c.biometrics.ethnicity for c in self.cases if c.biometrics and not c.ethnicity_given}
        )
        if assumed:
            lines.append(
                f"note: ethnicity not given: the prompt says {' or '.join(assumed)}; ethnicity=... changes it"
            )
        return lines


def face_name(case: Case, k: int) -> str:
    """File name of face ``k`` of a case."""
    return f"{case.name}_{k}.png"


def recommended_sampling(metadata: Mapping[str, str], num_control_outputs: int) -> dict[str, Any]:
    """The sampler settings a checkpoint recommends (JSON under ``sampling`` in its metadata).

    Without any: SD1.5's, but with all control scales 1 if the network does not have SD1.5's thirteen residuals.

    Raises:
        ValueError: the entry is no JSON object.
    """
    if "sampling" not in metadata:
        standard = len(SamplingConfig().control_scales) == num_control_outputs
        return {} if standard else {"control_scales": [1.0]}
    try:
        settings = json.loads(metadata["sampling"])
    except ValueError as error:
        raise ValueError(f"weights: their metadata entry 'sampling' is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"weights: their metadata entry 'sampling' is {settings!r}, expected a JSON object")
    return settings


def draw_faces(
    model: ControlledLatentDiffusion,
    draws: Sequence[tuple[Case, int, int]],
    sampling: SamplingConfig,
    progress: Any = None,
) -> list[np.ndarray]:
    """One batch of faces, each (H, W, 3) uint8. Each depends on its own skull, prompt and seed, not on the batch.

    Args:
        draws: of ``Job.draws``.
        progress: called as (steps done, steps in all).

    Raises:
        ReconstructionError: values that are not finite.
    """
    skulls = np.stack(
        [read_image(case.skull_path, model.cfg.image_size)[0] for case, _, _ in draws]
    )  # (B, H, W, 3)
    faces = reconstruct(
        model,
        torch.from_numpy(skulls).permute(0, 3, 1, 2),
        [case.prompt for case, _, _ in draws],
        [seed for _, _, seed in draws],
        sampling,
        progress=progress,
    )  # (B, 3, H, W) in [0, 1]
    if not bool(torch.isfinite(faces).all()):
        raise ReconstructionError(
            f"the model gave values that are no numbers in {str(model.dtype).removeprefix('torch.')}; "
            "try precision=fp32, and check the weights"
        )
    return list(to_uint8(faces.permute(0, 2, 3, 1).numpy()))


def reconstruct_cases(job: Job) -> None:
    """Draw and write every face, the contact sheets and the record.

    The record stands there from the beginning with ``"finished": false``, so that a run that broke off is known as one.

    Raises:
        ReconstructionError: the model gave something that is no picture.
    """
    folder = job.folder.path
    job.folder.start()
    record = _record(job)
    write_json(folder / RECORD, record)
    draws = job.draws
    batches = [draws[i : i + job.batch_size] for i in range(0, len(draws), job.batch_size)]
    texts = {case.name: case_record for case, case_record in zip(job.cases, record["cases"], strict=True)}
    with tqdm(
        total=len(batches) * job.sampling.steps, unit=" steps", disable=None, dynamic_ncols=True
    ) as bar:
        for i, batch in enumerate(batches):
            first = i * job.batch_size + 1
            bar.set_description(f"face {first} to {first + len(batch) - 1} of {len(draws)}")
            faces = draw_faces(job.model, batch, job.sampling, lambda done, total: bar.update(1))
            for (case, k, seed), face in zip(batch, faces, strict=True):
                text = {TEXT_KEY: json.dumps(_face_text(job, texts[case.name], seed), ensure_ascii=False)}
                write_png(folder / face_name(case, k), face, text | {"Comment": NOTICE})
    _write_sheets(job)
    for case_record in record["cases"]:
        for face_record in case_record["faces"]:
            face_record["sha256"] = sha256(folder / face_record["file"])
    write_json(folder / RECORD, record | {"finished": True})


def _record(job: Job) -> dict[str, Any]:
    cases = [
        {
            "name": case.name,
            "skull": {"path": str(case.skull_path), "sha256": sha256(case.skull_path)},
            "note": job.notes.get(case.skull_path),
            "true_face": None
            if case.face_path is None
            else {"path": str(case.face_path), "sha256": sha256(case.face_path)},
            "biometrics": None if case.biometrics is None else asdict(case.biometrics),
            "prompt": case.prompt,
            "faces": [{"file": face_name(case, k), "seed": seed} for k, seed in enumerate(job.seeds)],
        }
        for case in job.cases
    ]
    return {
        "format": FORMAT,
        "notice": NOTICE,
        "finished": False,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": dict(job.weights),
        "architecture": asdict(job.model.cfg),
        "manifest": None if job.manifest is None else dict(job.manifest),
        "sampling": asdict(job.sampling),
        "config": yaml.safe_load(job.config),
        "environment": dict(job.environment),
        "cases": cases,
        "files": job.files,
    }


def _face_text(job: Job, case_record: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The settings of one picture, for its text chunk: no folder names and no date, so that repeats are identical."""
    skull = case_record["skull"]
    return {
        "notice": NOTICE,
        "skull": {"file": Path(skull["path"]).name, "sha256": skull["sha256"]},
        "prompt": case_record["prompt"],
        "seed": seed,
        "sampling": asdict(job.sampling),
        "weights": dict(job.weights),
        "environment": {
            key: job.environment.get(key) for key in ("iccr_diff", "git", "torch", "device", "precision")
        },
    }


def _write_sheets(job: Job) -> None:
    size = job.model.cfg.image_size
    sampling = job.sampling
    footer = [
        f"weights {job.weights['file']} (sha256 {job.weights['sha256'][:12]}), {sampling.steps} steps "
        f"({sampling.spacing}), eta {sampling.eta:g}, guidance {sampling.guidance_scale:g}"
    ]
    for page, name in enumerate(job.sheet_names):
        rows = []
        for case in job.cases[page * ROWS_PER_SHEET : (page + 1) * ROWS_PER_SHEET]:
            person = case.biometrics
            faces = []
            for k in range(len(job.seeds)):
                with Image.open(job.folder.path / face_name(case, k)) as image:
                    faces.append(np.asarray(image))
            rows.append(
                SheetRow(
                    title=case.name,
                    detail=describe(person) if person else "nothing known of the person",
                    skull=to_uint8(read_image(case.skull_path, size)[0]),
                    faces=faces,
                    face_labels=[f"seed {seed}" for seed in job.seeds],
                    truth=None if case.face_path is None else to_uint8(read_image(case.face_path, size)[0]),
                )
            )
        write_png(job.folder.path / name, contact_sheet(rows, footer), {"Comment": NOTICE})
