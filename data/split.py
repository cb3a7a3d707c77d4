"""``python -m data.split MANIFEST [OUT] [key=value ...]``: one list into train, valid and test, with nobody in two.

All lines of a person come into one list. So do people who share a skull picture, who are spelled alike (``s7`` and
``S-007``), and, where no subject is given, files of one number (``12_0.png``, ``12_1.png``). The lines are copied as
they stand. The split depends on the names, the settings and the seed, not on the order of the lines. OUT is the folder
for the lists; without it they come into the manifest's.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import model_validator

from data.biometrics import age_level
from data.check.config import CheckConfig
from data.check.dataset import ListLine, read_lists
from data.check.lists import numbered, plain_name
from data.files import picture_sha256, replacing
from data.manifest import read_lines
from data.program import run_program
from settings.base import Settings, expect

STRATA = ("sex", "age", "body_mass", "ethnicity")


class SplitError(ValueError):
    """The manifest cannot be split so; the message says why and what to do."""


class SplitConfig(Settings):
    """How to split."""

    valid: float = 0.05
    """Validation people: a share below 1 (of ten people or more, two at least), or their number; 0 writes no list."""
    test: float = 0.1
    """Test people: a share below 1 (of ten people or more, two at least), or their number; 0 writes no list."""
    seed: int = 0
    """Seed of the split."""
    by: str = "subject"
    """Field that must not be in two lists, beside the person: subject alone, or one such as extra.site."""
    stratify: str = "sex,age,body_mass"
    """What is spread evenly, of sex, age, body_mass and ethnicity, with commas between them."""
    overwrite: bool = False
    """Replace lists that are there."""
    images_dir: str = ""
    """Folder of the pictures; empty finds it beside the list."""
    skull_folder: str = ""
    """Name of the skulls' folder; empty finds it beside the list."""

    @property
    def strata(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.stratify.split(",") if name.strip())

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for key, value in (("valid", self.valid), ("test", self.test)):
            whole = value < 1 or value == int(value)
            expect(value >= 0 and whole, key, value, "a share from 0 to 1, or a whole number of people")
        unknown = [name for name in self.strata if name not in STRATA]
        expect(not unknown, "stratify", self.stratify, f"some of {', '.join(STRATA)}")
        return self


@dataclass(frozen=True)
class Group:
    """People who must stay together: a name that does not depend on the order of lines, and their lines."""

    name: str
    lines: tuple[ListLine, ...]

    def stratum(self, names: Sequence[str]) -> tuple[str, ...]:
        person = self.lines[0].person
        if person is None:
            return ("unknown",) * len(names)
        values = vars(person) | {"age": f"level {age_level(person.age)}"}
        return tuple(str(values[name]) for name in names)


