"""The one-line messages about settings: "key: got X, expected Y", or the key that was probably meant."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Layer = tuple[str, Mapping[str, Any]]
"""The beginning of messages about settings from one place, and these settings."""

RENAMED = {  # old dotted prefix -> new one
    "guidance": "spgd", "landmarks": "branches", "texture": "branches", "force": "overwrite", "num": "num_probes",
    "samples": "num_samples", "train.accelerator": "train.device",
}  # fmt: skip
REMOVED = {  # old key -> what serves instead
    "memory.batch_size": "train.batch_size and train.accumulate say how many pictures a step takes",
    "memory.card": "configs/sd15 has one config each for cards of 12, 24 and 80 GB",
    "shard_mb": "a pack is one file",
}
MEANT = {tried: meant.split() for names, meant in {  # names that users try -> the names they may have here
    "batch": "batch_size", "bmi weight": "body_mass", "cfg cfg_scale": "guidance_scale",
    "cohort dataset": "data.root root",
    "checkpoint ckpt model_path": "weights init", "decay": "weight_decay", "directory output output_dir": "out",
    "ema": "ema_decay", "epochs max_epochs": "max_steps", "ethnic race": "ethnicity", "folder": "out root",
    "gender": "sex", "gpus": "devices", "image input picture": "skull faces", "iterations": "max_steps steps",
    "learning_rate": "lr", "num": "num_samples num_subjects", "num_inference_steps": "steps",
    "num_steps": "steps max_steps", "faces samples": "num_samples", "scheduler": "sampler", "weights": "init",
    "threads": "num_threads num_workers", "workers": "num_workers", "years": "age",
}.items() for tried in names.split()}  # fmt: skip
KINDS = {  # top-level keys that only one kind of file has
    "a training config, for train.py": ("stage", "train", "optim"),
    "a config for evaluate.py": ("recognisers", "methods", "bootstrap", "edited", "guided", "split"),
    "a config for sample.py": ("num_samples", "sex", "age", "ethnicity", "body_mass", "max_sheets"),
    "a model's architecture": ("unet", "first_stage", "cond_stage"),
}
EXPECTED = {  # pydantic's error types
    "bool_type": "true or false",
    "dict_type": "settings (key: value)",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list, such as [1, 2]",
    "model_type": "settings (key: value)",
    "string_type": "a text",
}
LIMITS = {  # pydantic's error types, with the name of the limit in their context
    "greater_than": ("gt", "a number above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "a number below"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
    "too_long": ("max_length", "at most so many entries:"),
    "too_short": ("min_length", "at least so many entries:"),
}


class ConfigError(ValueError):
    """A setting that cannot be used: the one-line message names the key, what was got and the remedy."""


def describe(error: ValidationError, schema: type[BaseModel], layers: Sequence[Layer] = ()) -> str:
    """Return one line for the first error: an unknown key if there is one.

    Args:
        layers: where the settings came from, in rising order of precedence; the line names the last that has the key.
    """
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    kind, got, context = first["type"], first["input"], first.get("ctx", {})
    field, key = field_at(schema, first["loc"]), dotted(first["loc"])
    origin, layer = _origin(layers, first["loc"])
    if kind == "extra_forbidden":
        return origin + unknown(schema, key, layer)
    if kind == "setting":
        return f"{origin}{key}{'.' if key else ''}{first['msg']}"
    if kind == "missing":
        return f"{origin}{key}: missing, expected {_choices(field)}"
    if kind == "value_error":
        return f"{origin}{key}{': ' if key else ''}{context['error']}"
    if kind == "literal_error":
        expected = f"one of {context['expected'].replace(' or ', ', ').replace(chr(39), '')}"
    elif kind in LIMITS:
        name, words = LIMITS[kind]
        expected = (name != "multiple_of" and _range(field)) or f"{words} {short(context[name])}"
    else:
        expected = EXPECTED.get(kind, first["msg"])
        if kind == "float_type" and re.fullmatch(r"[+-]?\d+,\d+", str(got)):
            expected += f" with a point: {got.replace(',', '.')}"
    return f"{origin}{key}: got {short(got)}, expected {expected}"


def unknown(schema: type[BaseModel], key: str, layer: Mapping[str, Any] | None = None) -> str:
    """Return the message about a key that a schema lacks. layer: the file with the key; is it for another program?"""
    for old, new in RENAMED.items():
        if field_at(schema, new.split(".")) and (key == old or key.startswith(f"{old}.")):
            return f"{key}: the key is now {new}{key.removeprefix(old)}"
    if key in REMOVED:
        return f"{key}: this setting is gone; {REMOVED[key]}"
    for kind, marks in KINDS.items():
        mark = next((m for m in marks if m in (layer or {}) and m not in schema.model_fields), None)
        if mark is not None:
            return f"{mark}: unknown setting; the file is {kind}"
    keys = known_keys(schema)
    near = _nearest(key, keys)
    return f"{key}: unknown setting; " + (f"did you mean {near}?" if near else f"there are {', '.join(keys)}")


def known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key of a schema in dotted form, in the order of its fields."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        inner = model_in(field.annotation)
        keys += [prefix + name] if inner is None else known_keys(inner, f"{prefix}{name}.")
    return keys


def options(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type, without those of its constraints."""
    if typing.get_origin(hint) is typing.Annotated:
        return options(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(option for part in typing.get_args(hint) for option in options(part))
    return (hint,)


def model_in(hint: Any) -> type[BaseModel] | None:
    """Return the settings class of a type or an optional one, None where it is no settings class."""
    return next((one for one in options(hint) if isinstance(one, type) and issubclass(one, BaseModel)), None)


def dotted(path: Sequence[str | int]) -> str:
    """Return ``("sampling", "scales", 0)`` as ``sampling.scales[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def field_at(schema: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    """Return the field at a path of keys, None where there is none, or within a list or mapping."""
    model: type[BaseModel] | None = schema
    field = None
    for part in path:
        if model is None or part not in model.model_fields:
            return None
        field = model.model_fields[str(part)]
        model = model_in(field.annotation)
    return field


def _origin(layers: Sequence[Layer], path: Sequence[str | int]) -> Layer:
    """Return the last layer that has the key, or a plain value in the place of its settings."""
    for origin, layer in reversed(layers):
        value: Any = layer
        keys = [part for part in path if isinstance(part, str)]
        while keys and isinstance(value, Mapping) and keys[0] in value:
            value = value[keys.pop(0)]
        if not keys or not isinstance(value, Mapping | None):
            return origin, layer
    return "", {}


def _range(field: FieldInfo | None) -> str | None:
    """Return the limits of a field in words, None for a single limit other than 0."""
    metadata = [] if field is None else field.metadata
    limits = {
        n: getattr(limit, n) for limit in metadata for n in ("ge", "gt", "le", "lt") if hasattr(limit, n)
    }
    if limits in ({"gt": 0}, {"ge": 0}):
        return "a positive number" if "gt" in limits else "0 or a positive number"
    return f"{short(limits['ge'])} to {short(limits['le'])}" if limits.keys() == {"ge", "le"} else None


def _choices(field: FieldInfo | None) -> str:
    """Return the choices of a field in words."""
    hints = () if field is None else options(field.annotation)
    names = [
        str(x) for hint in hints if typing.get_origin(hint) is typing.Literal for x in typing.get_args(hint)
    ]
    return f"one of {', '.join(names)}" if names else "a value"


def short(value: object) -> str:
    """Return a value as a user would write it, cut after 80 characters."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(key: str, keys: Sequence[str]) -> str | None:
    """Return the key that was probably meant: by its last part, by another name for it, or by its spelling."""
    last = key.split(".")[-1]
    by_last = {name.split(".")[-1]: name for name in reversed(sorted(keys, key=lambda name: name.count(".")))}
    names = by_last | {name: name for name in keys}
    for name in (last, *MEANT.get(last, ())):
        if name in names:
            return names[name]
    near = difflib.get_close_matches(key, keys, n=1) or difflib.get_close_matches(last, by_last, n=1)
    return names[near[0]] if near else None
