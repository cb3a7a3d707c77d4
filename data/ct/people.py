"""The patients of a batch: the CSV of their biometrics, and study codes that say nothing without the salt."""

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
from unicodedata import normalize

from data.biometrics import Biometrics, BiometricsError
from data.cohort.heads.subject import body_mass_level
from data.files import replacing
from settings.parsing import read_table

OLDEST = 90  # higher ages are written as this: so few reach them that the age alone would point at someone
SALT_BYTES = 32
_LISTED = 20  # wrong rows in a message
MASS_COLUMNS: tuple[set[str], ...] = ({"body_mass"}, {"bmi"}, {"height", "weight"})
_COLUMNS = ("id", "sex", "age", "body_mass", "bmi", "height", "weight", "ethnicity")
_OTHER_COLUMNS = {"gender": "sex", "patient": "id", "patientid": "id", "race": "ethnicity"}
COLUMNS = "id, sex, age, and body_mass or bmi or height and weight (cm, kg); ethnicity may follow"


class PeopleError(ValueError):
    """A CSV or salt that cannot be used. The message may name ids: it is for the terminal of whoever holds them."""


@dataclass(frozen=True)
class Person:
    """One row: ``code`` stands for the patient in all outputs."""

    identity: str
    code: str
    biometrics: Biometrics

    def manifest_fields(self) -> dict[str, Any]:
        b = self.biometrics
        return {
            "body_mass": str(b.body_mass),
            "gender": "M" if b.sex == "male" else "F",
            "age": min(round(b.age), OLDEST),
            "ethnicity": b.ethnicity,
            "subject": self.code,
        }


def read_people(path: Path, salt: bytes) -> list[Person]:
    """Return all rows of the CSV. Raises: PeopleError with every wrong row; ContentError where it is no such table."""
    people: dict[str, Person] = {}
    problems = []
    table = read_table(path, _COLUMNS, _COLUMNS[:3], _OTHER_COLUMNS)
    if not any(columns <= set(table.columns) for columns in MASS_COLUMNS):
        raise PeopleError(f"{path}: its columns are {', '.join(table.columns)}; expected {COLUMNS}")
    for number, fields in table.rows:
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
        listed = problems[:_LISTED] + ["  ..."] * (len(problems) > _LISTED)
        raise PeopleError("\n".join([f"{path}: {len(problems)} problems, {len(people)} patients", *listed]))
    if len({person.code for person in people.values()}) != len(people):
        raise PeopleError(f"{path}: two patients got the same study code; use another salt")
    return list(people.values())


def _biometrics(fields: dict[str, str]) -> Biometrics:
    level: object = (fields.get("body_mass") or "").replace(",", ".") or _level(fields)
    age, ethnicity = fields["age"].replace(",", "."), fields.get("ethnicity") or "Asian"
    return Biometrics.parse(sex=fields["sex"], age=age, body_mass=level, ethnicity=ethnicity)


def _level(fields: dict[str, str]) -> int:
    """Return the level of body mass from ``bmi``, or ``height`` and ``weight``. Raises: BiometricsError."""
    bmi, height, weight = (_number(fields, name) for name in ("bmi", "height", "weight"))
    if bmi is None:
        if height is None or weight is None:
            raise BiometricsError("body_mass", "nothing", "a level, a bmi, or height (cm) and weight (kg)")
        if not 50 <= height <= 250:
            raise BiometricsError("height", height, "50 to 250 cm")
        bmi = weight / (height / 100) ** 2
    if not 9 <= bmi <= 80:
        raise BiometricsError("bmi", round(bmi, 1), "9 to 80 kg/m2 (height in cm, weight in kg)")
    return body_mass_level(bmi)


def _number(fields: dict[str, str], name: str) -> float | None:
    text = fields.get(name, "")
    try:
        return float(text.replace(",", ".")) if text else None
    except ValueError:
        raise BiometricsError(name, text, "a number") from None


def study_code(identity: str, salt: bytes) -> str:
    """Return twelve characters: the same for the same patient and salt, and of no use without the salt."""
    return "c" + hmac.new(salt, normalize("NFC", identity).encode("utf-8"), hashlib.sha256).hexdigest()[:11]


def read_salt(private: Path) -> bytes | None:
    """Return the salt in folder ``private``, None where there is none yet.

    Raises: PeopleError for a salt that others can read, or that is damaged.
    """
    path = private / "salt"
    if not path.exists():
        return None
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise PeopleError(f"{path}: others may read it; run: chmod 600 on it, or make a new salt")
    try:
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        salt = b""
    if len(salt) < SALT_BYTES // 2:
        raise PeopleError(f"{path}: expected a salt of at least {SALT_BYTES} hexadecimal digits")
    return salt


def make_salt(private: Path) -> bytes:
    """Write a new salt, readable for its owner alone, and return it."""
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    salt = secrets.token_bytes(SALT_BYTES)
    _write_private(private / "salt", salt.hex() + "\n")
    return salt


def write_codes(private: Path, people: list[Person]) -> None:
    """Write which code is whose, for whoever holds the patients' data: ``codes.csv``, readable for its owner alone."""
    table = io.StringIO()
    csv.writer(table).writerows([("id", "code"), *((person.identity, person.code) for person in people)])
    _write_private(private / "codes.csv", table.getvalue())


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, from the first byte on."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
