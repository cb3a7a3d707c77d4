"""The lines of one or several manifests as they stand, good or not, and what is measured on their pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data.biometrics import Biometrics, BiometricsError
from data.check.config import CheckConfig
from data.check.flaws import Flaw
from data.manifest import Finder, ManifestError, ManifestProblem, name_within, read_lines, read_manifest
from settings.parsing import ContentError, parse_json

if TYPE_CHECKING:
    from data.check.measure import PairFacts, PictureFacts

LIST_SUFFIXES = (".json", ".jsonl")
ROLES = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
KINDS = ("skull", "face")


class CheckError(ValueError):
    """The data set cannot be examined; the message says why and what to do."""


@dataclass(frozen=True)
class ListLine:
    """One line of a list. ``person`` is None where sex, age or body mass is missing or impossible."""

    list_name: str
    number: int
    fields: Mapping[str, Any]
    skull: Path | None
    face: Path | None
    landmarks: Path | None
    subject: str
    subject_given: bool
    person: Biometrics | None

    @property
    def source(self) -> str:
        return str(self.fields.get("source", ""))

    @property
    def place(self) -> str:
        """Return where the line is, such as ``train line 3``."""
        return f"{self.list_name} line {self.number}"

    def picture(self, kind: str) -> Path | None:
        """Return the path of the "skull" or the "face"."""
        return self.skull if kind == "skull" else self.face

    def flaw(self, check: str, detail: str, file: str | None = None, other: Path | None = None) -> Flaw:
        """Return a flaw of this line; ``file`` is the skull's name by default."""
        name = self.source if file is None else file
        return Flaw(check, detail, self.list_name, self.number, name, self.skull, self.face, other)

    def picture_flaw(self, kind: str, check: str, detail: str) -> Flaw:
        """Return a flaw of this line's "skull" or "face"."""
        path = self.picture(kind)
        return self.flaw(check, f"{kind}: {detail}", file=path.name if path else None)


@dataclass(frozen=True)
class DataSet:
    """All lists of a data set. ``data.check.measure`` fills ``pictures`` and ``pairs``.

    Attributes:
        lines: all lines of all lists, in order.
        problems: what ``read_manifest`` reports, by list.
        folders: the skulls' and the faces' folders.
        named: every picture that a list names; lists beside the examined ones count too.
        pictures: by path.
        pairs: by paths of skull and face.
    """

    lines: list[ListLine]
    problems: dict[str, list[ManifestProblem]]
    folders: dict[str, set[Path]]
    named: set[Path]
    pictures: dict[Path, PictureFacts] = field(default_factory=dict)
    pairs: dict[tuple[Path, Path], PairFacts] = field(default_factory=dict)

    def good_pairs(self) -> Iterator[tuple[ListLine, PictureFacts, PictureFacts, PairFacts]]:
        """Yield every measured pair once, with the first line that names it."""
        done = set()
        for line in self.lines:
            if line.skull is not None and line.face is not None and (line.skull, line.face) not in done:
                done.add((line.skull, line.face))
                pair = self.pairs.get((line.skull, line.face))
                if pair is not None:
                    yield line, self.pictures[line.skull], self.pictures[line.face], pair

    def pictures_of(self, kind: str) -> list[tuple[ListLine, PictureFacts]]:
        """Return every readable skull or face that is not blank, once, with the first line that names it."""
        lines: dict[Path, ListLine] = {}
        for line in self.lines:
            path = line.picture(kind)
            if path is not None and self.pictures[path].usable:
                lines.setdefault(path, line)
        return [(line, self.pictures[path]) for path, line in lines.items()]


