"""From cases to a folder of faces: batches through the sampler, pictures, contact sheets and the record.

While the device draws one batch, threads read the skulls of the next and write the faces of the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cldm.controlled import ControlledLatentDiffusion
from cldm.record import RECORD, write_json
from cldm.sampling import SamplingConfig, reconstruct
from cldm.spgd import Guide, GuidedStep
from data.cases import read_skull
from data.images import write_png
from data.sheet import NOTICE
from muti_control.conditions.case_landmarks import CaseLandmarks, write_landmarks
from muti_control.conditions.case_textures import CaseTextures
from muti_control.sampling.job import Draw, Job, face_name
from muti_control.sampling.pipeline import WriteBehind, read_ahead
from muti_control.sampling.record import TEXT_KEY, add_hashes, face_text, run_record, write_sheet
from muti_control.sampling.trace import write_trace

WRITERS = max(1, min(4, os.cpu_count() or 1))  # threads that encode and write pictures


class ReconstructionError(ValueError):
    """The model gave something that is no picture."""


@dataclass(frozen=True)
class DrawnFaces:
    """A batch of faces that the device may still be drawing.

    pixels: (B, H, W, 3) uint8 on the CPU; finite: 0-d bool; both are to be read only after ``arrived``.
    """

    pixels: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None
    precision: str

    def wait(self) -> np.ndarray:
        """The faces, (B, H, W, 3) uint8, once they are there.

        Raises:
            ReconstructionError: values that are not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if not bool(self.finite):
            raise ReconstructionError(
                f"the model gave values that are no numbers in {self.precision}; "
                "try precision=fp32, and check the weights"
            )
        return self.pixels.numpy()


def read_skulls(draws: Sequence[Draw], size: int, pin: bool = False) -> Tensor:
    """The skulls of a batch, (B, 3, size, size) float32 in [0, 1]; each file is read once.

    pin: in page-locked memory, from where a GPU copies without stopping the program.
    """
    pictures = {
        case.name: read_skull(case, size) for case in {case.name: case for case, _, _ in draws}.values()
    }
    skulls = np.stack([pictures[case.name] for case, _, _ in draws])  # (B, H, W, 3)
    tensor = torch.from_numpy(skulls).permute(0, 3, 1, 2)
    return tensor.pin_memory() if pin else tensor


def draw_faces(
    model: ControlledLatentDiffusion,
    draws: Sequence[Draw],
    skulls: Tensor,
    sampling: SamplingConfig,
    progress: Callable[[int, int], None] | None = None,
    landmarks: CaseLandmarks | None = None,
    guide: Guide | None = None,
    textures: CaseTextures | None = None,
) -> DrawnFaces:
    """Draw one batch of faces. Each depends on its own skull, prompt and seed, not on the batch.

    Args:
        draws: of ``Job.draws``. skulls: of :func:`read_skulls`.
        progress: called as (steps done, steps in all). landmarks, textures: where the faces' come from.
        guide: of this batch.
    """
    cases = [case for case, _, _ in draws]
    known = [case.skull_path is not None and model.has_trained("skull") for case in cases]
    faces = reconstruct(
        model,
        skulls.to(model.device, non_blocking=skulls.is_pinned()) if any(known) else None,
        [case.prompt for case in cases],
        [seed for _, _, seed in draws],
        sampling,
        landmarks=None if landmarks is None else landmarks.of(cases, skulls),
        skull_present=torch.tensor(known) if any(known) and not all(known) else None,
        guide=guide,
        texture=None if textures is None else textures.of(cases),
        progress=progress,
        on_device=True,
    )  # (B, 3, H, W) in [0, 1]
    finite = faces.isfinite().all()
    pixels = (faces.nan_to_num() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    precision = str(model.dtype).removeprefix("torch.")
    if not faces.is_cuda:
        return DrawnFaces(pixels.cpu(), finite.cpu(), None, precision)
    pinned = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True).copy_(pixels, non_blocking=True)
    told = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return DrawnFaces(pinned, told, arrived, precision)


