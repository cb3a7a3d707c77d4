"""What all benchmarks share: the command line, the machine in words, tables, and sections of RESULTS.md."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm.checkpoint import git_revision
from muti_control.record import write_json
from settings.base import Settings
from settings.help import help_text, is_asked
from settings.program import Program
from settings.reading import parse_command_line

RESULTS = Path(__file__).parent / "RESULTS.md"
S = TypeVar("S", bound=Settings)


def run(
    module: str,
    schema: type[S],
    arguments: Sequence[str],
    work: Callable[[S], int | None],
    file_key: str | None = None,
) -> int:
    """Read the settings and do the work of the benchmark ``benchmarks.MODULE``.

    Returns:
        The exit code: what ``work`` returns, 0 for None, or one of :class:`settings.program.Program`.
    """
    with Program(f"benchmarks.{module}", "interrupted; no figures were written") as end:
        if is_asked(arguments):
            print(help_text(sys.modules[schema.__module__].__doc__, schema, arguments))
        else:
            end.status = work(parse_command_line(schema, arguments, file_key=file_key)) or 0
    return end.status


def machine(device: torch.device) -> str:
    """Return the hardware and the version of torch, in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_figures(out: str, record: Mapping[str, Any]) -> Path:
    """Write OUT.json and its folder; return the file."""
    path = Path(out).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


def append_section(title: str, command: str, device: torch.device, body: str, path: Path = RESULTS) -> None:
    """Add a section at the end of RESULTS.md in one atomic write."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    date = datetime.now(UTC).date().isoformat()
    made = f"{date}, commit {git_revision()[:12]}, {machine(device)}:"
    section = f"\n## {title}\n{made}\n\n```\n{command}\n```\n\n{body}\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.rstrip("\n") + "\n" + section, encoding="utf-8")
    os.replace(temporary, path)
