"""Lists: of pairs for training, one JSON object a line, and of skulls to draw, CSV or JSON lines.

    python -m data.manifest template FOLDER > skulls.csv

writes a list of the skull pictures in a folder, for ``sample.py skull=skulls.csv``: fill in what is known.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self
from unicodedata import normalize

from data.biometrics import Biometrics, BiometricsError
from data.files import OLD_INDEX_SUFFIX, PACK_SUFFIX, PackError, file_names, folder_names, is_folder
from data.images import IMAGE_SUFFIXES
from settings.parsing import ContentError, column_name, parse_json, read_table, read_text
from settings.program import Program

SKULL_FOLDERS = ("skull", "skulls", "Skull", "Skulls")
FACE_FOLDERS = ("craniofacial", "Craniofacial", "face", "faces")
PICTURE_ROOT = "pairedCS"
_SYNONYMS = {  # names people use for ours, where spelling alone would not lead there
    "sex": "gender", "bmi": "body_mass", "weight": "body_mass", "race": "ethnicity", "id": "subject",
    "skull": "source", "face": "target", "image": "source", "conditioning_image": "source",
}  # fmt: skip
_SHOWN, _NEAR_NAMES = 20, 100  # problems in a message, and those for which a near name is searched
_PATHS = {  # field with a file name -> where Record has its path
    "source": "skull_path", "target": "face_path", "landmarks": "landmarks_path", "texture": "texture_path",
}  # fmt: skip
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {  # of the optional fields, and the remedy
    "subject": ((str, int), "give a text such as 's00012'"),
    "style": ((str,), "give the name of a surface style as text, such as 'p07'"),
    "changed": ((list,), 'give a list of texts such as ["age"]'),
    "extra": ((dict,), 'give an object such as {"site": "A"}'),
}
_PERSON = {  # field -> argument of Biometrics.parse, a value that passes, and the remedy where it is missing
    "gender": ("sex", "M", "give 'M' or 'F'"),
    "age": ("age", 40, "give the age in years"),
    "body_mass": ("body_mass", 4, "give a level from '1' (very thin) to '5' (slightly fat)"),
    "ethnicity": ("ethnicity", "Asian", ""),
}
FIELDS = (*_PATHS, *_PERSON, *_TYPES)
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
COLUMNS = (  # of a list of skulls; the first is required
    "skull", "name", "sex", "age", "ethnicity", "body_mass", "landmarks", "texture", "true_face",
)  # fmt: skip
_OTHER_COLUMNS = {  # another spelling -> column
    "source": "skull", "image": "skull", "picture": "skull", "conditioningimage": "skull", "gender": "sex",
    **dict.fromkeys(("file", "filename", "path", "skullpath", "skullfile", "imagepath"), "skull"),
    "race": "ethnicity", "target": "true_face", "face": "true_face",
}  # fmt: skip
_COLUMN_PATHS = {"skull": "source", "landmarks": "landmarks", "texture": "texture", "true_face": "target"}
_NUMBERS = ("age", "body_mass")


@dataclass(frozen=True)
class Record:
    """One line of a manifest.

    Attributes:
        source, target, landmarks, texture: names of the files as written, with ``/``; the ``*_path`` are their paths.
        style: name of the surface style.
        changed: what differs from the subject's own face.
        extra: the user's own values; no program reads them.
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
class ManifestProblem:
    """One mistake in a manifest: where, what was got, and the remedy.

    Attributes:
        line: its number, from 1; 0 for the whole file.
        field: name of the field, or empty.
        kind: "file" (cannot be read as JSON lines), "bad_line", "unknown_field", "missing_file", "incomplete_pair",
            "listed_twice" or "biometrics".
    """

    line: int
    field: str
    got: str
    remedy: str
    kind: str = "bad_line"

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return where + (f"{self.field}: " if self.field else "") + f"{self.got}; {self.remedy}"


