"""Say whether a case folder is as its log says, to the last byte.

    python -m muti_control.case.verify FOLDER [head=HASH]

Every file is listed with its SHA-256. Exit code 0: all is as logged. 1: the differences are listed. head: the hash of
an entry, such as the report prints; without such an outside copy, nobody can see that the last entries were removed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from data.program import run_program
from muti_control.case.log import UNLISTED, Files, Log, files_of, read_log
from muti_control.record import LOCK, LOG, RECORD
from settings.base import Settings


class VerifyConfig(Settings):
    """What must be in the log."""

    head: str | None = Field(None, pattern="^[0-9a-f]{16,64}$")
    """Hash of an entry that the log must have; its first 16 digits serve."""


@dataclass(frozen=True)
class Verification:
    """What a case folder holds, and how that differs from its log. files: as they are now."""

    log: Log
    files: Files
    differences: Sequence[str]
    notes: Sequence[str]


def verify(folder: Path, head: str | None = None) -> Verification:
    """Compare a case folder with its log.

    Args:
        head: the hash of an entry, or its beginning, that the log must have.

    Raises:
        ValueError: it is no case folder. OSError: a file cannot be read.
    """
    if not (folder / LOG).exists() and not (folder / RECORD).exists():
        raise ValueError(f"{folder}: has no {LOG}; give the folder of a run of sample.py")
    log, files = read_log(folder), files_of(folder)
    differences, notes = list(log.faults), list(log.notes)
    for before, entry in zip(log.entries, log.entries[1:], strict=False):
        for name, change in _changes(before["files"], entry["files"]):
            if name not in entry["wrote"]:
                what = f"entry {entry['number']} ({entry['action']})"
                differences.append(f"{name}: {change} before {what}, which does not account for it")
    differences += [f"{name}: {change} since the last entry" for name, change in _changes(log.files, files)]
    everything = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    differences += [f"{name}: a broken-off write" for name in sorted(everything - files.keys() - UNLISTED)]
    if (folder / LOCK).is_file() and (folder / LOCK).stat().st_size:
        differences.append(f"{LOCK}: changed; it is always empty")
    if head is not None:
        places = [entry["number"] for entry in log.entries if entry["hash"].startswith(head)]
        if not places:
            differences.append(f"{LOG}: no entry has the hash {head}: entries were removed or rewritten")
        elif places[-1] < len(log.entries):
            notes.append(f"{LOG}: entries after the one with this hash: {len(log.entries) - places[-1]}")
    return Verification(log, files, differences, notes)


def _changes(before: Files, after: Files) -> list[tuple[str, str]]:
    """Return the names of files that differ, each with what happened."""
    names = sorted(before.keys() | after.keys())
    words = [(n, "added" if n not in before else "missing" if n not in after else "changed") for n in names]
    return [(name, word) for name, word in words if before.get(name) != after.get(name)]


def _verify(config: VerifyConfig, folder: Path) -> int:
    result = verify(folder, config.head)
    for name, file in result.files.items():
        print(f"{file['sha256']}  {file['size']:>9}  {name}")
    for entry in result.log.entries:
        print(f"entry {entry['number']}, {entry['time']}: {entry['action']} ({entry['software']})")
    for note in result.notes:
        print(f"note: {note}")
    for difference in result.differences:
        print(f"DIFFERENCE: {difference}")
    print(f"head of the log: {result.log.head}")
    num = len(result.differences)
    print(f"{folder}: {f'{num} differences' if num > 1 else '1 difference' if num else 'all is as logged'}")
    return 1 if num else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify the folder that the command line names, and return the exit code."""
    return run_program("muti_control.case.verify", __doc__, VerifyConfig, _verify, arguments, paths="FOLDER")


if __name__ == "__main__":
    sys.exit(main())
