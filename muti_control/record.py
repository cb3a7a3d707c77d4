"""Records of runs, which let another examiner repeat them, and the folders they lie in."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import put_back, write_text
from settings.parsing import read_json

if TYPE_CHECKING:
    import torch

_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("numpy", "pillow", "transformers", "open_clip_torch", "safetensors", "omegaconf")


def package_version() -> str:
    """Return the version of the checkout, else of the installed package, else "unknown"."""
    project = _ROOT / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return _installed("iccr-diff")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the versions and the machine that pictures may depend on, without names of hosts or users."""
    import torch  # programs read records without it

    from ldm.checkpoint import git_revision

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
        ValueError: a value that JSON cannot hold (NaN included); nothing is written.
    """
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    write_text(Path(path), text)


class OutputError(ValueError):
    """A folder that must not be written to; the message says why and what to do."""


def check_creatable(folder: Path, key: str = "out") -> None:
    """Refuse a folder in which nothing can be written; the check leaves nothing behind.

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
LOG, LOCK = "log.jsonl", ".log.lock"
LOCAL = "local.json"
"""The paths behind the file names of a record. It stays on the machine: neither log nor zip of a case holds it."""
_NO_PATHS = {"sex", "age", "ethnicity", "body_mass", "case_number", "examiner", "notes"}
"""Settings whose text may hold a slash."""
FORMAT = "iccr-diff sample record 1"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a run's record without paths of this machine, and ``local.json`` with them beside it.

    Every ``{"path": P, ...}`` becomes ``{"file": NAME, ...}``; a path among the settings becomes its last part.

    Raises:
        ValueError: a value that JSON cannot hold. OSError: the files cannot be written.
    """
    paths: dict[str, str] = {}

    def without_paths(value: Any, place: tuple[str, ...] = ()) -> Any:
        if isinstance(value, Mapping):
            return {
                "file" if k == "path" else k: without_paths(v, (*place, str(k))) for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [without_paths(item, (*place, str(k))) for k, item in enumerate(value)]
        setting = place[0] == "config" and place[-1] not in _NO_PATHS
        if not isinstance(value, str) or not (place[-1] == "path" or (setting and _is_path(value))):
            return value
        paths[".".join(place)] = os.path.abspath(value) if os.path.exists(value) else value
        return Path(value).name

    public = json.dumps(without_paths(record), ensure_ascii=False)
    for path in sorted(filter(os.path.isabs, paths.values()), key=len, reverse=True):  # within texts
        public = public.replace(json.dumps(path, ensure_ascii=False)[1:-1], Path(path).name)
    write_json(folder / LOCAL, paths)
    write_json(folder / RECORD, json.loads(public))


def read_record(folder: Path, local_paths: bool = True) -> dict[str, Any]:
    """Return a run's record, with the paths of ``local.json`` where that is there and they are wanted.

    Raises:
        ContentError: there is no record, or it or ``local.json`` is damaged.
    """
    record: dict[str, Any] = read_json(folder / RECORD, dict[str, Any])
    local = folder / LOCAL
    paths = read_json(local, dict[str, str]) if local_paths and local.is_file() else {}
    try:
        for place, path in paths.items():
            *parents, last = place.split(".")
            holder: Any = record
            for key in parents:
                holder = holder[int(key) if isinstance(holder, list) else key]
            if last == "path":
                holder.pop("file", None)
            holder[last] = path
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{local}: does not belong to the {RECORD} beside it; remove it") from error
    return record


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or os.path.exists(text)


def unused_folder(folder: Path) -> Path:
    """Return ``folder``, or the first of ``folder-2``, ``folder-3`` ... that does not exist."""
    return next(path for path in _numbered(folder) if not path.exists())


def latest_folder(folder: Path) -> Path:
    """Return the last of ``folder``, ``folder-2``, ``folder-3`` ... that exists; ``folder`` where none does."""
    existing = itertools.takewhile(Path.exists, _numbered(folder))
    return max(enumerate(existing), default=(0, folder))[1]


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


@dataclass(frozen=True)
class EarlierRun:
    """A run whose record lies in the folder that another one is to write to.

    record: its content. files: the run's files that exist, with the rest of any broken-off write.
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
    if not folder.is_dir() or {path.name for path in folder.iterdir()} <= {LOG, LOCK, LOCAL}:
        return None
    try:
        if not (folder / RECORD).exists():  # a run was killed as it began to replace this one
            put_back(folder, ())
        record = read_json(folder / RECORD)
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
    """Return the same for every spelling of a file's name; a link counts as itself."""
    status = path.lstat()
    return status.st_dev, status.st_ino


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
