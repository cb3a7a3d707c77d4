"""``python -m data.cohort.excerpt COHORT OUT``: the few pairs that ship with the repository, chosen by rule.

Of each split, the lowest-numbered subject in every cell of sex x age band (x body mass, for train and test) is
copied: 16 train, 8 valid and 16 test pairs, in the layout of the whole cohort. A texture exemplar is one of the copied
faces, or none.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data.cohort.config import SPLIT_DIR
from data.files import write_text
from data.manifest import Record, read_manifest
from data.program import run_program
from settings.base import Settings

AGE_BANDS = (30, 45, 60)  # years where a new band begins
SPLITS = ("train", "valid", "test")


def excerpt(cohort: Path, out: Path) -> dict[str, int]:
    """Copy the chosen pairs of ``cohort`` into ``out``; return how many of each split.

    Raises:
        ValueError: ``cohort`` is not a finished cohort, or is ``out``.
    """
    if cohort.resolve() == out.resolve():
        raise ValueError(f"{out} is the cohort itself: choose another folder")
    for name in (f"{SPLIT_DIR}/test.json", "cohort.json"):
        if not (cohort / name).is_file():
            raise ValueError(f"{cohort}: no {name} in it; finish it with python -m data.cohort")
    chosen: dict[str, list[Record]] = {}
    for split in SPLITS:
        first: dict[tuple[Any, ...], Record] = {}
        for record in sorted(read_manifest(cohort / SPLIT_DIR / f"{split}.json"), key=lambda r: r.subject):
            first.setdefault(_cell(record, split), record)
        chosen[split] = list(first.values())
    for split, records in chosen.items():
        lines = (cohort / SPLIT_DIR / f"{split}.json").read_text(encoding="utf-8").split("\n")
        copied = [*records, *chosen["train"]]
        text = "".join(_line(lines[one.line - 1], one, copied) + "\n" for one in records)
        paths = [
            path for one in records for path in (one.skull_path, one.face_path, one.landmarks_path) if path
        ]
        for path in paths:
            target = out / path.relative_to(cohort)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (out / SPLIT_DIR).mkdir(parents=True, exist_ok=True)
        write_text(out / SPLIT_DIR / f"{split}.json", text)
    shutil.copyfile(cohort / "cohort.json", out / "cohort.json")
    return {split: len(records) for split, records in chosen.items()}


def _cell(record: Record, split: str) -> tuple[Any, ...]:
    """Return what one excerpt has once; levels 1 to 3 of body mass count as thin, 4 and 5 as not."""
    who = record.biometrics
    band = sum(who.age >= start for start in AGE_BANDS)
    return (who.sex, band) if split == "valid" else (who.sex, band, who.body_mass >= 4)


def _line(text: str, record: Record, copied: list[Record]) -> str:
    """Return a manifest line with an exemplar among the copied faces: its own if copied, else one of the same style."""
    line = json.loads(text)
    texture = line.pop("texture", None)
    names = [r.target for r in copied if r.style == record.style and r.subject != record.subject]
    if texture is not None and names:
        line["texture"] = texture if texture in names else names[0]
    return json.dumps(line)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after one message on stderr."""

    def work(config: Settings, cohort: Path, out: Path) -> None:
        print(excerpt(cohort, out))

    return run_program("data.cohort.excerpt", __doc__, Settings, work, argv, paths="COHORT OUT")


if __name__ == "__main__":
    sys.exit(main())
