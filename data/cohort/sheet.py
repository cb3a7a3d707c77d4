"""``python -m data.cohort.sheet COHORT OUT.png [key=value ...]``: a sheet of skulls, faces, faces with landmarks.

Landmarks are dots, grey where hidden.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from data.cohort.config import SPLIT_DIR
from data.images import picture_size, read_image, to_uint8, write_png
from data.landmarks import read_landmarks
from data.manifest import Record, read_manifest
from data.program import run_program
from settings.base import Settings

_LABEL, _GAP = 18, 6  # px
_VISIBLE, _HIDDEN = (255, 70, 50), (120, 120, 140)


class SheetConfig(Settings):
    """What the sheet shows."""

    num: Annotated[int, Field(ge=1)] = 24
    """People, spread evenly over the list."""
    list: str = "train.json"
    """File of split_data; variants.json shows what edits do."""
    across: Annotated[int, Field(ge=1)] = 4
    """People in a row."""


def cohort_sheet(records: list[Record], across: int = 4, size: int = 256) -> np.ndarray:
    """Return (H, W, 3) uint8: for each record a skull, a face and the face with its landmarks, under a label."""
    across = min(across, len(records))
    rows = -(-len(records) // across)
    width, height = 3 * size + _GAP, size + _LABEL
    sheet = Image.new("RGB", (across * width, rows * height), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for k, record in enumerate(records):
        x, y = k % across * width, k // across * height
        pen.text((x + 4, y + 2), _label(record), font=font, fill=(235, 235, 235))
        face = _tile(record.face_path, size)
        for number, tile in enumerate((_tile(record.skull_path, size), face, _marked(record, face))):
            sheet.paste(tile, (x + number * size, y + _LABEL))
    return np.asarray(sheet)


def _label(record: Record) -> str:
    who = record.biometrics
    text = f"{record.subject}  {who.sex} {who.age:g} y  body mass {who.body_mass}  {who.ethnicity}"
    return "  ".join([text, *([record.style] if record.style else []), *record.changed])


def _tile(path: Path | None, size: int) -> Image.Image:
    if path is None:
        return Image.new("RGB", (size, size))
    return Image.fromarray(to_uint8(read_image(path, size)[0]))


def _marked(record: Record, face: Image.Image) -> Image.Image:
    """Return the face with its landmarks, px of its file; drawn at twice the size, so that dots stay small."""
    size = face.size[0]
    if record.landmarks_path is None or record.face_path is None:
        return face
    points, visible = read_landmarks(record.landmarks_path)
    scale = 2 * size / picture_size(record.face_path)[0]
    canvas = face.resize((2 * size, 2 * size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for (x, y), seen in zip(points.tolist(), visible, strict=True):
        pen.circle(((x + 0.5) * scale, (y + 0.5) * scale), 2.2, fill=_VISIBLE if seen else _HIDDEN)
    return canvas.resize((size, size), Image.Resampling.BOX)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after one message on stderr."""
    return run_program("data.cohort.sheet", __doc__, SheetConfig, _draw, argv, paths="COHORT OUT")


def _draw(config: SheetConfig, cohort: Path, out: Path) -> None:
    records = read_manifest(cohort / SPLIT_DIR / config.list)
    spread = np.linspace(0, len(records) - 1, min(config.num, len(records)))
    write_png(out, cohort_sheet([records[round(k)] for k in spread], config.across))
    print(out)


if __name__ == "__main__":
    sys.exit(main())
