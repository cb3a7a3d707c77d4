"""People who may be the one: where an attribute is unknown, each face is drawn with a value that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.quasirandom import SobolEngine

from data.biometrics import ATTRIBUTES, BODY_MASS_WORDS, Attributes, Biometrics, age_level
from muti_control.case.calibration import AGE_LEVELS, BODY_MASSES, SEXES, Population

ADULTS = 18, 90  # years, where nobody counted the people that a model was trained on


def uniform_population(ethnicities: Sequence[str]) -> Population:
    """Return a population of adults in which every year of age and all combinations are equally frequent."""
    levels = [age_level(year) for year in range(ADULTS[0], ADULTS[1] + 1)]
    of_age = [[levels.count(level)] * len(BODY_MASSES) for level in AGE_LEVELS]
    counts = [[of_age for _ in ethnicities] for _ in SEXES]
    return Population(ethnicities=list(ethnicities), ages=[float(year) for year in ADULTS], counts=counts)


def draw_people(known: Attributes, population: Population, num: int, seed: int) -> list[Biometrics]:
    """Return ``num`` people who have the known attributes, the others as frequent as in a population.

    The points of a Sobol sequence, moved by the seed, choose: eight people cover what is possible evenly, and
    person k does not depend on ``num``. Where the population has nobody with the known attributes, all others are
    equally frequent.
    """
    ages, shares = _ages(known.age, population)
    counts, ethnicities = population.table.astype(float), list(population.ethnicities)
    if known.ethnicity is not None:
        same = [word.lower() == known.ethnicity.lower() for word in ethnicities]
        counts = (counts[:, same] if any(same) else counts).sum(1, keepdims=True)
        ethnicities = [known.ethnicity]
    sexes = list(SEXES) if known.sex is None else [known.sex]
    masses = list(BODY_MASS_WORDS) if known.body_mass is None else [known.body_mass]
    places = (
        [SEXES.index(sex) for sex in sexes],
        range(len(ethnicities)),
        [age_level(age) - 1 for age in ages],
    )
    table = counts[np.ix_(*places, [mass - 1 for mass in masses])] * shares[:, None]
    table = (table if table.any() else np.ones_like(table)).transpose(
        0, 2, 1, 3
    )  # in the order of ATTRIBUTES
    choices: tuple[Sequence[Any], ...] = (sexes, ages, ethnicities, masses)
    points = SobolEngine(len(ATTRIBUTES)).draw(num).numpy() + np.random.default_rng(seed).random(
        len(ATTRIBUTES)
    )
    return [_person(point, table, choices) for point in points % 1]


def _person(
    point: NDArray[np.floating], table: NDArray[np.float64], choices: Sequence[Sequence[Any]]
) -> Biometrics:
    """Return the person at a point of [0, 1)^4: one attribute after the other, each given those before."""
    values: dict[str, Any] = {}
    for name, options, u in zip(ATTRIBUTES, choices, point, strict=True):
        up_to = table.reshape(len(options), -1).sum(1).cumsum()
        index = min(int(np.searchsorted(up_to, u * up_to[-1], side="right")), len(options) - 1)
        values[name], table = options[index], table[index]
    return Biometrics(**values)


def _ages(
    age: float | tuple[float, float] | None, population: Population
) -> tuple[list[float], NDArray[np.float64]]:
    """Return the possible ages in years, and each one's share of the people of its level."""
    youngest, oldest = population.ages
    if age is not None and not isinstance(age, tuple):
        return [age], np.ones(1)
    low, high = age or (youngest, oldest)
    within = max(low, youngest), min(high, oldest)
    low, high = within if within[0] <= within[1] else (low, high)
    years = [float(year) for year in range(int(np.ceil(low)), int(high) + 1)] or [(low + high) / 2]
    trained = [age_level(year) for year in range(int(youngest), int(oldest) + 1)]
    return years, np.array([1 / max(1, trained.count(age_level(year))) for year in years])
