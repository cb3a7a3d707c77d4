"""From a checked run to a folder of faces.

While the device draws one batch, threads read the skulls of the next and write the faces of the last. Threads serve as
well as processes here: decoding and encoding a picture release Python's lock.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import Preview, reconstruct
from cldm.spgd import Spgd
from data.biometrics import ATTRIBUTES
from data.cases import Case, read_skull
from data.files import replacing
from data.images import to_uint8, write_png
from data.sheet import NOTICE
from ldm.checkpoint import sha256
from muti_control.conditions.case_landmarks import CaseLandmarks, write_landmarks
from muti_control.conditions.case_textures import CaseTextures
from muti_control.record import write_record
from muti_control.sampling.assumed import draw_people, uniform_population
from muti_control.sampling.grid import grid_people, grid_picture
from muti_control.sampling.job import Draw, Job, face_name, pictures_of
from muti_control.sampling.outputs import write_outputs
from muti_control.sampling.record import TEXT_KEY, face_text, run_record, write_sheet
from muti_control.sampling.trace import write_trace

Item = TypeVar("Item")
Result = TypeVar("Result")
WRITERS = max(1, min(4, os.cpu_count() or 1))  # threads that encode and write pictures


class ReconstructionError(ValueError):
    """The model gave something that is no picture."""


def reconstruct_cases(job: Job, advance: Callable[[int], None] | None = None) -> None:
    """Draw and write every face, the contact sheets and the record; each process of ``job.team`` draws its share.

    The record is there from the beginning with ``"finished": false``, so that a broken-off run is recognised; every
    picture in the folder is a whole one. The team must have been entered.

    Args:
        advance: called after every denoising step of this process with the number of faces in it; replaces the bar.

    Raises:
        ReconstructionError: the model gave something that is no picture.
        ProcessError: another process is gone.
    """
    team, record = job.team, {}
    if team.is_first:
        job.folder.start()
        record = run_record(job)
        write_record(job.folder.path, record)
    folder, hashes, weights = team.broadcast((job.folder, job.hashes, job.weights))
    job = replace(job, folder=folder, hashes=hashes, weights=weights)
    batches, num_faces = team.share(job.missing), len(job.draws)
    suffix = f", {team.name}" if team.size > 1 else ""

    def step(first: int, batch: Sequence[Draw]) -> None:
        team.check()
        of = f"face {first + 1} to {first + len(batch)} of {num_faces}{suffix}"
        bar.set_description(of, refresh=False)
        bar.update(1)
        if advance is not None:
            advance(len(batch))

    writing: list[Future[None]] = []
    with (  # the writers come first: when a batch fails, they still write the faces before it
        ThreadPoolExecutor(WRITERS, "write") as writers,
        closing(draw_batches(job, batches, step)) as drawn,
        tqdm(
            total=len(batches) * job.sampling.steps,
            unit=" steps",
            disable=True if advance is not None or not team.is_first else None,
            dynamic_ncols=True,
        ) as bar,
    ):
        for batch, faces, spgd in drawn:
            _finish(writing)
            writing = [
                writers.submit(write_face, job, draw, faces, spgd, i)
                for i, draw in enumerate(batch)
                if face_name(*draw[:2]) not in job.folder.done
            ]
        _finish(writing)
    team.wait_for_all()
    if team.is_first:
        finish(job, record)


def finish(job: Job, record: Mapping[str, Any]) -> None:
    """Write what shows all faces of the folder together, and the record with their hashes: the run is finished then."""
    _write_summary(job)
    for case in job.cases if job.grid else ():
        _write_grid(job, case)
    for face in (face for case in record["cases"] for face in case["faces"]):
        face["sha256"] = sha256(job.folder.path / face["file"])
        with Image.open(job.folder.path / face["file"]) as image:
            face["pixels_sha256"] = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    write_record(job.folder.path, {**record, "finished": True})


def draw_batches(
    job: Job,
    batches: Sequence[tuple[int, list[Draw]]],
    step: Callable[[int, Sequence[Draw]], None],
    preview: Preview | None = None,
) -> Generator[tuple[list[Draw], DrawnFaces, Spgd | None], None, None]:
    """Yield each batch of ``Job.missing`` with its faces, and the SPGD behind them; nothing is written.

    Args:
        step: called after every denoising step with the number of faces before the batch, and the batch. What it
            raises ends the drawing. preview: see ``cldm.sampling.reconstruct``.
    """
    model, size, pin = job.model, job.model.cfg.image_size, job.model.device.type == "cuda"
    with closing(read_ahead(lambda batch: read_skulls(batch[1], size, pin), batches)) as read:
        for (first, batch), skulls in read:
            spgd = None if job.spgd is None else job.spgd.of(model, [case for case, _, _ in batch], skulls)
            progress = partial(lambda first, batch, _done, _total: step(first, batch), first, batch)
            sources = (job.landmarks, spgd, job.textures)
            yield batch, draw_faces(model, batch, skulls, job.sampling, progress, *sources, preview), spgd


def _write_grid(job: Job, case: Case) -> None:
    """Draw and write a case's grid: the attributes of ``job.grid`` change, the seed of the first face does not."""
    first, _, seed = job.draws_of(case)[0]
    population = job.population or uniform_population(["Asian"])
    person = first.biometrics or draw_people(case.attributes, population, 1, seed)[0]
    people = grid_people(job.grid, person, case.attributes, population.ethnicities)
    draws = [(replace(case, biometrics=one), k, seed) for k, one in enumerate(chain(*people))]
    batches = [(i, draws[i : i + job.batch_size]) for i in range(0, len(draws), job.batch_size)]
    faces: list[np.ndarray] = []

    def step(_first: int, _batch: Sequence[Draw]) -> None:
        bar.update(1)

    with (
        tqdm(total=len(batches) * job.sampling.steps, unit=" steps", desc="grid", disable=None) as bar,
        closing(draw_batches(job, batches, step)) as drawn,
    ):
        for _, pixels, _ in drawn:
            faces += list(pixels.wait())
    fixed = [str(value) for name, value in vars(person).items() if name not in job.grid]
    sources = case.attributes.sources(person)
    assumed = [name for name in ATTRIBUTES if name not in job.grid and sources[name]["source"] != "stated"]
    weights = f"{job.weights['file']} (sha256 {job.weights['sha256'][:12]})"
    footer = [
        f"Seed {seed}; in all faces {', '.join(fixed) or 'all else the same'}"
        + f"{f' ({chr(44).join(assumed)} assumed)' if assumed else ''}.",
        f"{NOTICE} {weights}.",
    ]
    skull = to_uint8(read_skull(case, job.model.cfg.image_size))
    picture = grid_picture(job.grid, people, faces, skull, case.attributes, footer)
    write_png(job.folder.path / job.outputs_of(case)["grid"], picture, {"Comment": NOTICE})


