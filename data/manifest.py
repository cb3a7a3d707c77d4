"""The list of pairs: one JSON object a line, checked as a whole when it is read."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data.biometrics import Biometrics, BiometricsError
from data.files import OLD_INDEX_SUFFIX, PACK_SUFFIX, PackError, file_names, folder_names, is_folder

SKULL_FOLDERS = ("skull", "skulls", "Skull", "Skulls")
FACE_FOLDERS = ("craniofacial", "Craniofacial", "face", "faces")
PICTURE_ROOT = "pairedCS"
FIELDS = (
    "source",
    "target",
    "body_mass",
    "gender",
    "age",
    "ethnicity",
    "subject",
    "landmarks",
    "texture",
    "style",
    "changed",
    "extra",
)
_SYNONYMS = {  # names people use for ours, where spelling alone would not lead there
    "sex": "gender", "bmi": "body_mass", "weight": "body_mass", "race": "ethnicity", "id": "subject",
    "skull": "source", "face": "target", "image": "source", "conditioning_image": "source",
}  # fmt: skip
_SHOWN = 20


@dataclass(frozen=True)
class Record:
    """One line of a manifest: a skull picture, its person, and what else is known.

    ``source``, ``target``, ``landmarks`` and ``texture`` are the names as written, with ``/``. The ``*_path``
    fields are the files they were found at. ``style`` is the name of the surface style, ``changed`` what differs from
    the subject's own face. ``extra`` is the user's own, carried along and never looked at.
    """

    source: str
    target: str | None
    biometrics: Biometrics
    subject: str
    landmarks: str | None
    texture: str | None
    line: int
    skull_path: Path
    face_path: Path | None
    landmarks_path: Path | None = None
    texture_path: Path | None = None
    ethnicity_given: bool = True
    style: str | None = None
    changed: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a manifest: where, what was got, and what to do. Line 0 is the whole file."""

    line: int
    field: str
    got: str
    remedy: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return where + (f"{self.field}: " if self.field else "") + f"{self.got}; {self.remedy}"


