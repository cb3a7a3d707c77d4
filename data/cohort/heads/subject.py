"""Subjects: attributes, shape weights and traits of the skull, drawn from (seed, index) alone.

Independent random streams feed the attributes, the bony shape, the soft shape and the residuals. Another ``age`` or
``bmi`` changes the face of a subject and never the skull, not by one byte: bone keeps its own age (``bone_age``), and
all variants of a subject share the traits of its skull.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from data.biometrics import age_level
from data.cohort.heads import sliders as p

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
# Femininity of men's and women's bone, and its deviation: the skulls of the sexes overlap so that the best guess from
# the bone is right in 89 of 100 (real crania: 83 to 91).
FEMININITY, FEMININITY_SD, FEMININITY_RANGE = {"M": 0.23, "F": 0.77}, 0.22, (-0.1, 1.1)
SIZE_SD = 0.016  # of each proportion: length, breadth of vault and of face, height
# The prompt's word and the (african, asian, caucasian) shares around which a subject's own are drawn.
ETHNICITIES = {"Asian": (0.02, 0.95, 0.03), "African": (0.95, 0.02, 0.03), "Caucasian": (0.02, 0.03, 0.95)}
ETHNICITY_SHARES = (0.5, 0.25, 0.25)
RACE_SCATTER = 0.2
SIDE_SD_BONY, SIDE_SD_SOFT = 0.06, 0.08
KINDS, KIND_SHARES = ("scan", "model"), (0.8, 0.2)
TEETH_PER_QUADRANT = 8
# How readily teeth are lost, from the central incisor backwards (assumed: molars first, canines last).
LOSS_BY_TOOTH = (0.8, 0.8, 0.45, 1.0, 1.2, 1.9, 1.8, 2.6)
# Mean number of missing teeth of 32 by age in years. Near the Fourth National Oral Health Survey of China (2015-16):
# about 2.5 at 35-44, 9.5 at 65-74; rounded, and from memory.
LOSS_YEARS, LOSS_MEANS = (16.0, 25.0, 40.0, 55.0, 70.0, 88.0), (0.3, 1.0, 2.5, 5.0, 9.5, 15.0)
LOSS_SPREAD = 1.3  # shape of the gamma distribution: some lose none, some nearly all
LOCAL_SHAPES = 10  # see data.cohort.heads.detail
_STREAMS = ("attributes", "bony", "soft", "residual")


@dataclass(frozen=True)
class SkullTraits:
    """What sets one skull apart beyond the face above it; drawn from the bone's age.

    Attributes:
        kind: a key of ``SKULL_FILES``.  mirrored: left and right exchanged.
        local: (LOCAL_SHAPES,) standard normal weights of small shapes that the face does not show.
        suture_strength: 0 (closed) .. 1.5.  metopic: a suture remains in the middle of the forehead.
        lost: (4, 8) bool: upper left, upper right, lower left, lower right, from the midline backwards.
        resorption: mm that the jaw recedes where teeth are lost.  wear: share of the crowns' height that is worn off.
        crowding: mm, SD of the teeth's displacement.
        thin_below: bone thinner than this (Hounsfield units / 8 of the template's ``strength``) is lost to the scan.
        spine_mm: how far below the chin vertebrae are seen; None for a field of view without them.
        seed: of the fields of all these.
        jaw: how the mandible stands: opened (degrees), forwards and to the person's left (mm).
    """

    kind: str
    mirrored: bool
    local: np.ndarray
    suture_strength: float
    metopic: bool
    lost: np.ndarray
    resorption: float
    wear: float
    crowding: float
    thin_below: float
    spine_mm: float | None
    seed: int
    jaw: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Subject:
    """One synthetic person.

    Attributes:
        name: ``s00012``.
        sex: "M" or "F".  age: years, of the face.  bmi: kg/m2.  ethnicity: a key of ETHNICITIES.
        femininity: 0 (the male head) .. 1 (the female head), or a little beyond.
        race: (3,) shares of the african, asian and caucasian heads.
        bone_age: years, of the skull; ``age`` unless that of the face was changed.
        size: (4,) own factors of the head's proportions.
        bony: target weights that skull and face share.  soft: target weights of the face alone, without age and fat.
        scatter: standard normal deviations of how this person's fat (whole, left, right) and ageing show.
        residual_seed: seeds the noise fields of skull and face.
        skull: what sets the skull apart beyond the face above it.
        tissue_noise: scale of the face's own noise; 1, or 0 for an expected face.
        age_marks: how much the marks of age show.  heaviest: kg/m2, of the people of the heaviest level.
        neck_mm: how far the face is drawn below the lowest point of the mandible.
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
    age_marks: float = 1.0
    heaviest: float = BMI_HIGHEST
    neck_mm: float = 22.0

    @property
    def body_mass(self) -> int:
        return body_mass_level(self.bmi)

    @property
    def fatness(self) -> float:
        """Return body mass in units of the fat targets, about 0 at NEUTRAL_BMI."""
        return (self.bmi - NEUTRAL_BMI) / BMI_SPAN + 0.06 * self.scatter[0]

    @property
    def effective_bmi(self) -> float:
        """Return the BMI in kg/m2 that the face looks like."""
        return NEUTRAL_BMI + BMI_SPAN * self.fatness

    def soft_weights(self) -> dict[str, float]:
        """Return all target weights of the face alone: own shape, fat and ageing."""
        weights = dict(self.soft)
        fatness = self.fatness
        _put(weights, p.FAT, "", float(np.clip(fatness * (0.55 if fatness > 0 else 0.75), -0.75, 1.1)))
        for side, deviation in (("l-", self.scatter[1]), ("r-", self.scatter[2])):
            _put(weights, p.CHEEK_VOLUME, side, float(np.clip(0.55 * fatness + 0.05 * deviation, -0.8, 0.8)))
        obesity = max(0.0, self.bmi - BMI_HIGHEST) / BMI_SPAN
        weights[p.DOUBLE_CHIN] = float(np.clip(0.9 * fatness, 0, 0.9)) + 0.4 * obesity
        years = max(0.0, (self.age - 30) / 50)
        _put(weights, p.AGEING, "", float(np.clip(0.85 * years + 0.1 * self.scatter[3] - 0.1, -0.4, 1.2)))
        shows = self.age_marks * max(0.0, years + 0.12 * self.scatter[3] * min(1.0, 4 * years))
        for name, weight in p.AGED.items():
            weights[name] = weights.get(name, 0.0) + weight * shows
        return weights


def body_mass_level(bmi: float) -> int:
    """Return the level of a BMI in kg/m2: 1 (very thin) .. 5 (slightly fat); a level begins at its limit."""
    return 1 + int(np.searchsorted(BMI_LIMITS, bmi, side="right"))


def subject_name(index: int) -> str:
    return f"s{index:05d}"


def draw_subject(seed: int, index: int, attempt: int = 0) -> Subject:
    """Return subject ``index`` of cohort ``seed``; ``attempt`` > 0 gives the same sex, age and BMI another head."""
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
        skull=_draw_traits(bone, age),
    )


