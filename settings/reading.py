"""Command lines of the form ``[CONFIG.yaml] [key=value ...]``, merged and checked once against typed settings."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

from settings.base import Settings
from settings.messages import (
    ConfigError,
    Layer,
    describe,
    dotted,
    field_at,
    model_in,
    options,
    short,
    unknown,
)
from settings.parsing import MAX_DEPTH, parse_json, read_text

S = TypeVar("S", bound=Settings)
Base = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
MISSING = "???"  # what a required setting has in printed defaults


def parse_command_line(
    schema: type[S],
    arguments: Sequence[str],
    *,
    base: Base = None,
    base_name: str = "base",
    file_key: str | None = None,
) -> S:
    """Return settings from, in rising order of precedence: the defaults, ``base``, the YAML file, ``key=value``.

    Args:
        schema: dots lead to settings within settings, as in ``sampling.steps=20``.
        arguments: the command line without the program's name. A value is YAML 1.2 (``[1, 2]``, ``true``, ``null``),
            but taken as it stands where the field is text; a single value is a list of one where a list belongs.
        base: defaults that belong to something else, such as the settings a checkpoint recommends; a function gets
            all settings without these, not checked yet.
        base_name: what ``base`` is, for messages.
        file_key: the key a lone file name was probably meant for, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type or value, a file that is missing or no
            YAML, ``???``, or an interpolation (``${...}``).
    """
    return _checked(schema, _layers(schema, arguments, base, base_name, file_key))


def values_of(schema: type[Settings], arguments: Sequence[str], base: Base = None) -> dict[str, Any]:
    """Return every value that a command line leads to, not checked; a required one that it lacks is ``???``.

    Raises:
        ConfigError: as ``parse_command_line``, but for values that do not fit.
    """
    return _merged(schema, _layers(schema, arguments, base, "base", None), MISSING)


def _layers(
    schema: type[Settings], arguments: Sequence[str], base: Base, base_name: str, file_key: str | None
) -> list[Layer]:
    file, assignments = _split(arguments, file_key)
    layers: list[Layer] = []
    if file is not None:
        layers.append((f"{file}: ", _read_file(schema, file)))
    for key, text in assignments:
        value = _value_of(schema, key, text)
        for part in reversed(key.split(".")):
            value = {part: value}
        layers.append(("", value))
    if callable(base):
        base = base(_merged(schema, layers))
    return [(f"{base_name}: ", base), *layers] if base else layers


def from_json(schema: type[S], text: str) -> S:
    """Return settings that ``json.dumps(settings.model_dump())`` wrote, say into a checkpoint's metadata.

    Raises:
        ValueError: no JSON, an unknown key or a wrong type.
    """
    return _checked(schema, [("", parse_json(text, "settings", dict[str, Any]))])


def to_yaml(settings: Settings) -> str:
    """Return settings as YAML that reads the same by YAML 1.1 and 1.2."""
    return yaml.dump(settings.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def one_line(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.removesuffix("...\n").strip()


def read_yaml(text: str, hint: Any = Any) -> Any:
    """Return the content of a YAML 1.2 text; what the type says is text stays as it is written.

    Raises:
        ConfigError: the text is no YAML, has a key twice, or is nested too deep.
    """
    if len(text) > _MAX_CHARS:
        raise ConfigError(f"has {len(text)} letters, at most {_MAX_CHARS} are settings")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _content(loader, node, hint, 0)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


_TOO_DEEP = f"has more than {MAX_DEPTH} levels of settings and lists within each other, or an endless alias"
_MAX_CHARS, _MAX_NODES = 1_000_000, 100_000  # with those that aliases repeat


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, where PyYAML has 1.1: ``no`` and ``1:30`` are text, ``1e-5`` is a number, 007 is 7."""

    num_nodes = 0

    def fetch_more_tokens(self) -> None:
        # PyYAML takes the longer, the more levels are open.
        if self.flow_level + len(self.indents) > MAX_DEPTH + 1:
            raise ConfigError(_TOO_DEEP)
        super().fetch_more_tokens()


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 takes for something else than text."""


_SCALARS = (  # Source: YAML 1.2.2, section 10.3.2
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_TAGS = ("map", "seq", "str", *(name for name, _, _ in _SCALARS))
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)
)


def _content(loader: _Loader, node: yaml.Node, hint: Any, depth: int) -> Any:
    loader.num_nodes += 1
    if depth > MAX_DEPTH:
        raise ConfigError(_TOO_DEEP)
    if loader.num_nodes > _MAX_NODES:
        raise ConfigError(f"has more than {_MAX_NODES} values")
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
        raise yaml.constructor.ConstructorError(None, None, f"got a tag {node.tag}", node.start_mark)
    alternatives = options(hint)
    model = model_in(hint)
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(_content(loader, key_node, str, depth + 1))
            if key in content:
                twice = f"the key {key} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key_node.start_mark)
            inner = model.model_fields.get(key) if model is not None else None
            value_hint = inner.annotation if inner else _item_of(alternatives)
            content[key] = _content(loader, value_node, value_hint, depth + 1)
        return content
    if isinstance(node, yaml.SequenceNode):
        return [_content(loader, one, _item_of(alternatives), depth + 1) for one in node.value]
    null = node.tag == "tag:yaml.org,2002:null"
    if null and model is not None and type(None) not in alternatives:
        return {}  # a section without entries
    if _takes_text(alternatives) and not null:
        return node.value
    return loader.construct_object(node, deep=True)


def _item_of(alternatives: Sequence[Any]) -> Any:
    """Return the type of the items of a list or of the values of a mapping."""
    containers = [one for one in alternatives if typing.get_origin(one) in (list, dict)]
    return typing.get_args(containers[0])[-1] if containers else Any


def _takes_text(alternatives: Sequence[Any]) -> bool:
    """Return whether a type is text, or a choice of texts, and no number."""
    texts = [one for one in alternatives if one is str or isinstance((typing.get_args(one) or (0,))[0], str)]
    return bool(texts) and not {int, float, bool} & set(alternatives)


_BLANKS = ', without blanks around =, and with quotes around a value that has blanks: key="A. Name"'


def _split(arguments: Sequence[str], file_key: str | None) -> tuple[Path | None, list[tuple[str, str]]]:
    file: Path | None = None
    assignments: list[tuple[str, str]] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            example = argument.lstrip("-").replace("-", "_") + ("" if equals else "=VALUE")
            raise ConfigError(f"{argument}: settings are written without dashes, as in {example}")
        if equals:
            assignments.append((key.strip(), value))
        elif Path(argument).suffix.lower() in (".yaml", ".yml") and file is None:
            file = Path(argument)
        else:
            second = file is not None and argument.endswith("ml")
            kind = "a second config file" if second else "not understood"
            hint = f", as in {file_key}={argument}" if file_key and Path(argument).exists() else _BLANKS
            raise ConfigError(f"{argument}: {kind}; expected [CONFIG.yaml] [key=value ...]{hint}")
    return file, assignments


def _read_file(schema: type[Settings], path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise ConfigError(f"{path}: no such config file")
    text = read_text(path)
    try:
        content = read_yaml(text, schema)
    except ConfigError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected settings (key: value)")
    return content or {}


def _value_of(schema: type[Settings], key: str, text: str) -> Any:
    """Return the value of ``key=text``. Raises: ConfigError."""
    field = field_at(schema, key.split("."))
    if field is None:
        raise ConfigError(unknown(schema, key))
    hint, alternatives = field.annotation, options(field.annotation)
    if _takes_text(alternatives):
        return None if type(None) in alternatives and text in ("null", "~") else text
    try:
        value = read_yaml(text, hint)
    except ConfigError as error:
        raise ConfigError(f"{key}: {short(text)} cannot be read as a value: {error}") from error
    wants_list = any(typing.get_origin(one) is list for one in alternatives)
    return [value] if wants_list and isinstance(value, int | float | str) else value


def _merged(schema: type[Settings], layers: Sequence[Layer], required: str | None = None) -> dict[str, Any]:
    """Return the schema's defaults and the layers, the last of which has precedence. Raises: ConfigError."""
    for origin, layer in layers:
        for path, value in _texts(layer):
            if value == MISSING or "${" in value:
                raise ConfigError(f"{origin}{dotted(path)}: got {value!r}, expected a value")
    merged: Any = OmegaConf.create(defaults_of(schema, required))
    for origin, layer in layers:
        try:
            merged = OmegaConf.merge(merged, dict(layer))
        except TypeError as error:
            path, value = next(_clashes(typing.cast("dict[str, Any]", OmegaConf.to_container(merged)), layer))
            expected = "a list" if isinstance(value, Mapping) else "settings (key: value)"
            raise ConfigError(f"{origin}{dotted(path)}: got {short(value)}, expected {expected}") from error
    return typing.cast("dict[str, Any]", OmegaConf.to_container(merged))


def _clashes(
    below: Mapping[str, Any], layer: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield where a layer has a list and what lies below has settings, or the reverse, with the layer's value."""
    for key, value in layer.items():
        there = below.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            yield from _clashes(there, value, (*path, key))
        elif {type(there), type(value)} == {dict, list}:
            yield (*path, key), value


def _checked(schema: type[S], layers: Sequence[Layer]) -> S:
    try:
        return schema.model_validate(_merged(schema, layers))
    except ValidationError as error:
        raise ConfigError(describe(error, schema, layers)) from error


def defaults_of(schema: type[Settings], required: str | None = None) -> dict[str, Any]:
    """Return the defaults of every field; fields without one have ``required``, or are left out."""
    content: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if field.is_required():
            inner = model_in(field.annotation)
            if inner is not None and issubclass(inner, Settings):
                content[name] = defaults_of(inner, required)
            elif required is not None:
                content[name] = required
        else:
            value = field.get_default(call_default_factory=True, validated_data={})
            content[name] = value.model_dump() if isinstance(value, Settings) else value
    return content


def _texts(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*path, number))
