"""From a subject to a skull and a face surface in one frame (mm; x to the subject's left, y up, z forward)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.cohort.heads import tissue
from data.cohort.heads.detail import kept_triangles, reference_detail
from data.cohort.heads.outline import NUM_CONTOUR, outline_points
from data.cohort.heads.proportions import reshape_vault
from data.cohort.heads.rays import Surface
from data.cohort.heads.skulls import MANDIBLE
from data.cohort.heads.subject import EXPECTED_SLIDERS, Subject
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
    """``face`` (W, 3) and ``skull`` (S, 3) vertices in mm; ``landmarks`` (106, 3) on the face.

    ``sites`` (K, 3): the places on the bone of ``data.cohort.heads.tissue.both_sides``.

    ``skull_triangles`` (T, 3) differ between subjects (kind of skull, lost teeth); the face's are the template's.
    ``chin_y``: height (mm) of the lowest point of the mandible; the skull may go on below it (vertebrae).
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
    """Skull and face of a subject. The skull depends on bony parameters, sex and bone's age only, never on body mass
    or on the face's age."""
    residual = np.random.default_rng(subject.residual_seed)
    skull_noise, skin_noise = residual.spawn(2)
    bony = _bony_base(template, subject)
    proportions = template.proportions(subject.femininity, subject.race).times(subject.size)
    skull, triangles, chin_y, site_places = _skull(
        template, subject, proportions.apply(reshape_vault(bony)), skull_noise
    )

    own, expected = (
        proportions.apply(reshape_vault(_soft_base(template, who, bony)))
        for who in (subject, replace(subject, soft=EXPECTED_SLIDERS))
    )
    sites = template.sites(subject.skull.kind)
    wanted = tissue.table(subject.sex, subject.age, subject.effective_bmi)
    wanted = wanted + subject.tissue_noise * tissue.deviations(skin_noise)
    base = sites.corrected(own, wanted - sites.depths(site_places, expected))

    outward = base / np.linalg.norm(base, axis=1, keepdims=True)
    front = _sigmoid((base[:, 2] - 10) / 8) * _sigmoid((45 - base[:, 1]) / 10)
    noise = subject.tissue_noise * _waves(skin_noise, base, TISSUE_NOISE_MM, length_mm=28)
    face = template.refine(base + outward * (front * noise)[:, None])
    grain = skin_noise.normal(0, SKIN_GRAIN_MM, len(face))
    face = face + face / np.linalg.norm(face, axis=1, keepdims=True) * grain[:, None]
    landmarks = face[template.landmark_ids]
    landmarks[:NUM_CONTOUR] = outline_points(face, template.contour_chains)
    return Head(
        face=face,
        skull=skull,
        skull_triangles=triangles,
        landmarks=landmarks,
        chin_y=chin_y,
        sites=site_places,
    )


def tissue_depths(template: HeadTemplate, head: Head) -> dict[str, float]:
    """Site of ``tissue.SITES`` -> depth in mm, from the bone to where the site's direction leaves the skin.

    The mean of both sides. Measured on the surfaces, so it scatters about what the table set."""
    ways = tissue.ways()
    met = Surface(head.face, template.skin_triangles).exits(head.sites, ways)
    found = ((met - head.sites) * ways).sum(1)
    depths: dict[str, list[float]] = {}
    for (site, _), depth in zip(tissue.both_sides(), found, strict=True):
        depths.setdefault(site.name, []).append(float(depth))
    return {name: float(np.nanmean(values)) for name, values in depths.items()}


def _skull(
    template: HeadTemplate, subject: Subject, bony: np.ndarray, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """(S, 3) vertices, (T, 3) triangles, the height of the chin's lowest point and the (K, 3) places of the tissue
    sites, for a bony face (V, 3)."""
    traits = subject.skull
    skull = template.skull(traits.kind)
    if (
        traits.mirrored
    ):  # the carrier belongs to the template as it is: mirror the face, and then the skull back
        controls = bony[template.mirrored_control_ids] * [-1, 1, 1]
    else:
        controls = bony[template.control_ids]
    grooves, metopic = template.grooves(traits.kind)
    lines = [*grooves, metopic] if traits.metopic else grooves
    own = reference_detail(skull, traits, lines, template.local_shapes(traits.kind))
    carried = (template.carrier(traits.kind) @ controls.astype(np.float32)).astype(float)
    vertices = carried + (own - skull.vertices)
    places = carried[template.sites(traits.kind).skull_ids]  # without the detail that the face does not show
    if traits.mirrored:
        vertices, places = vertices * [-1, 1, 1], (places * [-1, 1, 1])[tissue.opposite()]
    vertices += _wave_vectors(noise, vertices, SKULL_NOISE_MM, length_mm=26)
    vertices += noise.normal(0, BONE_GRAIN_MM, vertices.shape)
    chin_y = float(vertices[skull.part == MANDIBLE, 1].min())
    triangles = kept_triangles(skull, traits, vertices, chin_y)
    return vertices, triangles[:, ::-1] if traits.mirrored else triangles, chin_y, places


def _bony_base(template: HeadTemplate, subject: Subject) -> np.ndarray:
    """Base vertices of the bony face: the lean head without soft parameters, aligned on its control vertices."""
    stage = life_stage(subject.bone_age)
    bone_stage = min(stage, YOUNG_ADULT) + BONE_AGEING * max(0.0, stage - YOUNG_ADULT)
    weights = template.weights(subject.femininity, bone_stage, subject.race, subject.bony)
    return template.aligned(template.shape(weights))


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
    angles = points.astype(np.float32) @ waves.T.astype(np.float32) + phase.astype(np.float32)
    return np.cos(angles).astype(float) @ amplitude * (rms_mm / np.sqrt(count / 2))


def _wave_vectors(
    rng: np.random.Generator, points: np.ndarray, rms_mm: float, length_mm: float
) -> np.ndarray:
    """(N, 3): three independent smooth fields."""
    return np.stack([_waves(rng, points, rms_mm, length_mm, count=12) for _ in range(3)], 1)
