"""What ``--help`` prints: each key with its value, its meaning and its range.

A key's meaning is the docstring below its field. Its range follows from the field's type.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from settings.base import Settings
from settings.messages import dotted, model_in, options, short
from settings.reading import MISSING, Base, defaults_of, one_line, values_of

_WORDS = ("-h", "--help")
_GUARD = 2**16  # such limits keep hostile files out, and tell a user nothing
_COLUMN = 30  # where meanings begin, counted from the left


class Key(NamedTuple):
    """A setting.

    path: the names that lead to it. value: as YAML, in one line. comment: its meaning and range.
    group: the settings class that it stands in.
    """

    path: tuple[str, ...]
    value: str
    comment: str
    group: type[Settings]


def is_asked(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(argument in _WORDS for argument in arguments)


def help_text(
    usage: str | None, schema: type[Settings], arguments: Sequence[str], source: str = "", base: Base = None
) -> str:
    """Return the usage and the keys that people change most; with ``--help all``, every key.

    Args:
        arguments: the command line. The values shown are those that it leads to.
        source: where the values come from, in words. base: as for ``parse_command_line``.

    Raises:
        ConfigError: a setting or file in ``arguments`` that cannot be read.
    """
    given = [argument for argument in arguments if argument not in (*_WORDS, "all")]
    keys = list(keys_of(schema, values_of(schema, given, base)))
    whole = "all" in arguments or not schema.often
    shown = keys if whole else [next(k for k in keys if dotted(k.path) == name) for name in schema.often]
    title = ("Every key" if whole else "The keys people change most") + (f", {source}" if source else "")
    lines = [(usage or "").strip(), *([f"\n{title}:"] if shown else [])]
    above: tuple[str, ...] = ()
    for key in shown:
        group = key.path[:-1]
        heading = (
            f"{dotted(group)}: {_first_sentence(key.group)}" if group else schema.headings.get(key.path[0])
        )
        if whole and heading and (group != above or not group):
            lines.append(f"\n{heading}")
        above = group
        lines += _lines(key)
    return "\n".join(lines if whole else [*lines, "\n--help all prints every key."])


def keys_of(schema: type[Settings], values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Yield every key in the order of the fields, those of groups last.

    Args:
        values: of these settings, as ``values_of`` returns them. path: the names that lead to them.
    """
    meanings = meanings_of(schema)
    groups = []
    for name, field in schema.model_fields.items():
        inner, value = model_in(field.annotation), values[name]
        if inner is not None and issubclass(inner, Settings) and isinstance(value, Mapping):
            groups.append((inner, {**defaults_of(inner, MISSING), **value}, (*path, name)))
        else:
            limits = range_of(field)
            comment = meanings.get(name, "").removesuffix(".") + (f" ({limits})" if limits else "")
            yield Key((*path, name), one_line(value), comment, schema)
    for group in groups:
        yield from keys_of(*group)


def meanings_of(schema: type[Settings]) -> dict[str, str]:
    """Return the docstrings below the fields of a class and of those that it inherits from, by field."""
    meanings: dict[str, str] = {}
    for one in reversed(schema.__mro__[: schema.__mro__.index(Settings)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        for node, below in pairwise(typing.cast(ast.ClassDef, body).body):
            if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                meanings[typing.cast(ast.Name, node.target).id] = " ".join(text.split())
    return meanings


def range_of(field: FieldInfo) -> str:
    """Return what a field admits, in words; nothing for plain text."""
    return _range(field.annotation, field.metadata)


def _range(hint: Any, limits: Sequence[Any] = ()) -> str:
    parts = [_range_of_one(one, limits) for one in _alternatives(hint)]
    return " or ".join(dict.fromkeys(filter(None, parts)))


def _alternatives(hint: Any) -> Iterator[Any]:
    """Yield the alternatives of a union, each with its own constraints."""
    inner = typing.get_args(hint)
    if len(options(hint)) > 1 and typing.get_origin(hint) is not typing.Annotated:
        for one in inner:
            yield from _alternatives(one)
    else:
        yield hint


def _range_of_one(hint: Any, limits: Sequence[Any]) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        hint, *more = typing.get_args(hint)
        flat = [part for one in more for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return _range(hint, [*limits, *flat])
    if hint is bool:
        return "true or false"
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is list:
        item = _range(typing.get_args(hint)[0])
        return (
            f"a list of {item}" if "," in item else f"a list, each {item}" if item[:1].isdigit() else "a list"
        )
    if typing.get_origin(hint) is dict:
        return "{name: value}"
    return _numbers(hint, limits) if hint in (int, float) else ""


def _numbers(hint: type, limits: Sequence[Any]) -> str:
    bounds = {
        n: getattr(one, n)
        for one in limits
        for n in ("ge", "gt", "le", "lt", "multiple_of")
        if hasattr(one, n)
    }
    if hint is int and "gt" in bounds:
        bounds["ge"] = bounds.pop("gt") + 1
    if hint is int and "lt" in bounds:
        bounds["le"] = bounds.pop("lt") - 1
    low, high = bounds.get("ge"), bounds.get("le")
    high = high if high is None or high < _GUARD else None
    words = [f"{short(low)} to {short(high)}"] if low is not None and high is not None else []
    if not words:
        words = [f"{short(low)} or more"] if low is not None else []
        words += [f"above {short(bounds['gt'])}"] if "gt" in bounds else []
        words += [f"at most {short(high)}"] if high is not None else []
    words += [f"below {short(bounds['lt'])}"] if "lt" in bounds else []
    words += [f"a multiple of {bounds['multiple_of']}"] if "multiple_of" in bounds else []
    return ", ".join(words) or ("a whole number" if hint is int else "a number")


def _first_sentence(group: type[Settings]) -> str:
    return inspect.cleandoc(group.__doc__ or "").split("\n\n")[0].replace("\n", " ").removesuffix(".")


def _lines(key: Key) -> list[str]:
    """Return the lines of a key: its assignment, and the comment beside it, or below where there is no room."""
    assignment = f"  {dotted(key.path)}={key.value}"
    width = min(shutil.get_terminal_size((110, 24)).columns, 110)
    comment = textwrap.wrap(key.comment, max(20, width - _COLUMN))
    if len(assignment) < _COLUMN and comment:
        assignment = f"{assignment:<{_COLUMN}}{comment.pop(0)}"
    return [assignment, *(" " * _COLUMN + line for line in comment)]
