"""Distances and tissue depths of the cohort's heads beside published norms, measured on the meshes.

    python -m benchmarks.cohort.anatomy [key=value ...]
    python -m benchmarks.cohort.anatomy num_subjects=1000 seed=1 num_workers=2

Nothing is drawn. The norms are of East Asians, so the distances are of the cohort's Asian subjects by default; tissue
depths too. Sites are found on each head by their definition (benchmarks/cohort/craniometry.py, benchmarks/cohort/tissue_depth.py).
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.cohort.craniometry import Anchors, SkullSites, Surface, head_distances, skull_distances
from benchmarks.cohort.norms import DEPTHS, HEAD, SKULL, SOURCES, Norm
from benchmarks.cohort.tissue_depth import tissue_depths
from cldm.record import write_json
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.subject import Subject, draw_subject
from data.cohort.heads.template import HeadTemplate
from data.workers import ONE_THREAD
from ldm.checkpoint import git_revision
from muti_control.evaluation.results.statistics import bootstrap_interval
from settings.base import Settings
from settings.reading import parse_command_line

# Sites whose published depths are of people with teeth -> the (quadrants, tooth) needed, as in `SkullTraits.lost`.
NEEDED_TEETH = {
    **dict.fromkeys(("mid-philtrum", "upper lip (prosthion)"), ((0, 1), 0)),
    **dict.fromkeys(("lower lip (infradentale)", "supramentale"), ((2, 3), 0)),
    "supra-M2": ((0, 1), 6),
    "sub-M2": ((2, 3), 6),
}
BMI_GROUPS = {"below 18.5": (0.0, 18.5), "18.5 to 25": (18.5, 25.0), "25 and over": (25.0, 99.0)}


class AnatomyConfig(Settings):
    """What is measured.

    num_subjects, seed: subjects 0 .. num_subjects - 1 of the cohort of that seed.
    ethnicity: those of them that are measured; "all" takes everybody.
    num_workers: processes; the figures do not depend on it.
    out: where the figures are written (OUT.json).
    """

    num_subjects: int = 1000
    seed: int = 1
    ethnicity: str = "Asian"
    num_workers: int = 1
    out: str = "benchmarks/results/anatomy"

    def check(self) -> None:
        """Raises: ValueError naming the setting."""
        if self.num_subjects < 10 or self.num_workers < 1:
            raise ValueError(
                f"num_subjects={self.num_subjects}, num_workers={self.num_workers}: expected at least 10 and 1"
            )


@dataclass(frozen=True)
class Measured:
    """One head. ``skull``, ``head`` and ``depths``: mm by name, NaN where a site is missing."""

    sex: str
    age: float
    bmi: float
    skull: dict[str, float]
    head: dict[str, float]
    depths: dict[str, float]


def measure(template: HeadTemplate, subject: Subject) -> Measured:
    """Build one head and measure it."""
    head = build_head(template, subject)
    skull, skin = Surface(head.skull, head.skull_triangles), Surface(head.face, template.face_triangles)
    at = Anchors.of(head.landmarks)
    sites = SkullSites.of(skull, at)
    depths = tissue_depths(skull, skin, sites, at)
    for name, (quadrants, tooth) in NEEDED_TEETH.items():
        if subject.skull.lost[list(quadrants), tooth].any():
            depths[name] = float("nan")
    return Measured(
        sex=subject.sex,
        age=subject.age,
        bmi=subject.bmi,
        skull=skull_distances(sites),
        head=head_distances(skin, head.face, sites, at),
        depths=depths,
    )


_template: HeadTemplate  # of this worker process


def _start() -> None:
    global _template
    _template = HeadTemplate.load()


def _work(subject: Subject) -> Measured:
    return measure(_template, subject)


def measure_all(config: AnatomyConfig, progress: bool = True) -> list[Measured]:
    """The cohort's heads, in order.

    Raises:
        ValueError: nobody of that ethnicity.
    """
    subjects = [draw_subject(config.seed, index) for index in range(config.num_subjects)]
    chosen = [s for s in subjects if config.ethnicity in ("all", s.ethnicity)]
    if not chosen:
        known = ", ".join(sorted({s.ethnicity for s in subjects}))
        raise ValueError(f"ethnicity={config.ethnicity}: nobody of them is; expected all, {known}")
    bar = tqdm(total=len(chosen), unit="head", disable=not progress)
    measured: list[Measured] = []
    with bar, ExitStack() as stack:
        if config.num_workers == 1:
            _start()
            found: Iterable[Measured] = map(_work, chosen)
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(config.num_workers, context, _start))
            found = pool.map(_work, chosen, chunksize=8)
        for one in found:
            measured.append(one)
            bar.update()
    return measured


def summary(values: NDArray[np.floating], rng: np.random.Generator) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval over subjects, SD and percentiles of the values that are there, in mm."""
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
    """Least-squares slope of y on x where both are there, with its 95 % bootstrap interval over subjects."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 10:
        return {"num": len(x)}
    draws = rng.integers(0, len(x), size=(1000, len(x)))
    low, high = np.percentile([np.polyfit(x[rows], y[rows], 1)[0] for rows in draws], [2.5, 97.5])
    return {"num": len(x), "slope": float(np.polyfit(x, y, 1)[0]), "interval": (float(low), float(high))}


def figures(heads: Sequence[Measured], seed: int = 0) -> dict[str, Any]:
    """Everything the tables show: distances by sex, depths by BMI, slopes of depth on BMI (mm per kg/m2)."""
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


def tables(found: dict[str, Any]) -> str:
    """Two Markdown tables: distances by sex, tissue depths by BMI."""
    lines = ["| distance, mm | men | norm | women | norm |", "|---" * 5 + "|"]
    for part, norms in (("skull", SKULL), ("head", HEAD)):
        for name, by_sex in found[part].items():
            cells = [f"{part}: {name}"]
            for sex in ("M", "F"):
                norm: Norm | str = norms.get((name, sex), "")
                cells += [_cell(by_sex[sex]), str(norm)]
            lines.append("| " + " | ".join(cells) + " |")
    groups = [*BMI_GROUPS, "M", "F"]
    heading = [
        "tissue depth, mm",
        "all",
        *(f"BMI {g}" for g in BMI_GROUPS),
        "men",
        "women",
        "mm per kg/m2",
        "norm",
    ]
    lines += ["", "| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
    for name, row in found["depths"].items():
        per_bmi = row["per_bmi"]
        rise = f"{per_bmi['slope']:.2f}" if "slope" in per_bmi else ""
        means = [f"{row[g]['mean']:.1f}" if "mean" in row[g] else "" for g in groups]
        lines.append(
            "| "
            + " | ".join([name, _cell(row["all"], False), *means, rise, str(DEPTHS.get(name, ""))])
            + " |"
        )
    return "\n".join(lines)


def _cell(s: dict[str, Any], between: bool = True) -> str:
    if "mean" not in s:
        return "not there"
    tail = f" [{s['p5']:.0f}, {s['p95']:.0f}]" if between else ""
    return f"{s['mean']:.1f} ± {s['sd']:.1f}{tail}"


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 (130: interrupted) with one message on stderr."""
    try:
        config = parse_command_line(AnatomyConfig, arguments)
        config.check()
        out = Path(config.out).with_suffix(".json")
        out.parent.mkdir(parents=True, exist_ok=True)
        heads = measure_all(config)
        found = figures(heads)
        write_json(
            out,
            {
                "config": config.model_dump(),
                "git": git_revision(),
                "num": len(heads),
                "sources": SOURCES,
                **found,
            },
        )
    except (ValueError, OSError) as error:
        print(f"anatomy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nanatomy: interrupted; no figures were written", file=sys.stderr)
        return 130
    print(f"{len(heads)} heads; mean ± SD [5th, 95th percentile]\n\n{tables(found)}\n\nfigures: {out}")
    return 0


if __name__ == "__main__":
    import os

    os.environ.update(ONE_THREAD)  # for the workers
    sys.exit(main(sys.argv[1:]))
