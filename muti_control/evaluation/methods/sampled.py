"""Faces of a model: sampling runs, each a folder with a record that another examiner can repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model
from data.cases import Case, cases_of
from data.files import picture_sha256
from data.images import read_image, to_uint8, write_png
from data.manifest import Record
from ldm.checkpoint import sha256
from muti_control.conditions.case_landmarks import (
    CaseLandmarks,
    ReadOffSkull,
    choose_landmarks,
    true_landmarks,
)
from muti_control.conditions.case_textures import choose_textures
from muti_control.distributed import Team
from muti_control.record import RECORD, claim_folder, environment
from muti_control.sampling.config import SpgdConfig
from muti_control.sampling.draw import reconstruct_cases
from muti_control.sampling.job import Job, RunFolder, face_name
from muti_control.sampling.prepare import recommended_sampling
from muti_control.sampling.record import resumed
from muti_control.sampling.spgd import load_spgd
from settings.reading import to_yaml

if TYPE_CHECKING:
    from muti_control.evaluation.plan import Plan

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Weights:
    """A checkpoint to evaluate.

    step: of its training. recommended: its settings of sampling. shown_landmarks, shown_texture: whether its faces are
    drawn with landmarks, and with exemplars of the look of the skin. networks: path -> sha256 of the other networks
    behind its faces.
    """

    path: Path
    sha256: str
    step: str
    recommended: Mapping[str, Any]
    image_size: int
    shown_landmarks: bool = False
    shown_texture: bool = False
    networks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def look(
        cls,
        path: Path,
        landmarks: ShownLandmarks,
        texture: str,
        cases: Sequence[Case],
        guidance: SpgdConfig,
    ) -> Weights:
        """Load a checkpoint once, so that nothing fails half-way. Raises: CheckpointError, ValueError."""
        model, metadata = load_model(path)
        source = landmarks.source(model)
        textures = choose_textures(texture, cases, model)[0] if model.has_trained("texture") else None
        guided = load_spgd(guidance, model, cases, source, landmarks.weights)  # a mistake shows here
        networks = {} if guided is None else {getattr(guidance, key): h for key, h in guided.files.items()}
        for points in (source, None if guided is None else guided.targets):
            if isinstance(points, ReadOffSkull):
                networks[str(landmarks.weights)] = points.sha256
        outputs = model.cfg.unet.num_control_outputs
        recommended = recommended_sampling(metadata, outputs)
        SamplingConfig.of(**recommended).scales_for(outputs)
        return cls(
            path,
            sha256(path),
            str(metadata.get("step", "unknown")),
            recommended,
            model.cfg.image_size,
            source is not None,
            textures is not None,
            networks,
        )


@dataclass(frozen=True)
class ShownLandmarks:
    """The landmarks that models with a landmark branch are shown.

    choice: auto, none or known. weights: network that reads them off skulls. people: skull picture -> its person.
    """

    choice: str
    weights: Path
    people: Mapping[Path, Record]

    def source(
        self, model: ControlledLatentDiffusion, cases: Sequence[Case] | None = None
    ) -> CaseLandmarks | None:
        """Return the source of a model's landmarks; None for a model without a branch, or if they are left out.

        Args:
            cases: to draw, with the landmarks of whoever lends the skull; None: all people, as a check.

        Raises:
            ValueError: files that are missing or do not fit.
        """
        if model.cfg.control.landmarks is None or not model.has_trained("landmarks") or self.choice == "none":
            return None
        if self.choice == "known":
            cases = cases_of(list(self.people.values())) if cases is None else cases
            return true_landmarks(cases, model.cfg.control.landmarks.num_points, "landmarks=known")
        source, lacking = choose_landmarks("auto", self.weights, [], model)
        if lacking is not None:
            raise ValueError(
                f"landmark_weights: {self.weights} not found, and the model wants landmarks read off the skull; "
                "give the file, or landmarks=none to judge the model without"
            )
        return source

    def remarks(self, names: Sequence[str]) -> list[str]:
        """Return what the reader of the report should know. names: of the models that are shown landmarks."""
        where = {
            "auto": f"read off the skull, with what is told of the person, by {self.weights.name}",
            "known": "of the true face, which nobody has in practice",
        }
        return [f"Drawn with landmarks {where[self.choice]}: {', '.join(names)}."] if names else []


@dataclass(frozen=True)
class SamplingRun:
    """Which cases are drawn with which seeds, into which folder. guided: whether the settings' guidance acts."""

    folder: Path
    cases: Sequence[Case]
    seeds: Sequence[int]
    sampling: SamplingConfig
    guided: bool = True

    @property
    def steps(self) -> int:
        """Denoising steps of all its faces together."""
        return len(self.cases) * len(self.seeds) * self.sampling.steps

    @property
    def faces(self) -> list[tuple[Path, ...]]:
        """The pictures of each of its cases, in order."""
        seeds = range(len(self.seeds))
        return [tuple(self.folder / face_name(case, k) for k in seeds) for case in self.cases]


