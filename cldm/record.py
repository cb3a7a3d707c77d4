"""The record of a run: what another examiner needs to repeat it."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import git_revision

_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("numpy", "pillow", "transformers", "open_clip_torch", "safetensors", "omegaconf")


def package_version() -> str:
    """Version of this package: of the checkout, else of the installation, else "unknown"."""
    project = _ROOT / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return _installed("iccr-diff")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Versions and machine that a run's pictures may depend on, without names of hosts or users."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "iccr_diff": package_version(),
        "git": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "libraries": {library: _installed(library) for library in _LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "device_name": name,
        "precision": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write UTF-8 JSON beside its final name and rename it.

    Raises:
        ValueError: a value JSON has no form for (NaN included); nothing is written.
    """
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:  # opened like any file: umask holds
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class OutputError(ValueError):
    """A folder that must not be written to; the message says why and what to do."""


def check_creatable(folder: Path, key: str = "out") -> None:
    """Complain now about a folder in which nothing could be written; no trace is left of the attempt.

    Args:
        folder: made later, parents included.
        key: the setting that names it, for messages.

    Raises:
        OutputError: it or one of its parents is a file, or the nearest one that exists cannot be written to.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise OutputError(f"{key}: {nearest} is a file; give a folder")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OutputError(
            f"{key}: nothing can be written to {folder} ({error.strerror or error}); give another folder"
        ) from error


RECORD = "record.json"
FORMAT = "iccr-diff sample record 1"


def unused_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3`` ... that does not exist."""
    return next(folder for folder in _numbered(wanted) if not folder.exists())


def latest_folder(wanted: Path) -> Path:
    """The last of ``wanted``, ``wanted-2``, ``wanted-3`` ... that exists; ``wanted`` where none does."""
    existing = itertools.takewhile(Path.exists, _numbered(wanted))
    return max(enumerate(existing), default=(0, wanted))[1]


def _numbered(wanted: Path) -> Iterator[Path]:
    yield wanted
    for number in itertools.count(2):
        yield wanted.with_name(f"{wanted.name}-{number}")


@dataclass(frozen=True)
class EarlierRun:
    """A run whose record lies in the folder that another one is to write to.

    record: its content. files: those it made that are there, and what a broken-off write of one of them left.
    """

    record: Mapping[str, Any]
    files: Sequence[Path]


def claim_folder(folder: Path, overwrite: bool = False, resume: bool = False) -> EarlierRun | None:
    """Check that a run may write into ``folder``; nothing is touched yet.

    Returns:
        The earlier run there, to be replaced (overwrite) or continued (resume); None if the folder is free.

    Raises:
        OutputError: the folder holds something, and neither is asked for, or what it holds is no earlier run.
    """
    check_creatable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = {str(name) for name in record["files"]} if record["format"] == FORMAT else None
        unfinished = record.get("finished") is False
    except (OSError, ValueError, KeyError, TypeError):
        names, unfinished = None, False
    if not overwrite and not resume:
        remedy = (
            "resume=true to continue the run in it, or overwrite=true" if unfinished else "or overwrite=true"
        )
        raise OutputError(f"out: {folder} exists and is not empty; give another out=FOLDER, {remedy}")
    if names is None:
        what = f"holds no {RECORD} of an earlier run, so nothing in it is {'continued' if resume else 'overwritten'}"
        raise OutputError(f"out: {folder} {what}; give another out=FOLDER")
    present = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return EarlierRun(record, [path for path in present if _final_name(path.name) in names])


def _final_name(name: str) -> str:
    """The name a file has or was going to get: a write that was killed leaves ``.NAME.12345678.tmp``."""
    temporary = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", name)
    return temporary[1] if temporary else name


def check_overwriting(outdated: Iterable[Path], written: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that a run which replaces an earlier one destroys neither what it reads nor what is the user's.

    Args:
        outdated: files of the earlier run, to be removed.
        written: files this run will write.
        inputs: files this run reads.

    Raises:
        OutputError: an outdated file is an input, or a file to be written exists and is not outdated.
    """
    read = {_identity(path.resolve()) for path in inputs if path.exists()}
    owned = set()
    for path in outdated:
        if _identity(path.resolve()) in read:
            raise OutputError(
                f"out: {path} is an input of this run, and overwrite=true would remove it; give another out=FOLDER"
            )
        owned.add(_identity(path))
    for path in written:
        if (path.exists() or path.is_symlink()) and _identity(path) not in owned:
            raise OutputError(
                f"out: {path} exists and is not of the earlier run, so it is not overwritten; "
                "move it away, or give another out=FOLDER"
            )


def _identity(path: Path) -> tuple[int, int]:
    """The same for every spelling of a file's name; of a link, not of what it leads to."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
