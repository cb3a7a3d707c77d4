"""Files of a data set: read from a folder or from a pack, hashed, and written whole or not at all.

A pack is an uncompressed zip file, ``pairedCS.zip``, in place of the folder ``pairedCS``; the command
``python -m data.pack`` writes it. A path that goes on below the zip file, such as
``packed/pairedCS.zip/skull/1_0.png``, names a file in the pack. The functions here take such paths as well as
ordinary ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from settings.parsing import read_json

PACK_SUFFIX = ".zip"
OLD_INDEX_SUFFIX = ".shards.json"  # of the tar shards that commit 62346ae wrote and read
_REMEDY = "copy the pack again, or make it anew (python -m data.pack)"
_INDEX_FORMAT = 1  # of the file of hashes
_FILES_PER_SAVE = 4096
_THREADS = 8  # reading waits for the disk, and hashing releases the interpreter lock


class PackError(ValueError):
    """A pack cannot be read; the message names the file, what is wrong and what to do."""


class Pack:
    """An open pack, for the process that opened it.

    Attributes:
        files: zip entry of each file by its name in the pack, with ``/``.
        folders: names of the files in each folder that has files.

    Args:
        path: the zip file.

    Raises:
        PackError: the file is missing, damaged or cut short, or it is compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise PackError(f"{path}: cannot be read as a pack ({error}); {_REMEDY}") from error
        self._lock = threading.Lock()  # ZipFile counts its readers without one
        self.files = {entry.filename: entry for entry in self._zip.infolist() if not entry.is_dir()}
        for entry in self.files.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise PackError(
                    f"{path}: {entry.filename} is compressed or encrypted; zip it without (zip -0)"
                )
        folders: defaultdict[str, set[str]] = defaultdict(set)
        for name in self.files:
            folder, _, last = name.rpartition("/")
            folders[folder].add(last)
        self.folders: Mapping[str, frozenset[str]] = {key: frozenset(names) for key, names in folders.items()}

    def read(self, name: str) -> bytes:
        """Return the contents of one file. Raises: PackError where it is not in the pack, or damaged."""
        if name not in self.files:
            raise PackError(f"{self.path}: has no file {name}")
        try:
            with self._lock:
                return self._zip.read(self.files[name])
        except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
            raise PackError(f"{self.path}: {name} in it is damaged ({error}); {_REMEDY}") from error

    def check(self) -> None:
        """Read every file and compare its checksum. Raises: PackError naming the first damaged file."""
        for name in self.files:
            self.read(name)


def open_pack(path: Path) -> Pack:
    """Return the pack of a zip file, opened once in each process until the file changes. Raises: PackError."""
    try:
        status = path.stat()
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror})") from error
    return _open(path, status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=8)
def _open(path: Path, changed: int, size: int, process: int) -> Pack:
    return Pack(path)  # a forked process would share the file's position with its parent: it opens its own


def split_pack_path(path: Path) -> tuple[Path, str] | None:
    """Return the zip file and the name in it ("" for the whole pack), or None for a path outside packs."""
    for k, part in enumerate(path.parts, 1):
        if part.endswith(PACK_SUFFIX):
            archive = Path(*path.parts[:k])
            if archive.is_file():
                return archive, PurePosixPath(*path.parts[k:]).as_posix() if path.parts[k:] else ""
    return None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the contents of a file. Raises: OSError, PackError."""
    packed = split_pack_path(Path(path))
    return Path(path).read_bytes() if packed is None else open_pack(packed[0]).read(packed[1])


def picture_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents, 64 hexadecimal digits. Raises: OSError, PackError."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder, a folder in a pack, or a whole pack.

    Raises:
        PackError: the pack cannot be read, or it is one of an older version.
    """
    packed = split_pack_path(path)
    if packed is None:
        if path.name.endswith(OLD_INDEX_SUFFIX) and path.is_file():
            folder = path.name.removesuffix(OLD_INDEX_SUFFIX)
            raise PackError(
                f"{path}: is a pack of tar files, which commit 62346ae was the last to read; unpack them "
                f"(mkdir {folder} && cat {folder}-*.tar | tar -xif - -C {folder}), or make the pack anew "
                "(python -m data.pack)"
            )
        return path.is_dir()
    archive, name = open_pack(packed[0]), packed[1]
    return name == "" or any(f"{folder}/".startswith(f"{name}/") for folder in archive.folders)


def folder_names(path: Path) -> frozenset[str]:
    """Return the names of the folders directly in a folder."""
    packed = split_pack_path(path)
    if packed is None:
        return frozenset(entry.name for entry in path.iterdir() if entry.is_dir())
    start = f"{packed[1]}/" if packed[1] else ""
    folders = open_pack(packed[0]).folders
    below = (folder.removeprefix(start) for folder in folders if folder.startswith(start))
    return frozenset(name.split("/")[0] for name in below if name)