def find_lists(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the manifests by list name: files as they are, and those in the ``split_data`` of a folder.

    Raises:
        CheckError: a folder has none.
    """
    lists: list[Path] = []
    for path in paths:
        if not path.is_dir():
            lists.append(path)
            continue
        folder = path / "split_data" if (path / "split_data").is_dir() else path
        inside = _lists_in(folder)
        if not inside:
            raise CheckError(
                f"{folder}: holds no manifest; give a JSON-lines file, or a folder with split_data/train.json"
            )
        order = {name: k for k, name in enumerate(("train", "valid", "test"))}
        lists += sorted(inside, key=lambda p: order.get(role(p.stem) or "", 3))
    lists = list({path.resolve(): path for path in lists}.values())
    stems = Counter(path.stem for path in lists)
    return {path.stem if stems[path.stem] == 1 else str(path): path for path in lists}


def _lists_in(folder: Path) -> list[Path]:
    """Return the lists of a folder, without hidden files: macOS leaves ``._NAME`` beside NAME."""
    files = (path for path in folder.iterdir() if path.suffix in LIST_SUFFIXES and path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


def role(list_name: str) -> str | None:
    """Return train, valid or test for such a list, or one like ``train_views``; None for others (``variants``)."""
    return ROLES.get(re.split(r"[^a-z]", Path(list_name).stem.lower())[0])


def read_lists(lists: Mapping[str, Path], config: CheckConfig) -> DataSet:
    """Read all manifests.

    Raises:
        CheckError: one is no JSON lines at all.
    """
    data = DataSet([], {}, {kind: set() for kind in KINDS}, set())
    places = config.images_dir or None, config.skull_folder or None, config.face_folder or None
    examined = {path.resolve() for path in lists.values()}
    for name, path in lists.items():
        try:
            rows = read_lines(path)
            finder = Finder(path, *places)
        except (ManifestError, OSError) as error:
            raise CheckError(" ".join(str(error).split())) from error
        try:
            read_manifest(path, places[0], skull_folder=places[1], face_folder=places[2])
        except ManifestError as error:
            data.problems[name] = error.problems
        data.folders["skull"].add(finder.skulls)
        data.folders["face"].add(finder.faces)
        lines = _lines(name, rows, finder)
        data.lines.extend(lines)
        data.named.update(_named(lines, finder))
        for neighbour in _lists_in(path.parent):
            if neighbour.resolve() not in examined:
                examined.add(neighbour.resolve())
                try:
                    rows = read_lines(neighbour)
                except ManifestError:
                    continue
                data.named.update(_named(_lines("", rows, finder), finder))
    return data


def _named(lines: Iterable[ListLine], finder: Finder) -> Iterator[Path]:
    for line in lines:
        texture = _find(line.fields, "texture", finder)
        yield from (path for path in (line.skull, line.face, texture) if path is not None)


def _lines(list_name: str, rows: Iterable[tuple[int, str]], finder: Finder) -> list[ListLine]:
    lines = []
    for number, text in rows:
        try:
            value = parse_json(text, list_name)
        except ContentError:
            continue  # read_manifest reports it
        if isinstance(value, dict):
            lines.append(_line(list_name, number, value, finder))
    return lines


def _line(list_name: str, number: int, fields: dict[str, Any], finder: Finder) -> ListLine:
    subject = fields.get("subject")
    subject_given = isinstance(subject, (str, int)) and not isinstance(subject, bool) and subject != ""
    try:
        ethnicity = {} if fields.get("ethnicity") is None else {"ethnicity": fields["ethnicity"]}
        person = Biometrics.parse(
            sex=fields.get("gender"), age=fields.get("age"), body_mass=fields.get("body_mass"), **ethnicity
        )
    except BiometricsError:
        person = None
    return ListLine(
        list_name,
        number,
        fields,
        skull=_find(fields, "source", finder),
        face=_find(fields, "target", finder),
        landmarks=_find(fields, "landmarks", finder),
        subject=str(subject) if subject_given else PurePosixPath(str(fields.get("source", ""))).stem,
        subject_given=subject_given,
        person=person,
    )


def _find(fields: Mapping[str, Any], field: str, finder: Finder) -> Path | None:
    value = fields.get(field)
    name = name_within(value) if isinstance(value, str) and value else None
    return finder.find(name, field) if name else None
