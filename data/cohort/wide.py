"""Format 9: what real heads and their renders have and format 8 lacks. Nothing here acts in format 8.

Seen on real CT renders beside those of format 8: heads turned and nodding by a few degrees; smooth, glossy bone
without grain, as ``data.ct`` draws it; lamps off the camera; closed orbital walls; jaws without front teeth, receded; a
mandible that does not stand as in life; a longer neck; heavy faces; less even faces. All numbers come from streams of
their own: sex, age and ethnicity of a subject, and the style of its face, are those of format 8.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.cohort.heads.subject import BMI_LIMITS, HEAVY_THINNING, KINDS, SkullTraits, Subject
from data.cohort.protocols import ScanStyle
from data.render import Camera, Lamp
from data.style import SurfaceStyle

POSE_SD, MOST_POSE = 2.5, 6.0  # degrees, about each axis
HEAVIEST = 44.0  # kg/m2
AGE_MARKS = 1.3  # how much more the marks of age show
# Factors of a subject's deviations. Distances between sites spread in format 8 as in Howells' crania (SD 4.2 to 5.1 mm;
# 3.9 to 4.6 there), so sizes stay and what lies between the sites varies more.
BONY, ASYMMETRY, LOCAL, TISSUE = 1.15, 1.8, 1.6, 1.3
KIND_SHARES = (0.6, 0.4)
EDENTULOUS = 0.15  # share with a jaw, or its front, without teeth
JAW_OPEN, JAW_SD_MM = 5.0, 1.2  # degrees at most; forwards and aside
OVERCLOSED = (2.0, 7.0)  # degrees, of jaws without any teeth
PLAIN, HEADLIGHT = 0.35, 0.4  # shares drawn as data.ct does, and lit from the camera
LAMP, FALLOFF = 45.0, 0.4  # degrees off the camera, share of the light lost over half of the field
SLICE_MM = (0.5, 5.0)
_SUBJECT, _PICTURE = 1020, 1021  # apart from all streams of format 8


def widened(subject: Subject, seed: int, index: int, attempt: int) -> Subject:
    """Return a subject of format 8 as format 9 has it."""
    rng = _rng(seed, index, _SUBJECT, attempt)
    bony = {name: x * (ASYMMETRY if name.startswith("asym-") else BONY) for name, x in subject.bony.items()}
    bmi = subject.bmi
    if bmi >= BMI_LIMITS[-1]:
        bmi = float(
            np.round(BMI_LIMITS[-1] + (HEAVIEST - BMI_LIMITS[-1]) * rng.random() ** HEAVY_THINNING, 1)
        )
    skull, neck_mm = _widened_traits(subject.skull, rng), float(rng.uniform(12, 34))
    if skull.spine_mm is not None:
        skull = replace(skull, spine_mm=min(skull.spine_mm, neck_mm - 2))  # a field of view cuts both
    return replace(
        subject,
        bmi=bmi,
        bony=bony,
        skull=skull,
        tissue_noise=TISSUE,
        age_marks=AGE_MARKS,
        heaviest=HEAVIEST,
        neck_mm=neck_mm,
    )


def _widened_traits(traits: SkullTraits, rng: np.random.Generator) -> SkullTraits:
    lost, resorption = traits.lost.copy(), traits.resorption
    if rng.random() < EDENTULOUS:
        quadrants = [slice(0, 2), slice(2, 4), slice(0, 4)][rng.choice(3, p=(0.45, 0.25, 0.3))]
        lost[quadrants, : rng.choice([4, 8])] = True
        resorption = float(rng.uniform(2, 7))
    opened = float(rng.uniform(0, JAW_OPEN) * (rng.random() < 0.5))
    return replace(
        traits,
        kind=str(rng.choice(KINDS, p=KIND_SHARES)),
        local=traits.local * LOCAL,
        lost=lost,
        resorption=resorption,
        thin_below=float(np.clip(rng.normal(20, 11), 0, 45)),
        spine_mm=float(rng.uniform(4, 45)) if rng.random() < 0.75 else None,
        jaw=(
            -float(rng.uniform(*OVERCLOSED)) if lost.all() else opened,
            *rng.normal(0, JAW_SD_MM, 2).tolist(),
        ),
    )


def posed(camera: Camera, seed: int, index: int, view: int = 0) -> Camera:
    """Return the camera before a head that is turned a little about all axes; a view is turned more than a pair."""
    rng = _rng(seed, index, _PICTURE, view, 0)
    angles = rng.uniform(-1, 1, 3) * MOST_POSE if view else rng.normal(0, POSE_SD, 3)
    yaw, pitch, roll = np.clip(angles, -MOST_POSE, MOST_POSE).tolist()
    return replace(camera, yaw=camera.yaw + yaw, pitch=camera.pitch + pitch, roll=roll)


def skull_style(seed: int, index: int, view: int = 0) -> ScanStyle:
    """Return how the bone of a picture was scanned and lit; the face keeps the light of the camera."""
    rng = _rng(seed, index, _PICTURE, view, 1)
    kernel, grain, gloss, noise, steps = rng.uniform((-1, 0, 0, 0, 0), 1).tolist()
    style = SurfaceStyle(
        kernel, grain * (rng.random() < 0.6), gloss, noise, steps, float(rng.uniform(*SLICE_MM))
    )
    if rng.random() < PLAIN:
        style = SurfaceStyle(gloss=0.5)
    lamp = None
    if rng.random() >= HEADLIGHT:
        lamp = Lamp(*(float(rng.uniform(0, most)) for most in (LAMP, 360, FALLOFF)))
    return ScanStyle(0, style, int(rng.integers(1 << 31)), lamp)


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
