"""Who the patients of a batch are: the CSV of biometrics, and study codes that say nothing without the salt."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.biometrics import Biometrics, BiometricsError

# BMI (kg/m2) at which levels 2 to 5 of body mass begin: the cohort's, see data/README.md.
BMI_LIMITS = (17.0, 18.5, 21.0, 25.0)
OLDEST_TOLD = 90  # ages above are told as this: so few reach them that the age alone would point at someone
SALT_BYTES = 32
COLUMNS = "id, sex, age, and body_mass or bmi or height and weight (cm, kg); ethnicity may follow"


class PeopleError(ValueError):
    """A CSV or salt that cannot be used. The message may name ids: it is for the terminal of whoever holds them."""


@dataclass(frozen=True)
class Person:
    """One row: ``code`` is what outputs know the patient by."""

    identity: str
    code: str
    biometrics: Biometrics

    def manifest_fields(self) -> dict[str, Any]:
        b = self.biometrics
        return {
            "body_mass": str(b.body_mass),
            "gender": "M" if b.sex == "male" else "F",
            "age": min(round(b.age), OLDEST_TOLD),
            "ethnicity": b.ethnicity,
            "subject": self.code,
        }


def read_people(path: Path, salt: bytes) -> list[Person]:
    """All rows of the CSV. Raises: PeopleError with every wrong row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PeopleError(
            f"{path}: there is no such file; expected a CSV with the columns {COLUMNS}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PeopleError(f"{path}: cannot be read as UTF-8 text; save it as a CSV in UTF-8") from error
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    rows = csv.DictReader(io.StringIO(text), delimiter=separator)
    names = {name.strip().lower(): name for name in rows.fieldnames or [] if name}
    mass = {"body_mass"} & set(names) or {"bmi"} & set(names) or ({"height", "weight"} <= set(names))
    if not {"id", "sex", "age"} <= set(names) or not mass:
        raise PeopleError(f"{path}: its columns are {', '.join(names) or 'none'}; expected {COLUMNS}")
    people: dict[str, Person] = {}
    problems = []
    for number, row in enumerate(rows, 2):
        fields = {name: (row.get(column) or "").strip() for name, column in names.items()}
        identity = fields["id"]
        try:
            if not identity:
                raise BiometricsError("id", "", "the name of the patient's folder or file")
            if identity in people:
                raise BiometricsError("id", identity, "each patient once")
            people[identity] = Person(identity, study_code(identity, salt), _biometrics(fields))
        except BiometricsError as error:
            problems.append(f"  line {number}: {error}")
    if problems or not people:
        shown = problems[:20] + (["  ..."] if len(problems) > 20 else [])
        raise PeopleError("\n".join([f"{path}: {len(problems)} problems, {len(people)} patients", *shown]))
    if len({person.code for person in people.values()}) != len(people):
        raise PeopleError(f"{path}: two patients got the same study code; use another salt")
    return list(people.values())


def _biometrics(fields: dict[str, str]) -> Biometrics:
    level: object = fields.get("body_mass", "")
    if not level:
        bmi = _number(fields, "bmi")
        if bmi is None:
            height, weight = _number(fields, "height"), _number(fields, "weight")
            if height is None or weight is None:
                raise BiometricsError(
                    "body_mass", "nothing", "a level, a bmi, or height (cm) and weight (kg)"
                )
            if not 50 <= height <= 250:
                raise BiometricsError("height", height, "50 to 250 cm")
            bmi = weight / (height / 100) ** 2
        if not 9 <= bmi <= 80:
            raise BiometricsError("bmi", round(bmi, 1), "9 to 80 kg/m2 (height in cm, weight in kg)")
        level = 1 + sum(bmi >= limit for limit in BMI_LIMITS)
    ethnicity = fields.get("ethnicity") or "Asian"
    return Biometrics.parse(sex=fields["sex"], age=fields["age"], body_mass=level, ethnicity=ethnicity)


def _number(fields: dict[str, str], name: str) -> float | None:
    text = fields.get(name, "")
    if not text:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise BiometricsError(name, text, "a number") from None


def study_code(identity: str, salt: bytes) -> str:
    """Twelve characters: the same for the same patient and salt, and of no use without the salt."""
    return "c" + hmac.new(salt, identity.encode("utf-8"), hashlib.sha256).hexdigest()[:11]


def read_salt(private: Path) -> bytes:
    """The salt in folder ``private``; made, readable for its owner alone, where there is none.

    Raises: PeopleError for a salt that others can read, or that is none.
    """
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = private / "salt"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise PeopleError(
                f"{path}: others may read it; run: chmod 600 on it, or make a new salt"
            ) from None
        try:
            salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except ValueError:
            salt = b""
        if len(salt) < 16:
            raise PeopleError(f"{path}: expected a salt of at least 32 hexadecimal digits") from None
        return salt
    salt = secrets.token_bytes(SALT_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(salt.hex() + "\n")
    return salt


def write_codes(private: Path, people: list[Person]) -> None:
    """Which code is whose, for whoever holds the patients' data: ``codes.csv``, readable for its owner alone."""
    path = private / "codes.csv"
    temporary = path.with_name(f".codes.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "code"])
        writer.writerows([person.identity, person.code] for person in people)
    os.replace(temporary, path)
