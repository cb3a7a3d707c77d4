"""A sampling run before it starts: what to draw, with what, and which files come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.controlled import ControlledLatentDiffusion
from cldm.record import RECORD
from cldm.sampling import SamplingConfig
from data.cases import Case

ROWS_PER_SHEET = 12
_SHOWN = 20

Draw = tuple[Case, int, int]
"""A face: its case, its number within the case, its seed."""


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
    max_sheets: contact sheets at most, of twelve cases each.
    weights: file name, sha256 and step. environment: of ``cldm.record``. config: the resolved settings as YAML.
    manifest: its path and sha256, where the skulls come from one.
    """

    model: ControlledLatentDiffusion
    cases: Sequence[Case]
    notes: Mapping[Path, str]
    seeds: Sequence[int]
    sampling: SamplingConfig
    batch_size: int
    max_sheets: int
    folder: RunFolder
    weights: Mapping[str, str]
    environment: Mapping[str, Any]
    config: str
    manifest: Mapping[str, str] | None = None

    @property
    def draws(self) -> list[Draw]:
        """Every face of the run."""
        return [(case, k, seed) for case in self.cases for k, seed in enumerate(self.seeds)]

    @property
    def batches(self) -> list[list[Draw]]:
        """The faces that are drawn together, in order."""
        draws = self.draws
        return [draws[i : i + self.batch_size] for i in range(0, len(draws), self.batch_size)]

    @property
    def sheet_names(self) -> list[str]:
        """File names of the contact sheets: one for each twelve cases, up to ``max_sheets``."""
        pages = min(self.max_sheets, -(-len(self.cases) // ROWS_PER_SHEET))
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
