"""A run drawn again from its record, and what differs from the first time. No library of networks is loaded here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muti_control.record import FORMAT, RECORD, read_record
from settings.messages import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
MAY_CHANGE = {  # settings beside repeat=: where things are now, and where and how fast is drawn
    "repeat", "out", "overwrite", "skull", "images_dir", "weights", "model", "landmarks", "landmark_weights", "texture",
    "device", "devices",
}  # fmt: skip
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_COMPARED = ("weights", "architecture", "sampling", "spgd", "environment", "cases")
_NOT_COMPARED = {  # beside what SHA-256 sums cover
    "file",
    "path",
    "note",
    "processes",
    "files",
    "outputs",
    "check",
    "prepared",
    "faces",
    "scan",
}
_SHOWN = 12


def read_first_run(path: str) -> dict[str, Any]:
    """Return the record of a finished run; ``path`` is its record.json or its folder. Raises: ConfigError."""
    folder = _folder(path)
    if not Path(path).exists():
        raise ConfigError(f"repeat: {path} does not exist; give results/NAME/{RECORD}")
    try:
        record = read_record(folder)
        whole = record["format"] == FORMAT and record["finished"] is True
        faces = [face["sha256"] for case in record["cases"] for face in case["faces"]]
        whole = whole and bool(faces) and isinstance(record["config"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        remedy = f"give results/NAME/{RECORD}"
        raise ConfigError(f"repeat: {path} is no {RECORD} of sample.py ({reason}); {remedy}") from error
    if not whole:
        raise ConfigError(
            f"repeat: {path} is not the record of a finished run; resume=true finishes it first"
        )
    return record


def repeated_settings(path: str) -> dict[str, Any]:
    """Return the settings that draw a run again, all files where they are now. Raises: ConfigError."""
    record, folder = read_first_run(path), _folder(path)
    config, environment = record["config"], record.get("environment", {})
    settings = {
        key: value for key, value in config.items() if key not in ("out", "overwrite", "resume", "repeat")
    }
    settings["precision"] = _PRECISIONS.get(
        str(environment.get("precision")), settings.get("precision", "auto")
    )
    if environment.get("device") == "cpu":
        settings["device"] = "cpu"
    for group in (settings, settings.get("spgd", {})):
        for key, value in group.items():
            if isinstance(value, str) and value and not Path(value).exists():
                places = (folder / value, ROOT / "models/demo" / value)
                group[key] = next((str(place) for place in places if place.is_file()), value)
    return settings


def check_beside_repeat(arguments: Sequence[str]) -> None:
    """Refuse settings that would make another run of it. Raises: ConfigError."""
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key.strip() not in MAY_CHANGE:
            raise ConfigError(
                f"{key}: not beside repeat=, which draws with the settings in the record; only places may change: "
                f"{', '.join(sorted(MAY_CHANGE - {'repeat'}))}"
            )


def compare_runs(path: str, folder: Path) -> tuple[int, list[str]]:
    """Compare the faces of a run in ``folder`` with those in the record that it repeats.

    Returns:
        0 if all are the same, else 1; and lines for people: how many are the same, and what differs.
    """
    first, second = read_first_run(path), read_first_run(str(folder))
    before, now = (
        {face["file"]: face for case in r["cases"] for face in case["faces"]} for r in (first, second)
    )
    changed = [
        name
        for name in sorted({*before, *now})
        if before.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")
    ]
    if not changed:
        return 0, [f"repeat: all {len(before)} faces are the same, byte for byte"]
    differs = [line for key in _COMPARED for line in _differences(first.get(key), second.get(key), key)]
    seen = [name for name in changed if not _same_pixels(before.get(name, {}), now.get(name, {}))]
    lines = [f"repeat: {len(seen)} of {len(before)} faces differ: {', '.join(seen[:_SHOWN])}"]
    if not seen:
        lines = [
            f"repeat: all {len(before)} faces have the same pixels; the texts in {len(changed)} files differ"
        ]
    lines += [f"differs: {line}" for line in differs[:_SHOWN]]
    if len(differs) > _SHOWN:
        lines.append(f"... and {len(differs) - _SHOWN} more")
    if not differs:
        lines.append("nothing that the records hold differs: this machine does not draw the same twice")
    return int(bool(seen)), lines


def _folder(path: str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _same_pixels(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.get("pixels_sha256") is not None and one["pixels_sha256"] == other.get("pixels_sha256")


def _differences(one: Any, other: Any, place: str) -> Iterator[str]:
    """Yield a line for each value that differs in two parts of records."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in _NOT_COMPARED:
                yield from _differences(one.get(key), other.get(key), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            name = a.get("name", k) if isinstance(a, Mapping) else k
            yield from _differences(a, b, f"{place}.{name}")
    elif one != other:
        short = [text if len(text := str(value)) <= 60 else f"{text[:57]}..." for value in (one, other)]
        yield f"{place} was {short[0]}, now it is {short[1]}"
