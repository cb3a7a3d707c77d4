"""What can be told from the lists alone: lines, names, people and what is said of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path

from data.biometrics import MAX_AGE
from data.check.cases import Case, DataSet, role
from data.check.findings import Finding
from data.check.statistics import MIN_PICTURES
from data.files import file_names, folder_names, is_folder
from data.images import IMAGE_SUFFIXES
from data.manifest import Problem

_MOSTLY = 0.7  # share of all that have one value, from which it looks filled in
_YEAR = range(1880, 2101)
_MAX_PER_PERSON = 10  # pictures that a number such as 12_0, 12_1, ... may stand for


def check_lists(data: DataSet) -> Iterator[Finding]:
    """All findings that need no picture."""
    yield from _problems(data)
    yield from _unreferenced(data)
    yield from _values(data)
    yield from _contradictions(data)
    yield from _subjects(data)


# ---------------------------------------------------------------- lines
def _problems(data: DataSet) -> Iterator[Finding]:
    of_line = {(case.list_name, case.line): case for case in data.cases}
    masses = _numbers(data, "body_mass")
    like_bmi = [value for value in masses if 12 <= value <= 200]
    all_bmi = len(like_bmi) > max(2, 0.5 * len(masses))
    if all_bmi:
        unit = "BMI" if sorted(like_bmi)[len(like_bmi) // 2] < 45 else "kilograms"
        seen = f"{len(like_bmi)} of {len(masses)} values are {min(like_bmi):g} to {max(like_bmi):g}, as of {unit}"
        yield Finding("body_mass_is_bmi", seen)
    for list_name, problems in data.problems.items():
        for problem in problems:
            if all_bmi and problem.field == "body_mass" and "is missing" not in problem.got:
                continue
            case = of_line.get((list_name, problem.line))
            check, seen = _name_of(problem, case)
            if case is None:
                yield Finding(check, seen, list_name, problem.line)
            else:
                yield case.finding(check, seen)


def _name_of(problem: Problem, case: Case | None) -> tuple[str, str]:
    seen = f"{problem.field}: {problem.got}" if problem.field else problem.got
    if problem.got.startswith("no file"):
        return "missing_file", seen
    if problem.field in ("source", "target") and problem.got == "is missing":
        return "incomplete_pair", seen
    if "already on line" in problem.got:
        return "listed_twice", seen
    if problem.field in ("gender", "age", "body_mass", "ethnicity"):
        value = str(case.fields.get(problem.field, "")) if case else ""
        if problem.field == "age" and value.isdigit() and int(value) in _YEAR:
            return "biometrics", f"{seen}, a year of birth?"
        return "biometrics", f"{seen}; {problem.remedy}"
    return "bad_line", f"{seen}; {problem.remedy}"


def _numbers(data: DataSet, field: str) -> list[float]:
    numbers = []
    for case in data.cases:
        value = case.fields.get(field)
        if isinstance(value, (int, float, str)) and re.fullmatch(r"\s*\d+(\.\d*)?\s*", str(value)):
            numbers.append(float(value))
    return numbers


def _unreferenced(data: DataSet) -> Iterator[Finding]:
    for kind, folders in data.folders.items():
        for folder in sorted(folders):
            for path in _files_below(folder):
                if path.suffix.lower() in IMAGE_SUFFIXES and path not in data.named:
                    skull, face = (path, None) if kind == "skull" else (None, path)
                    yield Finding(
                        "unreferenced", f"in no list beside the examined ones either ({kind})",
                        file=f"{folder.name}/{path.relative_to(folder).as_posix()}", skull=skull, face=face,
                    )  # fmt: skip


def _files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and those in it, packed or not, sorted."""
    if is_folder(folder):
        yield from (folder / name for name in sorted(file_names(folder)))
        for name in sorted(folder_names(folder)):
            yield from _files_below(folder / name)


