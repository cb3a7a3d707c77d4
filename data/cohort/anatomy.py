"""From a subject to a skull and a face surface in one frame (mm; x to the subject's left, y up, z forward)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.cohort.subject import Subject
from data.cohort.template import HeadTemplate, reshape_vault

# Years -> life-stage parameter of the head targets (1/3 child, 2/3 young adult, 1 old).
AGE_YEARS = (11.0, 16.0, 20.0, 25.0, 90.0)
AGE_STAGE = (1 / 3, 0.58, 0.64, 2 / 3, 1.0)
YOUNG_ADULT = 2 / 3
BONE_AGEING = 0.12  # adult bone follows this share of the face's ageing

TISSUE_NOISE_MM = 0.55  # low-frequency individual tissue thickness
SKULL_NOISE_MM = 0.35  # skull detail that the face does not show
SKIN_GRAIN_MM, BONE_GRAIN_MM = 0.045, 0.03
MIDLINE_GAIN_MM = 1.5  # extra tissue over the whole front of the face per unit of fatness


@dataclass(frozen=True)
class Head:
    """``face`` (W, 3) and ``skull`` (S, 3) vertices in mm; ``landmarks`` (106, 3) on the face.

    ``skull_triangles`` (T, 3) differ between subjects (kind of skull, lost teeth); the face's are the template's.
    ``chin_y``: height (mm) of the lowest point of the mandible; the skull may go on below it (vertebrae).
    """

    face: np.ndarray
    skull: np.ndarray
    skull_triangles: np.ndarray
    landmarks: np.ndarray
    chin_y: float


def life_stage(years: float) -> float:
    return float(np.interp(years, AGE_YEARS, AGE_STAGE))


def build_head(template: HeadTemplate, subject: Subject) -> Head:
    """Skull and face of a subject. The skull depends on bony parameters, sex and age only, never on body mass."""
    residual = np.random.default_rng(subject.residual_seed)
    skull_noise, skin_noise = residual.spawn(2)
    bony = _bony_base(template, subject)
    skull = (template.carrier @ reshape_vault(bony[template.control_ids]).astype(np.float32)).astype(float)
    skull += _wave_vectors(skull_noise, skull, SKULL_NOISE_MM, length_mm=26)
    skull += skull_noise.normal(0, BONE_GRAIN_MM, skull.shape)

    base = reshape_vault(_soft_base(template, subject, bony))
    outward = base / np.linalg.norm(base, axis=1, keepdims=True)
    front = _sigmoid((base[:, 2] - 10) / 8) * _sigmoid((45 - base[:, 1]) / 10)
    noise = subject.tissue_noise * _waves(skin_noise, base, TISSUE_NOISE_MM, length_mm=28)
    thickness = noise + MIDLINE_GAIN_MM * subject.fatness
    face = template.refine(base + outward * (front * thickness)[:, None])
    grain = skin_noise.normal(0, SKIN_GRAIN_MM, len(face))
    face = face + face / np.linalg.norm(face, axis=1, keepdims=True) * grain[:, None]
    return Head(
        face=face,
        skull=skull,
        skull_triangles=template.skull_triangles,
        landmarks=face[template.landmark_ids],
        chin_y=float(skull[:, 1].min()),
    )


def _bony_base(template: HeadTemplate, subject: Subject) -> np.ndarray:
    """Base vertices of the bony face: the lean head without soft parameters, aligned on its control vertices."""
    stage = life_stage(subject.bone_age)
    bone_stage = min(stage, YOUNG_ADULT) + BONE_AGEING * max(0.0, stage - YOUNG_ADULT)
    weights = template.weights(subject.femininity, bone_stage, subject.race, subject.bony)
    base = template.shape(weights)
    # Age and sex targets also move the whole head, by up to 140 mm: take that out.
    controls = template.control_ids
    return base + (template.reference[controls].mean(0) - base[controls].mean(0))


def _soft_base(template: HeadTemplate, subject: Subject, bony: np.ndarray) -> np.ndarray:
    """Base vertices of the whole face, aligned to the bony face on the vault, which carries no soft change."""
    local = dict(subject.bony)
    for name, value in subject.soft_weights().items():
        local[name] = local.get(name, 0.0) + value
    # How far the face has grown is the bone's affair; how far it has aged since is the face's own.
    stage = min(life_stage(subject.bone_age), YOUNG_ADULT) + max(0.0, life_stage(subject.age) - YOUNG_ADULT)
    base = template.shape(template.weights(subject.femininity, stage, subject.race, local))
    vault = template.vault_ids
    return base + (bony[vault] - base[vault]).mean(0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _waves(
    rng: np.random.Generator, points: np.ndarray, rms_mm: float, length_mm: float, count: int = 24
) -> np.ndarray:
    """(N,) smooth random field at (N, 3) points, a sum of ``count`` plane waves with the given root mean square."""
    waves = rng.normal(0, 1 / length_mm, (count, 3))
    phase = rng.uniform(0, 2 * np.pi, count)
    amplitude = rng.normal(0, 1, count)
    return np.cos(points @ waves.T + phase) @ amplitude * (rms_mm / np.sqrt(count / 2))


def _wave_vectors(
    rng: np.random.Generator, points: np.ndarray, rms_mm: float, length_mm: float
) -> np.ndarray:
    """(N, 3): three independent smooth fields."""
    return np.stack([_waves(rng, points, rms_mm, length_mm, count=12) for _ in range(3)], 1)
