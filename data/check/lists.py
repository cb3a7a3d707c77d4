"""Checks that need the lists alone: lines, file names, people and their attributes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path

from data.biometrics import MAX_AGE, Biometrics
from data.check.dataset import DataSet, ListLine, role
from data.check.flaws import Flaw
from data.check.statistics import MIN_PICTURES
from data.files import file_names, folder_names, is_folder
from data.images import IMAGE_SUFFIXES
from data.manifest import ManifestProblem

_MOSTLY = 0.7  # share of all that have one value, from which it looks filled in
_YEARS = range(1880, 2101)
_MAX_PER_PERSON = 10  # pictures that a number such as 12_0, 12_1, ... may stand for


def check_lists(data: DataSet) -> Iterator[Flaw]:
    """Yield all findings that need no picture."""
    yield from _problems(data)
    yield from _unreferenced(data)
    yield from _values(data)
    yield from _contradictions(data)
    yield from _subjects(data)


# ---------------------------------------------------------------- lines
def _problems(data: DataSet) -> Iterator[Flaw]:
    line_at = {(line.list_name, line.number): line for line in data.lines}
    masses = _numbers(data, "body_mass")
    like_bmi = [value for value in masses if 12 <= value <= 200]
    all_bmi = len(like_bmi) > max(2, 0.5 * len(masses))
    if all_bmi:
        unit = "BMI" if sorted(like_bmi)[len(like_bmi) // 2] < 45 else "kilograms"
        detail = f"{len(like_bmi)} of {len(masses)} values are {min(like_bmi):g} to {max(like_bmi):g}, as of {unit}"
        yield Flaw("body_mass_is_bmi", detail)
    for list_name, problems in data.problems.items():
        for problem in problems:
            if all_bmi and problem.field == "body_mass" and "is missing" not in problem.got:
                continue
            line = line_at.get((list_name, problem.line))
            check, detail = _classified(problem, line)
            yield line.flaw(check, detail) if line else Flaw(check, detail, list_name, problem.line)


def _classified(problem: ManifestProblem, line: ListLine | None) -> tuple[str, str]:
    """Return the check that a problem of a manifest belongs to, and the detail."""
    detail = f"{problem.field}: {problem.got}" if problem.field else problem.got
    if problem.kind in ("missing_file", "incomplete_pair", "listed_twice"):
        return problem.kind, detail
    check = "biometrics" if problem.kind == "biometrics" else "bad_line"
    value = str(line.fields.get(problem.field, "")) if line else ""
    if check == "biometrics" and problem.field == "age" and value.isdigit() and int(value) in _YEARS:
        return check, f"{detail}, a year of birth?"
    return check, f"{detail}; {problem.remedy}"


def _numbers(data: DataSet, field: str) -> list[float]:
    values = (line.fields.get(field) for line in data.lines)
    texts = (str(value) for value in values if isinstance(value, (int, float, str)))
    return [float(text) for text in texts if re.fullmatch(r"\s*\d+(\.\d*)?\s*", text)]


def _unreferenced(data: DataSet) -> Iterator[Flaw]:
    for kind, folders in data.folders.items():
        for folder in sorted(folders):
            for path in _files_below(folder):
                if path.suffix.lower() in IMAGE_SUFFIXES and path not in data.named:
                    skull, face = (path, None) if kind == "skull" else (None, path)
                    yield Flaw(
                        "unreferenced", f"in no list beside the examined ones either ({kind})",
                        file=f"{folder.name}/{path.relative_to(folder).as_posix()}", skull=skull, face=face,
                    )  # fmt: skip


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder that are not hidden, packed or not, sorted."""
    if is_folder(folder):
        yield from (folder / name for name in sorted(file_names(folder)) if not name.startswith("."))
        for name in sorted(folder_names(folder)):
            yield from _files_below(folder / name)


