"""Figures into benchmarks/RESULTS.md, with the machine and the command that made them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from ldm.checkpoint import git_revision

RESULTS = Path(__file__).parent / "RESULTS.md"


def machine(device: torch.device) -> str:
    """The hardware and torch, in words."""
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
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def append_section(title: str, command: str, device: torch.device, body: str, path: Path = RESULTS) -> None:
    """Add a section at the end of RESULTS.md, in one atomic write."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    date = datetime.now(UTC).date().isoformat()
    made = f"{date}, commit {git_revision()[:12]}, {machine(device)}:"
    section = f"\n## {title}\n{made}\n\n```\n{command}\n```\n\n{body}\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.rstrip("\n") + "\n" + section, encoding="utf-8")
    os.replace(temporary, path)
