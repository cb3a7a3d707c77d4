"""Biometrics as numbers for the network: sex, age, body mass and ethnicity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from data.biometrics import BODY_MASS_WORDS, Biometrics
from muti_control.networks.pipnet.network import NUM_KNOWN

_MIDDLE_AGE, _AGE_SPREAD = 45.0, 20.0  # years


def vocabulary(people: Iterable[Biometrics]) -> list[str]:
    """The ethnicities that occur, in alphabetical order."""
    return sorted({person.ethnicity for person in people})


def encode(people: Sequence[Biometrics], ethnicities: Sequence[str]) -> Tensor:
    """(B, 5 + E): sex (-1 female, 1 male), age, its square, body mass, its square, and which ethnicity.

    Raises:
        ValueError: an ethnicity the network was not trained on.
    """
    rows = []
    known = [word.lower() for word in ethnicities]
    for person in people:
        if person.ethnicity.lower() not in known:
            raise ValueError(
                f"ethnicity: got {person.ethnicity!r}, the landmark network knows {', '.join(ethnicities)}; give "
                "one of these, or landmarks=none to do without the network"
            )
        age = (person.age - _MIDDLE_AGE) / _AGE_SPREAD
        mass = person.body_mass - (1 + len(BODY_MASS_WORDS)) / 2
        row = [1.0 if person.sex == "male" else -1.0, age, age * age - 1, mass / 2, mass * mass / 2 - 1]
        assert len(row) == NUM_KNOWN
        rows.append(row + [float(person.ethnicity.lower() == word) for word in known])
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), NUM_KNOWN + len(ethnicities))
