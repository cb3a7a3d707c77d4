"""Cases to reconstruct: from one skull picture, a folder of them, or a manifest, with each person's biometrics."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.biometrics import Attributes, Biometrics, BiometricsError, prompt
from data.images import IMAGE_SUFFIXES, ImageError, read_image
from data.manifest import (
    SKULL_FOLDERS,
    TABLE_SUFFIXES,
    ManifestError,
    ManifestProblem,
    Record,
    read_skulls,
)
from data.partial import PartialError, remove_bone

MANIFEST_SUFFIXES = (".json", ".jsonl", *TABLE_SUFFIXES)
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_T = TypeVar("_T")
NO_SKULL = "none"
NOTHING_KNOWN = Attributes()
_SHOWN = 20


class CaseError(ValueError):
    """There is nothing to reconstruct; the message says why and what to do."""


@dataclass(frozen=True)
class Case:
    """One skull to reconstruct.

    Attributes:
        name: unique among the cases of a run, and safe as a file name.
        skull_path: None where there is no skull: landmarks, texture and text are then the only conditions.
        biometrics: of whom a face is drawn. None: nothing is known about the person, or not all that is needed; each
            face is then drawn with values that are possible (muti_control.sampling.assumed).
        face_path: the true face.
        attributes: what is known about the person.
        seed_offset: added to the seeds of the run, where cases shall not share their noise.
        landmarks_path: of the face.
        texture_path: exemplar of the skin's look.
        missing: region of bone (of ``data.partial``) that is removed.
        picture: contents of the file at ``skull_path``, where it is in memory alone.
        prepared: PNG that is drawn in place of the skull's own picture.
        mm_per_px: of the skull's picture. None: unknown.
        scan: what ``data.ct`` reports of the scan that the skull was drawn of. remarks: on it, for people.
        skin: PNG of the scan's own skin.
    """

    name: str
    skull_path: Path | None
    biometrics: Biometrics | None
    face_path: Path | None = None
    attributes: Attributes = NOTHING_KNOWN
    seed_offset: int = 0
    landmarks_path: Path | None = None
    texture_path: Path | None = None
    missing: str | None = None
    picture: bytes | None = field(default=None, repr=False)
    prepared: bytes | None = field(default=None, repr=False)
    mm_per_px: float | None = None
    scan: Mapping[str, Any] | None = field(default=None, repr=False)
    remarks: Sequence[str] = ()
    skin: bytes | None = field(default=None, repr=False)

    @property
    def source(self) -> Path | bytes:
        """What ``read_image`` reads the skull from. Raises: CaseError: there is no skull."""
        source = self.prepared or self.picture or self.skull_path
        if source is None:
            raise CaseError(f"{self.name} has no skull")
        return source

    @property
    def missing_seed(self) -> int:
        """Return the seed of the edge where bone is missing: a function of the name alone."""
        return zlib.crc32(self.name.encode())

    @property
    def prompt(self) -> str:
        """Return the standard prompt; empty where nothing is known about the person."""
        return "" if self.biometrics is None else prompt(self.biometrics)


def find_cases(
    skull: str | os.PathLike[str],
    person: Mapping[str, object] = {},
    images_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[Case]:
    """Return the cases of a picture, a folder of pictures or a manifest.

    Args:
        skull: a picture file, a folder (its pictures, not those of folders within), a list (CSV or JSON lines, see
            ``read_skulls``), or ``none`` for no skull.
        person: attributes of all pictures; for a list, they replace the values of every line. None: not stated.
        images_dir: of a list: see ``read_skulls``.
        limit: at most that many cases, spread evenly over the list. None: all.

    Raises:
        CaseError: there is nothing. BiometricsError: an attribute has an impossible value.
        ManifestError, ContentError: the list has mistakes.
    """
    path = Path(skull)
    if limit is not None and limit < 1:
        raise CaseError(f"limit: got {limit}, expected at least 1, or null for all")
    no_skull = str(skull) == NO_SKULL and not path.exists()
    if not no_skull and not path.exists():
        raise CaseError(f"skull: {path} does not exist; give a picture, a folder of pictures or a manifest")
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return _spread(_listed(path, images_dir, person), limit)
    if path.suffix.lower() in _SHEETS:
        raise CaseError(f"skull: {path} is a spreadsheet; save it as CSV (in Excel: CSV UTF-8)")
    if images_dir is not None and not no_skull:
        raise CaseError(f"images_dir: goes with a manifest, but skull={path} is none")
    known = attributes_of(person)
    if no_skull:
        return [Case("no_skull", None, known.biometrics, attributes=known)]
    paths = _spread(_pictures(path) if path.is_dir() else [path], limit)
    names = safe_names([picture.stem for picture in paths])
    return [Case(name, p, known.biometrics, attributes=known) for name, p in zip(names, paths, strict=True)]


def attributes_of(person: Mapping[str, object]) -> Attributes:
    """Return what is known of a person, from settings or a line of a list. Raises: BiometricsError."""
    for name, value in person.items():
        if value != value:  # a table in memory says so where it knows nothing; a person writes something else
            raise BiometricsError(name, value, "a value, or unknown")
    return Attributes(**person)


def _listed(
    path: Path, images_dir: str | os.PathLike[str] | None, person: Mapping[str, object]
) -> list[Case]:
    """Return a case for each line of a list of skulls. Raises: ManifestError, ContentError."""
    lines, stated = (
        read_skulls(path, images_dir),
        {k: value for k, value in person.items() if value is not None},
    )
    cases: list[Case] = []
    problems: list[ManifestProblem] = []
    for name, line in zip(safe_names([one.name or one.skull_path.stem for one in lines]), lines, strict=True):
        try:
            known = attributes_of({**line.person, **stated})
        except BiometricsError as error:
            problems.append(
                ManifestProblem(line.line, "", str(error), "mend or empty the cell", "biometrics")
            )
            continue
        case = Case(name, line.skull_path, known.biometrics, line.face_path, known)
        cases.append(replace(case, landmarks_path=line.landmarks_path, texture_path=line.texture_path))
    if problems:
        raise ManifestError(path, problems)
    return cases


def cases_of(records: Sequence[Record]) -> list[Case]:
    """Return a case for each line of a manifest, named after its skull picture."""
    names = safe_names([Path(record.source).stem for record in records])
    return [
        Case(
            name,
            record.skull_path,
            record.biometrics,
            record.face_path,
            Attributes(**vars(record.biometrics) | ({} if record.ethnicity_given else {"ethnicity": None})),
            landmarks_path=record.landmarks_path,
            texture_path=record.texture_path,
        )
        for name, record in zip(names, records, strict=True)
    ]


def read_skull(case: Case, size: int) -> np.ndarray:
    """Return the skull of a case, (size, size, 3) float32 in [0, 1]; black where bone, or the skull, is missing.

    Raises:
        ImageError: it cannot be read. PartialError: it shows no skull to remove bone from. Both name the file.
    """
    if case.skull_path is None:
        return np.zeros((size, size, 3), np.float32)
    picture, _ = read_image(case.source, size)
    if case.missing is None:
        return picture
    try:
        return remove_bone(picture, case.missing, case.missing_seed)
    except PartialError as error:
        raise PartialError(f"{case.skull_path}: {error}") from error


def check_pictures(cases: list[Case], size: int) -> dict[Path, str]:
    """Read every skull and true face once, so that nothing fails half-way.

    Returns:
        Notes of ``read_image`` by skull path.

    Raises:
        CaseError: pictures cannot be used; it has a line for each of the first 20.
    """
    notes: dict[Path, str] = {}
    errors: list[str] = []
    skulls = {case.skull_path: case.picture for case in cases if case.skull_path is not None}
    faces = {case.face_path: None for case in cases if case.face_path is not None}
    for path, contents in (skulls | {path: skulls.get(path) for path in faces}).items():
        try:
            _, note = read_image(contents or path, size)
        except ImageError as error:
            errors.append(str(error))
            continue
        if note and path in skulls and path not in faces:
            notes[path] = note
    if errors:
        more = [f"... and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        raise CaseError("\n".join([*errors[:_SHOWN], *more]))
    return notes


def _pictures(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if files:
        return sorted(p for p in files if p.is_file())
    inside = [folder / a / b for a in ("", "pairedCS") for b in SKULL_FOLDERS if (folder / a / b).is_dir()]
    hint = f"did you mean {inside[0]}?" if inside else f"pictures end in {', '.join(IMAGE_SUFFIXES)}"
    raise CaseError(f"skull: the folder {folder} holds no picture; {hint}")


def _spread(items: list[_T], limit: int | None) -> list[_T]:
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def safe_names(names: list[str]) -> list[str]:
    """Return names for files, made unique (on file systems without case too) by numbers."""
    result: list[str] = []
    taken: set[str] = set()
    for name in names:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "skull"
        number, candidate = 1, safe
        while candidate.lower() in taken:
            number += 1
            candidate = f"{safe}-{number}"
        taken.add(candidate.lower())
        result.append(candidate)
    return result
