"""Content hashes of many files, remembered: a file that the file system says is unchanged is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.packs.shards import inside_pack, open_pack, read_bytes

FORMAT = 1
_AT_ONCE = 4096  # files hashed between two savings of what is known
_THREADS = 8  # reading waits for the disk; hashing gives other threads way


class FileHashes:
    """Hashes of file contents, kept in one JSON file.

    A hash is remembered with the file's size and its times of last change, of the contents and of the entry in its
    folder, in nanoseconds; a file that differs in any of them is read again. A file in a pack is remembered with its
    place and its checksum there. The JSON file may be deleted at any time.

    Args:
        index: the JSON file; it need not exist.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self._known = self._read()
        self._changed = False

    def of(self, paths: Sequence[Path], progress: bool = True) -> list[str]:
        """The hash of each file's contents, 32 hexadecimal digits; those that are not known are read.

        Many are saved as they come, the last few thousand by :meth:`save`.

        Raises: OSError, ShardError for a file that cannot be read.
        """
        states = [_state(path) for path in paths]
        found = self._lookup(paths, states)
        missing = sorted({k for k, digest in enumerate(found) if digest is None}, key=lambda k: paths[k])
        if missing:
            with ThreadPoolExecutor(_THREADS) as pool, _bar(len(missing), progress) as bar:
                for first in range(0, len(missing), _AT_ONCE):
                    some = missing[first : first + _AT_ONCE]
                    for k, digest in zip(some, pool.map(_hash, (paths[k] for k in some)), strict=True):
                        self._known[_name(paths[k])] = (states[k], digest)
                        bar.update()
                    self._changed = True
                    if first + _AT_ONCE < len(missing):
                        self.save()
            found = self._lookup(paths, states)
        return [digest for digest in found if digest is not None]

    def known(self, paths: Sequence[Path]) -> list[str] | None:
        """The hashes if all of them are remembered, without reading any file; otherwise None."""
        found = self._lookup(paths, [_state(path) for path in paths])
        return None if None in found else [digest for digest in found if digest is not None]

    def _lookup(self, paths: Sequence[Path], states: Sequence[str]) -> list[str | None]:
        entries = (self._known.get(_name(path)) for path in paths)
        return [
            entry[1] if entry and entry[0] == state else None
            for entry, state in zip(entries, states, strict=True)
        ]

    def _read(self) -> dict[str, tuple[str, str]]:
        if not self.index.is_file():
            return {}
        try:
            stored = json.loads(self.index.read_bytes())
            if stored["format"] != FORMAT:
                return {}
            return {str(name): (str(state), str(digest)) for name, (state, digest) in stored["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            print(f"note: {self.index} is damaged; all pictures are read again", file=sys.stderr)
            return {}

    def save(self) -> None:
        """Write what was learnt since the last time."""
        if not self._changed:
            return
        self.index.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.index.with_name(f".{self.index.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"format": FORMAT, "files": self._known}), encoding="utf-8")
        os.replace(temporary, self.index)
        self._changed = False


def _name(path: Path) -> str:
    return os.path.abspath(path)  # not resolved: that would ask the file system for every folder above it


def _state(path: Path) -> str:
    """What changes when the contents do, without reading them."""
    packed = inside_pack(path)
    if packed is None:
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    pack = open_pack(packed[0])
    entry = pack.files[packed[1]]
    return f"{entry.size} {entry.offset} {entry.crc32} {pack.shards[entry.shard].sha256}"


def _hash(path: Path) -> str:
    return hashlib.blake2b(read_bytes(path), digest_size=16).hexdigest()


def _bar(total: int, progress: bool) -> tqdm[Any]:
    return tqdm(
        total=total, desc="reading pictures", unit="file", file=sys.stderr, disable=None if progress else True
    )
