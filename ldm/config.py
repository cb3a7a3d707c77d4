"""Command lines of the form ``[CONFIG.yaml] [key=value ...]``, merged into a typed dataclass."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that cannot be used: the one-line message names the key, what was got and the remedy."""


def parse_command_line(
    schema: type[T],
    arguments: Sequence[str],
    *,
    base: Mapping[str, Any] | None = None,
    base_name: str = "base",
    file_key: str | None = None,
) -> T:
    """Settings from, in rising order of precedence: the schema's defaults, ``base``, the YAML file, ``key=value``.

    Args:
        schema: a dataclass; fields that are dataclasses are reached by dots, as in ``sampling.steps=20``.
        arguments: the command line without the program's name. A value is YAML (``[1, 2]``, ``true``, ``null``),
            but taken as it stands where the field is text; a single number is a list of one where a list belongs.
        base: defaults that belong to something else, such as the settings a checkpoint recommends.
        base_name: what ``base`` is, for messages.
        file_key: the key a lone file name was probably meant for, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type, a file that is missing or no YAML.
    """
    file, assignments = _split(arguments, file_key)
    config = OmegaConf.structured(schema)
    for origin, layer in (
        (f"{base_name}: ", base),
        (f"{file}: ", None if file is None else _read_yaml(file)),
    ):
        if layer:
            _refuse_unknown(schema, layer, origin)
            try:
                config = OmegaConf.merge(config, OmegaConf.create(dict(layer)))
            except OmegaConfBaseException as error:
                raise ConfigError(origin + _one_line(error)) from error
    for key, value in assignments:
        try:
            nested = _value(schema, key, value)
            for part in reversed(key.split(".")):
                nested = {part: nested}
            config = OmegaConf.merge(config, OmegaConf.create(nested))
        except OmegaConfBaseException as error:
            raise ConfigError(_one_line(error, key)) from error
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error
    assert isinstance(result, schema)
    return result


def from_json(schema: type[T], text: str) -> T:
    """A dataclass as ``json.dumps(asdict(...))`` wrote it, say into a checkpoint's metadata.

    Raises:
        ValueError: no JSON, an unknown key or a wrong type.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ConfigError(f"got a {type(content).__name__}, expected settings (key: value)")
    _refuse_unknown(schema, content, "")
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error
    assert isinstance(result, schema)
    return result


def known_keys(schema: Any, prefix: str = "") -> list[str]:
    """Every key of a schema in dotted form, in the order of its fields."""
    hints = typing.get_type_hints(schema)
    keys: list[str] = []
    for field in fields(schema):
        inner = _inside(hints[field.name])
        keys += known_keys(inner, f"{prefix}{field.name}.") if is_dataclass(inner) else [prefix + field.name]
    return keys


def to_yaml(config: Any) -> str:
    """A config, or a schema's defaults, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _split(arguments: Sequence[str], file_key: str | None) -> tuple[Path | None, list[tuple[str, str]]]:
    file: Path | None = None
    assignments: list[tuple[str, str]] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            example = argument.lstrip("-") if equals else f"{argument.lstrip('-')}=VALUE"
            raise ConfigError(
                f"{argument}: settings are written without dashes, as in {example.replace('-', '_')}"
            )
        if equals:
            assignments.append((key.strip(), value))
        elif Path(argument).suffix.lower() in (".yaml", ".yml") and file is None:
            file = Path(argument)
        else:
            kind = (
                "a second config file" if file is not None and argument.endswith("ml") else "not understood"
            )
            hint = f", as in {file_key}={argument}" if file_key and Path(argument).exists() else ""
            raise ConfigError(f"{argument}: {kind}; expected [CONFIG.yaml] [key=value ...]{hint}")
    return file, assignments


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True) if path.stat().st_size else {}
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected settings (key: value)")
    return {str(key): value for key, value in content.items()}


def _refuse_unknown(schema: Any, layer: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key, value in layer.items():
        hint = _field_type(schema, prefix + str(key), origin)
        if is_dataclass(hint):
            if not isinstance(value, Mapping) and value is not None:
                raise ConfigError(f"{origin}{prefix}{key}: got {value!r}, expected settings (key: value)")
            _refuse_unknown(schema, value or {}, origin, f"{prefix}{key}.")


def _field_type(schema: Any, key: str, origin: str = "") -> Any:
    """The annotation behind a dotted key."""
    found: Any = schema
    for part in key.split("."):
        hints = typing.get_type_hints(found) if is_dataclass(found) else {}
        if part not in hints:
            raise ConfigError(f"{origin}{key}: unknown setting; {_nearest(schema, key)}")
        found = _inside(hints[part])
    return found


def _inside(hint: Any) -> Any:
    """The dataclass of an optional one; any other annotation as it is."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return options[0] if len(options) == 1 and is_dataclass(options[0]) else hint


def _nearest(schema: Any, key: str) -> str:
    keys = known_keys(schema)
    inside = [known for known in keys if known.split(".")[-1] == key.split(".")[-1]]
    near = inside or difflib.get_close_matches(key, keys, n=1) or _near_last(key, keys)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(keys)}"


def _near_last(key: str, keys: list[str]) -> list[str]:
    lasts = {known.split(".")[-1]: known for known in keys}
    return [lasts[name] for name in difflib.get_close_matches(key.split(".")[-1], lasts, n=1)]


def _value(schema: Any, key: str, text: str) -> Any:
    hint = _field_type(schema, key)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if str in options and not (type(None) in options and text in ("null", "~")):
        return text.replace("${", "\\${")  # a file name, not OmegaConf's interpolation
    try:
        value = yaml.safe_load(text)
        return [value] if typing.get_origin(hint) is list and isinstance(value, (int, float)) else value
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{key}: {text!r} cannot be read as a value: {' '.join(str(error).split())}"
        ) from error


def _one_line(error: OmegaConfBaseException, key: str = "") -> str:
    first = str(error).strip().splitlines()[0]
    name = error.full_key or key
    return f"{name}: {first}" if name else first
