"""Case folders as the studio shows them: written by a drawing, or opened from a zip that somebody uploads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.biometrics import ATTRIBUTES
from data.cases import safe_names
from data.ct.reading.archives import unpacked
from data.ct.reading.kinds import is_packed
from data.images import MAX_PIXELS, ImageError, picture_size
from muti_control.case.contents import Heading
from muti_control.case.report import write_report, write_zip
from muti_control.case.verify import Verification, verify
from muti_control.record import read_record
from muti_control.studio import texts

CASE_BYTES = 64 << 20  # of one file; four times as much of a whole case
DOCUMENTS = {"report.pdf": "application/pdf", "report.html": "text/html", "record.json": "application/json"}


class Offer(NamedTuple):
    """A file that a session may fetch. download: its name then; None: it is shown."""

    content: bytes | Path
    media: str = "image/png"
    download: str | None = None


@dataclass
class OpenedCase:
    """A case folder.

    documents: files to fetch, also pictures that show all faces together, by their kind.
    skull: its picture, where the folder has it. people: of each face, as in the record. urls: addresses on the page.
    """

    folder: Path
    name: str
    verification: Verification
    documents: dict[str, Offer] = field(default_factory=dict)
    faces: list[Path] = field(default_factory=list)
    people: list[dict[str, Any]] = field(default_factory=list)
    skull: Path | None = None
    look: dict[str, Any] = field(default_factory=dict)
    person: dict[str, Any] = field(default_factory=dict)
    mm_per_px: float | None = None
    heading: dict[str, str] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)


def case_files(folder: Path, name: str) -> OpenedCase:
    """Return what a case folder holds, with its check. Raises: ValueError: it is none."""
    case = OpenedCase(folder, name, verify(folder))
    for kind in ("mean", "spread", "overlay", "landmarks", "0_spgd"):
        path = folder / f"{name}_{kind}.png"
        if path.name in case.verification.files:
            case.documents[kind] = Offer(_picture(path))
    for file, media in DOCUMENTS.items():
        if file in case.verification.files:
            case.documents[file] = Offer(folder / file, media, None if file.endswith(".html") else file)
    archive = folder.with_name(f"{folder.name}.zip")
    if archive.is_file():
        case.documents["zip"] = Offer(archive, "application/zip", archive.name)
    return case


def report_case(folder: Path, name: str, heading: Mapping[str, str]) -> OpenedCase:
    """Write the report of a case, as PDF and page, and its zip. Raises: ValueError, OSError."""
    write_report(folder, Heading(**heading), "pdf")
    write_zip(folder)
    case = case_files(folder, name)
    case.heading = dict(heading)
    number = safe_names([heading["case_number"] or folder.name])[0]
    for slot, ending in (("zip", "zip"), ("report.pdf", "pdf")):
        case.documents[slot] = case.documents[slot]._replace(download=f"{number}.{ending}")
    return case


def open_case(path: Path, target: Path) -> OpenedCase:
    """Unpack the zip of a case into a folder, and return what it holds.

    Raises:
        ValueError: it is no case, holds too much, or a name in it leads out of it. OSError: the disk is full.
    """
    if not is_packed(path):
        raise ValueError(texts.NO_CASE)
    with unpacked(path, CASE_BYTES) as inside:
        if not (inside / "record.json").is_file():
            raise ValueError(texts.NO_CASE)
        shutil.copytree(inside, target / "case")
    folder = target / "case"
    try:
        record = read_record(folder, local_paths=False)
        first = record["cases"][0]
        case = case_files(folder, str(first["name"]))
        here = case.verification.files
        for face in first["faces"]:
            if str(face["file"]) in here:
                case.faces.append(_picture(folder / face["file"]))
                case.people.append(dict(face.get("attributes") or first["attributes"]))
        skull = str((first["skull"] or {}).get("file", ""))
        case.skull = _picture(folder / skull) if skull in here else None
        check = first.get("check") or {"level": "ok", "findings": [], "prepared": []}
        case.name = safe_names([case.name])[0]  # of later folders
        case.look = {
            "level": check["level"],
            "findings": [finding["text"] for finding in check["findings"]],
            "before": [],
            "done": check["prepared"],
            "mandible": all(finding["name"] != "no_mandible" for finding in check["findings"]),
            "remarks": [texts.OPENED.format(faces=len(case.faces))],
            "file": case.skull,
        }
        case.mm_per_px = record["config"].get("mm_per_px")
        case.person = {name: record["config"].get(name) for name in ATTRIBUTES}
        case.heading = {key: str(record["config"].get(key) or "") for key in ("case_number", "examiner")}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(texts.NO_CASE) from error
    return case


def _picture(path: Path) -> Path:
    """Return the path of a picture. Raises: ImageError: it is none, or too large."""
    width, height = picture_size(path)
    if width * height > MAX_PIXELS:
        raise ImageError(texts.TOO_MANY_PIXELS.format(name=path.name, limit=MAX_PIXELS // 1_000_000))
    return path