def draw_faces(
    model: ControlledLatentDiffusion,
    draws: Sequence[Draw],
    skulls: Tensor,
    sampling: SamplingConfig,
    progress: Callable[[int, int], None] | None = None,
    landmarks: CaseLandmarks | None = None,
    spgd: Spgd | None = None,
    textures: CaseTextures | None = None,
    preview: Preview | None = None,
) -> DrawnFaces:
    """Draw one batch of faces. Each depends on its own skull, prompt and seed, not on the batch.

    Args:
        draws: of ``Job.draws``. skulls: of :func:`read_skulls`. progress: called as (steps done, steps in all).
        landmarks, textures: sources of the conditions. spgd: of this batch. preview: of ``cldm.sampling.reconstruct``.
    """
    cases = [case for case, _, _ in draws]
    present = [case.skull_path is not None for case in cases]
    faces = reconstruct(
        model,
        skulls.to(model.device, non_blocking=skulls.is_pinned()) if any(present) else None,
        [case.prompt for case in cases],
        [seed for _, _, seed in draws],
        sampling,
        landmarks=None if landmarks is None else landmarks.of(cases, skulls),
        skull_present=torch.tensor(present) if any(present) and not all(present) else None,
        spgd=spgd,
        texture=None if textures is None else textures.of(cases),
        progress=progress,
        preview=preview,
        on_device=True,
    )  # (B, 3, H, W) in [0, 1]
    finite = faces.isfinite().all()
    pixels = (faces.nan_to_num() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    on_cpu = [values.to("cpu", non_blocking=True) for values in (pixels, finite)]  # in page-locked memory
    arrived = None
    if faces.is_cuda:
        arrived = torch.cuda.Event()
        arrived.record()
    return DrawnFaces(on_cpu[0], on_cpu[1], arrived, str(model.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class DrawnFaces:
    """A batch of faces that the device may still be drawing.

    pixels: (B, H, W, 3) uint8 on the CPU. finite: 0-d bool. Neither may be read before ``arrived``.
    """

    pixels: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None
    precision: str

    def wait(self) -> np.ndarray:
        """Return the faces, (B, H, W, 3) uint8, once they are there. Raises: ReconstructionError: not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if not bool(self.finite):
            raise ReconstructionError(
                f"the model gave values that are no numbers in {self.precision}; "
                "try precision=fp32, and check the weights"
            )
        return self.pixels.numpy()


def read_skulls(draws: Sequence[Draw], size: int, pin: bool = False) -> Tensor:
    """Return the skulls of a batch, (B, 3, size, size) float32 in [0, 1]; each file is read once.

    pin: in page-locked memory, from where a GPU copies without stopping the program.
    """
    cases = {case.name: case for case, _, _ in draws}
    pictures = {name: read_skull(case, size) for name, case in cases.items()}
    skulls = np.stack([pictures[case.name] for case, _, _ in draws])  # (B, H, W, 3)
    tensor = torch.from_numpy(skulls).permute(0, 3, 1, 2)
    return tensor.pin_memory() if pin else tensor


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2
) -> Generator[tuple[Item, Result], None, None]:
    """Yield each item with ``read(item)``, in order; a thread reads the next ``ahead`` items meanwhile.

    An error of ``read`` is raised in its item's place. Close the iterator (``contextlib.closing``) to leave early.
    """
    items = iter(items)
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        pending = deque((item, reader.submit(read, item)) for item in islice(items, ahead))
        try:
            while pending:
                item, future = pending.popleft()
                pending.extend((following, reader.submit(read, following)) for following in islice(items, 1))
                yield item, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _finish(calls: Iterable[Future[None]]) -> None:
    """Wait for calls of other threads; raises what they raise."""
    for call in calls:
        call.result()


def write_face(job: Job, draw: Draw, faces: DrawnFaces, spgd: Spgd | None, i: int) -> None:
    """Write face ``i`` of a batch, and what SPGD did to it if the run is traced."""
    case, k, seed = draw
    text = json.dumps(face_text(job, case, seed), ensure_ascii=False)
    name = face_name(case, k)
    write_png(job.folder.path / name, faces.wait()[i], {TEXT_KEY: text, "Comment": NOTICE})
    if job.spgd is not None and spgd is not None and job.traced:
        write_trace(job.folder.path, name, spgd.steps, i, job.spgd.describe(case))


def _write_summary(job: Job) -> None:
    """Write contact sheets, skulls that are in memory alone, and each case's landmarks, mean, spread and overlay."""
    folder, size = job.folder.path, job.model.cfg.image_size
    for name, contents in (item for case in job.cases for item in pictures_of(case).items()):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(contents)
    with ThreadPoolExecutor(WRITERS, "write") as writers:
        calls = [writers.submit(write_sheet, job, page) for page in range(len(job.sheet_names))]
        if job.landmarks is not None:
            for case, k, _ in (job.draws_of(case)[0] for case in job.cases):
                face = folder / face_name(case, k)
                calls.append(writers.submit(write_landmarks, folder, case, job.landmarks, face, size))
        calls += [writers.submit(write_outputs, job, case) for case in job.cases if job.outputs_of(case)]
        _finish(calls)
