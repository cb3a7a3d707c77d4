"""``python -m data.cohort.excerpt COHORT OUT``: the few pairs that ship with the repository, chosen by rule.

Of each split, the lowest-numbered subject in every cell of sex x age band (x body mass, for train and test) is
copied: 16 train, 8 valid and 16 test pairs, in the layout of the whole cohort.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.cohort.config import FACE_DIR, LANDMARK_DIR, SKULL_DIR, SPLIT_DIR

AGE_BANDS = (30, 45, 60)  # years where a new band begins
Line = dict[str, Any]


def age_band(line: Line) -> int:
    return sum(int(line["age"]) >= start for start in AGE_BANDS)


def sex_and_age(line: Line) -> tuple[Any, ...]:
    return line["gender"], age_band(line)


def sex_age_and_mass(line: Line) -> tuple[Any, ...]:
    """Levels 1 to 3 count as thin, 4 and 5 as not."""
    return *sex_and_age(line), int(line["body_mass"]) >= 4


CELLS: dict[str, Callable[[Line], tuple[Any, ...]]] = {
    "train": sex_age_and_mass,
    "valid": sex_and_age,
    "test": sex_age_and_mass,
}


def choose(lines: list[Line], cell: Callable[[Line], tuple[Any, ...]]) -> list[Line]:
    """The first line of every cell, by subject number."""
    first: dict[tuple[Any, ...], Line] = {}
    for line in sorted(lines, key=lambda one: str(one["subject"])):
        first.setdefault(cell(line), line)
    return sorted(first.values(), key=lambda one: str(one["subject"]))


def excerpt(cohort: Path, out: Path) -> dict[str, int]:
    """Copy the chosen pairs of ``cohort`` into ``out``; returns how many of each split.

    Raises:
        FileNotFoundError: ``cohort`` is not a finished cohort.
    """
    if not (cohort / SPLIT_DIR / "test.json").is_file():
        raise FileNotFoundError(
            f"{cohort}: no {SPLIT_DIR}/test.json in it; finish it with python -m data.cohort"
        )
    for folder in (SKULL_DIR, FACE_DIR, LANDMARK_DIR, SPLIT_DIR):
        (out / folder).mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, cell in CELLS.items():
        text = (cohort / SPLIT_DIR / f"{split}.json").read_text(encoding="utf-8")
        chosen = choose([json.loads(line) for line in text.splitlines()], cell)
        for line in chosen:
            for file in (
                f"{SKULL_DIR}/{line['source']}",
                f"{FACE_DIR}/{line['target']}",
                f"pairedCS/{line['landmarks']}",
            ):
                shutil.copyfile(cohort / file, out / file)
        lines = "".join(json.dumps(line) + "\n" for line in chosen)
        (out / SPLIT_DIR / f"{split}.json").write_text(lines, encoding="utf-8")
        counts[split] = len(chosen)
    shutil.copyfile(cohort / "cohort.json", out / "cohort.json")
    return counts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.cohort.excerpt", description=__doc__)
    parser.add_argument("cohort", type=Path, help="folder made by python -m data.cohort")
    parser.add_argument("out", type=Path, help="folder to copy into, for instance data")
    args = parser.parse_args(argv)
    try:
        print(excerpt(args.cohort, args.out))
    except OSError as error:  # no finished cohort, a full disk, a folder that cannot be written
        print(f"data.cohort.excerpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
