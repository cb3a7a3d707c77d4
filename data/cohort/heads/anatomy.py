"""Builds a subject's skull and face surfaces in one frame (mm; x to the subject's left, y up, z forward)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.cohort.heads import tissue
from data.cohort.heads.detail import kept_triangles, reference_detail
from data.cohort.heads.outline import NUM_CONTOUR, outline_points
from data.cohort.heads.proportions import reshape_vault, scaled
from data.cohort.heads.skulls import MANDIBLE
from data.cohort.heads.subject import EXPECTED_SLIDERS, SkullTraits, Subject
from data.cohort.heads.template import HeadTemplate

# Years -> life-stage parameter of the head targets (1/3 child, 2/3 young adult, 1 old).
AGE_YEARS = (11.0, 16.0, 20.0, 25.0, 90.0)
AGE_STAGE = (1 / 3, 0.58, 0.64, 2 / 3, 1.0)
YOUNG_ADULT = 2 / 3
BONE_AGEING = 0.12  # adult bone follows this share of the face's ageing

TISSUE_NOISE_MM = 0.35  # individual tissue thickness between the sites
SKULL_NOISE_MM = 0.35  # skull detail that the face does not show
SKIN_GRAIN_MM, BONE_GRAIN_MM = 0.045, 0.03


@dataclass(frozen=True)
class Head:
    """Surfaces and landmarks of a subject, mm.

    Attributes:
        face: (W, 3) vertices; the triangles are the template's.
        skull: (S, 3) vertices.
        skull_triangles: (T, 3); they differ between subjects (kind of skull, lost teeth).
        landmarks: (106, 3) on the face.
        chin_y: height of the lowest point of the mandible; the skull may go on below it (vertebrae).
        sites: (K, 3) the places on the bone of ``data.cohort.heads.tissue.both_sides``.
    """

    face: np.ndarray
    skull: np.ndarray
    skull_triangles: np.ndarray
    landmarks: np.ndarray
    chin_y: float
    sites: np.ndarray


def life_stage(years: float) -> float:
    return float(np.interp(years, AGE_YEARS, AGE_STAGE))


def build_head(template: HeadTemplate, subject: Subject) -> Head:
    """Return the skull and face of a subject.

    The skull depends on bony parameters, sex and the bone's age only, never on body mass or on the face's age.
    """
    skull_noise, skin_noise = np.random.default_rng(subject.residual_seed).spawn(2)
    bony = _bony_base(template, subject)
    factors = template.proportions(subject.femininity, subject.race) * subject.size
    shape = scaled(reshape_vault(bony), factors)
    skull, triangles, chin_y, places = _skull(template, subject.skull, shape, skull_noise)
    own, expected = (
        scaled(reshape_vault(_soft_base(template, who, bony)), factors)
        for who in (subject, replace(subject, soft=EXPECTED_SLIDERS))
    )
    sites = template.skull(subject.skull.kind).sites
    depths = tissue.mean_depths(subject.sex, subject.age, subject.effective_bmi)
    depths = depths + subject.tissue_noise * tissue.draw_deviations(skin_noise)
    base = sites.corrected(own, depths - sites.depths(places, expected))

    front = _sigmoid((base[:, 2] - 10) / 8) * _sigmoid((45 - base[:, 1]) / 10)
    noise = subject.tissue_noise * _waves(skin_noise, base, TISSUE_NOISE_MM, length_mm=28)
    face = template.refine(base + _outward(base) * (front * noise)[:, None])
    face = face + _outward(face) * skin_noise.normal(0, SKIN_GRAIN_MM, len(face))[:, None]
    landmarks = face[template.landmark_ids]
    landmarks[:NUM_CONTOUR] = outline_points(face, template.contour_chains)
    return Head(face, skull, triangles, landmarks, chin_y, places)


def _skull(
    template: HeadTemplate, traits: SkullTraits, bony: np.ndarray, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Return the skull for a bony face (V, 3).

    (S, 3) vertices, (T, 3) triangles, the height of the chin's lowest point, the (K, 3) places of the tissue sites.
    """
    fitted = template.skull(traits.kind)
    skull = fitted.template
    # The carrier belongs to the template as it is: mirror the face, and then the skull back.
    mirror = np.array([-1, 1, 1]) if traits.mirrored else np.ones(3)
    ids = template.mirrored_control_ids if traits.mirrored else template.control_ids
    carried = (fitted.carrier @ (bony[ids] * mirror).astype(np.float32)).astype(float)
    places = carried[fitted.sites.skull_ids] * mirror  # without the detail that the face does not show
    grooves = [*fitted.grooves, fitted.metopic] if traits.metopic else fitted.grooves
    own = reference_detail(skull, traits, grooves, fitted.local_shapes)
    vertices = (carried + (own - skull.vertices)) * mirror
    vertices += np.stack([_waves(noise, vertices, SKULL_NOISE_MM, 26, count=12) for _ in range(3)], 1)
    vertices += noise.normal(0, BONE_GRAIN_MM, vertices.shape)
    chin_y = float(vertices[skull.part == MANDIBLE, 1].min())
    if any(traits.jaw):
        vertices = _jaw_moved(vertices, skull.part == MANDIBLE, traits.jaw)
    triangles = kept_triangles(skull, traits, vertices, chin_y)
    if traits.mirrored:
        triangles, places = triangles[:, ::-1], places[tissue.other_side()]
    return vertices, triangles, chin_y, places


def _jaw_moved(vertices: np.ndarray, jaw: np.ndarray, pose: tuple[float, float, float]) -> np.ndarray:
    """Return the skull (S, 3) with its mandible ``jaw`` (S,) opened about the condyles (degrees) and shifted (mm)."""
    angle, forwards, left = np.radians(pose[0]), pose[1], pose[2]
    points = vertices[jaw]
    behind = points[points[:, 2] < np.quantile(points[:, 2], 0.15)]
    axis = np.array(
        [0.0, *behind[behind[:, 1] > np.quantile(behind[:, 1], 0.9), 1:].mean(0)]
    )  # of the condyles
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    result = vertices.copy()
    result[jaw] = (points - axis) @ turn.T + axis + [left, 0.0, forwards]
    return result


def _bony_base(template: HeadTemplate, subject: Subject) -> np.ndarray:
    """Return the base vertices of the lean head without soft parameters, aligned on its control vertices."""
    stage = life_stage(subject.bone_age)
    bone_stage = min(stage, YOUNG_ADULT) + BONE_AGEING * max(0.0, stage - YOUNG_ADULT)
    weights = template.weights(subject.femininity, bone_stage, subject.race, subject.bony)
    return template.aligned(template.shape(weights))


def _soft_base(template: HeadTemplate, subject: Subject, bony: np.ndarray) -> np.ndarray:
    """Return the base vertices of the whole face, aligned on the vault, which carries no soft change."""
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


def _outward(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _waves(
    rng: np.random.Generator, points: np.ndarray, rms_mm: float, length_mm: float, count: int = 24
) -> np.ndarray:
    """Return a (N,) smooth random field at (N, 3) points: ``count`` plane waves with this root mean square."""
    waves = rng.normal(0, 1 / length_mm, (count, 3))
    phase = rng.uniform(0, 2 * np.pi, count)
    amplitude = rng.normal(0, 1, count)
    angles = points.astype(np.float32) @ waves.T.astype(np.float32) + phase.astype(np.float32)
    return np.cos(angles).astype(float) @ amplitude * (rms_mm / np.sqrt(count / 2))
