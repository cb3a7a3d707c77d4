"""The record of a run: what another examiner needs to repeat it."""

from __future__ import annotations

import json
import os
import platform
import secrets
import tomllib
from collections.abc import Iterable, Mapping
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


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write indented UTF-8 JSON beside its final name and rename it.

    Raises:
        ValueError: a value JSON has no form for (NaN included); nothing is written.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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


RECORD = "record.json"
FORMAT = "iccr-diff sample record 1"


def unused_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3`` ... that does not exist."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def claim_folder(folder: Path, overwrite: bool) -> list[Path]:
    """Check that a run may write into ``folder``; nothing is touched yet.

    Returns:
        The files of an earlier run there, which its record lists, to be removed when this run starts.

    Raises:
        OutputError: the folder holds something, and ``overwrite`` is off or what it holds is not an earlier run.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out: {folder} is a file; give a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    if not overwrite:
        raise OutputError(
            f"out: {folder} exists and is not empty; give another out=FOLDER, or overwrite=true"
        )
    try:
        earlier = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = [str(name) for name in earlier["files"]] if earlier["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        files = None
    if files is None:
        what = f"holds no {RECORD} of an earlier run, so nothing in it is overwritten"
        raise OutputError(f"out: {folder} {what}; give another out=FOLDER")
    return [folder / name for name in files if Path(name).name == name and (folder / name).is_file()]


def check_overwriting(outdated: Iterable[Path], written: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that a run which replaces an earlier one destroys neither what it reads nor what is the user's.

    Args:
        outdated: files of the earlier run, to be removed: of ``claim_folder``.
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