def reconstruct_cases(job: Job) -> None:
    """Draw and write every face, the contact sheets and the record; each process of ``job.team`` draws its share.

    The record stands there from the beginning with ``"finished": false``, so that a run that broke off is known as one;
    every picture that is there is a whole one.

    Raises:
        ReconstructionError: the model gave something that is no picture.
        ProcessError: another process is gone.
    """
    with job.team:
        record = draw_cases(job)
    if job.team.is_first:
        finish_cases(job, record)


def draw_cases(job: Job, advance: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Draw and write the faces, within ``job.team``, which must have been entered; returns when all have drawn theirs.

    Args:
        advance: told of every denoising step of this process, as faces times steps, and no bar is shown.

    Returns:
        The record to finish; empty but in the first process.
    """
    team = job.team
    record = _begin(job) if team.is_first else {}
    folder, hashes, weights = team.broadcast((job.folder, job.hashes, job.weights))
    _draw_share(replace(job, folder=folder, hashes=hashes, weights=weights), advance)
    team.wait_for_all()
    return record


def finish_cases(job: Job, record: dict[str, Any]) -> None:
    """Make the contact sheets and finish the record of ``draw_cases``."""
    with WriteBehind(WRITERS, limit=WRITERS) as writers:
        for page in range(len(job.sheet_names)):
            writers.put(write_sheet, job, page)
        if job.landmarks is not None:
            for case in job.cases:
                face = job.folder.path / face_name(case, 0)
                writers.put(
                    write_landmarks, job.folder.path, case, job.landmarks, face, job.model.cfg.image_size
                )
    add_hashes(record, job.folder.path)
    write_json(job.folder.path / RECORD, record | {"finished": True})


def _begin(job: Job) -> dict[str, Any]:
    """Make the folder and the record of an unfinished run; returns the record."""
    job.folder.start()
    record = run_record(job)
    write_json(job.folder.path / RECORD, record)
    return record


def _draw_share(job: Job, advance: Callable[[int], None] | None) -> None:
    missing, size, pin = (
        job.team.share(job.missing),
        job.model.cfg.image_size,
        job.model.device.type == "cuda",
    )
    num, done, of = len(job.draws), job.folder.done, f", {job.team.name}" if job.team.size > 1 else ""
    steps = len(missing) * job.sampling.steps
    silent = True if advance is not None or not job.team.is_first else None

    def step(_done: int, _total: int) -> None:
        job.team.check()
        bar.update(1)
        if advance is not None:
            advance(drawn_together)

    with (
        WriteBehind(WRITERS, limit=2 * job.batch_size) as writers,
        closing(read_ahead(lambda batch: read_skulls(batch[1], size, pin), missing)) as ready,
        tqdm(total=steps, unit=" steps", disable=silent, dynamic_ncols=True) as bar,
    ):
        for (first, batch), skulls in ready:
            drawn_together = len(batch)
            bar.set_description(f"face {first + 1} to {first + len(batch)} of {num}{of}")
            guide = None
            if job.guidance is not None:
                guide = job.guidance.of(job.model, [case for case, _, _ in batch], skulls)
            faces = draw_faces(
                job.model, batch, skulls, job.sampling, step, job.landmarks, guide, job.textures
            )
            for i, draw in enumerate(batch):
                if face_name(*draw[:2]) not in done:
                    writers.put(_write_face, job, draw, faces, i)
                    if guide is not None and guide.cfg.trace:
                        writers.put(_write_trace, job, draw, guide.steps, i)


def _write_face(job: Job, draw: Draw, faces: DrawnFaces, i: int) -> None:
    case, k, seed = draw
    text = json.dumps(face_text(job, case, seed), ensure_ascii=False)
    write_png(job.folder.path / face_name(case, k), faces.wait()[i], {TEXT_KEY: text, "Comment": NOTICE})


def _write_trace(job: Job, draw: Draw, steps: Sequence[GuidedStep], i: int) -> None:
    assert job.guidance is not None
    write_trace(job.folder.path, face_name(*draw[:2]), steps, i, job.guidance.describe(draw[0]))
