"""The lines of one or several manifests as they stand, good or not, and where their pictures are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data.biometrics import Biometrics, BiometricsError
from data.check.config import CheckConfig
from data.check.facts import PairFacts, PictureFacts
from data.check.findings import Finding
from data.manifest import Finder, ManifestError, Problem, name_within, read_manifest

LIST_SUFFIXES = (".json", ".jsonl")
ROLES = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}


class CheckError(ValueError):
    """The data set cannot be examined; the message says why and what to do."""


@dataclass(frozen=True)
class Case:
    """One line. ``person`` is None where sex, age or body mass is missing or impossible."""

    list_name: str
    line: int
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

    def finding(self, check: str, seen: str, file: str | None = None, other: Path | None = None) -> Finding:
        """A finding about this line; ``file`` is the skull's name unless said otherwise."""
        name = self.source if file is None else file
        return Finding(check, seen, self.list_name, self.line, name, self.skull, self.face, other)

    def about(self, kind: str, check: str, seen: str) -> Finding:
        """A finding about this line's "skull" or "face"."""
        path = self.skull if kind == "skull" else self.face
        return self.finding(check, f"{kind}: {seen}", file=path.name if path else None)


@dataclass(frozen=True)
class DataSet:
    """Everything known of the data set. ``pictures`` and ``pairs`` are filled by ``data.check.measure``.

    Attributes:
        cases: all lines of all lists, in order.
        problems: what ``read_manifest`` finds wrong, by list.
        folders: the skulls' and the faces' folders.
        named: every picture that a list names, lists beside the examined ones included.
        pictures: by path.  pairs: by paths of skull and face.
    """

    cases: list[Case]
    problems: dict[str, list[Problem]]
    folders: dict[str, set[Path]]
    named: set[Path]
    pictures: dict[Path, PictureFacts] = field(default_factory=dict)
    pairs: dict[tuple[Path, Path], PairFacts] = field(default_factory=dict)

    def good_pairs(self) -> Iterator[tuple[Case, PictureFacts, PictureFacts, PairFacts]]:
        """Every pair once, with all its facts; those that cannot be measured are left out."""
        seen = set()
        for case in self.cases:
            if case.skull is None or case.face is None or (case.skull, case.face) in seen:
                continue
            seen.add((case.skull, case.face))
            pair = self.pairs.get((case.skull, case.face))
            if pair is not None:
                yield case, self.pictures[case.skull], self.pictures[case.face], pair

    def pictures_of(self, kind: str) -> list[tuple[Case, PictureFacts]]:
        """Every skull or face that can be read and is not blank, once, with the first line that names it."""
        found: dict[Path, tuple[Case, PictureFacts]] = {}
        for case in self.cases:
            path = case.skull if kind == "skull" else case.face
            if path is not None and path not in found:
                facts = self.pictures[path]
                if facts.problem is None and not facts.blank:
                    found[path] = case, facts
        return list(found.values())


def find_lists(paths: Sequence[Path]) -> dict[str, Path]:
    """The manifests that the user means, by list name: files as they are, of a folder those in its ``split_data``.

    Raises:
        CheckError: there is none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            folder = path / "split_data" if (path / "split_data").is_dir() else path
            inside = _lists_in(folder)
            if not inside:
                raise CheckError(
                    f"{folder}: holds no manifest; give a JSON-lines file, or a folder with split_data/train.json"
                )
            order = {name: k for k, name in enumerate(("train", "valid", "test"))}
            found += sorted(inside, key=lambda p: order.get(role(p.stem) or "", 3))
        else:
            found.append(path)
    found = list({path.resolve(): path for path in found}.values())
    stems = Counter(path.stem for path in found)
    return {path.stem if stems[path.stem] == 1 else str(path): path for path in found}


def _lists_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in LIST_SUFFIXES and path.is_file())


def role(list_name: str) -> str | None:
    """train, valid or test for a list named so, or ``train_views``; None for others, such as ``variants``."""
    return ROLES.get(re.split(r"[^a-z]", Path(list_name).stem.lower())[0])


def read_lists(lists: Mapping[str, Path], config: CheckConfig) -> DataSet:
    """Read all manifests.

    Raises:
        CheckError: one cannot be read as JSON lines at all.
    """
    cases: list[Case] = []
    problems: dict[str, list[Problem]] = {}
    folders: dict[str, set[Path]] = {"skull": set(), "face": set()}
    named: set[Path] = set()
    images, skulls_in, faces_in = (
        config.images_dir or None,
        config.skull_folder or None,
        config.face_folder or None,
    )
    examined = {path.resolve() for path in lists.values()}
    for name, path in lists.items():
        try:
            try:
                read_manifest(path, images, skull_folder=skulls_in, face_folder=faces_in)
            except ManifestError as error:
                if any(problem.line == 0 or "not UTF-8" in problem.got for problem in error.problems):
                    raise
                problems[name] = error.problems
            finder = Finder.of(path, images, skulls_in, faces_in)
            text = path.read_text(encoding="utf-8-sig")
        except (ManifestError, OSError) as error:
            raise CheckError(" ".join(str(error).split())) from error
        folders["skull"].add(finder.skulls)
        folders["face"].add(finder.faces)
        new = [_case(name, number, fields, finder) for number, fields in _objects(text)]
        cases += new
        named |= _named(new, finder)
        for neighbour in _lists_in(path.parent):
            if neighbour.resolve() not in examined:
                examined.add(neighbour.resolve())
                rows = _objects(neighbour.read_text(encoding="utf-8-sig", errors="replace"))
                named |= _named([_case("", number, fields, finder) for number, fields in rows], finder)
    return DataSet(cases, problems, folders, named)


def _named(cases: Iterable[Case], finder: Finder) -> set[Path]:
    found = {path for case in cases for path in (case.skull, case.face) if path is not None}
    textures = (_find(case.fields.get("texture"), finder, finder.faces, finder.root) for case in cases)
    return found | {path for path in textures if path is not None}


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # read_manifest tells it
            if isinstance(value, dict):
                yield number, value


def _case(list_name: str, number: int, fields: dict[str, Any], finder: Finder) -> Case:
    given = fields.get("subject")
    is_given = isinstance(given, (str, int)) and not isinstance(given, bool) and given != ""
    try:
        ethnicity = {} if fields.get("ethnicity") is None else {"ethnicity": fields["ethnicity"]}
        person = Biometrics.parse(
            sex=fields.get("gender"), age=fields.get("age"), body_mass=fields.get("body_mass"), **ethnicity
        )
    except BiometricsError:
        person = None
    return Case(
        list_name,
        number,
        fields,
        skull=_find(fields.get("source"), finder, finder.skulls),
        face=_find(fields.get("target"), finder, finder.faces),
        landmarks=_find(fields.get("landmarks"), finder, finder.root),
        subject=str(given) if is_given else PurePosixPath(str(fields.get("source", ""))).stem,
        subject_given=is_given,
        person=person,
    )


def _find(value: object, finder: Finder, *folders: Path) -> Path | None:
    name = name_within(value) if isinstance(value, str) and value else None
    return finder.find(name, *folders) if name else None