class ManifestError(ValueError):
    """All mistakes of one manifest: ``path`` and ``problems``. The message has a line for each of the first 20."""

    def __init__(self, path: str | os.PathLike[str], problems: list[ManifestProblem]) -> None:
        lines = [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  ... and {len(problems) - _SHOWN} more")
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        super().__init__("\n".join([f"{path}: {count}", *lines]))
        self.path = Path(path)
        self.problems = problems

    @classmethod
    def of_file(cls, path: Path, got: str, remedy: str, field: str = "") -> Self:
        """Return the error that a file, or a setting that belongs to it, is of no use as a whole."""
        return cls(path, [ManifestProblem(0, field, got, remedy, "file")])


def read_manifest(
    path: str | os.PathLike[str],
    images_dir: str | os.PathLike[str] | None = None,
    *,
    skull_folder: str | None = None,
    face_folder: str | None = None,
    need_target: bool = True,
) -> list[Record]:
    """Read and check a whole manifest.

    Args:
        path: the file, UTF-8 or UTF-16 (a byte-order mark, Windows line ends, blank lines are fine), one object a line:
            ``{"source": "1_0.png", "target": "1_1.png", "body_mass": "1", "gender": "M", "age": 82}`` and
            optionally ``ethnicity``, ``subject``, ``landmarks``, ``texture``, ``style`` (name of the surface style),
            ``changed`` (list of what differs from the subject's own face) and ``extra`` (the user's own).
        images_dir: the folder that holds the skulls' and the faces' folder. Default: ``pairedCS`` or a pack of it
            (``pairedCS.zip``) beside the manifest's folder, else in it, else the manifest's folder itself.
        skull_folder: name of the skulls' folder there. Default: the first of ``SKULL_FOLDERS`` that exists.
        face_folder: name of the faces' folder there. Default: the first of ``FACE_FOLDERS`` that exists.
        need_target: whether a line without a face picture is an error (training) or not (sampling).

    Returns:
        The records in file order, never an empty list.

    Raises:
        ManifestError: with all mistakes of the file, missing picture files included.
    """
    path = Path(path)
    required = ("source", "target") if need_target else ("source",)
    reader = _Reader(
        Finder(path, images_dir, skull_folder, face_folder),
        dict(zip(_PATHS, _PATHS, strict=True)),
        required,
        None,
    )
    records = [record for line, text in read_lines(path) if (record := reader.record(line, text)) is not None]
    if reader.problems:
        raise ManifestError(path, reader.problems)
    return records


def check_disjoint(lists: Mapping[str, Sequence[Record]]) -> None:
    """Check that no subject is in two of the lists, such as ``{"train": records, "valid": records}``.

    Raises:
        ManifestError: a subject is in a list and in an earlier one; it names the first.
    """
    first_of: dict[str, tuple[str, int]] = {}
    for name, records in lists.items():
        shared = [record for record in records if record.subject in first_of]
        if shared:
            first, more = shared[0], len({record.subject for record in shared}) - 1
            other, line = first_of[first.subject]
            got = f"{first.subject!r} is in {other} as well (line {line})"
            got += f", and {more} more" if more else ""
            remedy = (
                "keep all pictures of a person in one list; where these are different people, give each "
                "line its own 'subject' (python -m data.check shows all such people, data.split parts them)"
            )
            raise ManifestError(f"the {name} list", [ManifestProblem(first.line, "subject", got, remedy)])
        for record in reversed(records):
            first_of[record.subject] = name, record.line


def name_within(value: str) -> str | None:
    """Return a file name with ``/``, or None where it would lead out of its folder."""
    name = value.replace("\\", "/")
    absolute = name.startswith("/") or name[1:2] == ":"
    return None if absolute or ".." in name.split("/") or "\0" in name else name


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers from 1.

    Raises:
        ManifestError: the file is missing, no UTF-8 text, or no JSON lines as a whole.
    """
    try:
        text = read_text(path).replace("\r\n", "\n")
    except ContentError as reason:
        got, _, remedy = str(reason).removeprefix(f"{path}: ").rpartition("; ")
        raise ManifestError.of_file(path, got, remedy) from reason
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ManifestError.of_file(path, "holds no records", "write one JSON object a line")
    first, last = lines[0][1].strip(), lines[-1][1].strip()
    if first.startswith("["):
        command = "import json,sys; [print(json.dumps(r)) for r in json.load(open(sys.argv[1]))]"
        remedy = (
            f"write one object a line, without brackets and commas between them: python -c '{command}' {path}"
        )
        raise ManifestError.of_file(path, "is one JSON array, not JSON lines", remedy)
    if first == "{" or (len(lines) > 1 and not first.endswith("}") and last == "}"):
        raise ManifestError.of_file(path, "has objects spread over lines", "write each object on one line")
    return lines


def find_images_dir(manifest: Path, images_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder (or pack) that holds the skulls' and the faces' folder of a manifest.

    Raises:
        ManifestError: ``images_dir`` is neither. PackError: the pack cannot be read.
    """
    if images_dir is not None:
        if is_folder(Path(images_dir)):
            return Path(images_dir)
        got = f"{images_dir} is no folder"
        raise ManifestError.of_file(manifest, got, "give the pictures' folder", "images_dir")
    home = manifest.parent
    for folder in (home.parent, home):
        for suffix in ("", PACK_SUFFIX, OLD_INDEX_SUFFIX):
            if is_folder(folder / (PICTURE_ROOT + suffix)):
                return folder / (PICTURE_ROOT + suffix)
    return home


class Finder:
    """Finds the files of one manifest in ``root``, and in its folders ``skulls`` and ``faces``.

    Args: see :func:`read_manifest`.

    Raises:
        ManifestError: ``images_dir`` is no folder, or the pack is damaged.
    """

    def __init__(
        self,
        manifest: Path,
        images_dir: str | os.PathLike[str] | None = None,
        skull_folder: str | None = None,
        face_folder: str | None = None,
    ) -> None:
        try:
            self.root = find_images_dir(manifest, images_dir)
            self.skulls = self._first(SKULL_FOLDERS if skull_folder is None else (skull_folder,))
            self.faces = self._first(FACE_FOLDERS if face_folder is None else (face_folder,))
        except PackError as error:
            got, _, remedy = str(error).rpartition("; ")
            raise ManifestError.of_file(manifest, got, remedy, "images_dir") from error
        self._listings: dict[Path, frozenset[str]] = {}

    def _first(self, names: tuple[str, ...]) -> Path:
        present = folder_names(self.root)  # exact case, on any file system
        return self.root / next((name for name in names if name in present), names[0])

    def folders(self, field: str) -> tuple[Path, ...]:
        """Return where the file of a field may be."""
        folders = {"source": (self.skulls,), "target": (self.faces,), "texture": (self.faces, self.root)}
        return folders.get(field, (self.root,))

    def find(self, name: str, field: str) -> Path | None:
        """Return the file of a field, or None. Each folder is listed once: that is faster than a look-up a file."""
        return next((path for folder in self.folders(field) if (path := self.file(folder, name))), None)

    def file(self, folder: Path, name: str) -> Path | None:
        """Return the file of this name; its accents may be one letter or two (NFC, NFD)."""
        for form in dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name))):
            path = folder / form
            if path.parent not in self._listings:
                self._listings[path.parent] = file_names(path.parent)
            if path.name in self._listings[path.parent]:
                return path
        return None


