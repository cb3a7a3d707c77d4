"""Settings of ``python -m data.check PATH... [key=value ...]``."""

from __future__ import annotations

import os
from typing import Annotated, Self

from pydantic import Field, model_validator

from data.check.flaws import CHECKS
from settings.base import Settings, expect


class CheckConfig(Settings):
    """What is examined, and where the report goes.

    Attributes:
        out: folder for findings.csv, findings.json and sheet.png, replaced by every run; empty writes nothing.
        ignore: names of checks to leave out, with commas between them.
        tolerance: factor on every limit that is relative to the data set; 2 reports only what sticks out twice as far.
        sheet_cases: pictures on the sheet, at most.
        images_dir: folder that holds the skulls' and the faces' folder; empty finds it beside the manifest.
        skull_folder, face_folder: their names; empty finds the spellings in use.
        num_workers: processes; 0 takes one a core. The findings do not depend on it.
    """

    out: str = "results/check"
    ignore: str = ""
    tolerance: Annotated[float, Field(ge=0.1, le=100)] = 1.0
    sheet_cases: Annotated[int, Field(ge=1, le=400)] = 40
    images_dir: str = ""
    skull_folder: str = ""
    face_folder: str = ""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0

    @property
    def ignored(self) -> frozenset[str]:
        return frozenset(name.strip() for name in self.ignore.split(",") if name.strip())

    @property
    def workers(self) -> int:
        return self.num_workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [1])

    @model_validator(mode="after")
    def _known_checks(self) -> Self:
        unknown = sorted(self.ignored - set(CHECKS))
        expect(not unknown, "ignore", self.ignore, f"some of {', '.join(CHECKS)}")
        return self