class Sampler:
    """A model of a plan, and its sampling runs. name: its key in the plan."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan, self._weights, self._guidance = plan, plan.weights[name], plan.guidance[name]
        self._hashes: dict[Path, str] = {}

    @cached_property
    def model(self) -> ControlledLatentDiffusion:
        """The network, loaded at its first use."""
        return load_model(self._weights.path, device=self._plan.device, dtype=self._plan.dtype)[0]

    def draw(self, run: SamplingRun, advance: Advance) -> None:
        """Draw the faces that are missing. Raises: OutputError, ReconstructionError, ProcessError, OSError."""
        job = self._job(run)
        before = sum(len(batch) for _, batch in job.missing) * run.sampling.steps
        advance(run.steps - before)  # of the faces that are there
        reconstruct_cases(job, advance)

    def _job(self, run: SamplingRun) -> Job:
        plan, weights = self._plan, self._weights
        model, source = self.model, plan.landmarks.source(self.model, run.cases)
        has_texture, points = model.has_trained("texture"), plan.landmarks.weights
        job = Job(
            model=model,
            cases=run.cases,
            notes={},
            hashes={},
            seeds=run.seeds,
            sampling=run.sampling,
            batch_size=plan.cfg.batch_size,
            max_sheets=1,
            folder=RunFolder(run.folder),
            weights={"file": weights.path.name, "sha256": weights.sha256, "step": weights.step},
            environment=environment(plan.device, plan.dtype) | {"processes": plan.team.size},
            config=to_yaml(plan.cfg),
            landmarks=source,
            textures=choose_textures(plan.cfg.texture, run.cases, model)[0] if has_texture else None,
            spgd=load_spgd(self._guidance, model, run.cases, source, points) if run.guided else None,
            team=plan.team,
        )
        if not plan.team.is_first:
            return job
        job = replace(job, hashes=self._hashes_of(run.cases))
        _clear_stillborn(run.folder)
        earlier = claim_folder(run.folder, resume=True)
        return job if earlier is None else replace(job, folder=resumed(job, earlier))

    def _hashes_of(self, cases: Sequence[Case]) -> dict[Path, str]:
        paths = {p for case in cases for p in (case.skull_path, case.face_path) if p is not None}
        self._hashes |= {path: picture_sha256(path) for path in paths - set(self._hashes)}
        return {path: self._hashes[path] for path in paths}


def through_autoencoder(
    model: ControlledLatentDiffusion,
    faces: Sequence[tuple[Path, Path]],
    grain: bool,
    batch_size: int,
    team: Team,
    advance: Advance,
) -> None:
    """Encode and draw true faces: (true face, picture to write) each; this process's share of those that are missing.

    Where there is a grain head and ``grain`` is set, the grain follows from the name of the picture to write.
    """
    size = model.cfg.image_size
    todo = [(source, target) for source, target in team.share(faces) if not target.is_file()]
    for start in range(0, len(todo), batch_size):
        part = todo[start : start + batch_size]
        pictures = np.stack([read_image(source, size)[0] for source, _ in part])  # (B, H, W, 3)
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(model.device) * 2 - 1
        with torch.no_grad():
            latents = model.encode_first_stage(x.to(model.dtype), sample=False)
            names = [target.name for _, target in part]
            decoded = model.draw(latents.to(model.dtype), names, grain).float()
            again = (decoded / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()
        for (_, target), picture in zip(part, again, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_png(target, to_uint8(picture))
        team.check()
        advance(len(part))
    team.wait_for_all()


def _clear_stillborn(folder: Path) -> None:
    """Remove the remains of a run that was killed before its record: they would look like the user's own files."""
    if folder.is_dir() and not (folder / RECORD).exists():
        for path in folder.glob(f".{RECORD}.*.tmp"):
            path.unlink()
