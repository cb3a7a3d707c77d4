"""Settings of ``python -m data.check PATH... [key=value ...]``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from data.check.findings import CHECKS
from data.settings import merged


@dataclass
class CheckConfig:
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
    tolerance: float = 1.0
    sheet_cases: int = 40
    images_dir: str = ""
    skull_folder: str = ""
    face_folder: str = ""
    num_workers: int = 0

    @property
    def ignored(self) -> frozenset[str]:
        return frozenset(name.strip() for name in self.ignore.split(",") if name.strip())

    @property
    def workers(self) -> int:
        return self.num_workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [1])

    def check(self) -> None:
        """Raises: ValueError naming the key, its value and what is allowed."""
        limits = {"tolerance": (0.1, 100), "sheet_cases": (1, 400), "num_workers": (0, 256)}
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise ValueError(f"{key}={value}: expected {low} <= {key} <= {high}")
        unknown = sorted(self.ignored - set(CHECKS))
        if unknown:
            raise ValueError(f"ignore={unknown[0]}: no such check; checks: {', '.join(CHECKS)}")


def parse_config(overrides: list[str]) -> CheckConfig:
    """``["out=report", ...]`` -> config. Raises: ValueError for an unknown key, a wrong type or value."""
    config = merged(CheckConfig, overrides)
    config.check()
    return config
