"""The findings for people (a table) and for programs (CSV and JSON)."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.check.findings import CHECKS, Finding

_SHOWN = 3
_WIDTH = 110
COLUMNS = ("severity", "check", "list", "line", "file", "seen", "what_to_do")


def table(findings: Sequence[Finding]) -> str:
    """One block a check, the errors first: how many, what it is, the first cases, what to do."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.check].append(finding)
    order = sorted(groups, key=lambda name: (CHECKS[name].severity != "error", list(CHECKS).index(name)))
    lines = [f"{'check':<22}{'how many':>8}  severity"]
    for name in order:
        check, found = CHECKS[name], groups[name]
        lines.append(f"{name:<22}{len(found):>8}  {check.severity:<8}  {check.meaning}")
        lines += [_cut(f"    {one.where}: {one.seen}") for one in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"    ... and {len(found) - _SHOWN} more")
        lines.append(f"    -> {check.remedy}")
    return "\n".join(lines)


def _cut(line: str) -> str:
    line = " ".join(line.split())
    return "    " + (line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")


def rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One flat row a finding, by ``COLUMNS``."""
    return [
        {
            "severity": one.severity,
            "check": one.check,
            "list": one.list_name,
            "line": one.line or "",
            "file": one.file,
            "seen": one.seen,
            "what_to_do": CHECKS[one.check].remedy,
        }
        for one in findings
    ]


def write_listing(out: Path, findings: Sequence[Finding], summary: dict[str, Any]) -> None:
    """Write ``findings.csv`` and ``findings.json``, each whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in row.items()} for row in rows(findings))
    write_text(out / "findings.csv", text.getvalue())
    known = {name: asdict(check) for name, check in CHECKS.items()}
    content = {**summary, "findings": rows(findings), "checks": known}
    write_text(out / "findings.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _inert(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; names in a manifest come from anywhere."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def write_text(path: Path, text: str) -> None:
    """Write beside the final name, then rename."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
