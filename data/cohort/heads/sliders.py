"""The shape targets of a subject: how far each varies, and whether it moves the bone or the soft tissue alone.

A slider moves the head along one target when positive and along another when negative. Standard deviations are in
target units (1 = the full target); at full strength the local targets look like caricatures, hence the small values.
Normal draws are cut off at LARGEST_SDS.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_SDS = 2.2


@dataclass(frozen=True)
class Slider:
    """A pair of opposite targets. ``bilateral`` sliders have an ``l-`` and an ``r-`` target, drawn nearly alike."""

    plus: str
    minus: str
    sd: float
    bilateral: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """Return what the names of its targets begin with."""
        return ("l-", "r-") if self.bilateral else ("",)


def _scale(name: str, sd: float, bilateral: bool = False) -> Slider:
    return Slider(f"{name}-incr", f"{name}-decr", sd, bilateral)


def _between(name: str, plus: str, minus: str, sd: float, bilateral: bool = False) -> Slider:
    return Slider(f"{name}-{plus}", f"{name}-{minus}", sd, bilateral)


# Move skull and face alike. Head scales are kept small: larger ones give egg-shaped vaults and heads too long.
BONY: tuple[Slider, ...] = (
    _scale("head-scale-horiz", 0.11),
    _scale("head-scale-vert", 0.05),
    _scale("head-scale-depth", 0.08),
    _scale("head-back-scale-depth", 0.08),
    _between("head-angle", "out", "in", 0.06),
    _scale("forehead-scale-vert", 0.09),
    _scale("forehead-temple", 0.20),
    _scale("forehead-nubian", 0.15),
    _between("forehead-trans", "forward", "backward", 0.17),
    _scale("chin-bones", 0.26),
    _scale("chin-height", 0.24),
    _scale("chin-prominent", 0.22),
    _scale("chin-prognathism", 0.14),
    _scale("chin-width", 0.32),
    _scale("chin-jaw-drop", 0.22),
    _scale("nose-hump", 0.23),
    _scale("nose-scale-depth", 0.23),
    _scale("nose-scale-horiz", 0.22),
    _scale("nose-scale-vert", 0.40),
    _scale("nose-greek", 0.17),
    _scale("nose-width1", 0.29),
    _between("nose-curve", "convex", "concave", 0.23),
    _between("nose-trans", "up", "down", 0.20),
    _between("nose-trans", "forward", "backward", 0.14),
    _between("eyebrows-trans", "forward", "backward", 0.23),
    _between("eyebrows-trans", "up", "down", 0.23),
    _between("mouth-trans", "up", "down", 0.20),
    _between("mouth-trans", "forward", "backward", 0.17),
    _scale("cheek-bones", 0.43, bilateral=True),
    _between("eye-trans", "out", "in", 0.29, bilateral=True),
    _between("eye-trans", "up", "down", 0.20, bilateral=True),
    _between("cheek-trans", "up", "down", 0.17, bilateral=True),
)

# Drawn one-sided, so that a subject has a few of them: max(0, N(mean, sd)).
HEAD_SHAPES = (
    "head-oval", "head-round", "head-rectangular", "head-square", "head-triangular", "head-invertedtriangular",
    "head-diamond",
)  # fmt: skip
HEAD_SHAPE_MEAN, HEAD_SHAPE_SD = -0.08, 0.15

_BONY_ASYMMETRIES = (
    "brown-1", "brown-2", "cheek-1", "cheek-2", "eye-1", "eye-2", "eye-3", "eye-4", "eye-5",
    "eye-6", "eye-7", "eye-8", "jaw-1", "jaw-2", "jaw-3", "nose-1", "nose-2", "nose-3", "nose-4", "temple-1",
    "temple-2", "top-1", "top-2",
)  # fmt: skip
BONY_ASYMMETRIES = tuple(Slider(f"asym-{k}-l", f"asym-{k}-r", 0.12) for k in _BONY_ASYMMETRIES)

# Move the face only.
SOFT: tuple[Slider, ...] = (
    _scale("nose-flaring", 0.20),
    _scale("nose-nostrils-width", 0.20),
    _scale("nose-point-width", 0.25),
    _scale("nose-volume", 0.17),
    _scale("nose-septumangle", 0.15),
    _scale("nose-width3", 0.20),
    _between("nose-point", "up", "down", 0.17),
    _between("nose-base", "up", "down", 0.15),
    _between("nose-nostrils-angle", "up", "down", 0.15),
    _scale("mouth-cupidsbow", 0.20),
    _scale("mouth-cupidsbow-width", 0.15),
    _scale("mouth-lowerlip-height", 0.17),
    _scale("mouth-lowerlip-volume", 0.20),
    _scale("mouth-lowerlip-width", 0.15),
    _scale("mouth-upperlip-height", 0.17),
    _scale("mouth-upperlip-volume", 0.20),
    _scale("mouth-upperlip-width", 0.15),
    _scale("mouth-philtrum-volume", 0.20),
    _scale("mouth-scale-horiz", 0.37),
    _scale("mouth-scale-vert", 0.15),
    _between("mouth-angles", "up", "down", 0.17),
    _between("mouth-laugh-lines", "in", "out", 0.17),
    _between("mouth-dimples", "in", "out", 0.12),
    _between("eyebrows-angle", "up", "down", 0.17),
    _scale("chin-cleft", 0.07),
    _scale("eye-bag", 0.24, bilateral=True),
    _between("eye-bag", "out", "in", 0.18, bilateral=True),
    _between("eye-epicanthus", "in", "out", 0.18, bilateral=True),
    _between("eye-eyefold", "convex", "concave", 0.24, bilateral=True),
    _between("eye-eyefold-angle", "up", "down", 0.21, bilateral=True),
    _between("eye-corner1", "up", "down", 0.18, bilateral=True),
    _between("eye-corner2", "up", "down", 0.21, bilateral=True),
    _scale("eye-scale", 0.15, bilateral=True),
    _scale("ear-scale", 0.24, bilateral=True),
    _scale("ear-wing", 0.27, bilateral=True),
    _scale("ear-lobe", 0.24, bilateral=True),
    _scale("ear-flap", 0.18, bilateral=True),
    _between("ear-trans", "up", "down", 0.18, bilateral=True),
    _between("ear-rot", "forward", "backward", 0.18, bilateral=True),
    _scale("cheek-inner", 0.15, bilateral=True),
    Slider("asym-mouth-1-l", "asym-mouth-1-r", 0.20),
    Slider("asym-mouth-2-l", "asym-mouth-2-r", 0.20),
    Slider("asym-ear-1-l", "asym-ear-1-r", 0.20),
    Slider("asym-ear-2-l", "asym-ear-2-r", 0.20),
)

# Set by body mass and age, not drawn by themselves.
FAT = _scale("head-fat", 0.0)
CHEEK_VOLUME = _scale("cheek-volume", 0.0, bilateral=True)
AGEING = _scale("head-age", 0.0)
DOUBLE_CHIN = "neck-double-incr"
# What an old face (80 years) has beyond AGEING: target -> weight, growing evenly from 30 years. Chosen by eye.
AGED: dict[str, float] = {
    "l-eye-bag-incr": 0.55, "r-eye-bag-incr": 0.55, "l-eye-bag-out": 0.25, "r-eye-bag-out": 0.25,
    "l-eye-eyefold-angle-down": 0.35, "r-eye-eyefold-angle-down": 0.35,
    "l-eye-corner2-down": 0.25, "r-eye-corner2-down": 0.25,
    "mouth-laugh-lines-in": 0.55, "mouth-angles-down": 0.3,
    "mouth-upperlip-volume-decr": 0.45, "mouth-lowerlip-volume-decr": 0.4, "mouth-upperlip-height-decr": 0.25,
    "mouth-scale-horiz-incr": 0.25, "nose-point-down": 0.35, "nose-septumangle-decr": 0.2, "nose-volume-incr": 0.25,
    "l-ear-scale-incr": 0.45, "r-ear-scale-incr": 0.45, "l-ear-lobe-incr": 0.5, "r-ear-lobe-incr": 0.5,
    "l-cheek-inner-decr": 0.4, "r-cheek-inner-decr": 0.4, "neck-double-incr": 0.25,
}  # fmt: skip
# Eyes and lips closed, for everyone.
EXPRESSION = {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0, "jawOpen": -0.055}

RACES = ("african", "asian", "caucasian")
SEXES = ("male", "female")
LIFE_STAGES = ("child", "young", "old")


def macro_targets() -> dict[str, tuple[str | None, str, str]]:
    """Return, by name, (race or None for all, sex, life stage) of the targets that make the basic head."""
    names: dict[str, tuple[str | None, str, str]] = {}
    for stage in LIFE_STAGES:
        for sex in SEXES:
            names[f"universal-{sex}-{stage}-averagemuscle-averageweight"] = (None, sex, stage)
            for race in RACES:
                names[f"{race}-{sex}-{stage}"] = (race, sex, stage)
    return names
