"""A sampling run before it starts: what to draw, with what, and which files come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cldm.controlled import ControlledLatentDiffusion
from cldm.record import RECORD
from cldm.sampling import SamplingConfig
from data.cases import Case
from muti_control.conditions.case_landmarks import CaseLandmarks, landmarks_name, picture_name
from muti_control.conditions.case_textures import CaseTextures
from muti_control.distributed import Team
from muti_control.sampling.spgd import Guidance
from muti_control.sampling.trace import trace_names

ROWS_PER_SHEET = 12
_SHOWN = 20

Draw = tuple[Case, int, int]
"""A face: its case, its number within the case, its seed."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    outdated: files of an earlier run there that it replaces. done: names of the faces it keeps, as it would draw the
    same. earlier_runs: date and environment of the runs that drew those. kept: names of those faces and their traces.
    """

    path: Path
    outdated: Sequence[Path] = ()
    done: frozenset[str] = frozenset()
    earlier_runs: Sequence[Mapping[str, Any]] = ()
    kept: frozenset[str] = frozenset()

    def start(self) -> None:
        """Make the folder and remove the earlier run, but for its record, which the new one replaces in one move."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self.outdated:
            if file.name != RECORD:
                file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A run that was checked and can start.

    seeds: one face per case and seed (plus the case's offset). notes: what was done to a skull picture, by its path.
    max_sheets: contact sheets at most, of twelve cases each.
    hashes: sha256 of every skull and true face, by its path.
    weights: file name, sha256 and step. environment: of ``cldm.record``. config: the resolved settings as YAML.
    manifest: its path and sha256, where the skulls come from one. landmarks, textures: where the faces' come from.
    guidance: what moves the samples, if anything does.
    remarks: what the user should know of the settings. team: the processes that share the work;
    notes, hashes, weights and folder are known to the first of them, until ``reconstruct_cases`` tells the others.
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
    landmarks: CaseLandmarks | None = None
    guidance: Guidance | None = None
    textures: CaseTextures | None = None
    remarks: Sequence[str] = ()
    team: Team = field(default_factory=Team)

    @property
    def draws(self) -> list[Draw]:
        """Every face of the run."""
        return [
            (case, k, seed + case.seed_offset) for case in self.cases for k, seed in enumerate(self.seeds)
        ]

    @property
    def batches(self) -> list[list[Draw]]:
        """The faces that are drawn together, in order."""
        draws = self.draws
        return [draws[i : i + self.batch_size] for i in range(0, len(draws), self.batch_size)]

    @property
    def missing(self) -> list[tuple[int, list[Draw]]]:
        """The batches of which a face is still to be drawn, with the number of faces before each.

        They are those of a run from the beginning: in another company a face may differ in its last bits.
        """
        firsts = range(0, len(self.cases) * len(self.seeds), self.batch_size)
        return [
            (first, batch)
            for first, batch in zip(firsts, self.batches, strict=True)
            if any(face_name(case, k) not in self.folder.done for case, k, _ in batch)
        ]

    @property
    def sheet_names(self) -> list[str]:
        """File names of the contact sheets: one for each twelve cases, up to ``max_sheets``."""
        pages = min(self.max_sheets, -(-len(self.cases) // ROWS_PER_SHEET))
        return ["contact_sheet.png"] + [f"contact_sheet-{page}.png" for page in range(2, pages + 1)]

    @property
    def files(self) -> list[str]:
        """Names of all files the run writes."""
        faces = [face_name(case, k) for case, k, _ in self.draws]
        return [*self.sheet_names, *faces, *self.landmark_files, *self.trace_files, RECORD]

    @property
    def trace_files(self) -> list[str]:
        """Names of the files that say what guidance did, two for each face, where they are asked for."""
        if self.guidance is None or not self.guidance.cfg.trace:
            return []
        return [name for case, k, _ in self.draws for name in trace_names(face_name(case, k))]

    @property
    def landmark_files(self) -> list[str]:
        """Names of the landmarks' files, two for each case."""
        if self.landmarks is None:
            return []
        return [name(case) for case in self.cases for name in (landmarks_name, picture_name)]

    def introduction(self) -> list[str]:
        """What the user should know before the run starts, a line each."""
        skulls, faces = len(self.cases), len(self.seeds)
        where = (
            f"{self.team.size} x {self.model.device.type}" if self.team.size > 1 else str(self.model.device)
        )
        seen = any(case.skull_path is not None for case in self.cases)
        what = f"{skulls} skull{'s' * (skulls != 1)}" if seen else "no skull"
        each = " each" if seen else ""
        lines = [
            f"{what}, {faces} face{'s' * (faces != 1)}{each}: {self.sampling.steps} steps on {where} "
            f"({self.environment['precision']}), weights {self.weights['file']}"
        ]
        if self.guidance is not None:
            guided = len(self.guidance.cfg.guided_steps(self.sampling.steps))
            lines.append(f"guided at {guided} of {self.sampling.steps} steps: {self.guidance.cfg.summary}")
        if self.folder.done:
            lines.append(f"continuing {self.folder.path}: {len(self.folder.done)} faces are there already")
        if 0 < len(self.missing) < self.team.size:
            smaller = max(1, -(-sum(len(batch) for _, batch in self.missing) // self.team.size))
            lines.append(
                f"note: {len(self.missing)} batch{'es' * (len(self.missing) != 1)} for {self.team.size} processes: "
                f"some will be idle; batch_size={smaller} employs all"
            )
        lines += [f"note: {remark}" for remark in self.remarks]
        lines += [f"note: {path}: {note}" for path, note in list(self.notes.items())[:_SHOWN]]
        if len(self.notes) > _SHOWN:
            lines.append(f"note: ... and on {len(self.notes) - _SHOWN} more pictures; all are in {RECORD}")
        on_sheets = self.max_sheets * ROWS_PER_SHEET
        if skulls > on_sheets:
            lines.append(
                f"note: contact sheets for the first {on_sheets} of {skulls} skulls; "
                f"max_sheets={-(-skulls // ROWS_PER_SHEET)} makes all"
            )
        if any(case.biometrics is None for case in self.cases):
            shaping = (
                "only the skull shapes the face" if seen else "nothing known of the person shapes the face"
            )
            lines.append(f"note: no sex, age or body mass given: the prompt is empty, {shaping}")
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