class _Reader:
    """Reads lines into records or skulls, and collects the problems.

    Args:
        columns: those with the name of a file -> the field of a manifest that means the same.
        required: those of them that no line may lack.
        places: further folders where names may count from; they may be whole paths then, or lead out of a folder.
            None: names within the pictures' folders alone.
    """

    def __init__(
        self,
        finder: Finder,
        columns: Mapping[str, str],
        required: Sequence[str],
        places: tuple[Path, ...] | None,
    ) -> None:
        self.finder, self.columns, self.required, self.places = finder, columns, required, places
        self.problems: list[ManifestProblem] = []
        self.unused: set[str] = set()  # columns that serve nothing
        self._line_of: dict[str, int] = {}
        self._names = {*COLUMNS, *FIELDS}  # of columns that were checked

    def record(self, line: int, text: str) -> Record | None:
        """Return the pair of a line, or None and at least one more problem."""
        before = len(self.problems)
        fields = self._object(line, text)
        if fields is None:
            return None
        self._check_fields(line, fields)
        paths = self._paths(line, fields)
        biometrics = self._biometrics(line, fields)
        for field, (types, remedy) in _TYPES.items():
            value = fields.get(field)
            fits = value is None or (isinstance(value, types) and not isinstance(value, bool))
            if not fits or (field == "changed" and not all(isinstance(item, str) for item in value or ())):
                self._problem(line, field, f"got {value!r}", remedy)
        if len(self.problems) > before or biometrics is None:
            return None
        names = {field: name_within(fields[field]) if fields.get(field) else None for field in _PATHS}
        source, target, subject = names["source"] or "", names["target"], fields.get("subject")
        pair = f"{source} with {target}" if target is not None else source
        self._once(line, "source", pair, None if target is not None else biometrics)
        return Record(
            **names,  # type: ignore[arg-type]  # source is not None: that would be a problem
            **paths,  # type: ignore[arg-type]
            biometrics=biometrics,
            subject=str(subject) if subject not in (None, "") else PurePosixPath(source).stem,
            line=line,
            ethnicity_given=fields.get("ethnicity") is not None,
            style=fields.get("style") or None,
            changed=tuple(fields.get("changed") or ()),
            extra=fields.get("extra"),
        )

    def skull(self, line: int, fields: Mapping[str, Any]) -> SkullLine | None:
        """Return the skull of a line by column, or None and at least one more problem."""
        before = len(self.problems)
        self._check_columns(line, fields)
        paths = self._paths(line, fields)
        skull, label = paths.pop("skull_path"), fields.get("name")
        if not isinstance(label, str | int | None):
            self._problem(line, "name", f"got {label!r}", "give a text")
        if len(self.problems) > before or skull is None:
            return None
        person = {
            key: value.replace(",", ".") if key in _NUMBERS and isinstance(value, str) else value
            for key in ("sex", "age", "ethnicity", "body_mass")
            if (value := fields.get(key)) not in (None, "")
        }
        face = paths["face_path"]
        self._once(line, "skull", str(skull), (face, label, None if face is not None else person))
        return SkullLine(line, str(label) if label not in (None, "") else None, person, skull, **paths)

    def columns_of(self, line: int, text: str) -> dict[str, Any] | None:
        """Return the fields of a JSON line by column of a list of skulls, or None and one more problem."""
        fields = self._object(line, text)
        columns: dict[str, Any] = {}
        for name, value in (fields or {}).items():
            column = column_name(name, COLUMNS, _OTHER_COLUMNS)
            if column in columns:
                self._problem(line, name, f"stands there as {column} already", "keep one")
                return None
            columns[column] = value
        return None if fields is None else columns

    def _paths(self, line: int, fields: Mapping[str, Any]) -> dict[str, Path | None]:
        """Return the paths of a line's files by their names in Record."""
        paths = {_PATHS[field]: self._file(line, fields, column) for column, field in self.columns.items()}
        if paths["texture_path"] is not None and paths["texture_path"] == paths["face_path"]:
            got = f"{fields['texture']!r} is the person's own face"
            self._problem(line, "texture", got, "name another person's, or leave it out")
        return paths

    def _file(self, line: int, fields: Mapping[str, Any], column: str) -> Path | None:
        value = fields.get(column)
        if value in (None, ""):
            if column in self.required:
                self._problem(line, column, "is missing", "give the picture's file name", "incomplete_pair")
            return None
        within = self.places is None
        name = value.replace("\\", "/") if isinstance(value, str) and "\0" not in value else None
        if name is None or (within and name_within(name) is None):
            remedy = "give the name of a file" + " within the pictures' folder" * within + " as text"
            self._problem(line, column, f"got {value!r}", remedy)
            return None
        folders, names = self.finder.folders(self.columns[column]), [name]
        if self.places is not None:
            folders, names = (*self.places, *folders), [value, name]
        for places in (folders, (Path(),) if self.places else ()):
            paths = [path for name in names for place in places if (path := self.finder.file(place, name))]
            files = {} if within else {os.path.realpath(path): str(path) for path in paths}
            if len(files) > 1:
                got = f"{value!r} may be {' or '.join(files.values())}"
                self._problem(line, column, got, "give the whole path")
            if paths:
                return paths[0]
        tried = " or ".join(dict.fromkeys(str(folder / name) for folder in folders))
        remedy = "say where the pictures are (images_dir)" if within else "give the whole path"
        self._problem(line, column, f"no file {tried}", f"mend the name, or {remedy}", "missing_file")
        return None

    def _once(self, line: int, field: str, got: str, more: object) -> None:
        """Refuse the same pair twice, which would weigh double; one skull may have several faces."""
        first = self._line_of.setdefault(f"{got} {more!r}", line)
        if first != line:
            got = f"{got} is already on line {first}"
            self._problem(line, field, got, "remove one of the two", "listed_twice")

    def _problem(self, line: int, field: str, got: str, remedy: str, kind: str = "bad_line") -> None:
        self.problems.append(ManifestProblem(line, field, got, remedy, kind))

    def _object(self, line: int, text: str) -> dict[str, Any] | None:
        try:
            value = parse_json(text, "")
        except ContentError as error:
            comma = " (one comma too many at the end?)" if text.strip().endswith(",") else ""
            got = f"{error}{comma}"
        else:
            if isinstance(value, dict):
                return value
            got = f"is a JSON {type(value).__name__}"
        self._problem(line, "", got, "write one JSON object a line")
        return None

    def _check_fields(self, line: int, fields: Mapping[str, Any]) -> None:
        for name in fields:
            if name in FIELDS:
                continue
            near = _nearest(name, FIELDS) if len(self.problems) < _NEAR_NAMES else None  # it takes a while
            remedy = f"did you mean {near!r}? " if near else f"known: {', '.join(FIELDS)}. "
            remedy += "Your own values go under 'extra'"
            if name == "prompt":
                remedy = "leave it out: the prompt is written from gender, age, ethnicity and body_mass"
            self._problem(line, name, "is no field of a manifest", remedy, "unknown_field")

    def _check_columns(self, line: int, fields: Mapping[str, Any]) -> None:
        for name in fields:
            if name in self._names or len(self._names) > _NEAR_NAMES:
                continue
            self._names.add(name)
            if near := _nearest(name, COLUMNS, 0.75):
                self._problem(line, name, "is no column of a list of skulls", f"did you mean {near!r}?")
            else:
                self.unused.add(name)

    def _biometrics(self, line: int, fields: Mapping[str, Any]) -> Biometrics | None:
        """Return the person, or None after a problem for each field that is missing or impossible."""
        before = len(self.problems)
        values = {argument: default for argument, default, _ in _PERSON.values()}
        for field, (argument, _, remedy) in _PERSON.items():
            value = fields.get(field)
            if field == "ethnicity" and value is None:
                continue
            if field != "ethnicity" and value in (None, ""):
                self._problem(line, field, "is missing", remedy, "biometrics")
                continue
            try:
                Biometrics.parse(**(values | {argument: value}))
            except BiometricsError as error:
                self._problem(line, field, f"got {error.got!r}", f"expected {error.expected}", "biometrics")
            else:
                values[argument] = value
        return Biometrics.parse(**values) if len(self.problems) == before else None


