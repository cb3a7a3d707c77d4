"""Scans that come packed: zip and tar archives and gzip files are unpacked to a folder for the time of reading."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from data.ct.findings import ScanError

MAX_FILES = 20_000
LARGEST_RATIO = 200  # of unpacked to packed bytes; images reach about 50, zeros 1,000
SMALL_BYTES = 256 << 20  # up to this the ratio does not matter
BLOCK = 1 << 20
_DAMAGED = (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, tarfile.TarError,
            zlib.error, lzma.LZMAError)  # fmt: skip


@contextmanager
def unpacked(path: Path, max_bytes: int) -> Iterator[Path]:
    """Give the folder with a packed file's content; it is removed afterwards.

    Args:
        path: a file for which ``data.ct.reading.kinds.is_packed`` holds.
        max_bytes: of one volume; four times as much is unpacked at most.

    Raises:
        ScanError: damaged, encrypted, too large, or with names that leave the folder.
    """
    with tempfile.TemporaryDirectory(prefix="ct-") as temporary:
        folder = Path(temporary)
        room = min(4 * max_bytes, max(SMALL_BYTES, LARGEST_RATIO * path.stat().st_size))
        try:
            for count, (name, file) in enumerate(_members(path)):
                if count >= MAX_FILES:
                    raise ScanError(f"more than {MAX_FILES} files in the archive: pack one patient")
                with file:
                    room = _write(file, _target(folder, name), room)
        except ScanError:
            raise
        except _DAMAGED as error:
            raise ScanError("the archive cannot be unpacked: damaged, cut short, or a full disk") from error
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            folder = inside[0]
        yield folder


def _members(path: Path) -> Iterator[tuple[str, IO[bytes] | gzip.GzipFile]]:
    """Return name and content of each plain file that is no hidden one. Raises: ScanError, or one of ``_DAMAGED``."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.flag_bits & 1:
                    raise ScanError("the archive is encrypted: unpack it, and give the folder")
                if not (entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16) or _hidden(entry.filename)):
                    yield entry.filename, archive.open(entry)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() and not _hidden(member.name) else None
                if file is not None:
                    yield member.name, file
    else:
        yield path.name.removesuffix(".gz"), gzip.GzipFile(path)


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _hidden(name: str) -> bool:
    parts = _parts(name)
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)


def _target(folder: Path, name: str) -> Path:
    """Return where a member is written. Raises: ScanError for a name that leaves the folder."""
    parts = _parts(name)
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise ScanError("the archive holds names that leave its folder ('..', absolute paths): pack it again")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(file: IO[bytes] | gzip.GzipFile, path: Path, room: int) -> int:
    """Write a member; return how many bytes of ``room`` remain. Raises: ScanError where none do."""
    with path.open("wb") as target:
        while block := file.read(BLOCK):
            room -= len(block)
            if room < 0:
                raise ScanError("the archive holds more than a scan: unpack it, and give one series' folder")
            target.write(block)
    return room