def split(manifest: Path, config: SplitConfig) -> tuple[dict[str, list[Group]], dict[int, str]]:
    """Decide who comes into which list.

    Returns:
        Groups of train, valid and test, and the text of every line by its number.

    Raises:
        SplitError: too few people, or a setting that cannot be.
        CheckError: the manifest cannot be read.
    """
    options = CheckConfig(images_dir=config.images_dir, skull_folder=config.skull_folder)
    data = read_lists({"": manifest}, options)
    wrong = [  # a field of the user's own is copied, and a face is not needed
        one for one in data.problems.get("", []) if one.kind != "unknown_field" and one.field != "target"
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise SplitError(f"{manifest}: {wrong[0]}{more}; python -m data.check {manifest} lists them all")
    groups = group_people(data.lines, config.by)
    rest = sorted(groups, key=lambda one: (one.stratum(config.strata), _shuffled(one.name, config.seed)))
    held_out: dict[str, list[Group]] = {}
    for name, share in (("test", config.test), ("valid", config.valid)):
        count = round(share * len(groups)) if share < 1 else int(share)
        least = 2 if share < 1 and len(groups) >= 10 and config.by == "subject" else 1
        count = max(count, least) if share else 0
        if count > len(rest) - 1:
            raise SplitError(
                f"{name}={share:g} asks for {count} of {len(groups)} people, which leaves nobody to train on: lower it"
            )
        places = {(2 * k + 1) * len(rest) // (2 * count) for k in range(count)}  # evenly along the strata
        held_out[name] = [one for k, one in enumerate(rest) if k in places]
        rest = [one for k, one in enumerate(rest) if k not in places]
    lists = {"train": rest, "valid": held_out["valid"], "test": held_out["test"]}
    return lists, dict(read_lines(manifest))


def group_people(lines: Sequence[ListLine], by: str = "subject") -> list[Group]:
    """Join the lines that must stay together.

    Raises:
        SplitError: a line has no field ``by``.
    """
    parent = list(range(len(lines)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    first_with: dict[tuple[str, object], int] = {}
    number_of = {id(line): k for k, group in enumerate(numbered(lines)) for line in group}
    skulls = {line.skull: picture_sha256(line.skull) for line in lines if line.skull is not None}
    for k, line in enumerate(lines):
        keys: list[tuple[str, object]] = [("name", plain_name(line.subject) or line.subject)]
        if id(line) in number_of:
            keys.append(("number", number_of[id(line)]))
        if line.skull is not None:
            keys.append(("skull", skulls[line.skull]))
        if by != "subject":
            keys.append(("by", _value(line, by)))
        for key in keys:
            a, b = root(first_with.setdefault(key, k)), root(k)
            parent[max(a, b)] = min(a, b)
    joined: dict[int, list[ListLine]] = defaultdict(list)
    for k, line in enumerate(lines):
        joined[root(k)].append(line)
    groups = (
        sorted(members, key=lambda line: (line.subject, line.source, line.number))
        for members in joined.values()
    )
    return [Group(members[0].subject, tuple(members)) for members in groups]


def _value(line: ListLine, by: str) -> str:
    value: object = line.fields
    for part in by.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or isinstance(value, (dict, list)):
        raise SplitError(
            f"by={by}: line {line.number} has no such value; give every line one, or leave 'by' out"
        )
    return str(value)


def _shuffled(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogatepass"), digest_size=16).digest()


def write_split(
    out: Path, lists: dict[str, list[Group]], text: dict[int, str], manifest: Path, overwrite: bool
) -> None:
    """Write ``train.json``, ``valid.json`` and ``test.json``, lines in the order they had.

    Raises:
        SplitError: a list is there and may not be replaced.
    """
    for name, groups in lists.items():
        path = out / f"{name}.json"
        if path.exists() and path.samefile(manifest):
            raise SplitError(f"{path} is the list to be split: choose another OUT")
        if path.exists() and not overwrite:
            raise SplitError(f"{path} is there already: choose another OUT, or say overwrite=true")
        if path.exists() and not groups:
            raise SplitError(f"{path} is there, but {name}=0 writes no such list: remove it first")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # the files get their names when all of them are written
        for name, groups in lists.items():
            if groups:
                temporary = stack.enter_context(replacing(out / f"{name}.json"))
                numbers = sorted(line.number for group in groups for line in group.lines)
                temporary.write_text("".join(text[number] + "\n" for number in numbers), encoding="utf-8")


def summary(lists: dict[str, list[Group]], strata: Sequence[str]) -> str:
    """Return a table: people and lines of each list, and people by each stratum."""
    written = {name: groups for name, groups in lists.items() if groups}
    people = (len({line.subject for group in groups for line in group.lines}) for groups in written.values())
    lines = (sum(len(group.lines) for group in groups) for groups in written.values())
    rows = [("", *written), ("people", *people), ("lines", *lines)]
    for k, stratum in enumerate(strata):
        counts = [Counter(group.stratum(strata)[k] for group in groups) for groups in written.values()]
        for value in sorted(set().union(*counts)):
            rows.append((f"{stratum} {value}", *(count[value] for count in counts)))
    return "\n".join(f"{row[0]:<24}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after one message on stderr."""
    return run_program("data.split", __doc__, SplitConfig, _split, argv, paths="MANIFEST [OUT]")


def _split(config: SplitConfig, manifest: Path, out: Path | None = None) -> None:
    out = manifest.parent if out is None else out
    lists, text = split(manifest, config)
    write_split(out, lists, text, manifest, config.overwrite)
    print(summary(lists, config.strata))
    print(f"lists are in {out}")


if __name__ == "__main__":
    sys.exit(main())
