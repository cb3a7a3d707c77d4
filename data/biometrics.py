"""A person's sex, age, ethnicity and body mass, and the prompt that describes them to the model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

BODY_MASS_WORDS: dict[int, str] = {
    1: "very thin",
    2: "thin",
    3: "slightly thin",
    4: "normal",
    5: "slightly fat",
}
MAX_AGE = 120.0
_AGE_LEVEL_STARTS = (14.0, 30.0, 50.0, 65.0)  # years at which levels 2, 3, 4 and 5 begin
_SEXES = dict.fromkeys(("m", "male", "man", "boy", "男"), "male")
_SEXES |= dict.fromkeys(("f", "female", "woman", "girl", "w", "女"), "female")
_UNKNOWN = ("", "unknown", "?", "-", "n/a", "na", "none", "null")
_SEX_EXPECTED = "male or female (or M, F, man, woman)"
_AGE_EXPECTED = f"a number of years from 0 to {MAX_AGE:g}"


class BiometricsError(ValueError):
    """A value cannot describe a person: ``field`` names it, the message says what is allowed."""

    def __init__(self, field: str, got: object, expected: str) -> None:
        super().__init__(f"{field}: got {got!r}, expected {expected}")
        self.field = field
        self.got = got
        self.expected = expected


@dataclass(frozen=True)
class Biometrics:
    """Sex, age, ethnicity and body mass of one person, checked when made.

    Args:
        sex: ``"male"`` or ``"female"``.
        age: years, 0 to 120.
        ethnicity: a word or two, written into the prompt as it stands.
        body_mass: level 1 (very thin) to 5 (slightly fat), see ``BODY_MASS_WORDS``.

    Raises:
        BiometricsError: a value outside these.
    """

    sex: str
    age: float
    ethnicity: str = "Asian"
    body_mass: int = 4

    def __post_init__(self) -> None:
        if self.sex not in ("male", "female"):
            raise BiometricsError("sex", self.sex, _SEX_EXPECTED)
        if (
            isinstance(self.age, bool)
            or not isinstance(self.age, (int, float))
            or not 0 <= self.age <= MAX_AGE
        ):
            raise BiometricsError("age", self.age, _AGE_EXPECTED)
        words = isinstance(self.ethnicity, str) and self.ethnicity.strip() == self.ethnicity
        if not words or not self.ethnicity.replace(" ", "").replace("-", "").isalpha():
            raise BiometricsError(
                "ethnicity", self.ethnicity, "a word such as 'Asian' (letters, spaces, hyphens)"
            )
        if isinstance(self.body_mass, bool) or self.body_mass not in BODY_MASS_WORDS:
            raise BiometricsError("body_mass", self.body_mass, _BODY_MASS_EXPECTED)

    @classmethod
    def parse(cls, *, sex: Any, age: Any, body_mass: object, ethnicity: Any = "Asian") -> Biometrics:
        """Return the biometrics from what people write in files: ``"M"``, ``"Female"``, ``"43"``, ``"slightly fat"``.

        Raises:
            BiometricsError: a value that is none of these; ``field`` names it.
        """
        years = _number(age)
        return cls(
            sex=_SEXES.get(sex.strip().lower(), sex) if isinstance(sex, str) else sex,
            age=age if years is None else years,
            ethnicity=" ".join(ethnicity.split()) if isinstance(ethnicity, str) else ethnicity,
            body_mass=_parse_body_mass(body_mass),
        )


@dataclass(frozen=True)
class Attributes:
    """What is known of a person. Every attribute may be unknown: None, ``""`` or ``"unknown"``; it is None then.

    Args:
        sex: as :meth:`Biometrics.parse` takes it; kept as ``"male"`` or ``"female"``.
        age: years, or a range of years, as ``"35-50"`` or ``(35, 50)``; kept as a number or a pair.
        ethnicity: a word or two. body_mass: level 1 to 5, or its words.

    Raises:
        BiometricsError: a value that is none of these.
    """

    sex: Any = None
    age: Any = None
    ethnicity: Any = None
    body_mass: Any = None

    def __post_init__(self) -> None:
        for name in ATTRIBUTES:
            object.__setattr__(self, name, _known(name, getattr(self, name)))

    @property
    def known(self) -> dict[str, Any]:
        """The attributes that are not unknown, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def biometrics(self) -> Biometrics | None:
        """The person, where every attribute is one value; else None."""
        exact = len(self.known) == len(ATTRIBUTES) and not isinstance(self.age, tuple)
        return Biometrics(**self.known) if exact else None

    def sources(self, person: Biometrics | None = None) -> dict[str, dict[str, Any]]:
        """Return value, source and range of every attribute, for records.

        person: whom a face shows; its values are assumed where they are not stated. Without it they are None.
        """
        result: dict[str, dict[str, Any]] = {}
        for name in ATTRIBUTES:
            stated = getattr(self, name)
            if stated is not None and not isinstance(stated, tuple):
                result[name] = {"value": stated, "source": "stated"}
                continue
            value = None if person is None else getattr(person, name)
            result[name] = {"value": value, "source": "assumed" if self.known else "unknown"}
            if stated is not None:
                result[name]["range"] = list(stated)
        return result

    def __str__(self) -> str:
        """A short description, such as ``male, 35-50 y; unknown: body mass``."""
        if not self.known:
            return "nothing known of the person"
        words = {
            "sex": self.sex,
            "ethnicity": self.ethnicity,
            "body_mass": BODY_MASS_WORDS.get(self.body_mass),
        }
        if self.age is not None:
            words["age"] = f"{age_text(self.age)} y"
        told = [str(words[name]) for name in ATTRIBUTES if words.get(name)]
        unknown = [name.replace("_", " ") for name in ATTRIBUTES if not words.get(name)]
        return ", ".join(told) + (f"; unknown: {', '.join(unknown)}" if unknown else "")


