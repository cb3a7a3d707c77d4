"""Further pictures of a subject: turned views, faces at other ages, body masses and styles, and the expected face."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data.cohort.config import NUM_PROTOCOLS, CohortConfig
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.subject import (
    Subject,
    age_level,
    draw_subject,
    expected_soft,
    subject_name,
    with_age,
    with_bmi,
)
from data.cohort.heads.template import HeadTemplate
from data.cohort.pair import MAX_ATTEMPTS, FramingError, Pair, Sitter, camera_of, fits, seat
from data.cohort.protocols import (
    ScanStyle,
    draw_face_style,
    neutral,
    protocol_name,
    scanned_again,
    with_protocol,
)
from data.render import Camera

BMI_OF_LEVEL = {1: 16.0, 2: 17.8, 3: 19.8, 4: 23.0, 5: 28.0}  # kg/m2 of a variant, well inside its level
VIEW_YAW, VIEW_PITCH = 12.0, 8.0  # degrees at most from the cohort's own pose
# List and folder of expected faces: what the names of their pictures end in.
EXPECTED = {"ceiling": "_ceiling", "ceiling_neutral": "_neutral"}
VARIANT_BORDER_PX = 1  # a variant may come closer to the border than the subject itself, but is never cut
_VIEW_STREAM, _STYLE_STREAM = 1010, 1011  # apart from those of subjects and protocols


@dataclass(frozen=True)
class Variant:
    """``label`` completes the name; ``changed`` says what differs."""

    label: str
    changed: str
    subject: Subject
    style: ScanStyle


def variants_of(config: CohortConfig, subject: Subject, style: ScanStyle, index: int) -> list[Variant]:
    """One change at a time, each to another level of the prompt or another protocol than the subject has."""
    made = []
    for age in config.variant_ages:
        if age_level(age) != age_level(subject.age):
            made.append(Variant(f"_age{age}", "age", with_age(subject, age), style))
    for level in config.variant_masses:
        if level != subject.body_mass:
            heavier = with_bmi(subject, BMI_OF_LEVEL[level])
            made.append(Variant(f"_mass{level}", "body_mass", heavier, style))
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(index, _STYLE_STREAM)))
    others = [int(k) for k in rng.permutation(NUM_PROTOCOLS) + 1 if k != style.protocol]
    for number in others[: config.variant_styles]:
        label = f"_style{protocol_name(number)[1:]}"
        made.append(Variant(label, "style", subject, with_protocol(style, number)))
    return made


def make_pictures(
    template: HeadTemplate, config: CohortConfig, index: int, wanted: frozenset[str]
) -> Iterator[Pair]:
    """Those pictures of subject ``index`` whose names are wanted, the subject's own pair first.

    Raises:
        FramingError: a head does not fit the picture.
    """
    sitter, own = seat(template, config, index)
    if own.name in wanted:
        yield own
    yield from _views(config, index, sitter, own, wanted)
    for variant in variants_of(config, own.subject, own.face_style, index):
        if own.subject.name + variant.label in wanted:
            pair = _other_face(template, sitter, own, variant)
            yield replace(pair, folder="variants", label=variant.label, changed=(variant.changed,))
    styles = {"ceiling": scanned_again, "ceiling_neutral": neutral}
    for folder, label in EXPECTED.items():
        if own.subject.name + label in wanted:
            style = styles[folder](own.face_style)
            expected = Variant(label, "soft", expected_soft(own.subject), style)
            pair = _other_face(template, sitter, own, expected)
            changed = ("soft",) if folder == "ceiling" else ("soft", "style")
            yield replace(pair, folder=folder, label=label, changed=changed)


def names_of(config: CohortConfig, index: int, with_variants: bool, with_ceiling: bool) -> list[str]:
    """Names of all pictures of subject ``index``: its pair, its views, and what else it was chosen for."""
    name = subject_name(index)
    labels = ["", *view_labels(config)]
    if with_variants:
        subject, style = draw_subject(config.seed, index), draw_face_style(config.seed, index)
        labels += [variant.label for variant in variants_of(config, subject, style, index)]
    if with_ceiling:
        labels += EXPECTED.values()
    return [name + label for label in labels]


def view_labels(config: CohortConfig) -> list[str]:
    """What the names of the further views of any subject have beyond its own."""
    return [f"_v{k}" for k in range(1, config.views + 1)]


def _views(
    config: CohortConfig, index: int, sitter: Sitter, own: Pair, wanted: frozenset[str]
) -> Iterator[Pair]:
    """A view that does not fit is turned anew, so that every view depends on its own number alone."""
    for number, label in enumerate(view_labels(config), 1):
        if own.subject.name + label not in wanted:
            continue
        stream = np.random.SeedSequence(config.seed, spawn_key=(index, _VIEW_STREAM, number))
        rng = np.random.default_rng(stream)
        for _ in range(MAX_ATTEMPTS):
            camera = _turned(camera_of(config), rng)
            pair = sitter.pair(own.face_style, own.skull_style, camera)
            if fits(pair, camera):
                yield replace(pair, folder="views", label=label)
                break
        else:
            raise FramingError(f"{own.subject.name}: no view of {MAX_ATTEMPTS} fits; use a larger half_field")


def _turned(camera: Camera, rng: np.random.Generator) -> Camera:
    yaw, pitch = rng.uniform(-1, 1, 2) * (VIEW_YAW, VIEW_PITCH)
    return replace(
        camera,
        yaw=float(np.clip(camera.yaw + yaw, -14, 14)),
        pitch=float(np.clip(camera.pitch + pitch, -12, 12)),
    )


def _other_face(template: HeadTemplate, sitter: Sitter, own: Pair, variant: Variant) -> Pair:
    """Another face on the same skull."""
    if variant.subject is own.subject:  # another style alone
        face = sitter
    else:
        head = build_head(template, variant.subject)
        assert np.array_equal(head.skull, sitter.head.skull), (
            f"{own.subject.name}{variant.label} changed the skull"
        )
        face = Sitter.of(template, variant.subject, head, own.camera, with_skull=False)
    pair = face.pair(variant.style, own.skull_style, own.camera, with_skull=False)
    if not fits(pair, own.camera, VARIANT_BORDER_PX):
        raise FramingError(
            f"{own.subject.name}{variant.label}: the face leaves the picture; use a larger half_field than "
            f"{own.camera.half_field} mm"
        )
    return pair
