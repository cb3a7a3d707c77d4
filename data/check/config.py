"""Settings of ``python -m data.check PATH... [key=value ...]``."""

from __future__ import annotations

import os
from typing import Annotated, Self

from pydantic import Field, model_validator

from data.check.flaws import CHECKS
from settings.base import Settings, expect


class CheckConfig(Settings):
    """What is examined, and where the report goes."""

    out: str = "results/check"
    """Folder of findings.csv, findings.json and sheet.png, replaced by every run; empty writes nothing."""
    ignore: str = ""
    """Names of checks to leave out, with commas between them."""
    tolerance: Annotated[float, Field(ge=0.1, le=100)] = 1.0
    """Factor on every limit that is relative to the data set."""
    sheet_cases: Annotated[int, Field(ge=1, le=400)] = 40
    """Pictures on the sheet, at most."""
    images_dir: str = ""
    """Folder that holds the skulls' and the faces' folder; empty finds it beside the list."""
    skull_folder: str = ""
    """Name of the skulls' folder; empty finds the spellings in use."""
    face_folder: str = ""
    """Name of the faces' folder; empty finds the spellings in use."""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes; 0 takes one a core. The findings do not depend on it."""

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