def file_names(path: Path) -> frozenset[str]:
    """Return the names of the files directly in a folder; none where there is no such folder."""
    packed = split_pack_path(path)
    if packed is not None:
        return open_pack(packed[0]).folders.get(packed[1], frozenset())
    if not path.is_dir():
        return frozenset()
    return frozenset(entry.name for entry in os.scandir(path) if _is_file(entry))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def check_output(folder: Path, num_bytes: int) -> None:
    """Check that files of so many bytes can be written to a folder, which need not exist; nothing is left there.

    Raises:
        ValueError: it is read-only, no folder can be made there, or the disk is full.
    """
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        raise ValueError(
            f"{folder}: nothing can be written there ({error.strerror}): choose another folder"
        ) from error
    if free < num_bytes:
        raise ValueError(
            f"{folder}: {free / 1e6:.0f} MB are free there, the results may need {num_bytes / 1e6:.0f} MB: make room, "
            "or choose another folder"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` at the end, or remove it after an error.

    An error of the system names ``path``: that of a full disk names none.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
            del error.filename2
        raise


ASIDE = ".replaced"  # in a folder of results: the earlier result, while another one is written in its place
_GONE = ".replaced.tmp"


@contextmanager
def replacing_result(
    folder: Path, old: Sequence[str], new: Sequence[str], marker: str, resumable: bool = False
) -> Iterator[None]:
    """Write a result in place of an earlier one: afterwards ``folder`` holds all of the one or all of the other.

    Args:
        folder: made if need be. old, marker: of :func:`set_aside`. new: of :func:`put_back`.
        resumable: Ctrl-C and SIGTERM count as a kill, so that the new result can be continued: both stay.

    Raises:
        OSError: the earlier result cannot be moved.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    set_aside(folder, old, marker)
    try:
        yield
    except BaseException as error:
        if not (resumable and isinstance(error, KeyboardInterrupt)):
            put_back(folder, new)
            with suppress(OSError):
                if is_new:
                    folder.rmdir()
        raise
    drop_aside(folder)


def set_aside(folder: Path, names: Sequence[str], marker: str) -> None:
    """Move the earlier result to ``folder/.replaced``: the files and folders of these names, ``marker`` last.

    If a killed run left a whole result there, it stays the earlier one, and the rest of that run is removed.

    Raises:
        OSError: nothing was moved.
    """
    aside = folder / ASIDE
    _remove(folder / _GONE)
    is_whole = os.path.lexists(aside / marker)
    try:
        for name in sorted(names, key=lambda name: name == marker):
            if is_whole:
                _remove(folder / name)
            elif os.path.lexists(folder / name):
                aside.mkdir(exist_ok=True)
                (folder / name).rename(aside / name)
    except BaseException:
        put_back(folder, ())
        raise


def put_back(folder: Path, new: Sequence[str]) -> None:
    """Remove the files and folders of these names, then move the earlier result back."""
    for name in new:
        _remove(folder / name)
    if (folder / ASIDE).is_dir():
        for path in (folder / ASIDE).iterdir():
            path.rename(folder / path.name)
        (folder / ASIDE).rmdir()


def drop_aside(folder: Path) -> None:
    """Remove the earlier result: the one in its place is whole."""
    with suppress(OSError):  # the next run removes it
        (folder / ASIDE).rename(folder / _GONE)
        _remove(folder / _GONE)


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Bytes of file names that are no UTF-8 are escaped, as JSON does."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", errors="backslashreplace", newline="\n")


class FileHashes:
    """Hashes of file contents, stored in one JSON file that may be deleted at any time.

    A hash is stored with the file's size and its times of last change, in nanoseconds. A file that differs in any of
    them is read again. For a file in a pack, the size and time of the pack and the file's checksum stand in for them.

    Args:
        index: the JSON file; it need not exist.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self._entries = self._read()
        self._changed = False

    def of(self, paths: Sequence[Path], progress: bool = True) -> list[str]:
        """Return the hash of each file's contents, 32 hexadecimal digits; read the files that have none stored.

        The hashes are saved after every few thousand files, the last ones by :meth:`save`.

        Raises:
            OSError, PackError: a file cannot be read.
        """
        states = {path: _state(path) for path in paths}
        missing = sorted(path for path, state in states.items() if self._lookup(path, state) is None)
        if missing:
            with (
                ThreadPoolExecutor(_THREADS) as pool,
                tqdm(
                    total=len(missing), desc="reading pictures", unit="file", file=sys.stderr,
                    disable=None if progress else True,
                ) as bar,
            ):  # fmt: skip
                for first in range(0, len(missing), _FILES_PER_SAVE):
                    some = missing[first : first + _FILES_PER_SAVE]
                    for path, digest in zip(some, pool.map(_hash, some), strict=True):
                        self._entries[os.path.abspath(path)] = states[path], digest
                        bar.update()
                    self._changed = True
                    if first + _FILES_PER_SAVE < len(missing):
                        self.save()
        return [self._entries[os.path.abspath(path)][1] for path in paths]

    def stored(self, paths: Sequence[Path]) -> list[str] | None:
        """Return the hashes if all of them are stored, else None; no file is read."""
        digests = [self._lookup(path, _state(path)) for path in paths]
        whole = [digest for digest in digests if digest is not None]
        return whole if len(whole) == len(digests) else None

    def _lookup(self, path: Path, state: str) -> str | None:
        # Resolving would ask for every folder above the file.
        entry = self._entries.get(os.path.abspath(path))
        return entry[1] if entry is not None and entry[0] == state else None

    def _read(self) -> dict[str, tuple[str, str]]:
        if not self.index.is_file():
            return {}
        try:
            content = read_json(self.index)
            if content["format"] != _INDEX_FORMAT:
                return {}
            return {
                str(name): (str(state), str(digest)) for name, (state, digest) in content["files"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            print(f"note: {self.index} is damaged; all pictures are read again", file=sys.stderr)
            return {}

    def save(self) -> None:
        """Write the index if it changed since the last time."""
        if not self._changed:
            return
        self.index.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _INDEX_FORMAT, "files": self._entries}
        with replacing(self.index) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        self._changed = False


def _state(path: Path) -> str:
    """Return what changes when a file's contents change, without reading them."""
    packed = split_pack_path(path)
    if packed is None:
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    entry, status = open_pack(packed[0]).files[packed[1]], os.stat(packed[0])
    return f"{entry.file_size} {entry.CRC} {status.st_size} {status.st_mtime_ns}"


def _hash(path: Path) -> str:
    return hashlib.blake2b(read_bytes(path), digest_size=16).hexdigest()
