"""Is a skull picture what the model was trained on? A traffic light with its reasons, before anything is drawn.

``stop``: no skull at all. ``warning``: it is drawn, and the finding says what to doubt. This module only looks;
:mod:`muti_control.case.prepare` mends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.biometrics import Attributes, Biometrics
from data.check.measure import Silhouette, silhouette
from muti_control.case.calibration import Calibration
from muti_control.case.measure import Array, Measures, cleared, inverted, measure

Level = Literal["ok", "warning", "stop"]
Away = dict[str, tuple[float, float]]  # name -> distance from the usual value, and limit
LEVELS: tuple[Level, ...] = ("ok", "warning", "stop")
BACKGROUND, UNEVEN = 0.03, 0.015  # grey level of the border; its median deviation
EMPTY, FULL = 0.02, 0.9  # share of the picture that a head fills at least, at most
# Share of its extent in which an outline runs straight at most.
CUT = {"top": 0.28, "left": 0.42, "right": 0.42, "bottom": 0.5}
CHANGE = "brightness changes by {0:.0f} % per quarter of the picture"
TEXTS = {  # measure with a usual range -> its finding, the reason, and the unit of the reason
    "angle": ("turned", "by {0:.0f} degrees in the picture's plane", 1.0),
    # degrees per px, from renderings
    "yaw": ("turned", "the head looks to the side by about {0:.0f} degrees", 1.1),
    "pitch": ("turned", "the head nods or leans back by about {0:.0f} degrees", 1.8),
    "right": ("shifted", "{0:.0f} px beside the usual place", 1.0),
    "down": ("shifted", "{0:.0f} px above or below the usual place", 1.0),
    "scale": ("scaled", "{0:.0f} % larger or smaller than usual", 100.0),
    "light_x": ("lit", f"from the side: {CHANGE}", 100.0),
    "light_y": ("lit", f"from above or below: {CHANGE}", 100.0),
}
LIGHTS = "light_x", "light_y"
LIT = 4.0  # light from the side, or a missing part, moves what is read off: the other ranges are so much wider then
MIDFACE = 0.55  # orbits and nose of a skull unlike the training ones are at least so like the mean skull's
HALF_JAW = -0.6  # limit of the mandible where a side is missing, and the jaw is judged by the other one
RIM = 0.03  # share of a side of the picture on which bone may lie


@dataclass(frozen=True)
class Finding:
    """One reason. value: what was measured; limit: where the finding begins; None where it is no number."""

    name: str
    severity: Level
    value: float | None
    limit: float | None
    text: str


@dataclass(frozen=True)
class SkullCheck:
    """The result of the check.

    Attributes:
        findings: none for a sound skull.
        measures: None where there is no skull, or no calibration. negative: whether the picture is one.
        away: names of measures that lie outside their usual range.
        less_alike: share of the training skulls that are less alike than this one; None without calibration.
    """

    findings: tuple[Finding, ...]
    measures: Measures | None = None
    negative: bool = False
    less_alike: float | None = None
    away: frozenset[str] = frozenset()

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        return max((finding.severity for finding in self.findings), key=LEVELS.index, default="ok")

    @property
    def names(self) -> set[str]:
        return {finding.name for finding in self.findings}

    def record(self) -> dict[str, Any]:
        """Return level and findings for a record, JSON."""
        return {
            "level": self.level,
            "findings": [asdict(finding) for finding in self.findings],
            "training_skulls_less_alike": self.less_alike,
        }


def check_skull(
    picture: NDArray[np.float32],
    calibration: Calibration | None,
    attributes: Attributes | Biometrics | None = None,
) -> SkullCheck:
    """Check a skull picture, (H, H, 3) float32 in [0, 1], and what is said about the person.

    Without a calibration only background, cropping and an empty picture are checked.
    """
    grey = picture.mean(2)
    shape = silhouette(grey)
    share = float(shape.filled.mean())
    comparable = calibration is not None and "mean" in calibration.arrays
    people = tuple(_outside_training(attributes, calibration))
    if not EMPTY < share < FULL:
        limit = EMPTY if share <= EMPTY else FULL
        text = f"no skull: what stands out from the background fills {share:.0%} of the picture"
        severity: Level = "stop" if comparable else "warning"
        return SkullCheck((Finding("no_skull", severity, share, limit, text), *people))
    ground = tuple(_background(grey, shape))
    if not comparable or calibration is None:
        return SkullCheck((*ground, *_cropped(shape), *people))
    limits, reference = calibration.limits, calibration.arrays
    own = measure(cleared(grey, shape) if ground else grey, reference)
    negative = False
    if own.fit < limits["fit"] or shape.background > 0.5:
        other = measure(inverted(grey, shape), reference)
        negative = other.fit > max(own.fit, limits["fit"])
        own = other if negative else own
    findings = [*_no_skull(own, limits)]
    quantiles = reference["residuals"]
    less_alike = 1 - float(np.interp(own.residual, quantiles, np.linspace(0, 1, len(quantiles))))
    away: Away = {} if findings else _away(own, limits)
    if not findings:
        if negative:
            text = "inverted: bone is dark where it should be bright"
            findings.append(Finding("inverted", "warning", None, None, text))
        findings += [*_pose(away), *_unlike(own, limits, less_alike)]
    findings += _cropped(shape)
    if not negative:
        findings += ground
    return SkullCheck((*findings, *people), own, negative, less_alike, frozenset(away))


def _no_skull(own: Measures, limits: dict[str, float]) -> Iterator[Finding]:
    if own.fit < limits["fit"]:
        least = limits["fit"]
        text = f"no skull: its likeness to the mean training skull is {own.fit:.2f}, expected {least:.2f} and more"
        yield Finding("no_skull", "stop", own.fit, least, text)
    elif own.face_residual is not None and own.face_residual < own.residual:
        text = "no skull: it is more like a face than like a skull"
        yield Finding("no_skull", "stop", own.residual, own.face_residual, text)
    elif own.residual > limits["residual"] and own.midface < MIDFACE and not own.missing:
        text = "no skull: orbits and nose are not where a skull has them"
        yield Finding("no_skull", "stop", own.midface, MIDFACE, text)


def _away(own: Measures, limits: dict[str, float]) -> Away:
    """Return what lies outside its usual range; of a skull of which a part is missing only the angle is compared."""
    names = ("angle",) if own.missing else tuple(TEXTS)
    away = {name: own.numbers[name] - limits[f"{name}_usual"] for name in names}
    wide = own.missing or any(abs(away[name]) > limits[name] for name in LIGHTS)
    allowed = {name: limits[name] * (LIT if wide and name not in LIGHTS else 1) for name in names}
    return {name: (value, allowed[name]) for name, value in away.items() if abs(value) > allowed[name]}


def _pose(away: Away) -> Iterator[Finding]:
    """Yield what lies outside the usual range: place, size, turn, and light."""
    for name, (value, limit) in away.items():
        kind, text, unit = TEXTS[name]
        yield Finding(kind, "warning", value, limit, f"{kind}: {text.format(abs(value) * unit)}")


def _unlike(own: Measures, limits: dict[str, float], less_alike: float) -> Iterator[Finding]:
    least = HALF_JAW if "side" in own.missing else limits["mandible"]
    if own.mandible < least:
        text = "no mandible: mouth and chin will be invented"
        yield Finding("no_mandible", "warning", own.mandible, least, text)
    if own.missing:
        text = f"unlike the training skulls: the {own.missing} is missing, and will be invented"
        yield Finding("unlike", "warning", None, None, text)
    elif own.residual > limits["residual"]:
        text = f"unlike the training skulls: {less_alike:.1%} of them are less alike"
        yield Finding("unlike", "warning", own.residual, limits["residual"], text)


def _cropped(shape: Silhouette) -> Iterator[Finding]:
    """Yield a finding where bone lies on the picture's border, or ends in a straight line along it."""
    bone, cuts = shape.filled, {}
    for side, mask in zip(CUT, (bone, bone.T, bone[:, ::-1].T, bone[::-1]), strict=True):
        on_rim = float(mask[0].mean())
        straight = float(mask[int(mask.any(1).argmax())].sum() / mask.any(0).sum())
        if on_rim > RIM or straight > CUT[side]:
            cuts[side] = (on_rim, RIM) if on_rim > RIM else (straight, CUT[side])
    if cuts:
        text = f"cropped: the skull ends in a straight cut at the {' and the '.join(cuts)}"
        yield Finding("cropped", "warning", *next(iter(cuts.values())), text)


