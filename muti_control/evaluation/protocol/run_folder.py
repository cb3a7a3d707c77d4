"""The folder of an evaluation, OUT/NAME, with a note of the settings and files behind it, so that it can continue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.files import ASIDE, put_back, set_aside
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.results.results import METRICS, REPORT
from muti_control.record import OutputError, check_creatable, latest_folder, unused_folder, write_json
from settings.parsing import ContentError, read_json

NOTE = "evaluation.json"
FORMAT = "iccr-diff evaluation run 1"
FACES, CASES = "faces", "cases"
_OURS = (NOTE, FACES, CASES, METRICS, REPORT)
OPERATION = ("out", "name", "cache", "device", "devices", "batch_size", "resume", "overwrite")
"""Settings that change no figure; ``device`` changes the last digits of a drawn face."""
# time, memory and records: no face depends on them
_OPERATION_OF_GUIDANCE = ("at_once", "recompute", "trace")


def choose_folder(cfg: EvaluateConfig) -> Path:
    """Return the folder of this run: as named, or named after the weights or faces, numbered if it exists."""
    folder = Path(cfg.out) / cfg.run_name
    if cfg.name is not None or cfg.overwrite:
        return folder
    return (latest_folder if cfg.resume else unused_folder)(folder)


def identity_of(config: Mapping[str, Any], read: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that change a figure, and the hashes of the files that are read."""
    settings = {key: value for key, value in config.items() if key not in OPERATION}
    if "spgd" in settings:  # under the name that runs before the renaming have
        settings["guidance"] = _without_operation(settings.pop("spgd"))
    if "guided" in settings:
        settings["guided"] = {name: _without_operation(own) for name, own in settings["guided"].items()}
    if isinstance(settings.get("sampling"), Mapping):  # of a run from before there was such a setting
        settings["sampling"] = {"grain": True, **settings["sampling"]}
    return {"settings": settings, "read": dict(read)}


def _without_operation(guidance: Any) -> Any:
    """Return the settings of guidance that change a face."""
    if not isinstance(guidance, Mapping):
        return guidance
    return {key: value for key, value in guidance.items() if key not in _OPERATION_OF_GUIDANCE}


def claim(folder: Path, cfg: EvaluateConfig, identity: Mapping[str, Any], inputs: Iterable[Path]) -> None:
    """Claim the folder for this run; the files of another run are removed only with overwrite=true.

    Raises:
        OutputError: it holds other files, another run, or files that this run reads.
    """
    check_creatable(folder)
    note = folder / NOTE
    if folder.is_dir() and any(path.name != f".{NOTE}.part" for path in folder.iterdir()):
        if not note.exists():  # a run was killed as it began to replace this one
            put_back(folder, ())
        earlier = _read(note)
        if earlier is None:
            raise OutputError(
                f"out: {folder} holds no run of evaluate.py; give another name=NAME or out=FOLDER"
            )
        if cfg.resume:
            _check_same(folder, earlier, identity)
            return
        if not cfg.overwrite:
            raise OutputError(
                f"out: {folder} exists; resume=true continues it, overwrite=true replaces it, name=NAME writes "
                "elsewhere"
            )
        inside = [path for path in inputs if path.resolve().is_relative_to(folder.resolve())]
        if inside:
            raise OutputError(
                f"out: {inside[0]} is read by this run, and overwrite=true would remove it; give another name"
            )
        set_aside(folder, _OURS, NOTE)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_json(note, {"format": FORMAT, **identity})
    except OSError:
        release(folder)
        raise


def release(folder: Path, resumed: bool = False) -> None:
    """Take back what a failed run did: it leaves no trace, or the run that it replaced, unless it can be resumed."""
    if folder.name and not resumed and (folder / ASIDE).is_dir():
        put_back(folder, _OURS)
    elif folder.name and folder.is_dir() and [path.name for path in folder.iterdir()] == [NOTE]:
        (folder / NOTE).unlink()
        folder.rmdir()


def _read(note: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = read_json(note, dict[str, Any])
    except ContentError:
        return None
    whole = all(isinstance(content.get(part, {}), dict) for part in ("settings", "read"))
    return content if whole and content.get("format") == FORMAT else None


def _check_same(folder: Path, earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    current = json.loads(json.dumps(identity))
    earlier = identity_of(earlier.get("settings", {}), earlier.get("read", {}))  # of runs that noted more
    for part in ("settings", "read"):
        before, now = earlier.get(part, {}), current[part]
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise OutputError(
                    f"out: the run in {folder} had {key} {before.get(key)}, now it is {now.get(key)}; resume=true "
                    "continues a run with its own settings and data: undo that, or give another name=NAME"
                )
