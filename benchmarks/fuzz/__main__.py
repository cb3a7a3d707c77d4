"""Hostile and odd input for every program: ``python -m benchmarks.fuzz [minutes=10] [tries=0] [seed=0] [only=KIND]``.

Each try runs one program in a child process, in a folder of its own, and breaks none of these promises: no traceback,
no crash, no endless wait, no more than 3 GiB; exit code 0 or 2 (or the program's own); after a refusal one message,
and nothing written; inputs stay as they are; nothing outside of the folder is opened; an earlier result is kept whole
or replaced whole; what is known to be wrong is refused, and what is known to be sound is not.

Prints a table of kinds and the failures, each with the number of its try: ``first=N tries=1`` repeats try N.
Exit code 1 if any promise is broken.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import NonNegativeInt, PositiveFloat

from benchmarks.fuzz import programs, scans
from benchmarks.fuzz.inputs import Sound
from benchmarks.fuzz.sandbox import Try, run
from benchmarks.results_file import table
from settings.base import Settings
from settings.help import help_text, is_asked
from settings.reading import parse_command_line

PROGRAMS = {
    name: name
    for name in (
        "sample",
        "train",
        "evaluate",
        "tool_add_control",
        "data.split",
        "data.pack",
        "data.manifest",
    )
}
PROGRAMS |= {name: name for name in ("muti_control.case.verify", "muti_control.case.report")}
PROGRAMS |= {f"data.{name}": f"data.{name}.__main__" for name in ("ct", "cohort", "check")}
MAKERS = (*programs.MAKERS, *scans.MAKERS)
LIBRARIES = ("pydicom", "scipy", "cv2", "onnxruntime", "data.ct.drawing", "data.cohort.generate")
_PRINTED = 40  # failures


class FuzzConfig(Settings):
    """The campaign."""

    minutes: PositiveFloat = 10.0
    """Time limit, minutes."""
    tries: NonNegativeInt = 0
    """Number of tries; 0 stops at the time limit alone."""
    seed: NonNegativeInt = 0
    """Seed of the campaign. Try N of a seed is always the same."""
    first: NonNegativeInt = 0
    """Number of the first try."""
    only: str | None = None
    """A kind of input; null takes all."""


def finished_run(main: Callable[[list[str]], int | None], sound: Sound, folder: Path) -> dict[str, bytes]:
    """Return the files of a run of ``sample.py`` by name."""
    start = os.getcwd()
    for name, content in sound.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        os.chdir(folder)
        if main([*programs.DRAW, *programs.PERSON, "skull=in/s.png"]):
            raise RuntimeError("sample.py does not draw the sound skull: nothing can be compared with it")
    finally:
        os.chdir(start)
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder / "out")): path.read_bytes() for path in files}


def campaign(config: FuzzConfig) -> tuple[Counter[str], list[tuple[int, Try, str]]]:
    """Run the tries. Return their number by kind, and number, try and text of each failure."""
    torch.set_num_threads(1)
    mains = {name: importlib.import_module(module).main for name, module in PROGRAMS.items()}
    for name in LIBRARIES:  # imported once, not by each child
        importlib.import_module(name)
    counts: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder, sound = Path(name), Sound.make()
        sound.result = finished_run(mains["sample"], sound, folder / "sound")
        deadline, number = time.monotonic() + 60 * config.minutes, config.first
        while time.monotonic() < deadline and (not config.tries or sum(counts.values()) < config.tries):
            rng = random.Random(f"{config.seed} {number}")
            trial = rng.choice(MAKERS)(rng, sound)
            if config.only in (None, trial.kind):
                counts[trial.kind] += 1
                wrong = run(trial, mains[trial.program], folder / "try")
                failures += [(number, trial, text) for text in wrong]
            number += 1
    return counts, failures


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0, or 1 where a promise was broken."""
    if is_asked(arguments):
        print(help_text(__doc__, FuzzConfig, arguments))
        return 0
    counts, failures = campaign(parse_command_line(FuzzConfig, arguments))
    broken = Counter(
        trial.kind for trial, _ in {number: (trial, 0) for number, trial, _ in failures}.values()
    )
    print(
        table(
            ["kind", "tries", "with failures"],
            [[kind, str(counts[kind]), str(broken[kind])] for kind in sorted(counts)],
        )
    )
    for number, trial, text in failures[:_PRINTED]:
        line = " ".join(trial.arguments).encode("utf-8", "backslashreplace").decode()
        print(f"{number}: {trial.kind}, {trial.program} {line[:160]}\n    {text}")
    classes = Counter(text.split(":")[0] for _, _, text in failures)
    print(
        f"{sum(counts.values())} tries, {sum(broken.values())} with failures: {dict(classes.most_common()) or 'none'}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
