"""Measure distances and tissue depths on the meshes of the cohort's heads, beside published norms.

    python -m benchmarks.cohort.anatomy [key=value ...]
    python -m benchmarks.cohort.anatomy num_subjects=1000 seed=1 num_workers=2

No picture is drawn. The norms are of East Asians, so the Asian subjects are measured by default. Sites are located on
each head by their definition (craniometry.py, tissue_depth.py).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from tqdm import tqdm

from benchmarks.cohort.craniometry import Anchors, SkullSites, Surface, head_distances, skull_distances
from benchmarks.cohort.norms import DEPTHS, HEAD, SKULL, SOURCES
from benchmarks.cohort.tissue_depth import tissue_depths
from benchmarks.results_file import run, table, write_figures
from data.cohort.config import CohortConfig
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.subject import Subject
from data.cohort.heads.template import HeadTemplate
from data.cohort.pair import draw_subject_of
from data.workers import ONE_THREAD
from ldm.checkpoint import git_revision
from muti_control.evaluation.results.statistics import bootstrap_interval
from muti_control.record import check_creatable
from settings.base import Settings

# Sites whose published depths are of people with teeth -> the (quadrants, tooth) needed, as in `SkullTraits.lost`.
NEEDED_TEETH = {
    **dict.fromkeys(("mid-philtrum", "upper lip (prosthion)"), ((0, 1), 0)),
    **dict.fromkeys(("lower lip (infradentale)", "supramentale"), ((2, 3), 0)),
    "supra-M2": ((0, 1), 6),
    "sub-M2": ((2, 3), 6),
}
BMI_GROUPS = {"below 18.5": (0.0, 18.5), "18.5 to 25": (18.5, 25.0), "25 and over": (25.0, 99.0)}


class AnatomyConfig(Settings):
    """What is measured."""

    num_subjects: Annotated[int, Field(ge=10)] = 1000
    """People 0 to num_subjects - 1 of the cohort."""
    seed: int = 1
    """Seed of the cohort."""
    format: Literal[8, 9] = 8
    """Recipe of the cohort."""
    ethnicity: str = "Asian"
    """Those of them that are measured; all takes everybody."""
    num_workers: PositiveInt = 1
    """Processes. The figures do not depend on it."""
    out: str = "benchmarks/results/anatomy"
    """OUT.json is written."""


@dataclass(frozen=True)
class Measured:
    """One head. ``skull``, ``head`` and ``depths``: mm by name, NaN where a site is missing."""

    sex: str
    bmi: float
    skull: dict[str, float]
    head: dict[str, float]
    depths: dict[str, float]


def measure(subject: Subject) -> Measured:
    """Build one head and measure it."""
    head = build_head(template(), subject)
    skull, skin = Surface(head.skull, head.skull_triangles), Surface(head.face, template().face_triangles)
    at = Anchors(head.landmarks)
    sites = SkullSites(skull, at)
    depths = tissue_depths(skull, skin, sites, at)
    for name, (quadrants, tooth) in NEEDED_TEETH.items():
        if subject.skull.lost[list(quadrants), tooth].any():
            depths[name] = float("nan")
    return Measured(
        sex=subject.sex,
        bmi=subject.bmi,
        skull=skull_distances(sites),
        head=head_distances(skin, head.face, sites, at),
        depths=depths,
    )


@cache
def template() -> HeadTemplate:
    """Return the head template, read once in each process."""
    return HeadTemplate.load()


def measure_all(config: AnatomyConfig) -> list[Measured]:
    """Return the measurements of the cohort's heads, in order.

    Raises:
        ValueError: nobody is of that ethnicity.
    """
    cohort = CohortConfig.of(format=config.format, num_subjects=config.num_subjects, seed=config.seed)
    subjects = [draw_subject_of(cohort, index) for index in range(config.num_subjects)]
    chosen = [s for s in subjects if config.ethnicity in ("all", s.ethnicity)]
    if not chosen:
        ethnicities = ", ".join(sorted({s.ethnicity for s in subjects}))
        raise ValueError(f"ethnicity: got {config.ethnicity!r}, expected all, {ethnicities}")
    with ProcessPoolExecutor(config.num_workers, multiprocessing.get_context("spawn")) as pool:
        heads = map(measure, chosen) if config.num_workers == 1 else pool.map(measure, chosen, chunksize=8)
        return list(tqdm(heads, total=len(chosen), unit="head"))


def summary(values: NDArray[np.floating], rng: np.random.Generator) -> dict[str, Any]:
    """Return mean, its 95 % bootstrap interval over subjects, SD and percentiles of the finite values, in mm."""
    there = values[np.isfinite(values)]
    if len(there) < 3:
        return {"num": len(there)}
    low, high = np.percentile(there, [5, 95])
    return {
        "num": len(there),
        "mean": float(there.mean()),
        "mean_interval": bootstrap_interval(there, rng, 1000),
        "sd": float(there.std(ddof=1)),
        "p5": float(low),
        "p95": float(high),
    }


def slope(x: NDArray[np.floating], y: NDArray[np.floating], rng: np.random.Generator) -> dict[str, Any]:
    """Return the least-squares slope of y on x where both are finite, with its 95 % bootstrap interval."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 10:
        return {"num": len(x)}
    draws = rng.integers(0, len(x), size=(1000, len(x)))
    low, high = np.percentile([np.polyfit(x[rows], y[rows], 1)[0] for rows in draws], [2.5, 97.5])
    return {"num": len(x), "slope": float(np.polyfit(x, y, 1)[0]), "interval": (float(low), float(high))}


