"""Reconstructions of another program: a folder of pictures, and the probe of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from data.images import IMAGE_SUFFIXES
from data.manifest import Finder, Record, name_within
from muti_control.evaluation.protocol.inputs import InputError, common_size, some
from settings.parsing import ContentError, read_table

COLUMNS = ("probe", "picture")


def find_faces(folder: Path, mapping: str | None, probes: Sequence[Record]) -> list[tuple[Path, ...]]:
    """Return the pictures of every probe, as many of each.

    Args:
        folder: of the pictures; pictures of nobody are ignored.
        mapping: CSV with a head line and the columns ``probe`` (a subject, or the file name of its skull or face, with
            or without its ending) and ``picture`` (a file name in the folder); several lines of one probe are several
            faces of it. None: the pictures have the names of the probes, alone or followed by _0, _1, ... as
            sample.py writes them.

    Raises:
        InputError: no such folder, a mapping with mistakes, a probe without a picture, pictures of different size.
        ImageError: one that is none.
    """
    if not folder.is_dir():
        raise InputError(f"faces: {folder} is no folder; give the folder of the pictures")
    faces = _by_name(folder, probes) if mapping is None else _by_mapping(folder, Path(mapping), probes)
    missing = [record.subject for record, paths in zip(probes, faces, strict=True) if not paths]
    if missing:
        hint = f"expected e.g. {Path(_names(probes[0])[0]).stem}.png, or mapping=CSV"
        if mapping is not None:
            hint = f"{mapping} names none for them"
        raise InputError(
            f"faces: {folder} lacks {len(missing)} of {len(probes)} probes ({hint}): {some(missing)}"
        )
    counts = {len(paths) for paths in faces}
    if len(counts) > 1:
        few = next(r.subject for r, paths in zip(probes, faces, strict=True) if len(paths) == min(counts))
        raise InputError(
            f"faces: {folder} has {min(counts)} to {max(counts)} pictures of a probe ({few} has {min(counts)}); "
            "expected as many of each"
        )
    width, height = common_size(
        {path.name: path for paths in faces for path in paths}, f"the pictures in {folder}"
    )
    if width != height:
        raise InputError(
            f"faces: the pictures in {folder} have {width} x {height} px; expected squares, framed as the true faces"
        )
    return [tuple(paths) for paths in faces]


def _names(record: Record) -> list[str]:
    """Return the names that a picture of this probe may have, without ending."""
    sources = [record.target or record.source, record.source, record.subject]
    stems = [name if name == record.subject else str(Path(name).with_suffix("")) for name in sources]
    return list(
        dict.fromkeys(normalize("NFC", name) for name in [*stems, *(Path(stem).name for stem in stems)])
    )


def _by_name(folder: Path, probes: Sequence[Record]) -> list[list[Path]]:
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            stem = normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
            if stem in files:
                raise InputError(f"faces: {files[stem]} and {path} have one name; keep one of them")
            files[stem] = path
    faces = []
    for record in probes:
        names = _names(record)
        own = next(([files[name]] for name in names if name in files), [])
        faces.append(own or next((numbered for name in names if (numbered := _numbered(files, name))), []))
    return faces


def _numbered(files: Mapping[str, Path], name: str) -> list[Path]:
    numbered: list[Path] = []
    while f"{name}_{len(numbered)}" in files:
        numbered.append(files[f"{name}_{len(numbered)}"])
    return numbered


def _by_mapping(folder: Path, mapping: Path, probes: Sequence[Record]) -> list[list[Path]]:
    place: dict[str, set[int]] = defaultdict(set)
    for i, record in enumerate(probes):
        for name in [*_names(record), record.source, record.target or record.source]:
            place[normalize("NFC", name)].add(i)
    faces: list[list[Path]] = [[] for _ in probes]
    problems: list[str] = []
    try:
        rows = read_table(mapping, COLUMNS, COLUMNS, {}).rows
    except ContentError as error:
        raise InputError(f"mapping: {error}") from error
    finder = Finder(mapping, folder)
    for line, cells in rows:
        probe, picture = cells["probe"], cells["picture"]
        inside = name_within(picture)
        path = finder.file(folder, inside) if inside else None
        if path is None:
            problems.append(f"line {line}: no file {folder / picture}")
        elif len(place.get(probe, ())) > 1:
            problems.append(f"line {line}: {probe!r} may be several probes; give the skull's file name")
        elif probe in place:  # other lines are subjects who are no probes of this run
            faces[next(iter(place[probe]))].append(path)
    if problems:
        raise InputError(f"{mapping}: {len(problems)} problem(s): {some(problems, '; ')}")
    return faces