def expected_soft(subject: Subject) -> Subject:
    """Return the subject's own bone under the soft tissue to be expected from the prompt.

    The prompt says sex, age level, ethnicity and body mass level. The face of the result is the best that a
    reconstruction from skull and prompt can do.
    """
    return replace(
        subject,
        age=_mean_ages()[age_level(subject.age)],
        bmi=_mean_bmi(subject.bmi, subject.heaviest),
        soft=EXPECTED_SLIDERS,
        scatter=(0.0, 0.0, 0.0, 0.0),
        tissue_noise=0.0,
    )


def _draw_traits(rng: np.random.Generator, bone_age: float) -> SkullTraits:
    kind = str(rng.choice(KINDS, p=KIND_SHARES))
    mirrored = bool(rng.random() < 0.5)
    local = np.clip(rng.normal(size=LOCAL_SHAPES), -2.2, 2.2)
    # Sutures close with age, late and loosely: the scatter is larger than the trend.
    strength = float(np.clip(rng.normal(1.0 - 0.005 * (bone_age - 30), 0.3), 0.0, 1.5))
    metopic = bool(rng.random() < 0.07)
    decades = max(0.0, bone_age - 20) / 10
    return SkullTraits(
        kind=kind,
        mirrored=mirrored,
        local=local,
        suture_strength=strength,
        metopic=metopic,
        lost=_draw_lost_teeth(rng, bone_age),
        resorption=float(np.clip(rng.normal(1.0 + 0.5 * decades, 0.8), 0.0, 5.0)),
        wear=float(np.clip(rng.normal(0.03 + 0.03 * decades, 0.04), 0.0, 0.35)),
        crowding=float(abs(rng.normal(0, 0.35))),
        thin_below=float(np.clip(rng.normal(27, 7), 12, 45)),
        spine_mm=float(rng.uniform(4, 20)) if rng.random() < 0.6 else None,
        seed=int(rng.integers(1 << 31)),
    )


def _draw_lost_teeth(rng: np.random.Generator, bone_age: float) -> np.ndarray:
    mean = float(np.interp(bone_age, LOSS_YEARS, LOSS_MEANS))
    count = min(32, round(float(rng.gamma(LOSS_SPREAD, mean / LOSS_SPREAD))))
    readiness = np.tile(LOSS_BY_TOOTH, 4) * np.exp(rng.normal(0, 0.6, 32))
    order = np.argsort(-readiness)
    lost = np.zeros(32, bool)
    lost[order[:count]] = True
    return lost.reshape(4, TEETH_PER_QUADRANT)


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


def _mean_bmi(bmi: float, heaviest: float) -> float:
    index = body_mass_level(bmi) - 1
    low, high = _bmi_edges(index)
    high = heaviest if index == 4 else high
    return low + (high - low) * (1 / (1 + HEAVY_THINNING) if index == 4 else 0.5)


@cache
def _mean_ages() -> dict[int, float]:
    """Return, by age level, the mean age of its people."""
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
        for side in slider.sides:
            own = float(np.clip(value + rng.normal(0, side_sd), -1, 1)) if slider.bilateral else value
            _put(weights, slider, side, own)
    return weights


def _expected_sliders(sliders: tuple[p.Slider, ...], side_sd: float) -> dict[str, float]:
    """Return the mean weights of ``_draw_sliders``: two targets are no exact opposites, each has its own."""
    half_normal = 1 / np.sqrt(2 * np.pi)
    weights: dict[str, float] = {}
    for slider in sliders:
        sd = float(np.hypot(slider.sd, side_sd)) if slider.bilateral else slider.sd
        for side, target in product(slider.sides, (slider.plus, slider.minus)):
            weights[side + target] = weights.get(side + target, 0.0) + half_normal * sd
    return weights


def _put(weights: dict[str, float], slider: p.Slider, side: str, value: float) -> None:
    name = side + (slider.plus if value >= 0 else slider.minus)
    weights[name] = weights.get(name, 0.0) + abs(value)


EXPECTED_SLIDERS: Mapping[str, float] = _expected_sliders(p.SOFT, SIDE_SD_SOFT)