def _nearest(name: str, names: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return which of the names was probably meant: by another word for it, or by its spelling."""
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(key, names, n=1, cutoff=cutoff)
    return _SYNONYMS.get(key) or (near[0] if near else None)


# --- skulls to draw ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkullLine:
    """One line of a list of skulls.

    Attributes:
        name: of the case; None: that of the picture.
        person: what the line says of sex, age, ethnicity and body_mass, as it is written; nothing where it is empty.
    """

    line: int
    name: str | None
    person: Mapping[str, object]
    skull_path: Path
    face_path: Path | None
    landmarks_path: Path | None
    texture_path: Path | None


def read_skulls(
    path: str | os.PathLike[str], images_dir: str | os.PathLike[str] | None = None
) -> list[SkullLine]:
    """Read a list of skulls to draw: CSV with a head line, or JSON lines; a list of pairs is one as well.

    Only ``skull`` is required; ``COLUMNS`` has the others, which may be spelled in other ways. A file's name is a whole
    path, or it counts from the list's folder, from the pictures' folders of a list of pairs, or else from the working
    folder. With ``images_dir`` it counts from there, as in ``read_manifest``.

    Raises:
        ManifestError: with all mistakes of the lines. ContentError: the file cannot be read as CSV.
    """
    path = Path(path)
    places = () if images_dir is not None else (path.parent,)
    reader = _Reader(Finder(path, images_dir), _COLUMN_PATHS, COLUMNS[:1], places)
    if path.suffix.lower() in TABLE_SUFFIXES:
        rows: list[tuple[int, Any]] = [*read_table(path, COLUMNS, COLUMNS[:1], _OTHER_COLUMNS).rows]
    else:
        rows = [(line, reader.columns_of(line, text)) for line, text in read_lines(path)]
    skulls = [
        skull for line, row in rows if row is not None and (skull := reader.skull(line, row)) is not None
    ]
    if not rows:
        raise ContentError(f"{path}: holds no skulls; write a line for each")
    if reader.problems:
        raise ManifestError(path, reader.problems)
    if reader.unused:
        print(f"note: {path}: not used: {', '.join(sorted(reader.unused)[:_SHOWN])}", file=sys.stderr)
    return skulls


def template(folder: Path) -> str:
    """Return a CSV list of the pictures in a folder, for a person to fill in. Raises: ManifestError."""
    names = sorted(n for n in file_names(folder) if Path(n).suffix.lower() in IMAGE_SUFFIXES and n[0] != ".")
    bad = [name for name in names if not (folder / name).as_posix().isprintable()]
    if not names or bad:
        got = f"{bad[0]!a} is no name that a list can hold" if bad else "holds no picture"
        remedy = "rename the file" if bad else f"give a folder of pictures ({', '.join(IMAGE_SUFFIXES)})"
        raise ManifestError.of_file(folder, got, remedy)
    table = io.StringIO()
    empty = [""] * (len(COLUMNS) - 2)
    csv.writer(table).writerows([COLUMNS, *([(folder / n).as_posix(), Path(n).stem, *empty] for n in names)])
    return table.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Return the exit status, see :class:`settings.program.Program`."""
    with Program("data.manifest") as end:
        if len(arguments) != 2 or arguments[0] != "template":
            raise ValueError("expected template FOLDER > skulls.csv")
        text = template(Path(arguments[1]))
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        sys.stdout.write("\ufeff" + text)  # Excel takes UTF-8 for such when it begins with a mark
    return end.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
