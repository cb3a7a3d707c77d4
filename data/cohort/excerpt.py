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
from data.files import write_text

AGE_BANDS = (30, 45, 60)  # years where a new band begins
Line = dict[str, Any]


def _sex_and_age(line: Line) -> tuple[Any, ...]:
    return line["gender"], sum(int(line["age"]) >= start for start in AGE_BANDS)


def _sex_age_and_mass(line: Line) -> tuple[Any, ...]:
    """Levels 1 to 3 count as thin, 4 and 5 as not."""
    return *_sex_and_age(line), int(line["body_mass"]) >= 4


CELLS = {"train": _sex_age_and_mass, "valid": _sex_and_age, "test": _sex_age_and_mass}


def _choose(lines: list[Line], cell: Callable[[Line], tuple[Any, ...]]) -> list[Line]:
    """Return the first line of every cell, by subject number."""
    first: dict[tuple[Any, ...], Line] = {}
    for line in sorted(lines, key=lambda one: str(one["subject"])):
        first.setdefault(cell(line), line)
    return list(first.values())


def excerpt(cohort: Path, out: Path) -> dict[str, int]:
    """Copy the chosen pairs of ``cohort`` into ``out``; return how many of each split.

    Raises:
        FileNotFoundError: ``cohort`` is not a finished cohort.
        ValueError: a line of its lists is damaged, or ``out`` is the cohort itself.
    """
    if cohort.resolve() == out.resolve():
        raise ValueError(f"{out} is the cohort itself: choose another folder")
    manifests = [f"{SPLIT_DIR}/{split}.json" for split in CELLS]
    _check_files(cohort, [*manifests, "cohort.json"])
    chosen = {
        split: _choose(_lines(cohort / SPLIT_DIR / f"{split}.json"), cell) for split, cell in CELLS.items()
    }
    files = [file for lines in chosen.values() for line in lines for file in _files(line)]
    _check_files(cohort, files)
    for folder in (SKULL_DIR, FACE_DIR, LANDMARK_DIR, SPLIT_DIR):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for file in [*files, "cohort.json"]:
        shutil.copyfile(cohort / file, out / file)
    for split, lines in chosen.items():
        kept = [_with_texture(line, [*lines, *chosen["train"]]) for line in lines]
        write_text(out / SPLIT_DIR / f"{split}.json", "".join(json.dumps(line) + "\n" for line in kept))
    return {split: len(lines) for split, lines in chosen.items()}


def _check_files(cohort: Path, files: list[str]) -> None:
    """Raises: FileNotFoundError naming the first file that the cohort lacks."""
    lost = [file for file in files if not (cohort / file).is_file()]
    if lost:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise FileNotFoundError(f"{cohort}: no {lost[0]}{more} in it; finish it with python -m data.cohort")


def _with_texture(line: Line, copied: list[Line]) -> Line:
    """Return the line with an exemplar among the copied faces: its own if it was copied, else one of the same style."""
    same = [one for one in copied if one.get("style") == line.get("style")]
    names = [str(one["target"]) for one in same if one["subject"] != line["subject"]]
    kept = {key: value for key, value in line.items() if key != "texture"}
    if "texture" not in line or not names:
        return kept
    return kept | {"texture": line["texture"] if line["texture"] in names else names[0]}


def _lines(path: Path) -> list[Line]:
    """Return the lines of a manifest. Raises: ValueError naming the line that is damaged."""
    lines: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            _sex_age_and_mass(line)
            strays = [file for file in _files(line) if ".." in Path(file).parts or Path(file).is_absolute()]
            if strays:
                raise ValueError(f"{strays[0]} is outside the cohort")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}: line {number} is damaged ({reason}); make it again with python -m data.cohort"
            ) from error
        lines.append(line)
    return lines


def _files(line: Line) -> list[str]:
    """Return the pictures and landmarks of a line, from the cohort's folder."""
    return [f"{SKULL_DIR}/{line['source']}", f"{FACE_DIR}/{line['target']}", f"pairedCS/{line['landmarks']}"]


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m data.cohort.excerpt", description=__doc__)
    parser.add_argument("cohort", type=Path, help="folder made by python -m data.cohort")
    parser.add_argument("out", type=Path, help="folder to copy into, for instance data")
    try:
        args = parser.parse_args(argv)
        print(excerpt(args.cohort, args.out))
    except (ValueError, OSError) as error:
        print(f"data.cohort.excerpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
