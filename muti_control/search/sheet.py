"""The picture sheet of a search: the notice, the query, and the best candidates with scores and likelihood ratios."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.sheet import Look, wrapped, write_lines

NOTICE = (
    "A lead, never an identification. A likelihood ratio says how much more often such a score is seen between a "
    "skull and its own face than between a skull and another person of that sex; it is not the chance that this is the "
    "person. Other evidence must decide."
)
LOOK = Look(tile=192, gap=10, line=18, font=13, across=6)
_PAPER, _LINES = 24, 3


@dataclass(frozen=True)
class Candidate:
    """A picture of the gallery: rank from 1, score (a cosine), and likelihood ratio with its 95 % interval or None."""

    rank: int
    path: Path
    score: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    def name(self, gallery: Path) -> str:
        """Return the file within the gallery, with ``/``."""
        return Path(os.path.relpath(self.path, gallery)).as_posix()

    @property
    def numbers(self) -> dict[str, float | None]:
        """The values by name."""
        return {"score": self.score, "likelihood_ratio": self.ratio, "low": self.low, "high": self.high}

    @property
    def text(self) -> str:
        """The values in words."""
        if self.ratio is None or self.low is None or self.high is None:
            return f"score {self.score:.3f}"
        told = (f"{x:.0f}" if x >= 10 else f"{x:.2g}" for x in (self.ratio, self.low, self.high))
        return "score {:.3f}, LR {} ({} to {})".format(self.score, *told)


def draw_sheet(
    kind: str,
    path: Path,
    picture: np.ndarray,
    candidates: Sequence[tuple[Candidate, np.ndarray]],
    notes: Sequence[str],
) -> np.ndarray:
    """Return a sheet (H, W, 3) uint8: notes above, then the query, a picture (S, S, 3) uint8, and its candidates."""
    look, cell = LOOK, LOOK.tile + LOOK.gap
    width = look.gap + cell * (1 + min(look.across, len(candidates)))
    width = max(width, look.gap + 4 * cell)
    lines = [line for note in notes for line in wrapped(note, look.font, width - 2 * look.gap)]
    rows = -(-len(candidates) // look.across)
    top, height = look.gap * 2 + look.line * len(lines), cell + look.line * _LINES
    sheet = Image.new("RGB", (width, top + rows * height), (_PAPER,) * 3)
    write_lines(sheet, (look.gap, look.gap), lines, look)

    def put(shown: np.ndarray, x: int, y: int, title: str, detail: str) -> None:
        texts = [*wrapped(title, look.font, look.tile, 1), *wrapped(detail, look.font, look.tile, _LINES - 1)]
        write_lines(sheet, (x, y), texts, look)
        tile = Image.fromarray(shown).convert("RGB").resize((look.tile, look.tile), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y + look.line * _LINES))

    put(picture, look.gap, top, f"the {kind}", path.name)
    for k, (one, shown) in enumerate(candidates):
        x, y = look.gap + (1 + k % look.across) * cell, top + k // look.across * height
        put(shown, x, y, f"{one.rank}  {one.path.name}", one.text)
    return np.asarray(sheet)
