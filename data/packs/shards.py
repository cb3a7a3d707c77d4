"""A folder of pictures packed into a few large files, read in place.

``pairedCS.shards.json`` is the index; beside it lie ``pairedCS-00000.tar``, ``pairedCS-00001.tar`` and so on, plain tar
files, which any tar program unpacks to the folder they were made from. A path that goes on below the index, such as
``packed/pairedCS.shards.json/skull/1_0.png``, names a file in the pack, and the functions here read such paths as well
as ordinary ones. ``python -m data.pack`` makes packs.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

INDEX_SUFFIX = ".shards.json"
FORMAT = 1


class ShardError(ValueError):
    """A pack that cannot be read; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Shard:
    """One tar file: its name beside the index, size in bytes and SHA-256."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """Where one packed file is: number of the shard, first byte, size in bytes, CRC-32 of the contents."""

    shard: int
    offset: int
    size: int
    crc32: int


class Pack:
    """A packed folder. ``files``: name in it, with ``/``, -> entry. ``folders``: folder -> names of the files there.

    Args:
        index: path of the index file.

    Raises:
        ShardError: the index is damaged, or a shard is missing or not as long as it was.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self.shards, self.files = _read_index(index)
        self.check_sizes()
        names: defaultdict[str, set[str]] = defaultdict(set)
        for name in self.files:
            folder, _, last = name.rpartition("/")
            names[folder].add(last)
        self.folders: Mapping[str, frozenset[str]] = {key: frozenset(found) for key, found in names.items()}

    def read(self, name: str) -> bytes:
        """Contents of one file. Raises: ShardError where there is none, or it is not what was packed."""
        entry = self.files.get(name)
        if entry is None:
            raise ShardError(f"{self.index}: no file {name} is packed in it")
        path = self.index.parent / self.shards[entry.shard].file
        try:
            with path.open("rb") as file:
                file.seek(entry.offset)
                contents = file.read(entry.size)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error
        if zlib.crc32(contents) != entry.crc32:
            raise ShardError(f"{path}: {name} in it is damaged (its checksum differs); {_REMEDY}")
        return contents

    def check(self) -> None:
        """Read every byte. Raises: ShardError naming the first shard whose checksum differs."""
        for shard in self.shards:
            path = self.index.parent / shard.file
            if sha256_of(path) != shard.sha256:
                raise ShardError(f"{path}: is damaged (its checksum differs); {_REMEDY}")
        for name in self.files:
            self.read(name)

    def check_sizes(self) -> None:
        """Raises: ShardError naming the shards that are missing or not as long as they were."""
        wrong = []
        for shard in self.shards:
            path = self.index.parent / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found is None:
                wrong.append(f"{shard.file} is missing")
            elif found != shard.size:
                wrong.append(f"{shard.file} has {found} bytes, expected {shard.size}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ShardError(f"{self.index}: {', '.join(wrong[:3])}{more}; {_REMEDY}")


_REMEDY = "copy the pack again, or make it anew (python -m data.pack)"


def open_pack(index: Path) -> Pack:
    """The pack behind an index file; kept for as long as the file does not change. Raises: ShardError."""
    try:
        state = index.stat()
    except OSError as error:
        raise ShardError(f"{index}: cannot be read ({error.strerror})") from error
    return _open(index, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _open(index: Path, changed: int, size: int) -> Pack:
    return Pack(index)


def inside_pack(path: Path) -> tuple[Path, str] | None:
    """Index file and name within the pack ("" for all of it); None for a path that leads into no pack."""
    for k, part in enumerate(path.parts, 1):
        if part.endswith(INDEX_SUFFIX):
            index = Path(*path.parts[:k])
            if index.is_file():
                return index, PurePosixPath(*path.parts[k:]).as_posix() if path.parts[k:] else ""
    return None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Contents of a file, packed or not. Raises: OSError, ShardError."""
    packed = inside_pack(Path(path))
    return Path(path).read_bytes() if packed is None else open_pack(packed[0]).read(packed[1])


def picture_sha256(path: Path) -> str:
    """Of the contents of a file, packed or not; the same for both. Raises: OSError, ShardError."""
    return sha256_of(path) if inside_pack(path) is None else hashlib.sha256(read_bytes(path)).hexdigest()


def is_folder(path: Path) -> bool:
    """Whether pictures may be below it: a folder, a folder in a pack, or the index of a pack. Raises: ShardError."""
    packed = inside_pack(path)
    if packed is None:
        return path.is_dir()
    found, name = open_pack(packed[0]), packed[1]
    if (
        name == ""
    ):  # somebody is about to use the pack: tell now what is missing, not in the middle of a training
        found.check_sizes()
        return True
    return any(folder == name or folder.startswith(f"{name}/") for folder in found.folders)


def folder_names(path: Path) -> frozenset[str]:
    """Names of the folders directly in a folder, packed or not."""
    packed = inside_pack(path)
    if packed is None:
        return frozenset(entry.name for entry in path.iterdir() if entry.is_dir())
    start = f"{packed[1]}/" if packed[1] else ""
    folders = open_pack(packed[0]).folders
    below = (folder.removeprefix(start) for folder in folders if folder.startswith(start))
    return frozenset(name.split("/")[0] for name in below if name)


def file_names(path: Path) -> frozenset[str]:
    """Names of the files directly in a folder, packed or not; none where there is no such folder."""
    packed = inside_pack(path)
    if packed is not None:
        return open_pack(packed[0]).folders.get(packed[1], frozenset())
    return (
        frozenset(entry.name for entry in os.scandir(path) if entry.is_file())
        if path.is_dir()
        else frozenset()
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_text(shards: list[Shard], files: Mapping[str, Entry]) -> str:
    """What the index file says; one packed file a line."""
    head = json.dumps({"format": FORMAT, "shards": [vars(shard) for shard in shards]})
    lines = (f"{json.dumps(n)}: [{e.shard}, {e.offset}, {e.size}, {e.crc32}]" for n, e in files.items())
    return head.removesuffix("}") + ',\n"files": {\n' + ",\n".join(lines) + "\n}}\n"


def _read_index(index: Path) -> tuple[list[Shard], dict[str, Entry]]:
    try:
        stored: Any = json.loads(index.read_bytes())
        if stored["format"] != FORMAT:
            raise ShardError(
                f"{index}: has format {stored['format']}, this program reads {FORMAT}; make the pack anew"
            )
        shards = [Shard(str(one["file"]), int(one["size"]), str(one["sha256"])) for one in stored["shards"]]
        files = {str(name): Entry(*(int(value) for value in row)) for name, row in stored["files"].items()}
    except OSError as error:
        raise ShardError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{index}: is no index of a pack, or a damaged one; {_REMEDY}") from error
    outside = [shard.file for shard in shards if Path(shard.file).name != shard.file]
    if outside or not all(0 <= entry.shard < len(shards) for entry in files.values()):
        raise ShardError(f"{index}: names shards that are not beside it; {_REMEDY}")
    return shards, files
