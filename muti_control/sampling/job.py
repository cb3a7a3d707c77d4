"""A checked sampling run: what to draw, with what, and which files it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion
from data.cases import Case
from data.files import replacing_result
from muti_control.case.calibration import Calibration, Population
from muti_control.conditions.case_landmarks import CaseLandmarks, landmarks_name, picture_name
from muti_control.conditions.case_textures import CaseTextures
from muti_control.distributed import Team
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.record import LOCAL, RECORD
from muti_control.sampling.assumed import draw_people
from muti_control.sampling.checking import check_lines
from muti_control.sampling.spgd import SpgdRun
from muti_control.sampling.trace import trace_names

ROWS_PER_SHEET = 12
_NUM_NOTES = 20

OUTPUTS = ("mean", "spread", "overlay")
"""What a run writes for each case of two or more faces, beside the faces: ``NAME_mean.png`` and so on."""

Draw = tuple[Case, int, int]
"""A face: its case with the biometrics that it is drawn with, its number within the case, its seed."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    outdated: files of an earlier run that this one replaces. done: names of the faces it keeps, because it would draw
    the same. earlier_runs: date and environment of the runs behind them.
    """

    path: Path
    outdated: Sequence[Path] = ()
    done: frozenset[str] = frozenset()
    earlier_runs: Sequence[Mapping[str, Any]] = ()

    def start(self) -> None:
        """Make the folder and remove outdated files, but for the record, which the new one replaces in one move."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self.outdated:
            if file.name != RECORD:
                file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A run that was checked and can start.

    seeds: one face per case and seed (plus the case's offset). notes: changes made to a skull picture, by its path.
    max_sheets: the most contact sheets, of twelve cases each.
    hashes: sha256 of every skull and true face, by its path. weights: file name, sha256 and step.
    environment: of ``muti_control.record``. config: all settings as YAML. manifest: of the skulls, path and sha256.
    checks: of the skulls, by the case's name, as the record has them; also of those that are not drawn.
    landmarks, textures: sources of the conditions. spgd: moves the samples. remarks: notes on the settings.
    population: what is possible where an attribute is unknown. outputs: whether mean, spread and overlay of each case's
    faces are written. face_reader: reads landmarks off faces, for the spread. calibration: of the weights, if they
    have one.
    grid: attributes whose values change in a grid of faces of each case.
    team: the processes that share the work. Its first process alone has notes, hashes, weights and the folder's
    content before ``reconstruct_cases``, which sends them to the others.
    """

    model: ControlledLatentDiffusion
    cases: Sequence[Case]
    notes: Mapping[Path, str]
    hashes: Mapping[Path, str]
    seeds: Sequence[int]
    sampling: SamplingConfig
    batch_size: int
    max_sheets: int
    folder: RunFolder
    weights: Mapping[str, str]
    environment: Mapping[str, Any]
    config: str
    manifest: Mapping[str, str] | None = None
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    landmarks: CaseLandmarks | None = None
    spgd: SpgdRun | None = None
    textures: CaseTextures | None = None
    remarks: Sequence[str] = ()
    population: Population | None = None
    outputs: bool = False
    face_reader: LandmarkReader | None = None
    calibration: Calibration | None = None
    grid: Sequence[str] = ()
    team: Team = field(default_factory=Team)

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """Return a context for the drawing. An earlier run that is replaced comes back if an error ends this one."""
        folder = self.folder
        if not self.team.is_first or not folder.outdated or folder.earlier_runs:
            return nullcontext()
        old = [*(file.name for file in folder.outdated), LOCAL]
        return replacing_result(folder.path, old, [*self.files, LOCAL], RECORD, resumable=True)

    def seeds_of(self, case: Case) -> list[int]:
        """Return the seeds of a case's faces."""
        return [seed + case.seed_offset for seed in self.seeds]

    def draws_of(self, case: Case) -> list[Draw]:
        """Return every face of a case."""
        seeds = self.seeds_of(case)
        if case.biometrics is not None or not case.attributes.known or self.population is None:
            return [(case, k, seed) for k, seed in enumerate(seeds)]
        people = draw_people(case.attributes, self.population, len(seeds), seeds[0])
        return [
            (replace(case, biometrics=person), k, seed)
            for k, (person, seed) in enumerate(zip(people, seeds, strict=True))
        ]

    @cached_property
    def draws(self) -> list[Draw]:
        """Every face of the run."""
        return [draw for case in self.cases for draw in self.draws_of(case)]

    def outputs_of(self, case: Case) -> dict[str, str]:
        """Return the names of the files that show all faces of a case together."""
        shown = OUTPUTS if case.skull_path is not None else OUTPUTS[:2]
        names = [*(shown if self.outputs and len(self.seeds) > 1 else ()), *(["grid"] if self.grid else [])]
        return {name: f"{case.name}_{name}.png" for name in names}

    @property
    def missing(self) -> list[tuple[int, list[Draw]]]:
        """The batches that lack a face, each with the number of faces before it.

        Batches are cut as in a run from the beginning: in other company a face may differ in its last bits.
        """
        draws = self.draws
        batches = [(i, draws[i : i + self.batch_size]) for i in range(0, len(draws), self.batch_size)]
        return [
            (first, batch)
            for first, batch in batches
            if any(face_name(case, k) not in self.folder.done for case, k, _ in batch)
        ]

    @property
    def traced(self) -> bool:
        """Whether the run writes what SPGD did to each face."""
        return self.spgd is not None and self.spgd.cfg.trace

    @property
    def sheet_names(self) -> list[str]:
        """File names of the contact sheets: one for each twelve cases, up to ``max_sheets``."""
        pages = min(self.max_sheets, -(-len(self.cases) // ROWS_PER_SHEET))
        return ["contact_sheet.png"] + [f"contact_sheet-{page}.png" for page in range(2, pages + 1)]

    @property
    def files(self) -> list[str]:
        """Names of all files that the run writes."""
        faces = [face_name(case, k) for case, k, _ in self.draws]
        landmarks = self.cases if self.landmarks is not None else ()
        return [
            *self.sheet_names,
            *faces,
            *(name(case) for case in landmarks for name in (landmarks_name, picture_name)),
            *(name for case in self.cases for name in (*self.outputs_of(case).values(), *pictures_of(case))),
            *(name for face in faces if self.traced for name in trace_names(face)),
            RECORD,
        ]

    @property
    def cautions(self) -> list[str]:
        """What the user should know of the settings, the pictures and what is assumed of the person."""
        notes = [*self.remarks, *(f"{path}: {note}" for path, note in list(self.notes.items())[:_NUM_NOTES])]
        if len(self.notes) > _NUM_NOTES:
            notes.append(f"... and on {len(self.notes) - _NUM_NOTES} more pictures; all are in {RECORD}")
        if any(not (case.biometrics or case.attributes.known) for case in self.cases):
            shaping = (
                "only the skull shapes"
                if any(case.skull_path for case in self.cases)
                else "nothing known of the person shapes"
            )
            notes.append(
                f"nothing known of the person: the prompt is empty, {shaping} the face; a wide age=20-80 draws faces "
                "across what is possible"
            )
        partly = {
            str(case.attributes) for case in self.cases if not case.biometrics and case.attributes.known
        }
        if partly and self.population is not None:
            notes.append(
                f"{' | '.join(sorted(partly)[:3])}{' | ...' * (len(partly) > 3)}. Each face assumes values "
                "that are possible, as frequent as among the people of the training"
            )
        return notes

    def introduction(self) -> list[str]:
        """Return what the user should know before the run starts, a line each."""
        num, faces, processes = len(self.cases), len(self.seeds), self.team.size
        device = f"{processes} x {self.model.device.type}" if processes > 1 else str(self.model.device)
        any_skull = any(case.skull_path is not None for case in self.cases)
        subject = f"{_count(num, 'skull')}, {_count(faces, 'face')} each"
        if not any_skull:
            subject = f"no skull, {_count(faces, 'face')}"
        lines = [
            f"{subject}: {self.sampling.steps} steps on {device} ({self.environment['precision']}), "
            f"weights {self.weights['file']}"
        ]
        if self.spgd is not None:
            guided = len(self.spgd.cfg.guided_steps(self.sampling.steps))
            lines.append(f"SPGD at {guided} of {self.sampling.steps} steps: {self.spgd.cfg.summary}")
        if self.folder.done:
            lines.append(f"continuing {self.folder.path}: {len(self.folder.done)} faces are there already")
        notes = self.cautions
        missing = self.missing
        if 0 < len(missing) < processes:
            smaller = max(1, -(-sum(len(batch) for _, batch in missing) // processes))
            notes.append(
                f"{_count(len(missing), 'batch', 'batches')} for {processes} processes: some will be idle; "
                f"batch_size={smaller} employs all"
            )
        on_sheets = self.max_sheets * ROWS_PER_SHEET
        if num > on_sheets:
            notes.append(
                f"contact sheets for the first {on_sheets} of {num} skulls; "
                f"max_sheets={-(-num // ROWS_PER_SHEET)} makes all"
            )
        return (
            lines
            + [f"note: {note}" for note in notes]
            + [f"check: {line}" for line in check_lines(self.checks)]
        )


def _count(num: int, noun: str, plural: str | None = None) -> str:
    return f"{num} {noun if num == 1 else plural or noun + 's'}"


def face_name(case: Case, k: int) -> str:
    """Return the file name of face ``k`` of a case."""
    return f"{case.name}_{k}.png"


def pictures_of(case: Case) -> dict[str, bytes]:
    """Return the PNG files that a run writes of a case's skull: what was in memory alone, and what was prepared."""
    files = {f"{case.name}_prepared.png": case.prepared, f"{case.name}_skin.png": case.skin}
    files |= {} if case.skull_path is None else {case.skull_path.name: case.picture}
    return {name: contents for name, contents in files.items() if contents is not None}
