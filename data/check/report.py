"""The findings for people (a table and a contact sheet) and for programs (CSV and JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.check.flaws import CHECKS, Flaw
from data.check.measure import silhouette
from data.files import replacing
from data.images import ImageError, read_image, to_uint8

_SHOWN = 3
_WIDTH = 110
COLUMNS = ("severity", "check", "list", "line", "file", "seen", "what_to_do")
_TILE = 192  # px
_GAP = 8
_LINE = 17
_TEXT_LINES = 3
_ACROSS = 2  # cases side by side
_PAPER, _INK, _FAINT = (24, 24, 24), (235, 235, 235), (165, 165, 165)
_COLOURS = {"error": (255, 110, 90), "warning": (250, 200, 90)}
_BONE, _BEYOND = (90, 220, 255), (255, 60, 60)  # outline of the bone; bone outside the face
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def table(findings: Sequence[Flaw]) -> str:
    """Return a block of text for each check, the errors first: how many, what it is, the first ones, what to do."""
    groups: dict[str, list[Flaw]] = defaultdict(list)
    for finding in findings:
        groups[finding.check].append(finding)
    order = sorted(groups, key=lambda name: (CHECKS[name].severity != "error", list(CHECKS).index(name)))
    lines = [f"{'check':<22}{'how many':>8}  severity"]
    for name in order:
        check, group = CHECKS[name], groups[name]
        lines.append(f"{name:<22}{len(group):>8}  {check.severity:<8}  {check.meaning}")
        lines += [_cut(f"    {one.where}: {one.detail}") for one in group[:_SHOWN]]
        if len(group) > _SHOWN:
            lines.append(f"    ... and {len(group) - _SHOWN} more")
        lines.append(f"    -> {check.remedy}")
    return "\n".join(lines)


def _cut(line: str) -> str:
    line = " ".join(line.split())
    return "    " + (line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")


def rows(findings: Sequence[Flaw]) -> list[dict[str, Any]]:
    """Return one flat row a finding, by ``COLUMNS``."""
    cells = (
        (f.severity, f.check, f.list_name, f.line or "", f.file, f.detail, CHECKS[f.check].remedy)
        for f in findings
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells]


def write_listing(out: Path, findings: Sequence[Flaw], summary: dict[str, Any]) -> None:
    """Write ``findings.csv`` and ``findings.json``, each whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in row.items()} for row in rows(findings))
    checks = {name: asdict(check) for name, check in CHECKS.items()}
    content = {**summary, "findings": rows(findings), "checks": checks}
    listings = {
        "findings.csv": text.getvalue(),
        "findings.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
    }
    for name, listing in listings.items():
        with replacing(out / name) as temporary:
            temporary.write_text(listing, encoding="utf-8", errors="backslashreplace")


def _inert(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula; names in a manifest come from anywhere."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def choose(findings: Sequence[Flaw], count: int) -> list[Flaw]:
    """Return what a sheet of ``count`` shows: the first finding of every check, then the second of each, and so on."""
    groups: dict[str, list[Flaw]] = defaultdict(list)
    for finding in findings:
        if any(path is not None for path in (finding.skull, finding.face, finding.other)):
            groups[finding.check].append(finding)
    turns = [(turn, name) for name, group in groups.items() for turn in range(len(group))]
    order = list(CHECKS).index
    chosen = sorted(turns, key=lambda pair: (pair[0], order(pair[1])))[:count]
    return [groups[name][turn] for turn, name in sorted(chosen, key=lambda pair: (order(pair[1]), pair[0]))]


def draw_sheet(findings: Sequence[Flaw]) -> np.ndarray:
    """Draw a contact sheet, (H, W, 3) uint8: skull | face | the bone's outline on the face, and why."""
    font = ImageFont.load_default(13)
    cell_w, cell_h = 3 * (_TILE + _GAP) + _GAP, _TILE + _TEXT_LINES * _LINE + 2 * _GAP
    across = min(_ACROSS, len(findings))
    sheet = Image.new("RGB", (across * cell_w + _GAP, -(-len(findings) // across) * cell_h + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for k, finding in enumerate(findings):
        x, y = _GAP + k % across * cell_w, _GAP + k // across * cell_h
        pen.text((x, y), finding.check, font=font, fill=_COLOURS[finding.severity])
        indent = int(pen.textlength(finding.check + "   ", font=font))
        place = _wrap(pen, font, finding.where, cell_w - indent - 2 * _GAP, 1)
        pen.text((x + indent, y), place[0], font=font, fill=_INK)
        for n, text in enumerate(_wrap(pen, font, finding.detail, cell_w - 2 * _GAP, _TEXT_LINES - 1)):
            pen.text((x, y + (n + 1) * _LINE), text, font=font, fill=_FAINT)
        for n, tile in enumerate(_tiles(finding)):
            sheet.paste(tile, (x + n * (_TILE + _GAP), y + _TEXT_LINES * _LINE))
    return np.asarray(sheet)


def _wrap(pen: ImageDraw.ImageDraw, font: Font, text: str, width: int, num_lines: int) -> list[str]:
    """Break text into at most ``num_lines`` lines of a width in px; the rest is cut off, with dots."""
    lines = [""]
    for letter in " ".join(text.split())[:600]:
        if pen.textlength(lines[-1] + letter, font=font) <= width:
            lines[-1] += letter
        elif len(lines) == num_lines:
            lines[-1] = lines[-1][:-3] + "..."
            break
        else:
            head, space, tail = lines[-1].rpartition(" ")
            if space and letter != " ":
                lines[-1] = head
                lines.append(tail + letter)
            else:
                lines.append(letter.strip())
    return lines


def _tiles(finding: Flaw) -> list[Image.Image]:
    """Return skull, face, and the overlay or the picture to compare with."""
    bone, skin = _read(finding.skull), _read(finding.face)
    if finding.other is not None:
        third = _tile(_read(finding.other), f"beside: {finding.other.name}")
    elif bone is not None and skin is not None:
        third = _tile(_overlay(bone, skin), "bone on face")
    else:
        third = _tile(None, "")
    pictures = ("skull", finding.skull, bone), ("face", finding.face, skin)
    return [
        *(_tile(one, f"{kind}: {path.name}" if path else f"no {kind}") for kind, path, one in pictures),
        third,
    ]


def _read(path: Path | None) -> np.ndarray | None:
    """Return a picture, (256, 256, 3) uint8, or None where it cannot be read."""
    try:
        return None if path is None else to_uint8(read_image(path)[0])
    except ImageError:
        return None


def _tile(picture: np.ndarray | None, caption: str) -> Image.Image:
    if picture is None:
        tile = Image.new("RGB", (_TILE, _TILE), (48, 48, 48))
    else:
        tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(tile)
    font = ImageFont.load_default(11)
    pen.text((4, _TILE - 16), caption[:30], font=font, fill=_FAINT, stroke_width=1, stroke_fill=(0, 0, 0))
    return tile


def _overlay(skull: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Draw the bone's outline on the face, and the bone outside the face, (H, W, 3) uint8."""
    bone, skin = (silhouette(one.mean(2) / 255).filled for one in (skull, face))
    canvas: np.ndarray = np.rint(0.8 * face).astype(np.uint8)
    contours, _ = cv2.findContours(bone.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    canvas = cv2.drawContours(canvas, contours, -1, _BONE, 1)
    canvas[bone & ~skin] = _BEYOND
    return canvas