ATTRIBUTES = tuple(field.name for field in fields(Attributes))


def age_text(age: float | tuple[float, float]) -> str:
    """Return an age, or a range of ages, as text: ``43``, ``35-50``."""
    return "-".join(f"{years:g}" for years in (age if isinstance(age, tuple) else (age,)))


def age_level(age: float) -> int:
    """Return the prompt's level of an age in years: 1 below 14, 2 below 30, 3 below 50, 4 below 65, else 5."""
    if not 0 <= age <= MAX_AGE:
        raise BiometricsError("age", age, _AGE_EXPECTED)
    return 1 + sum(age >= start for start in _AGE_LEVEL_STARTS)


def prompt(b: Biometrics) -> str:
    """Return the standard prompt, such as ``3D face scan,Asian male,age level 3,normal face.``"""
    body = BODY_MASS_WORDS[b.body_mass]
    return f"3D face scan,{b.ethnicity} {b.sex},age level {age_level(b.age)},{body} face."


def describe(b: Biometrics, with_level: bool = False) -> str:
    """Return a description such as ``Asian male, 43 y, normal``, or ``Asian male, 43 years (level 3), normal``."""
    years = f"{b.age:g} years (level {age_level(b.age)})" if with_level else f"{b.age:g} y"
    return f"{b.ethnicity} {b.sex}, {years}, {BODY_MASS_WORDS[b.body_mass]}"


_BODY_MASS_EXPECTED = (
    "a level from 1 to 5 (" + ", ".join(f"{k} {v}" for k, v in BODY_MASS_WORDS.items()) + ")"
)


def _known(name: str, value: Any) -> Any:
    """Return an attribute as it is kept, None where it is unknown. Raises: BiometricsError."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing or (isinstance(value, str) and value.strip().lower() in _UNKNOWN):
        return None
    if name == "age":
        ends = re.split(r"\s*(?:-|\u2013|\bto\b|\.\.)\s*", value.strip()) if isinstance(value, str) else value
        if isinstance(ends, (tuple, list)) and len(ends) == 2:
            low, high = (_number(end) for end in ends)
            if low is not None and high is not None and 0 <= low <= high <= MAX_AGE:
                return low if low == high else (low, high)
    try:
        return getattr(Biometrics.parse(**({"sex": "M", "age": 40, "body_mass": 4} | {name: value})), name)
    except BiometricsError as error:
        more = ", a range such as 35-50" if name == "age" else ""
        raise BiometricsError(name, value, f"{error.expected}{more}, or unknown") from error


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if "_" in str(value):  # Python's, nobody's number
        return None
    return number if math.isfinite(number) else None


def _parse_body_mass(value: object) -> int:
    word = " ".join(value.lower().split()) if isinstance(value, str) else ""
    level = next((one for one, name in BODY_MASS_WORDS.items() if word == name), _number(value))
    if level is None or level != int(level):
        raise BiometricsError("body_mass", value, _BODY_MASS_EXPECTED)
    return int(level)
