"""The log of a case: what was done in its folder, an entry a line, each bound to the entry before by its hash.

An entry holds its number, time, action, software and details, the size and SHA-256 of every file in the folder
(``files``), the names of the files that the action accounts for (``wrote``), the hash of the entry before (``before``)
and its own hash, the SHA-256 of all this as canonical JSON. So no entry and no file can be altered, removed or moved
without a trace, but for entries at the end: only a copy of the last hash in another place shows that these are gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from data.files import ASIDE
from ldm.checkpoint import git_revision, sha256
from muti_control.record import LOCAL, LOCK, LOG, package_version
from settings.base import Settings
from settings.parsing import decoded, parse_json

UNLISTED = frozenset({LOG, LOCK, LOCAL})
FORMAT = "iccr-diff case log 1"
_BROKEN_OFF = re.compile(rf"{re.escape(ASIDE)}|(.*/)?\.[^/]+\.[0-9a-f]{{8}}\.tmp$")

Files = Mapping[str, Mapping[str, Any]]
"""Size in bytes and SHA-256 of files, by their paths in the folder, with ``/``."""


class _File(Settings):
    size: int
    sha256: str


class _Entry(Settings):
    number: int
    time: str
    action: str
    software: str
    details: dict[str, Any]
    wrote: list[str]
    files: dict[str, _File]
    before: str
    hash: str
    torn: str | None = None


@dataclass(frozen=True)
class Log:
    """The entries of a log, in order. faults: what is wrong with lines. notes: what is unusual but explained.

    torn: the SHA-256 of what follows the last entry, where the writing of the last line was interrupted.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    torn: str | None = None

    @property
    def head(self) -> str | None:
        """The hash of the last entry."""
        return self.entries[-1]["hash"] if self.entries else None

    @property
    def files(self) -> Files:
        """The files that the last entry lists."""
        return self.entries[-1]["files"] if self.entries else {}


def append(
    folder: Path, action: str, details: Mapping[str, Any] | None = None, wrote: Iterable[str] = ()
) -> str:
    """Add an entry to the log of a case folder, which begins with it where there is none.

    Safe against other processes that append, and against a kill: a line is either whole or recognised as torn.

    Args:
        action: a few words, such as "faces drawn". details: values that JSON can hold, without paths of the machine.
        wrote: paths in the folder of all files that were made, changed or removed since the last entry. Other
            differences between two entries are reported by ``muti_control.case.verify``.

    Returns:
        The hash of the entry, 64 hexadecimal digits.

    Raises:
        ValueError: details that JSON cannot hold. OSError: the log cannot be written.
    """
    with FileLock(folder / LOCK):
        log = read_log(folder)
        entry: dict[str, Any] = {
            "number": len(log.entries) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "action": action,
            "software": f"iccr-diff {package_version()} ({git_revision()})",
            "details": dict(details or {}),
            "wrote": sorted(set(wrote)),
            "files": files_of(folder),
            "before": log.head or hashlib.sha256(f"{FORMAT} {secrets.token_hex(16)}".encode()).hexdigest(),
        } | ({} if log.torn is None else {"torn": log.torn})
        entry["hash"] = _hash(entry)
        line = (("" if log.torn is None else "\n") + canonical(entry) + "\n").encode()
        with open(folder / LOG, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while line:  # a disk that is nearly full takes a part
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:  # a full disk leaves no torn line
                file.truncate(size)
                raise
    return entry["hash"]


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return all files of a case folder but the log, its lock, ``local.json`` and broken-off writes."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not (name in UNLISTED or _BROKEN_OFF.match(name) or path.is_dir()):
            files[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    return files


def read_log(folder: Path) -> Log:
    """Return the log of a case folder, with all that is wrong with it; an empty one where there is none."""
    content = (folder / LOG).read_bytes() if (folder / LOG).is_file() else b""
    *lines, rest = content.split(b"\n")
    log, loose = Log(), list[bytes]()  # loose: lines since the last entry that are none
    for number, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is None:
            loose.append(line)
            continue
        if entry.get("torn") != _digest(loose):
            log.faults.append(f"{LOG}: what stood before line {number} is no entry")
        elif loose:
            log.notes.append(
                f"{LOG}: the writing of line {number - 1} was interrupted; the next entry says so"
            )
        loose = []
        what = f"{LOG}: line {number}, entry {entry['number']} ({entry['action']}),"
        if canonical(entry).encode() != line or entry["hash"] != _hash(entry):
            log.faults.append(f"{what} was altered")
        if log.entries and entry["before"] != log.head:
            log.faults.append(
                f"{what} does not follow the entry before it: one was altered, removed or moved"
            )
        if entry["number"] != len(log.entries) + 1:
            log.faults.append(f"{what} should be entry {len(log.entries) + 1}")
        log.entries.append(entry)
    if rest:
        log.faults.append(
            f"{LOG}: its last line is torn: the writing of an entry was interrupted, or its end cut"
        )
    elif loose:
        log.faults.append(f"{LOG}: its last line is no entry")
    if not log.entries:
        log.faults.append(f"{LOG}: {'holds no entry' if content else 'is missing or empty'}")
    return replace(log, torn=_digest([*loose, rest])) if rest else log


def canonical(value: Mapping[str, Any]) -> str:
    """Return the one JSON text of a value: sorted keys, no blanks. Raises: ValueError: JSON cannot hold it."""
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode("utf-8", "backslashreplace").decode()  # names of files may be no UTF-8
    except TypeError as error:
        raise ValueError(f"{LOG}: {error}") from error


def _hash(entry: Mapping[str, Any]) -> str:
    content = canonical({key: value for key, value in entry.items() if key != "hash"})
    return hashlib.sha256(content.encode()).hexdigest()


def _digest(lines: Sequence[bytes]) -> str | None:
    return hashlib.sha256(b"\n".join(lines)).hexdigest() if lines else None


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line, or None where it is none."""
    try:
        entry: dict[str, Any] = parse_json(decoded(line, ""), "", dict[str, Any])
        _Entry.model_validate(entry)
    except ValueError:
        return None
    return entry
