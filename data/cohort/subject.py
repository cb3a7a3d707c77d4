"""Who a subject is: attributes and shape weights, drawn from (seed, index) alone.

Independent random streams feed the attributes, the bony shape, the soft shape and the residuals, so that changing one
of them (another body mass for the same skull, say) leaves the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.cohort import parameters as p

# BMI (kg/m2) where body-mass levels 2, 3, 4 and 5 begin. 18.5 is WHO's underweight limit; 17 its moderate-thinness
# limit; 21 and 25 split the WHO-normal range into a lean and an average half and let "slightly fat" begin at 25.
BMI_LIMITS = (17.0, 18.5, 21.0, 25.0)
BMI_LOWEST, BMI_HIGHEST = 15.0, 34.0
LEVEL_SHARES = (0.12, 0.16, 0.22, 0.28, 0.22)  # levelled out: every level is common enough to learn from
NEUTRAL_BMI = 22.5
BMI_SPAN = 11.0  # kg/m2 per unit of fatness
YOUNGEST, OLDEST = 16.0, 88.0
_STREAMS = ("attributes", "bony", "soft", "residual")


@dataclass(frozen=True)
class Subject:
    """One synthetic person.

    Attributes:
        name: ``s00012``.
        sex: "M" or "F".  age: years.  bmi: kg/m2.
        ethnicity: only "Asian" for now.
        femininity: 0 .. 1, where in the range between the male and the female head.
        race: (3,) shares of the african, asian and caucasian heads.
        bony: target weights that skull and face share.  soft: target weights of the face alone.
        fatness: body mass in units of the fat targets, 0 at NEUTRAL_BMI.
        residual_seed: seeds the noise fields of skull and face.
    """

    name: str
    sex: str
    age: float
    bmi: float
    ethnicity: str
    femininity: float
    race: np.ndarray
    bony: dict[str, float]
    soft: dict[str, float]
    fatness: float
    residual_seed: int

    @property
    def body_mass(self) -> int:
        return body_mass_level(self.bmi)


def body_mass_level(bmi: float) -> int:
    """BMI in kg/m2 -> level 1 (very thin) .. 5 (slightly fat); a level begins at its limit."""
    return 1 + int(np.searchsorted(BMI_LIMITS, bmi, side="right"))


def subject_name(index: int) -> str:
    return f"s{index:05d}"


def draw_subject(seed: int, index: int, attempt: int = 0) -> Subject:
    """Subject ``index`` of cohort ``seed``; ``attempt`` > 0 gives the same person (sex, age, BMI) another head."""
    rng = {
        stream: np.random.default_rng(
            np.random.SeedSequence(seed, spawn_key=(index, number, attempt * (number > 0)))
        )
        for number, stream in enumerate(_STREAMS)
    }
    who = rng["attributes"]
    sex = "MF"[int(who.random() < 0.5)]
    age = round(float(np.clip(who.gamma(6.0, 7.5), YOUNGEST, OLDEST)))
    bmi = _draw_bmi(who)

    bone = rng["bony"]
    overlap = abs(bone.normal(0, 0.13))
    race = np.array([0.02, 0.90, 0.08]) + 0.25 * bone.dirichlet([0.3, 1.0, 0.5])
    bony = _draw_sliders(bone, (*p.BONY, *p.BONY_ASYMMETRIES), side_sd=0.06)
    for name in p.HEAD_SHAPES:
        bony[name] = max(0.0, float(bone.normal(p.HEAD_SHAPE_MEAN, p.HEAD_SHAPE_SD)))

    flesh = rng["soft"]
    soft = _draw_sliders(flesh, p.SOFT, side_sd=0.08)
    scatter = flesh.normal(size=4)  # how fat and age show differs from one person to the next
    subject = Subject(
        name=subject_name(index),
        sex=sex,
        age=age,
        bmi=bmi,
        ethnicity="Asian",
        femininity=overlap if sex == "M" else 1 - overlap,
        race=race / race.sum(),
        bony=bony,
        soft=soft | _ageing(age, scatter[3]),
        fatness=0.0,
        residual_seed=int(rng["residual"].integers(1 << 31)),
    )
    return with_bmi(subject, bmi, scatter)


def with_bmi(subject: Subject, bmi: float, scatter: np.ndarray | None = None) -> Subject:
    """The same person at another body mass: same bones, same soft shape, other fat.

    ``scatter``: standard normal (>= 3,) individual deviations; None for the expected fat distribution.
    """
    whole, left, right = (0.0, 0.0, 0.0) if scatter is None else scatter[:3]
    fatness = (bmi - NEUTRAL_BMI) / BMI_SPAN + 0.06 * whole
    soft = {name: value for name, value in subject.soft.items() if name not in _FAT_TARGETS}
    _put(soft, p.FAT.plus, p.FAT.minus, float(np.clip(fatness * (0.55 if fatness > 0 else 0.75), -0.75, 0.8)))
    for side, deviation in (("l-", left), ("r-", right)):
        volume = float(np.clip(0.55 * fatness + 0.05 * deviation, -0.8, 0.8))
        _put(soft, side + p.CHEEK_VOLUME.plus, side + p.CHEEK_VOLUME.minus, volume)
    soft[p.DOUBLE_CHIN] = float(np.clip(0.9 * fatness, 0, 0.9))
    return replace(subject, bmi=bmi, soft=soft, fatness=float(fatness))


_FAT_TARGETS = {*p.FAT.targets(), *p.CHEEK_VOLUME.targets(), p.DOUBLE_CHIN}


def _draw_bmi(rng: np.random.Generator) -> float:
    level = int(rng.choice(5, p=LEVEL_SHARES))
    edges = (BMI_LOWEST, *BMI_LIMITS, BMI_HIGHEST)
    low, high = edges[level], edges[level + 1]
    share = rng.random()
    if level == 4:
        share = share**1.7  # thins out towards the heaviest
    return float(min(np.round(low + (high - low) * share, 1), high - 0.1))


def _ageing(age: float, deviation: float) -> dict[str, float]:
    soft: dict[str, float] = {}
    years = max(0.0, (age - 30) / 50)
    _put(soft, p.AGEING.plus, p.AGEING.minus, float(np.clip(0.7 * years + 0.1 * deviation - 0.1, -0.4, 1.1)))
    return soft


def _draw_sliders(
    rng: np.random.Generator, sliders: tuple[p.Slider, ...], side_sd: float
) -> dict[str, float]:
    weights: dict[str, float] = {}
    for slider in sliders:
        value = slider.sd * float(np.clip(rng.normal(), -p.LARGEST_SDS, p.LARGEST_SDS))
        if not slider.bilateral:
            _put(weights, slider.plus, slider.minus, value)
            continue
        for side in ("l-", "r-"):
            one_side = float(np.clip(value + rng.normal(0, side_sd), -1, 1))
            _put(weights, side + slider.plus, side + slider.minus, one_side)
    return weights


def _put(weights: dict[str, float], plus: str, minus: str, value: float) -> None:
    name = plus if value >= 0 else minus
    weights[name] = weights.get(name, 0.0) + abs(value)
