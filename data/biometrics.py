"""A person's sex, age, ethnicity and body mass, and the prompt that describes them to the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}


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
            raise BiometricsError("sex", self.sex, "M, F, male or female")
        if (
            isinstance(self.age, bool)
            or not isinstance(self.age, (int, float))
            or not 0 <= self.age <= MAX_AGE
        ):
            raise BiometricsError("age", self.age, f"a number of years from 0 to {MAX_AGE:g}")
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


def age_level(age: float) -> int:
    """Return the prompt's level of an age in years: 1 below 14, 2 below 30, 3 below 50, 4 below 65, else 5."""
    if not 0 <= age <= MAX_AGE:
        raise BiometricsError("age", age, f"a number of years from 0 to {MAX_AGE:g}")
    return 1 + sum(age >= start for start in _AGE_LEVEL_STARTS)


def prompt(b: Biometrics) -> str:
    """Return the standard prompt, such as ``3D face scan,Asian male,age level 3,normal face.``"""
    body = BODY_MASS_WORDS[b.body_mass]
    return f"3D face scan,{b.ethnicity} {b.sex},age level {age_level(b.age)},{body} face."


def describe_briefly(b: Biometrics) -> str:
    """Return a short description, such as ``Asian male, 43 y, normal``."""
    return f"{b.ethnicity} {b.sex}, {b.age:g} y, {BODY_MASS_WORDS[b.body_mass]}"


def describe(b: Biometrics) -> str:
    """Return a description such as ``Asian male, 43 years (level 3), normal``."""
    years = f"{b.age:g} years (level {age_level(b.age)})"
    return f"{b.ethnicity} {b.sex}, {years}, {BODY_MASS_WORDS[b.body_mass]}"


_BODY_MASS_EXPECTED = (
    "a level from 1 to 5 (" + ", ".join(f"{k} {v}" for k, v in BODY_MASS_WORDS.items()) + ")"
)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _parse_body_mass(value: object) -> int:
    word = " ".join(value.lower().split()) if isinstance(value, str) else ""
    level = next((one for one, name in BODY_MASS_WORDS.items() if word == name), _number(value))
    if level is None or level != int(level):
        raise BiometricsError("body_mass", value, _BODY_MASS_EXPECTED)
    return int(level)