def _background(grey: Array, shape: Silhouette) -> Iterator[Finding]:
    rim = np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel(), grey[:, -2:].ravel()])
    uneven = float(np.median(np.abs(rim - shape.background)))
    if shape.background > BACKGROUND:
        text = f"background: grey level {255 * shape.background:.0f}, expected black"
        yield Finding("background", "warning", shape.background, BACKGROUND, text)
    elif uneven > UNEVEN:
        yield Finding("background", "warning", uneven, UNEVEN, "background: it is not even, expected black")


def _outside_training(
    person: Attributes | Biometrics | None, calibration: Calibration | None
) -> Iterator[Finding]:
    if person is None or calibration is None:
        return
    people = calibration.population
    low, high = people.ages
    ages = person.age if isinstance(person.age, tuple) else (person.age,)
    outside = [age for age in ages if age is not None and not low <= age <= high]
    for age in outside[:1]:
        text = f"outside training: {age:g} years, the weights saw {low:g} to {high:g}"
        yield Finding("outside_training", "warning", age, low if age < low else high, text)
    if person.ethnicity is not None and person.ethnicity.lower() not in map(str.lower, people.ethnicities):
        text = f"outside training: {person.ethnicity}, the weights saw {', '.join(people.ethnicities)}"
        yield Finding("outside_training", "warning", None, None, text)
