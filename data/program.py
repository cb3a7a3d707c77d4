"""The command line of the programs of ``data``: ``python -m PROGRAM PATH... [key=value ...]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from settings.base import Settings
from settings.help import help_text, is_asked
from settings.program import Program
from settings.reading import parse_command_line

S = TypeVar("S", bound=Settings)


def run_program(
    program: str,
    description: str | None,
    schema: type[S],
    work: Callable[..., int | None],
    arguments: Sequence[str] | None,
    *,
    paths: str,
    stopped: str = "stopped; nothing was written",
) -> int:
    """Run ``work(config, *paths)``.

    Args:
        program: name of the module, for messages.
        description: what ``--help`` prints before the settings.
        work: may return an exit status; None is 0.
        arguments: the command line; None takes that of the process. ``key=value`` is a setting, unless a file has
            that name; all else is a path.
        paths: the paths that are expected, such as ``"FOLDER OUT"``. One in brackets may be missing; dots after the
            last one stand for any number of them.
        stopped: the message after Ctrl-C or SIGTERM.

    Returns:
        The exit status: that of ``work``, or one of :class:`settings.program.Program`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    overrides = [one for one in arguments if _is_setting(one)]
    places = [Path(one) for one in arguments if not _is_setting(one)]
    names = paths.split()
    fewest, most = sum(not name.startswith("[") for name in names), len(names)
    with Program(program, stopped) as end:
        if is_asked(arguments):
            print(
                help_text(
                    description, schema, overrides + [one for one in arguments if one in ("--help", "all")]
                )
            )
        elif len(places) < fewest or (len(places) > most and not paths.endswith("...")):
            got = " ".join(map(str, places)) or "no path"
            raise ValueError(f"got {got}, expected {paths} [key=value ...] (a path with '=' as ./PATH)")
        else:
            end.place = places[-1] if places else None
            end.status = work(parse_command_line(schema, overrides), *places) or 0
    return end.status


def _is_setting(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    is_key = bool(equals) and key.replace(".", "_").isidentifier()
    return is_key and not os.path.exists(argument)  # Path.exists refuses names that are too long