# ---------------------------------------------------------------- the person
def _values(data: DataSet) -> Iterator[Flaw]:
    person_of: dict[str, Biometrics] = {}
    for line in data.lines:
        if line.person is None:
            continue
        person_of.setdefault(line.subject, line.person)
        if line.person.age < 1 or line.person.age > 110:
            expected = f"a head of {line.person.age:g} years is unlikely here (0 to {MAX_AGE:g} are read)"
            yield line.flaw("biometrics", f"age: got {line.fields.get('age')!r}; {expected}")
    if len(person_of) < MIN_PICTURES:
        return
    for name in ("age", "body_mass"):
        value, count = Counter(getattr(person, name) for person in person_of.values()).most_common(1)[0]
        if count >= _MOSTLY * len(person_of):
            yield Flaw("constant_value", f"{name} is {value:g} for {count} of {len(person_of)} people")


def _contradictions(data: DataSet) -> Iterator[Flaw]:
    """One person has one sex and one ethnicity; one face picture has one age and one body mass as well."""
    first_of: dict[str | Path, tuple[ListLine, Biometrics]] = {}
    for line in data.lines:
        if line.person is None:
            continue
        first, person = first_of.setdefault(line.subject, (line, line.person))
        for name in ("sex", "ethnicity"):
            was, now = getattr(person, name), getattr(line.person, name)
            if was != now:
                yield line.flaw("contradiction", f"{line.subject} is {now} here and {was} in {first.place}")
        if line.face is None:
            continue
        first, person = first_of.setdefault(line.face, (line, line.person))
        if (person.age, person.body_mass) != (line.person.age, line.person.body_mass):
            here = f"{line.face.name} is {line.person.age:g} years, level {line.person.body_mass} here"
            there = f"{person.age:g}, {person.body_mass} in {first.place}"
            yield line.flaw("contradiction", f"{here}, and {there}")


# ---------------------------------------------------------------- people in two lists
def conflict(first: str, second: str, list_names: Iterable[str]) -> bool:
    """Return whether two lists must not share a person.

    Those of different roles (train, valid, test) must not. A list of no role (variants of the test people, say) may
    share with them, unless no list has a role.
    """
    if first == second:
        return False
    roles = role(first), role(second)
    if None not in roles:
        return roles[0] != roles[1]
    return roles == (None, None) and not any(role(name) for name in list_names)


def _subjects(data: DataSet) -> Iterator[Flaw]:
    names = list(dict.fromkeys(line.list_name for line in data.lines))
    reported: set[tuple[str, str, str]] = set()
    for how, groups in (
        ("", _grouped(data.lines, lambda line: line.subject)),
        ("spelled otherwise: ", _grouped(data.lines, lambda line: plain_name(line.subject))),
        ("by the file's number: ", numbered(data.lines)),
    ):
        for lines in groups:
            by_list = {line.list_name: line for line in reversed(lines)}
            for a, b in combinations([name for name in names if name in by_list], 2):
                first, second = by_list[a], by_list[b]
                if not conflict(a, b, names) or (second.list_name, second.subject, a) in reported:
                    continue
                reported.add((second.list_name, second.subject, a))
                detail = f"{how}{second.subject} is {first.subject} of {first.place}"
                detail = detail if how else f"{second.subject} is in {a} as well (line {first.number})"
                yield second.flaw("subject_in_two_lists", detail, other=first.skull)


def _grouped(lines: Iterable[ListLine], key: Callable[[ListLine], str]) -> list[list[ListLine]]:
    groups: dict[str, list[ListLine]] = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return list(groups.values())


def plain_name(subject: str) -> str:
    """Return one spelling for ``s00012``, ``S12`` and ``s-12``."""
    plain = re.sub(r"[\W_]+", "-", subject.casefold()).strip("-")
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"(?<=[^\d-])-(?=\d)", "", plain))


def numbered(lines: Iterable[ListLine]) -> list[list[ListLine]]:
    """Return groups of lines whose files have one number, as 12_0.png and 12_1.png; none for other file names."""

    def number(line: ListLine) -> str:
        match = re.fullmatch(r"(.*\d)[_-](\d)", line.subject)
        return match.group(1) if match else line.subject

    groups = _grouped((line for line in lines if not line.subject_given), number)
    if any(len(group) > _MAX_PER_PERSON for group in groups):
        return []  # scan_1, scan_2, ...: the number is not the person's
    return groups
