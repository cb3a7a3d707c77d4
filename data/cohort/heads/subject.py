"""Who a subject is: attributes and shape weights, drawn from (seed, index) alone.

Independent random streams feed the attributes, the bony shape, the soft shape and the residuals. ``with_bmi`` and
``with_age`` change the face of a subject and never the skull: bone keeps the age of the record (``bone_age``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from data.cohort.heads import sliders as p
from data.cohort.heads.traits import SkullTraits, draw_traits

# BMI (kg/m2) where body-mass levels 2, 3, 4 and 5 begin. 18.5 is WHO's underweight limit; 17 its moderate-thinness
# limit; 21 and 25 split the WHO-normal range into a lean and an average half and let "slightly fat" begin at 25.
BMI_LIMITS = (17.0, 18.5, 21.0, 25.0)
BMI_LOWEST, BMI_HIGHEST = 15.0, 34.0
LEVEL_SHARES = (0.12, 0.16, 0.22, 0.28, 0.22)  # levelled out: every level is common enough to learn from
HEAVY_THINNING = 1.7  # within the heaviest level, people thin out towards its upper end
NEUTRAL_BMI = 22.5
BMI_SPAN = 11.0  # kg/m2 per unit of fatness
YOUNGEST, OLDEST = 16.0, 88.0
AGE_SHAPE, AGE_SCALE = 6.0, 7.5  # of the gamma distribution that ages are drawn from
AGE_LIMITS = (14.0, 30.0, 50.0, 65.0)  # years where age levels 2, 3, 4 and 5 of the prompt begin
# Femininity of men's and women's bone, and its deviation: the skulls of the sexes overlap so that the best guess from
# the bone is right in 89 of 100 (real crania: 83 to 91).
FEMININITY, FEMININITY_SD, FEMININITY_RANGE = {"M": 0.23, "F": 0.77}, 0.22, (-0.1, 1.1)
SIZE_SD = 0.016  # of each proportion: length, breadth of vault and of face, height
# The prompt's word and the (african, asian, caucasian) shares around which a subject's own are drawn.
ETHNICITIES = {"Asian": (0.02, 0.95, 0.03), "African": (0.95, 0.02, 0.03), "Caucasian": (0.02, 0.03, 0.95)}
ETHNICITY_SHARES = (0.5, 0.25, 0.25)
RACE_SCATTER = 0.2
SIDE_SD_BONY, SIDE_SD_SOFT = 0.06, 0.08
_STREAMS = ("attributes", "bony", "soft", "residual")


@dataclass(frozen=True)
class Subject:
    """One synthetic person.

    Attributes:
        name: ``s00012``.
        sex: "M" or "F".  age: years, of the face.  bmi: kg/m2.  ethnicity: a key of ETHNICITIES.
        femininity: 0 (the male head) .. 1 (the female head), or a little beyond.
        race: (3,) shares of the african, asian and caucasian heads.
        bone_age: years, of the skull; ``age`` unless the face was changed by ``with_age``.
        size: (4,) own factors of the head's proportions.
        bony: target weights that skull and face share.  soft: target weights of the face alone, without age and fat.
        scatter: standard normal deviations of how this person's fat (whole, left, right) and ageing show.
        residual_seed: seeds the noise fields of skull and face.
        skull: what sets the skull apart beyond the face above it.
        tissue_noise: scale of the face's own noise; 1, or 0 for an expected face.
    """

    name: str
    sex: str
    age: float
    bmi: float
    ethnicity: str
    femininity: float
    race: np.ndarray
    bone_age: float
    size: np.ndarray
    bony: Mapping[str, float]
    soft: Mapping[str, float]
    scatter: tuple[float, float, float, float]
    residual_seed: int
    skull: SkullTraits
    tissue_noise: float = 1.0

    @property
    def body_mass(self) -> int:
        return body_mass_level(self.bmi)

    @property
    def fatness(self) -> float:
        """Body mass in units of the fat targets, about 0 at NEUTRAL_BMI."""
        return (self.bmi - NEUTRAL_BMI) / BMI_SPAN + 0.06 * self.scatter[0]

    @property
    def effective_bmi(self) -> float:
        """kg/m2 that the face looks like."""
        return NEUTRAL_BMI + BMI_SPAN * self.fatness

    def soft_weights(self) -> dict[str, float]:
        """All target weights of the face alone: own shape, fat and ageing."""
        weights = dict(self.soft)
        fatness = self.fatness
        _put(weights, p.FAT, "", float(np.clip(fatness * (0.55 if fatness > 0 else 0.75), -0.75, 0.8)))
        for side, deviation in (("l-", self.scatter[1]), ("r-", self.scatter[2])):
            _put(weights, p.CHEEK_VOLUME, side, float(np.clip(0.55 * fatness + 0.05 * deviation, -0.8, 0.8)))
        weights[p.DOUBLE_CHIN] = float(np.clip(0.9 * fatness, 0, 0.9))
        years = max(0.0, (self.age - 30) / 50)
        _put(weights, p.AGEING, "", float(np.clip(0.85 * years + 0.1 * self.scatter[3] - 0.1, -0.4, 1.2)))
        shows = max(0.0, years + 0.12 * self.scatter[3] * min(1.0, 4 * years))
        for name, weight in p.AGED.items():
            weights[name] = weights.get(name, 0.0) + weight * shows
        return weights


def body_mass_level(bmi: float) -> int:
    """BMI in kg/m2 -> level 1 (very thin) .. 5 (slightly fat); a level begins at its limit."""
    return 1 + int(np.searchsorted(BMI_LIMITS, bmi, side="right"))


def age_level(years: float) -> int:
    """Age in years -> level 1 .. 5 of the prompt; a level begins at its limit."""
    return 1 + int(np.searchsorted(AGE_LIMITS, years, side="right"))


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
    age = _draw_age(who)
    bmi = _draw_bmi(who)
    ethnicity = str(who.choice(list(ETHNICITIES), p=ETHNICITY_SHARES))

    bone = rng["bony"]
    femininity = float(np.clip(bone.normal(FEMININITY[sex], FEMININITY_SD), *FEMININITY_RANGE))
    race = np.array(ETHNICITIES[ethnicity]) + RACE_SCATTER * bone.dirichlet([0.5, 0.5, 0.5])
    bony = _draw_sliders(bone, (*p.BONY, *p.BONY_ASYMMETRIES), SIDE_SD_BONY)
    for name in p.HEAD_SHAPES:
        bony[name] = max(0.0, float(bone.normal(p.HEAD_SHAPE_MEAN, p.HEAD_SHAPE_SD)))

    flesh = rng["soft"]
    soft = _draw_sliders(flesh, p.SOFT, SIDE_SD_SOFT)
    whole, left, right, ageing = (float(value) for value in flesh.normal(size=4))
    return Subject(
        name=subject_name(index),
        sex=sex,
        age=age,
        bmi=bmi,
        ethnicity=ethnicity,
        femininity=femininity,
        race=race / race.sum(),
        bone_age=age,
        size=1 + SIZE_SD * np.clip(bone.normal(size=4), -p.LARGEST_SDS, p.LARGEST_SDS),
        bony=bony,
        soft=soft,
        scatter=(whole, left, right, ageing),
        residual_seed=int(rng["residual"].integers(1 << 31)),
        skull=draw_traits(bone, age),
    )


def with_bmi(subject: Subject, bmi: float) -> Subject:
    """The same person at another body mass: the same skull, byte for byte, and the same soft shape, other fat."""
    return replace(subject, bmi=float(bmi))


def with_age(subject: Subject, age: float) -> Subject:
    """The same person with a face of another age (years) on the same skull, byte for byte."""
    return replace(subject, age=float(age))


def expected_soft(subject: Subject) -> Subject:
    """The subject's own bone under the soft tissue to be expected from what the prompt says: sex, age level,
    ethnicity and body mass level. Its face is the best that a reconstruction from skull and prompt can do."""
    return replace(
        subject,
        age=_mean_age(subject.age),
        bmi=_mean_bmi(subject.bmi),
        soft=EXPECTED_SLIDERS,
        scatter=(0.0, 0.0, 0.0, 0.0),
        tissue_noise=0.0,
    )


def _draw_age(rng: np.random.Generator) -> float:
    return round(float(np.clip(rng.gamma(AGE_SHAPE, AGE_SCALE), YOUNGEST, OLDEST)))


def _draw_bmi(rng: np.random.Generator) -> float:
    level = int(rng.choice(5, p=LEVEL_SHARES))
    low, high = _bmi_edges(level)
    share = rng.random()
    if level == 4:
        share = share**HEAVY_THINNING
    return float(min(np.round(low + (high - low) * share, 1), high - 0.1))


def _bmi_edges(level_index: int) -> tuple[float, float]:
    edges = (BMI_LOWEST, *BMI_LIMITS, BMI_HIGHEST)
    return edges[level_index], edges[level_index + 1]


def _mean_bmi(bmi: float) -> float:
    index = body_mass_level(bmi) - 1
    low, high = _bmi_edges(index)
    return low + (high - low) * (1 / (1 + HEAVY_THINNING) if index == 4 else 0.5)


def _mean_age(age: float) -> float:
    return _mean_ages()[age_level(age)]


@cache
def _mean_ages() -> dict[int, float]:
    """Age level -> mean age of the people of this level."""
    rng = np.random.default_rng(0)
    ages = np.array([_draw_age(rng) for _ in range(20_000)])
    levels = np.array([age_level(age) for age in ages])
    return {level: float(ages[levels == level].mean()) for level in np.unique(levels).tolist()}


def _draw_sliders(
    rng: np.random.Generator, sliders: tuple[p.Slider, ...], side_sd: float
) -> dict[str, float]:
    weights: dict[str, float] = {}
    for slider in sliders:
        value = slider.sd * float(np.clip(rng.normal(), -p.LARGEST_SDS, p.LARGEST_SDS))
        if not slider.bilateral:
            _put(weights, slider, "", value)
            continue
        for side in ("l-", "r-"):
            one_side = float(np.clip(value + rng.normal(0, side_sd), -1, 1))
            _put(weights, slider, side, one_side)
    return weights


def _expected_sliders(sliders: tuple[p.Slider, ...], side_sd: float) -> dict[str, float]:
    """Mean weights of ``_draw_sliders``. A slider's two targets are not exact opposites, so each keeps its mean."""
    half_normal = 1 / np.sqrt(2 * np.pi)
    weights: dict[str, float] = {}
    for slider in sliders:
        sides = ("l-", "r-") if slider.bilateral else ("",)
        sd = float(np.hypot(slider.sd, side_sd)) if slider.bilateral else slider.sd
        for side in sides:
            weights[side + slider.plus] = weights.get(side + slider.plus, 0.0) + half_normal * sd
            weights[side + slider.minus] = weights.get(side + slider.minus, 0.0) + half_normal * sd
    return weights


def _put(weights: dict[str, float], slider: p.Slider, side: str, value: float) -> None:
    name = side + (slider.plus if value >= 0 else slider.minus)
    weights[name] = weights.get(name, 0.0) + abs(value)


EXPECTED_SLIDERS: Mapping[str, float] = _expected_sliders(p.SOFT, SIDE_SD_SOFT)
