"""What sets one skull apart beyond the face above it: its kind, sutures, teeth, thin bone, and what the scan shows.

All of it is drawn with the bone, from the bone's age: the variants of one subject share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS, KIND_SHARES = ("scan", "model"), (0.8, 0.2)
TEETH_PER_QUADRANT = 8
# How readily teeth are lost, from the central incisor backwards (assumed: molars first, canines last).
LOSS_BY_TOOTH = (0.8, 0.8, 0.45, 1.0, 1.2, 1.9, 1.8, 2.6)
# Mean number of missing teeth of 32 by age in years. Near the Fourth National Oral Health Survey of China (2015-16):
# about 2.5 at 35-44, 9.5 at 65-74; rounded, and from memory.
LOSS_YEARS, LOSS_MEANS = (16.0, 25.0, 40.0, 55.0, 70.0, 88.0), (0.3, 1.0, 2.5, 5.0, 9.5, 15.0)
LOSS_SPREAD = 1.3  # shape of the gamma distribution: some lose none, some nearly all
LOCAL_SHAPES = 10  # see data.cohort.heads.detail.LOCAL


@dataclass(frozen=True)
class SkullTraits:
    """Attributes:
    kind: a key of ``SKULL_FILES``.  mirrored: left and right exchanged.
    local: (LOCAL_SHAPES,) standard normal weights of small shapes that the face does not show.
    suture_strength: 0 (closed) .. 1.5.  metopic: a suture remains in the middle of the forehead.
    lost: (4, 8) bool: upper left, upper right, lower left, lower right, from the midline backwards.
    resorption: mm that the jaw recedes where teeth are lost.  wear: share of the crowns' height that is worn off.
    crowding: mm, SD of the teeth's displacement.
    thin_below: bone thinner than this (Hounsfield units / 8 of the template's ``strength``) is lost to the scan.
    spine_mm: how far below the chin vertebrae are seen; None for a field of view without them.
    seed: of the fields of all these.
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


def draw_traits(rng: np.random.Generator, bone_age: float) -> SkullTraits:
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
        lost=_draw_lost(rng, bone_age),
        resorption=float(np.clip(rng.normal(1.0 + 0.5 * decades, 0.8), 0.0, 5.0)),
        wear=float(np.clip(rng.normal(0.03 + 0.03 * decades, 0.04), 0.0, 0.35)),
        crowding=float(abs(rng.normal(0, 0.35))),
        thin_below=float(np.clip(rng.normal(27, 7), 12, 45)),
        spine_mm=float(rng.uniform(4, 20)) if rng.random() < 0.6 else None,
        seed=int(rng.integers(1 << 31)),
    )


def _draw_lost(rng: np.random.Generator, bone_age: float) -> np.ndarray:
    mean = float(np.interp(bone_age, LOSS_YEARS, LOSS_MEANS))
    count = min(32, round(float(rng.gamma(LOSS_SPREAD, mean / LOSS_SPREAD))))
    readiness = np.tile(LOSS_BY_TOOTH, 4) * np.exp(rng.normal(0, 0.6, 32))
    order = np.argsort(-readiness)
    lost = np.zeros(32, bool)
    lost[order[:count]] = True
    return lost.reshape(4, TEETH_PER_QUADRANT)
