"""``python -m data.cohort.excerpt COHORT OUT``: the few pairs that ship with the repository, chosen by rule.

Of each split, the lowest-numbered subject in every cell of sex x age band (x body mass, for train and test) is
copied: 16 train, 8 valid and 16 test pairs, in the layout of the whole cohort. A texture exemplar is one of the copied
faces, or none.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.cohort.config import FACE_DIR, LANDMARK_DIR, SKULL_DIR, SPLIT_DIR, ArgumentParser

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
        ValueError: a line of its lists is none of a cohort's, or ``out`` is the cohort itself.
    """
    if not (cohort / SPLIT_DIR / "test.json").is_file():
        raise FileNotFoundError(
            f"{cohort}: no {SPLIT_DIR}/test.json in it; finish it with python -m data.cohort"
        )
    if cohort.resolve() == out.resolve():
        raise ValueError(f"{out} is the cohort itself: choose another folder")
    chosen = {
        split: choose(_lines(cohort / SPLIT_DIR / f"{split}.json"), cell) for split, cell in CELLS.items()
    }
    files = [file for lines in chosen.values() for line in lines for file in _files(line)]
    lost = [file for file in [*files, "cohort.json"] if not (cohort / file).is_file()]
    if lost:
        raise FileNotFoundError(
            f"{cohort}: {lost[0]} is not there{f', and {len(lost) - 1} more' if lost[1:] else ''}; "
            "finish it with python -m data.cohort"
        )
    for folder in (SKULL_DIR, FACE_DIR, LANDMARK_DIR, SPLIT_DIR):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(cohort / file, out / file)
    for split, lines in chosen.items():
        kept = [_with_texture(line, [*lines, *chosen["train"]]) for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        (out / SPLIT_DIR / f"{split}.json").write_text(text, encoding="utf-8")
    shutil.copyfile(cohort / "cohort.json", out / "cohort.json")
    return {split: len(lines) for split, lines in chosen.items()}


def _with_texture(line: Line, copied: list[Line]) -> Line:
    """The line with an exemplar among the copied faces: its own where that was copied, else one of the same style."""
    same = [one for one in copied if one.get("style") == line.get("style")]
    names = [str(one["target"]) for one in same if one["subject"] != line["subject"]]
    kept = {key: value for key, value in line.items() if key != "texture"}
    if "texture" not in line or not names:
        return kept
    return kept | {"texture": line["texture"] if line["texture"] in names else names[0]}


def _lines(path: Path) -> list[Line]:
    """Raises ValueError naming the line that is none of a cohort's."""
    lines: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            sex_age_and_mass(line)
            strays = [file for file in _files(line) if ".." in Path(file).parts or Path(file).is_absolute()]
            if strays:
                raise ValueError(f"{strays[0]} is outside the cohort")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}: line {number} is none of a cohort's ({what}); make it again with python -m data.cohort"
            ) from error
        lines.append(line)
    return lines


def _files(line: Line) -> list[str]:
    """The pictures and landmarks of a line, from the cohort's folder."""
    return [
        f"{SKULL_DIR}/{line['source']}",
        f"{FACE_DIR}/{line['target']}",
        f"pairedCS/{line['landmarks']}",
    ]


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m data.cohort.excerpt", description=__doc__)
    parser.add_argument("cohort", type=Path, help="folder made by python -m data.cohort")
    parser.add_argument("out", type=Path, help="folder to copy into, for instance data")
    try:
        args = parser.parse_args(argv)
        print(excerpt(args.cohort, args.out))
    except (ValueError, OSError) as error:  # no finished cohort, a full disk, a folder that cannot be written
        print(f"data.cohort.excerpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
