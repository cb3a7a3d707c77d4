"""A contact sheet of suspicious cases: skull | face | the bone's outline on the face, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.check.findings import CHECKS, Finding
from data.check.silhouette import outline, silhouette
from data.images import ImageError, read_image, to_uint8

_TILE = 192  # px
_GAP = 8
_LINE = 17
_TEXT_LINES = 3
_ACROSS = 2  # cases side by side
_PAPER, _INK, _FAINT = (24, 24, 24), (235, 235, 235), (165, 165, 165)
_COLOURS = {"error": (255, 110, 90), "warning": (250, 200, 90)}
_BONE, _BEYOND = (90, 220, 255), (255, 60, 60)  # outline of the bone; bone outside the face


def choose(findings: Sequence[Finding], count: int) -> list[Finding]:
    """The cases that a sheet of ``count`` shows: the first of every check, then the second of each, and so on."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if any(path is not None for path in (finding.skull, finding.face, finding.other)):
            groups[finding.check].append(finding)
    turns = [(turn, name) for name, found in groups.items() for turn in range(len(found))]
    chosen = sorted(turns, key=lambda pair: (pair[0], list(CHECKS).index(pair[1])))[:count]
    return [
        groups[name][turn] for turn, name in sorted(chosen, key=lambda p: (list(CHECKS).index(p[1]), p[0]))
    ]


def draw_sheet(findings: Sequence[Finding]) -> np.ndarray:
    """(H, W, 3) uint8; at least one finding."""
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
        for n, text in enumerate(_wrap(pen, font, finding.seen, cell_w - 2 * _GAP, _TEXT_LINES - 1)):
            pen.text((x, y + (n + 1) * _LINE), text, font=font, fill=_FAINT)
        for n, tile in enumerate(_tiles(finding)):
            sheet.paste(tile, (x + n * (_TILE + _GAP), y + _TEXT_LINES * _LINE))
    return np.asarray(sheet)


def _wrap(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    width: int,
    lines: int,
) -> list[str]:
    """Text in at most so many lines of a width in px; what does not fit is cut, with dots."""
    found = [""]
    for letter in " ".join(text.split())[:600]:
        if pen.textlength(found[-1] + letter, font=font) <= width:
            found[-1] += letter
        elif len(found) == lines:
            found[-1] = found[-1][:-3] + "..."
            break
        else:
            head, space, tail = found[-1].rpartition(" ")
            if space and letter != " ":
                found[-1] = head
                found.append(tail + letter)
            else:
                found.append(letter.strip())
    return found


def _tiles(finding: Finding) -> list[Image.Image]:
    """Skull, face, and the overlay or the picture to compare with."""
    bone, skin = _read(finding.skull), _read(finding.face)
    if finding.other is not None:
        third = _picture(_read(finding.other), f"beside: {finding.other.name}")
    elif bone is not None and skin is not None:
        third = _overlay(bone, skin)
    else:
        third = _picture(None, "")
    return [
        _picture(bone, _caption("skull", finding.skull)),
        _picture(skin, _caption("face", finding.face)),
        third,
    ]


def _caption(kind: str, path: Path | None) -> str:
    return f"no {kind}" if path is None else f"{kind}: {path.name}"


def _read(path: Path | None) -> np.ndarray | None:
    if path is None:
        return None
    try:
        return read_image(path)[0]  # (256, 256, 3)
    except ImageError:
        return None


def _picture(picture: np.ndarray | None, caption: str) -> Image.Image:
    if picture is None:
        tile = Image.new("RGB", (_TILE, _TILE), (48, 48, 48))
    else:
        tile = Image.fromarray(to_uint8(picture)).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(tile)
    font = ImageFont.load_default(11)
    pen.text((4, _TILE - 16), caption[:30], font=font, fill=_FAINT, stroke_width=1, stroke_fill=(0, 0, 0))
    return tile


def _overlay(skull: np.ndarray, face: np.ndarray) -> Image.Image:
    bone, skin = silhouette(skull.mean(2)), silhouette(face.mean(2))
    canvas = to_uint8(face * 0.8)
    canvas[outline(bone.filled)] = _BONE
    canvas[bone.filled & ~skin.filled] = _BEYOND
    return _picture(canvas / np.float32(255), "bone on face")