def figures(heads: Sequence[Measured], seed: int = 0) -> dict[str, Any]:
    """Return distances by sex, depths by sex and BMI, and slopes of depth on BMI (mm per kg/m2)."""
    rng = np.random.default_rng(seed)
    sex = np.array([h.sex for h in heads])
    bmi = np.array([h.bmi for h in heads])

    def column(part: str, name: str) -> NDArray[np.floating]:
        return np.array([getattr(h, part)[name] for h in heads])

    result: dict[str, Any] = {
        part: {
            name: {s: summary(column(part, name)[sex == s], rng) for s in ("M", "F")}
            for name in getattr(heads[0], part)
        }
        for part in ("skull", "head")
    }
    result["depths"] = {}
    for name in heads[0].depths:
        values = column("depths", name)
        result["depths"][name] = {
            "all": summary(values, rng),
            **{s: summary(values[sex == s], rng) for s in ("M", "F")},
            **{g: summary(values[(bmi >= a) & (bmi < b)], rng) for g, (a, b) in BMI_GROUPS.items()},
            "per_bmi": slope(bmi, values, rng),
        }
    return result


def tables(result: dict[str, Any]) -> str:
    """Return two Markdown tables: distances by sex, tissue depths by BMI."""
    distances = [
        [f"{part}: {name}"]
        + [cell for s in ("M", "F") for cell in (_cell(by_sex[s]), str(norms.get((name, s), "")))]
        for part, norms in (("skull", SKULL), ("head", HEAD))
        for name, by_sex in result[part].items()
    ]
    groups = [*BMI_GROUPS, "M", "F"]
    depths = [
        [name, _cell(row["all"], False)]
        + [f"{row[group]['mean']:.1f}" if "mean" in row[group] else "" for group in groups]
        + [f"{row['per_bmi']['slope']:.2f}" if "slope" in row["per_bmi"] else "", str(DEPTHS.get(name, ""))]
        for name, row in result["depths"].items()
    ]
    columns = ["all", *(f"BMI {group}" for group in BMI_GROUPS), "men", "women", "mm per kg/m2", "norm"]
    return "\n\n".join(
        [
            table(["distance, mm", "men", "norm", "women", "norm"], distances),
            table(["tissue depth, mm", *columns], depths),
        ]
    )


def _cell(s: dict[str, Any], between: bool = True) -> str:
    if "mean" not in s:
        return "not there"
    tail = f" [{s['p5']:.0f}, {s['p95']:.0f}]" if between else ""
    return f"{s['mean']:.1f} ± {s['sd']:.1f}{tail}"


def work(config: AnatomyConfig) -> None:
    """Measure, write OUT.json and print the tables."""
    check_creatable(Path(config.out).parent)
    heads = measure_all(config)
    result = figures(heads)
    head = {"config": config.model_dump(), "git": git_revision(), "num": len(heads), "sources": SOURCES}
    out = write_figures(config.out, head | result)
    print(f"{len(heads)} heads; mean ± SD [5th, 95th percentile]\n\n{tables(result)}\n\nfigures: {out}")


def main(arguments: Sequence[str]) -> int:
    return run("cohort.anatomy", AnatomyConfig, arguments, work)


if __name__ == "__main__":
    os.environ.update(ONE_THREAD)  # for the workers
    sys.exit(main(sys.argv[1:]))
