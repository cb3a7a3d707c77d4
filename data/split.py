"""``python -m data.split MANIFEST [OUT] [key=value ...]``: one list into train, valid and test, with nobody in two.

All lines of a person come into one list. So do people who share a skull picture, who are spelled alike (``s7`` and
``S-007``), and, where no subject is given, files of one number (``12_0.png``, ``12_1.png``). The lines are copied as
they stand. The split depends on the names, the settings and the seed, not on the order of the lines.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import model_validator

from data.biometrics import age_level
from data.check.cases import Case, read_lists
from data.check.config import CheckConfig
from data.check.lists import numbered, plain_name
from data.files import read_bytes
from settings.base import Settings, expect
from settings.reading import defaults_line, parse_command_line

STRATA = ("sex", "age", "body_mass", "ethnicity")
_UNKNOWN = "is no field of a manifest"  # such a field is the user's own, and is copied


class SplitError(ValueError):
    """The manifest cannot be split so; the message says why and what to do."""


class SplitConfig(Settings):
    """How to split.

    Attributes:
        valid, test: share of the people (below 1) or their number; 0 writes no such list.
        seed: another one gives another split.
        by: field that must not be in two lists, beside the person: ``subject`` alone, or one such as ``extra.site``.
        stratify: what is spread evenly, of sex, age (its level), body_mass and ethnicity, with commas between them.
        overwrite: replace lists that are there.
        images_dir, skull_folder: where the pictures are; empty finds them beside the manifest.
    """

    valid: float = 0.05
    test: float = 0.1
    seed: int = 0
    by: str = "subject"
    stratify: str = "sex,age,body_mass"
    overwrite: bool = False
    images_dir: str = ""
    skull_folder: str = ""

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
    cases: tuple[Case, ...]

    def stratum(self, names: Sequence[str]) -> tuple[str, ...]:
        person = self.cases[0].person
        if person is None:
            return ("unknown",) * len(names)
        values = {
            "sex": person.sex,
            "age": f"level {age_level(person.age)}",
            "body_mass": str(person.body_mass),
            "ethnicity": person.ethnicity,
        }
        return tuple(values[name] for name in names)


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
    wrong = [one for one in data.problems.get("", []) if one.got != _UNKNOWN and one.field != "target"]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise SplitError(f"{manifest}: {wrong[0]}{more}; python -m data.check {manifest} lists them all")
    groups = group_people(data.cases, config.by)
    order = sorted(groups, key=lambda one: (one.stratum(config.strata), _shuffled(one.name, config.seed)))
    held_out: dict[str, list[Group]] = {}
    for name in ("test", "valid"):
        share = getattr(config, name)
        count = round(share * len(groups)) if share < 1 else int(share)
        count = max(count, 1) if share else 0
        if count > len(order) - 1:
            raise SplitError(
                f"{name}={share:g} asks for {count} of {len(groups)} people, which leaves nobody to train on: lower it"
            )
        picked = {(2 * k + 1) * len(order) // (2 * count) for k in range(count)}  # evenly along the strata
        held_out[name] = [one for k, one in enumerate(order) if k in picked]
        order = [one for k, one in enumerate(order) if k not in picked]
    text = manifest.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    return {"train": order, **dict(reversed(held_out.items()))}, dict(enumerate(text, 1))


def group_people(cases: Sequence[Case], by: str = "subject") -> list[Group]:
    """Join the lines that must stay together.

    Raises:
        SplitError: a line has no field ``by``.
    """
    parent = list(range(len(cases)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    first: dict[tuple[str, object], int] = {}
    numbers = {id(case): k for k, case in enumerate(cases)}
    number_of = {id(case): str(k) for k, group in enumerate(numbered(list(cases))) for case in group}
    digests: dict[Path, bytes] = {}
    for k, case in enumerate(cases):
        keys: list[tuple[str, object]] = [("name", plain_name(case.subject) or case.subject)]
        if id(case) in number_of:
            keys.append(("number", number_of[id(case)]))
        if case.skull is not None:
            if case.skull not in digests:
                digests[case.skull] = hashlib.blake2b(read_bytes(case.skull), digest_size=16).digest()
            keys.append(("skull", digests[case.skull]))
        if by != "subject":
            keys.append((by, _value(case, by)))
        for key in keys:
            a, b = root(first.setdefault(key, k)), root(k)
            parent[max(a, b)] = min(a, b)
    joined: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        joined[root(numbers[id(case)])].append(case)
    groups = (
        sorted(members, key=lambda case: (case.subject, case.source, case.line))
        for members in joined.values()
    )
    return [Group(members[0].subject, tuple(members)) for members in groups]


def _value(case: Case, by: str) -> str:
    value: object = case.fields
    for part in by.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or isinstance(value, (dict, list)):
        raise SplitError(
            f"by={by}: line {case.line} has no such value; give every line one, or leave 'by' out"
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
    finished: list[tuple[Path, Path]] = []
    try:
        for name, groups in lists.items():
            if groups:
                path = out / f"{name}.json"
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
                finished.append((temporary, path))
                numbers = sorted(case.line for group in groups for case in group.cases)
                temporary.write_text("".join(text[n] + "\n" for n in numbers), encoding="utf-8")
        for temporary, path in finished:
            os.replace(temporary, path)
    finally:
        for temporary, _ in finished:
            temporary.unlink(missing_ok=True)


def summary(lists: dict[str, list[Group]], strata: Sequence[str]) -> str:
    """People and lines of each list, and people by each stratum."""
    kept = {name: groups for name, groups in lists.items() if groups}
    rows = [
        ("", *kept),
        ("people", *(str(len({c.subject for g in groups for c in g.cases})) for groups in kept.values())),
    ]
    rows.append(("lines", *(str(sum(len(g.cases) for g in groups)) for groups in kept.values())))
    for k, name in enumerate(strata):
        counts = {one: Counter(g.stratum(strata)[k] for g in groups) for one, groups in kept.items()}
        for value in sorted(set().union(*counts.values())):
            rows.append((f"{name} {value}", *(str(counts[one][value]) for one in kept)))
    return "\n".join(f"{row[0]:<24}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def main(argv: list[str] | None = None) -> int:
    defaults = defaults_line(SplitConfig)
    parser = argparse.ArgumentParser(
        prog="python -m data.split", description=__doc__, epilog=f"Keys: {defaults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("manifest", type=Path, help="JSON lines of all pairs")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="OUT or key=value",
        help="folder for the lists (the manifest's); settings",
    )
    args = parser.parse_args(argv)
    paths = [one for one in args.arguments if "=" not in one] or [str(args.manifest.parent)]
    try:
        if len(paths) != 1:
            raise SplitError(
                f"got {len(paths)} folders to write into, expected one, such as my_data/split_data"
            )
        config = parse_command_line(SplitConfig, [one for one in args.arguments if "=" in one])
        lists, text = split(args.manifest, config)
        write_split(Path(paths[0]), lists, text, args.manifest, config.overwrite)
    except (ValueError, OSError) as error:
        print(f"data.split: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(summary(lists, config.strata))
    print(f"lists are in {paths[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
