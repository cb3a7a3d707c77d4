"""Further pictures of a subject: turned views, faces at other ages, body masses and styles, and the expected faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from data.biometrics import age_level
from data.cohort import wide
from data.cohort.config import NUM_PROTOCOLS, CohortConfig
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.subject import Subject, expected_soft
from data.cohort.heads.template import HeadTemplate
from data.cohort.pair import (
    MAX_ATTEMPTS,
    FramingError,
    HeadScenes,
    Pair,
    camera_of,
    draw_subject_of,
    draw_subject_pair,
    fits,
)
from data.cohort.protocols import (
    ScanStyle,
    draw_face_style,
    neutral,
    protocol_name,
    scanned_again,
    with_protocol,
)

BMI_OF_LEVEL = {1: 16.0, 2: 17.8, 3: 19.8, 4: 23.0, 5: 28.0}  # kg/m2 of a variant, well inside its level
VIEW_YAW, VIEW_PITCH = 12.0, 8.0  # degrees at most from the cohort's own pose
MOST_YAW, MOST_PITCH = 14.0, 12.0  # degrees at most in all
# The expected faces, by list and folder: what the names of their pictures end in, what differs, and their style.
EXPECTED: dict[str, tuple[str, tuple[str, ...], Callable[[ScanStyle], ScanStyle]]] = {
    "ceiling": ("_ceiling", ("soft",), scanned_again),
    "ceiling_neutral": ("_neutral", ("soft", "style"), neutral),
}
VARIANT_BORDER_PX = 1  # a variant may come closer to the border than the subject itself, but is never cut
_VIEW_STREAM, _STYLE_STREAM = 1010, 1011  # apart from those of subjects and protocols


@dataclass(frozen=True)
class Variant:
    """``label`` completes the name; ``changed`` says what differs."""

    label: str
    changed: tuple[str, ...]
    subject: Subject
    style: ScanStyle


def variants_of(config: CohortConfig, subject: Subject, style: ScanStyle, index: int) -> list[Variant]:
    """Return one change at a time, each to another level of the prompt or another protocol than the subject has."""
    variants = [
        Variant(f"_age{age}", ("age",), replace(subject, age=age), style)
        for age in config.variant_ages
        if age_level(age) != age_level(subject.age)
    ]
    variants += [
        Variant(f"_mass{level}", ("body_mass",), replace(subject, bmi=BMI_OF_LEVEL[level]), style)
        for level in config.variant_masses
        if level != subject.body_mass
    ]
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(index, _STYLE_STREAM)))
    others = [int(k) for k in rng.permutation(NUM_PROTOCOLS) + 1 if k != style.protocol]
    variants += [
        Variant(f"_style{protocol_name(number)[1:]}", ("style",), subject, with_protocol(style, number))
        for number in others[: config.variant_styles]
    ]
    return variants


def draw_pairs(
    template: HeadTemplate, config: CohortConfig, index: int, names: frozenset[str]
) -> Iterator[Pair]:
    """Draw those pictures of subject ``index`` that ``names`` has, the subject's own pair first.

    Raises:
        FramingError: a head does not fit the picture.
    """
    scenes, own = draw_subject_pair(template, config, index)
    if own.name in names:
        yield own
    for number, label in enumerate(view_labels(config), 1):
        if own.subject.name + label in names:
            yield _view(config, index, number, label, scenes, own)
    faces = [("variants", one) for one in variants_of(config, own.subject, own.face_style, index)]
    for folder, (label, changed, restyled) in EXPECTED.items():
        face = Variant(label, changed, expected_soft(own.subject), restyled(own.face_style))
        faces.append((folder, face))
    for folder, variant in faces:
        if own.subject.name + variant.label in names:
            pair = _other_face(template, scenes, own, variant)
            yield replace(pair, folder=folder, label=variant.label, changed=variant.changed)


def variant_labels(config: CohortConfig, index: int) -> list[str]:
    """Return the endings of the names of a subject's variants."""
    subject, style = draw_subject_of(config, index), draw_face_style(config.seed, index)
    return [variant.label for variant in variants_of(config, subject, style, index)]


def view_labels(config: CohortConfig) -> list[str]:
    """Return the endings of the names of any subject's views."""
    return [f"_v{k}" for k in range(1, config.views + 1)]


def _view(config: CohortConfig, index: int, number: int, label: str, scenes: HeadScenes, own: Pair) -> Pair:
    """Draw a turned view; one that does not fit is turned anew, so that each depends on its own number alone."""
    stream = np.random.SeedSequence(config.seed, spawn_key=(index, _VIEW_STREAM, number))
    rng = np.random.default_rng(stream)
    front = camera_of(config)
    if config.wide:
        style = wide.skull_style(config.seed, index, number)
        pair = scenes.pair(wide.posed(front, config.seed, index, number), own.face_style, style)
        return replace(pair, folder="views", label=label)
    for _ in range(MAX_ATTEMPTS):
        yaw, pitch = rng.uniform(-1, 1, 2) * (VIEW_YAW, VIEW_PITCH)
        camera = replace(
            front,
            yaw=float(np.clip(front.yaw + yaw, -MOST_YAW, MOST_YAW)),
            pitch=float(np.clip(front.pitch + pitch, -MOST_PITCH, MOST_PITCH)),
        )
        pair = scenes.pair(camera, own.face_style, own.skull_style)
        if fits(pair, camera):
            return replace(pair, folder="views", label=label)
    raise FramingError(f"{own.subject.name}: no view of {MAX_ATTEMPTS} fits; use a larger half_field")


def _other_face(template: HeadTemplate, scenes: HeadScenes, own: Pair, variant: Variant) -> Pair:
    """Draw another face on the same skull. Raises: FramingError."""
    name = own.subject.name + variant.label
    if variant.subject is not own.subject:  # else another style alone
        head = build_head(template, variant.subject)
        assert np.array_equal(head.skull, scenes.head.skull), f"{name} changed the skull"
        scenes = HeadScenes.of(template, variant.subject, head, own.camera, with_skull=False)
    pair = scenes.pair(own.camera, variant.style, own.skull_style, with_skull=False)
    if not fits(pair, own.camera, VARIANT_BORDER_PX):
        raise FramingError(
            f"{name}: the face leaves the picture; use a larger half_field than {own.camera.half_field} mm"
        )
    return pair