# ---------------------------------------------------------------- what is said of the person
def _values(data: DataSet) -> Iterator[Finding]:
    first = {case.subject: case for case in reversed(data.cases) if case.person is not None}
    people = [case.person for case in first.values() if case.person is not None]
    for case in data.cases:
        if case.person is not None and (case.person.age < 1 or case.person.age > 110):
            expected = f"a head of {case.person.age:g} years is unlikely here (0 to {MAX_AGE:g} are read)"
            yield case.finding("biometrics", f"age: got {case.fields.get('age')!r}; {expected}")
    if len(people) < MIN_PICTURES:
        return
    for name, values in (("age", [p.age for p in people]), ("body_mass", [p.body_mass for p in people])):
        value, count = Counter(values).most_common(1)[0]
        if count >= _MOSTLY * len(people):
            yield Finding("constant_value", f"{name} is {value:g} for {count} of {len(people)} people")


def _contradictions(data: DataSet) -> Iterator[Finding]:
    """One person has one sex and one ethnicity; one face picture has one age and one body mass as well."""
    people: dict[str, Case] = {}
    faces: dict[Path, Case] = {}
    for case in data.cases:
        if case.person is None:
            continue
        before = people.setdefault(case.subject, case).person
        assert before is not None
        for name in ("sex", "ethnicity"):
            was, now = getattr(before, name), getattr(case.person, name)
            if was != now:
                where = people[case.subject]
                seen = f"{case.subject} is {now} here and {was} in {where.list_name} line {where.line}"
                yield case.finding("contradiction", seen)
        if case.face is None:
            continue
        earlier = faces.setdefault(case.face, case)
        assert earlier.person is not None
        if (earlier.person.age, earlier.person.body_mass) != (case.person.age, case.person.body_mass):
            seen = (
                f"{case.face.name} is {case.person.age:g} years, level {case.person.body_mass} here, and "
                f"{earlier.person.age:g}, {earlier.person.body_mass} in {earlier.list_name} line {earlier.line}"
            )
            yield case.finding("contradiction", seen)


# ---------------------------------------------------------------- people in two lists
def conflict(first: str, second: str, list_names: Iterable[str]) -> bool:
    """Whether two lists must not share a person.

    Those of different roles (train, valid, test) must not. A list of no role (variants of the test people, say) may
    share with them, unless no list has a role.
    """
    if first == second:
        return False
    roles = role(first), role(second)
    if None not in roles:
        return roles[0] != roles[1]
    return roles == (None, None) and not any(role(name) for name in list_names)


def _subjects(data: DataSet) -> Iterator[Finding]:
    names = list(dict.fromkeys(case.list_name for case in data.cases))
    told: set[tuple[str, str, str]] = set()
    for how, groups in (
        ("", _grouped(data.cases, lambda case: case.subject)),
        ("spelled otherwise: ", _grouped(data.cases, lambda case: plain_name(case.subject))),
        ("by the file's number: ", numbered(data.cases)),
    ):
        for cases in groups:
            by_list = {case.list_name: case for case in reversed(cases)}
            for a, b in combinations([name for name in names if name in by_list], 2):
                first, second = by_list[a], by_list[b]
                if not conflict(a, b, names) or (second.list_name, second.subject, a) in told:
                    continue
                told.add((second.list_name, second.subject, a))
                seen = f"{how}{second.subject} is {first.subject} of {a} line {first.line}"
                seen = seen if how else f"{second.subject} is in {a} as well (line {first.line})"
                yield second.finding("subject_in_two_lists", seen, other=first.skull)


def _grouped(cases: Iterable[Case], key: Callable[[Case], str]) -> list[list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[key(case)].append(case)
    return list(groups.values())


def plain_name(subject: str) -> str:
    """One spelling for ``s00012``, ``S12`` and ``s-12``."""
    plain = re.sub(r"[\W_]+", "-", subject.casefold()).strip("-")
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"(?<=[^\d-])-(?=\d)", "", plain))


def numbered(cases: list[Case]) -> list[list[Case]]:
    """Lines whose files are one number's, as 12_0.png and 12_1.png, where that is how files are named."""
    without = [case for case in cases if not case.subject_given]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in without:
        match = re.fullmatch(r"(.*\d)[_-](\d)", case.subject)
        groups[match.group(1) if match else case.subject].append(case)
    if any(len(group) > _MAX_PER_PERSON for group in groups.values()):
        return []  # scan_1, scan_2, ...: the number is not the person's
    return list(groups.values())
