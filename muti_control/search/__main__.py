"""Which faces may belong to a skull? Which skulls to a face? A lead, never an identification.

    python -m muti_control.search skull=PATH gallery=FOLDER [sex=female] [key=value ...]
    python -m muti_control.search face=PATH gallery=FOLDER_OF_SKULLS [key=value ...]

Ranks the pictures of a folder (and of the folders in it) by the matching network's score. ``results/search`` gets
ranking.csv, sheet.png and record.json. Vectors are kept in ``cache``: a picture is read again when it changes.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from data.biometrics import Attributes
from data.files import picture_sha256, write_text
from data.images import read_image, to_uint8, write_png
from data.program import run_program
from ldm.checkpoint import git_revision
from muti_control.record import FORMAT, check_overwriting, claim_folder, unused_folder, write_record
from muti_control.sampling.config import MATCH_WEIGHTS
from muti_control.search.calibration import MatchCalibration, load_match_calibration
from muti_control.search.sheet import NOTICE, Candidate, draw_sheet
from muti_control.search.vectors import SIZE, Embedder, Kind, read_gallery
from settings.base import PathText, Settings, expect

RANKING, SHEET = "ranking.csv", "sheet.png"
UNCALIBRATED = "This network has no calibration: scores rank, and say nothing else."


class SearchConfig(Settings):
    """Whom to search for, and where."""

    skull: PathText | None = None
    """Picture of a skull; faces are ranked."""
    face: PathText | None = None
    """Picture of a face; skulls are ranked."""
    gallery: PathText | None = None
    """Folder of the faces, or for face=PATH of the skulls."""
    sex: Any = None
    """Sex of the skulls: female, male or unknown."""
    prepare: Literal["auto", "off"] = "auto"
    """Mend skulls first, as sample.py does."""
    weights: PathText = MATCH_WEIGHTS
    """The matching network."""
    cache: PathText = "results/vectors"
    """Folder of the galleries' vectors."""
    top: PositiveInt = 20
    """Pictures on the sheet at most."""
    out: PathText | None = None
    """Folder to write; null takes results/search, numbered if it exists."""
    overwrite: bool = False
    """Replace an earlier search there."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    @model_validator(mode="after")
    def _has_both_sides(self) -> Self:
        given = [name for name in ("skull", "face") if getattr(self, name) is not None]
        expect(len(given) == 1, "skull", " and ".join(given) or None, "either skull=PATH or face=PATH")
        expect(self.gallery is not None, "gallery", None, "a folder of faces, or for face=PATH of skulls")
        return self


def search(cfg: SearchConfig) -> None:
    """Rank the gallery, write the results and print the first five."""
    kind: Kind = "face" if cfg.skull is None else "skull"
    query = cfg.face if cfg.skull is None else cfg.skull
    assert query is not None and cfg.gallery is not None
    other: Kind = "face" if kind == "skull" else "skull"
    folder = Path(cfg.out) if cfg.out else unused_folder(Path("results", "search"))
    earlier = claim_folder(folder, cfg.overwrite)
    embedder = Embedder.load(cfg.weights, Attributes(sex=cfg.sex).sex, cfg.prepare == "auto", cfg.device)
    own = embedder.vectors(embedder.read(Path(query), kind)[None], kind)[0]
    calibrated = load_match_calibration(embedder.weights, embedder.digest)
    gallery = read_gallery(Path(cfg.gallery), other, embedder, Path(cfg.cache))
    for problem in gallery.problems:
        print(f"left out: {problem}", file=sys.stderr)
    began = time.perf_counter()
    scores = gallery.vectors @ own
    candidates = ranked(gallery.paths, scores, calibrated)
    took = time.perf_counter() - began
    calibration = None if calibrated is None else calibrated[0]
    notes = [NOTICE, *notes_of(calibration, len(candidates))]
    names = [RANKING, SHEET]
    outdated = [] if earlier is None else earlier.files
    inputs = [Path(query), *gallery.paths]
    check_overwriting(outdated, [folder / name for name in names], inputs)
    folder.mkdir(parents=True, exist_ok=True)
    for path in outdated:
        path.unlink(missing_ok=True)
    write_text(folder / RANKING, table(candidates, Path(cfg.gallery)))
    shown = [(one, to_uint8(read_image(one.path, SIZE)[0])) for one in candidates[: cfg.top]]
    write_png(
        folder / SHEET, draw_sheet(kind, Path(query), to_uint8(read_image(query, SIZE)[0]), shown, notes)
    )
    record = {
        "format": FORMAT,
        "program": "muti_control.search",
        "files": names,
        "notice": notes,
        "query": {"kind": kind, "path": query, "sha256": picture_sha256(Path(query)), "sex": embedder.sex},
        "gallery": {"path": cfg.gallery, "pictures": len(candidates), "left_out": len(gallery.problems)},
        "weights": {"path": str(embedder.weights), "sha256": embedder.digest},
        "calibration": None if calibration is None else calibration.model_dump(),
        "first": [{"file": one.name(Path(cfg.gallery)), **one.numbers} for one in candidates[: cfg.top]],
        "git": git_revision(),
    }
    write_record(folder, record)
    for note in notes:
        print(note)
    for one in candidates[:5]:
        print(f"{one.rank:>6}  {one.name(Path(cfg.gallery))}  {one.text}")
    print(
        f"{len(candidates)} {other}s ({gallery.num_new} new) ranked in {1000 * took:.0f} ms: {folder / SHEET}"
    )


def ranked(
    paths: Sequence[Path], scores: np.ndarray, calibrated: tuple[MatchCalibration, np.ndarray] | None
) -> list[Candidate]:
    """Return the pictures, best score first, with likelihood ratios where there is a calibration."""
    order = np.argsort(-scores, kind="stable")
    columns: list[np.ndarray] = []
    if calibrated is not None:
        calibration, draws = calibrated
        low, high = np.percentile(calibration.ratios(scores, draws), [2.5, 97.5], axis=0)
        columns = [calibration.ratios(scores), low, high]
    return [
        Candidate(place, paths[k], float(scores[k]), *(float(column[k]) for column in columns))
        for place, k in enumerate(order, 1)
    ]


def table(candidates: Sequence[Candidate], gallery: Path) -> str:
    """Return the ranking as CSV; the columns of the likelihood ratio are empty without a calibration."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "file", "score", "likelihood_ratio", "low", "high"])
    for one in candidates:
        numbers = ["" if x is None else f"{x:.6g}" for x in one.numbers.values()]
        writer.writerow([one.rank, one.name(gallery), *numbers])
    return text.getvalue()


def notes_of(calibration: MatchCalibration | None, num: int) -> list[str]:
    """Return what must be read beside a ranking of ``num`` pictures."""
    if calibration is None:
        return [UNCALIBRATED]
    test = calibration.test
    if not test:
        return []
    return [
        f"Error rate, on {test['people']} {test['kind_of_people']}: the right one came first in "
        f"{test['rank_1']:.0%} [{test['rank_1_low']:.0%}, {test['rank_1_high']:.0%}] of searches among "
        f"{test['gallery']} pictures, and among the first ten in {test['rank_10']:.0%}; of the ratios above 100, "
        f"{test['wrong_above_100']:.0%} were of the wrong person. This gallery has {num} pictures: the more, the more "
        "chance matches."
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after a message on stderr."""
    return run_program("muti_control.search", __doc__, SearchConfig, search, arguments, paths="")


if __name__ == "__main__":
    sys.exit(main())