class ManifestError(ValueError):
    """Everything wrong with one manifest: ``path`` and ``problems``. The message shows the first 20."""

    def __init__(self, path: str | os.PathLike[str], problems: list[Problem]) -> None:
        shown = [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            shown.append(f"  ... and {len(problems) - _SHOWN} more")
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        super().__init__("\n".join([f"{path}: {count}", *shown]))
        self.path = Path(path)
        self.problems = problems


def read_manifest(
    path: str | os.PathLike[str],
    images_dir: str | os.PathLike[str] | None = None,
    *,
    skull_folder: str | None = None,
    face_folder: str | None = None,
    need_target: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Read and check a whole manifest.

    Args:
        path: the file, UTF-8 (a byte-order mark, Windows line ends, blank lines are fine), one object a line:
            ``{"source": "1_0.png", "target": "1_1.png", "body_mass": "1", "gender": "M", "age": 82}`` and
            optionally ``ethnicity``, ``subject``, ``landmarks``, ``texture``, ``style`` (name of the surface style),
            ``changed`` (list of what differs from the subject's own face) and ``extra`` (the user's own).
        images_dir: the folder that holds the skulls' and the faces' folder. Default: ``pairedCS`` or a pack of it
            (``pairedCS.zip``) beside the manifest's folder, else in it, else the manifest's folder itself.
        skull_folder: name of the skulls' folder there. Default: the first of ``SKULL_FOLDERS`` that exists.
        face_folder: name of the faces' folder there. Default: the first of ``FACE_FOLDERS`` that exists.
        need_target: whether a line without a face picture is an error (training) or not (sampling).
        overrides: values laid over every line before it is checked, such as ``{"age": 70}``.

    Returns:
        The records in file order, never an empty list.

    Raises:
        ManifestError: with all problems of the file, missing picture files included.
    """
    path = Path(path)
    lines = _object_lines(path, _text(path))
    finder = Finder.of(path, images_dir, skull_folder, face_folder)
    reader = _Reader(
        finder, need_target, {key: value for key, value in (overrides or {}).items() if value is not None}
    )
    records = [record for number, line in lines if (record := reader.read(number, line)) is not None]
    if reader.problems:
        raise ManifestError(path, reader.problems)
    return records


def check_disjoint(lists: Mapping[str, Sequence[Record]]) -> None:
    """Check that no subject is in two of the lists, such as ``{"train": records, "valid": records}``.

    Raises:
        ManifestError: naming the first subject that is in a list and an earlier one as well.
    """
    where: dict[str, tuple[str, int]] = {}
    for name, records in lists.items():
        shared = [record for record in records if where.get(record.subject, (name, 0))[0] != name]
        if shared:
            first = shared[0]
            other, line = where[first.subject]
            more = len({record.subject for record in shared}) - 1
            got = f"{first.subject!r} is in {other} as well (line {line})" + (
                f", and {more} more" if more else ""
            )
            remedy = (
                "keep all pictures of a person in one list; where these are different people, give each "
                "line its own 'subject' (python -m data.check shows all such people, data.split parts them)"
            )
            raise ManifestError(f"the {name} list", [Problem(first.line, "subject", got, remedy)])
        for record in records:
            where.setdefault(record.subject, (name, record.line))


def relocate(
    records: Sequence[Record],
    images_dir: str | os.PathLike[str],
    *,
    skull_folder: str | None = None,
    face_folder: str | None = None,
) -> list[Record]:
    """The same records with their files found below another folder.

    Raises:
        ManifestError: with every file that is not there.
    """
    root = Path(images_dir)
    finder = Finder(find_images_dir(root, root), skull_folder, face_folder)
    reader = _Reader(finder, need_target=False, overrides={})
    moved = [
        replace(
            record,
            skull_path=reader.find(record.line, "source", record.source, finder.skulls) or record.skull_path,
            face_path=reader.find(record.line, "target", record.target, finder.faces),
            landmarks_path=reader.find(record.line, "landmarks", record.landmarks, finder.root),
            texture_path=reader.find(record.line, "texture", record.texture, finder.faces, finder.root),
        )
        for record in records
    ]
    if reader.problems:
        raise ManifestError(root, reader.problems)
    return moved


def name_within(value: str) -> str | None:
    """A file name with ``/``, or None where it would lead out of its folder."""
    name = value.replace("\\", "/")
    absolute = name.startswith("/") or name[1:2] == ":"
    return None if absolute or ".." in name.split("/") or "\0" in name else name


def _text(path: Path) -> str:
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ManifestError(
            path, [Problem(0, "", kind, "give a JSON-lines file such as data/split_data/train.json")]
        )
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(path, [Problem(0, "", "is UTF-16 text", "save it as UTF-8")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        got = f"byte 0x{raw[error.start]:02x} is not UTF-8 text"
        raise ManifestError(path, [Problem(number, "", got, "save the file as UTF-8")]) from error


def _object_lines(path: Path, text: str) -> list[tuple[int, str]]:
    """The numbered lines that are not blank; a file that is JSON but not JSON lines is told so as a whole."""
    lines = [
        (n, line.strip()) for n, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise ManifestError(path, [Problem(0, "", "holds no records", "write one JSON object a line")])
    if lines[0][1].startswith("["):
        got = "is one JSON array, not JSON lines"
        command = "import json,sys; [print(json.dumps(r)) for r in json.load(open(sys.argv[1]))]"
        remedy = (
            f"write one object a line, without brackets and commas between them: python -c '{command}' {path}"
        )
        raise ManifestError(path, [Problem(0, "", got, remedy)])
    if lines[0][1] == "{" or (len(lines) > 1 and not lines[0][1].endswith("}") and lines[-1][1] == "}"):
        raise ManifestError(
            path, [Problem(0, "", "has objects spread over lines", "write each object on one line")]
        )
    return lines


def find_images_dir(manifest: Path, given: str | os.PathLike[str] | None = None) -> Path:
    """The folder (or pack) that holds the skulls' and the faces' folder of a manifest.

    Raises:
        ManifestError: ``given`` is neither.
    """
    if given is not None:
        if not is_folder(Path(given)):
            raise ManifestError(
                manifest, [Problem(0, "images_dir", f"{given} is no folder", "give the pictures' folder")]
            )
        return Path(given)
    home = manifest.parent
    for folder in (home.parent, home):
        for suffix in ("", PACK_SUFFIX, OLD_INDEX_SUFFIX):
            if is_folder(folder / (PICTURE_ROOT + suffix)):
                return folder / (PICTURE_ROOT + suffix)
    return home


def _first_folder(root: Path, names: tuple[str, ...], given: str | None) -> Path:
    present = folder_names(root)  # exact case, on any file system
    wanted = (given,) if given is not None else names
    return root / next((name for name in wanted if name in present), wanted[0])


class Finder:
    """Where the pictures of one manifest are: ``root``, and the folders ``skulls`` and ``faces`` in it."""

    def __init__(self, root: Path, skull_folder: str | None, face_folder: str | None) -> None:
        self.root = root
        self.skulls = _first_folder(root, SKULL_FOLDERS, skull_folder)
        self.faces = _first_folder(root, FACE_FOLDERS, face_folder)
        self._seen: dict[Path, frozenset[str]] = {}

    @classmethod
    def of(
        cls,
        manifest: Path,
        images_dir: str | os.PathLike[str] | None = None,
        skull_folder: str | None = None,
        face_folder: str | None = None,
    ) -> Finder:
        """As ``read_manifest`` looks. Raises: ManifestError where ``images_dir`` is no folder, or a broken pack."""
        try:
            return cls(find_images_dir(manifest, images_dir), skull_folder, face_folder)
        except PackError as error:
            raise ManifestError(manifest, [Problem(0, "images_dir", *str(error).rsplit("; ", 1))]) from error

    def find(self, name: str, *folders: Path) -> Path | None:
        """The first of ``folders`` that holds the file; one listing a folder, not one look-up a file."""
        for folder in folders:
            path = folder / name
            if path.parent not in self._seen:
                self._seen[path.parent] = file_names(path.parent)
            if path.name in self._seen[path.parent]:
                return path
        return None


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise _TwiceError(twice[0])
    return dict(pairs)


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


class _Reader:
    """Reads lines into records and collects what is wrong with them."""

    def __init__(self, finder: Finder, need_target: bool, overrides: Mapping[str, Any]) -> None:
        self.finder = finder
        self.need_target = need_target
        self.overrides = overrides
        self.problems: list[Problem] = []
        self._line_of: dict[tuple[Any, ...], int] = {}

    def read(self, line: int, text: str) -> Record | None:
        before = len(self.problems)
        fields = self._object(line, text)
        if fields is None:
            return None
        self._check_names(line, fields)
        source = self._name(line, fields, "source", required=True)
        target = self._name(line, fields, "target", required=self.need_target)
        landmarks = self._name(line, fields, "landmarks", required=False)
        texture = self._name(line, fields, "texture", required=False)
        biometrics = self._biometrics(line, fields)
        skull_path = self.find(line, "source", source, self.finder.skulls)
        face_path = self.find(line, "target", target, self.finder.faces)
        landmarks_path = self.find(line, "landmarks", landmarks, self.finder.root)
        texture_path = self.find(line, "texture", texture, self.finder.faces, self.finder.root)
        if texture_path is not None and texture_path == face_path:
            got = f"{texture!r} is the person's own face"
            self._problem(line, "texture", got, "name another person's, or leave it out")
        subject = fields.get("subject")
        if isinstance(subject, bool) or not isinstance(subject, (str, int, type(None))):
            self._problem(line, "subject", f"got {subject!r}", "give a text such as 's00012'")
        style = self._style(line, fields)
        changed = self._changed(line, fields)
        extra = fields.get("extra")
        if not isinstance(extra, (dict, type(None))):
            self._problem(line, "extra", f"got {extra!r}", 'give an object such as {"site": "A"}')
        if len(self.problems) > before or source is None or biometrics is None or skull_path is None:
            return None
        self._check_twice(line, source, target, biometrics)
        return Record(
            source=source,
            target=target,
            biometrics=biometrics,
            subject=str(subject) if subject not in (None, "") else PurePosixPath(source).stem,
            landmarks=landmarks,
            texture=texture,
            line=line,
            skull_path=skull_path,
            face_path=face_path,
            landmarks_path=landmarks_path,
            texture_path=texture_path,
            ethnicity_given=fields.get("ethnicity") is not None,
            style=style,
            changed=changed,
            extra=extra,
        )

    def _problem(self, line: int, field: str, got: str, remedy: str) -> None:
        self.problems.append(Problem(line, field, got, remedy))

    def _object(self, line: int, text: str) -> dict[str, Any] | None:
        try:
            value = json.loads(text, object_pairs_hook=_distinct_keys)
        except _TwiceError as error:
            self._problem(line, str(error), "stands twice in one object", "keep one")
            return None
        except (ValueError, RecursionError) as error:
            comma = " (one comma too many at the end?)" if text.endswith(",") else ""
            reason = str(error).split(": line")[0]
            self._problem(line, "", f"is not valid JSON: {reason}{comma}", "write one JSON object a line")
            return None
        if not isinstance(value, dict):
            self._problem(line, "", f"is a JSON {type(value).__name__}", "write one JSON object a line")
            return None
        return value | dict(self.overrides)

    def _check_names(self, line: int, fields: Mapping[str, Any]) -> None:
        for name in fields:
            if name in FIELDS:
                continue
            if name == "prompt":
                remedy = "leave it out: the prompt is written from gender, age, ethnicity and body_mass"
            else:
                key = name.strip().lower().replace("-", "_").replace(" ", "_")
                near = [_SYNONYMS[key]] if key in _SYNONYMS else difflib.get_close_matches(key, FIELDS, n=1)
                meant = f"did you mean {near[0]!r}? " if near else f"known: {', '.join(FIELDS)}. "
                remedy = meant + "Your own values go under 'extra'"
            self._problem(line, name, "is no field of a manifest", remedy)

    def _name(self, line: int, fields: Mapping[str, Any], field: str, required: bool) -> str | None:
        value = fields.get(field)
        if value is None or value == "":
            if required:
                self._problem(line, field, "is missing", "give the picture's file name")
            return None
        if not isinstance(value, str):
            self._problem(line, field, f"got {value!r}", "give a file name as text, such as '1_0.png'")
            return None
        name = name_within(value)
        if name is None:
            self._problem(line, field, f"got {value!r}", "give a name within the pictures' folder")
        return name

    def _style(self, line: int, fields: Mapping[str, Any]) -> str | None:
        value = fields.get("style")
        if isinstance(value, (str, type(None))):
            return value or None
        self._problem(
            line, "style", f"got {value!r}", "give the name of a surface style as text, such as 'p07'"
        )
        return None

    def _changed(self, line: int, fields: Mapping[str, Any]) -> tuple[str, ...]:
        value = fields.get("changed") or []
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self._problem(line, "changed", f"got {value!r}", 'give a list of texts such as ["age"]')
        return ()

    def _biometrics(self, line: int, fields: Mapping[str, Any]) -> Biometrics | None:
        missing = [name for name in ("gender", "age", "body_mass") if fields.get(name) in (None, "")]
        for name in missing:
            self._problem(line, name, "is missing", _BIOMETRIC_REMEDY[name])
        given = fields.get("ethnicity")
        stand_in = {
            "gender": "M",
            "age": 0,
            "body_mass": 4,
        }  # lets what is there be checked beside what is missing
        values = {name: stand_in[name] if name in missing else fields[name] for name in stand_in}
        ethnicity = {} if given is None else {"ethnicity": given}
        while True:
            try:
                result = Biometrics.parse(
                    sex=values["gender"], age=values["age"], body_mass=values["body_mass"], **ethnicity
                )
            except BiometricsError as error:
                name = "gender" if error.field == "sex" else error.field
                self._problem(line, name, f"got {error.got!r}", f"expected {error.expected}")
                if name == "ethnicity":
                    ethnicity = {}
                else:
                    values[name] = stand_in[name]
            else:
                return result if not missing else None

    def find(self, line: int, field: str, name: str | None, *folders: Path) -> Path | None:
        if name is None:
            return None
        path = self.finder.find(name, *folders)
        if path is None:
            looked = " or ".join(str(folder / name) for folder in folders)
            remedy = "mend the name, or say where the pictures are (images_dir)"
            self._problem(line, field, f"no file {looked}", remedy)
        return path

    def _check_twice(self, line: int, source: str, target: str | None, biometrics: Biometrics) -> None:
        """The same pair twice is a slip (and would weigh double); one skull with several faces is not."""
        key = (source, target) if target is not None else (source, biometrics)
        first = self._line_of.setdefault(key, line)
        if first != line:
            pair = f"{source} with {target}" if target is not None else source
            self._problem(line, "source", f"{pair} is already on line {first}", "remove one of the two")


_BIOMETRIC_REMEDY = {
    "gender": "give 'M' or 'F'",
    "age": "give the age in years",
    "body_mass": "give a level from '1' (very thin) to '5' (slightly fat)",
}
