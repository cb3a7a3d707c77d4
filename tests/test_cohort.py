"""The synthetic cohort: what decides a skull, what decides a face, framing, and the files it writes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.cohort.pair as pair_module
from data.biometrics import age_level
from data.cohort.config import CohortConfig
from data.cohort.heads import sliders, tissue
from data.cohort.heads.anatomy import Head, build_head
from data.cohort.heads.detail import reference_detail
from data.cohort.heads.proportions import NORMS_MM, reshape_vault, skin_sizes
from data.cohort.heads.rays import RayMesh
from data.cohort.heads.skulls import CRANIUM, MANDIBLE, SKULL_FILES, SPINE
from data.cohort.heads.subject import BMI_LIMITS, body_mass_level, draw_subject, expected_soft
from data.cohort.heads.template import HeadTemplate
from data.cohort.pair import (
    BORDER_PX,
    FramingError,
    border_distance,
    camera_of,
    draw_subject_pair,
    fits,
)
from data.render import Camera, Scene

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = HeadTemplate.load()
CAMERA = camera_of(CohortConfig())


def tissue_depths(head: Head) -> np.ndarray:
    """mm from each place on the bone to the skin in the site's direction, measured on the surfaces."""
    ways = tissue.directions()
    met = RayMesh(head.face, TEMPLATE.skin_triangles).outermost(head.sites, ways)
    return ((met - head.sites) * ways).sum(1)


@pytest.mark.parametrize("kind", SKULL_FILES)
def test_a_skull_template_is_whole_and_about_symmetric(kind):
    skull = TEMPLATE.skull(kind).template
    low, high = skull.vertices.min(0), skull.vertices.max(0)
    assert abs(low[0] + high[0]) < 4 and high[1] - low[1] > 150
    assert skull.triangles.min() == 0 and skull.triangles.max() == len(skull.vertices) - 1
    assert set(skull.part.tolist()) == {CRANIUM, MANDIBLE, SPINE}
    assert set(skull.dental_jaw.tolist()) == {1, 2} and np.isfinite(skull.dental_beyond).all()


def test_the_template_has_every_target_of_the_sliders():
    groups = (sliders.BONY, sliders.BONY_ASYMMETRIES, sliders.SOFT)
    single = [one for group in groups for one in group] + [sliders.FAT, sliders.CHEEK_VOLUME, sliders.AGEING]
    names = {side + end for one in single for side in one.sides for end in (one.plus, one.minus)}
    names |= {sliders.DOUBLE_CHIN, *sliders.HEAD_SHAPES, *sliders.AGED, *sliders.EXPRESSION}
    assert names | set(sliders.macro_targets()) <= set(TEMPLATE.target_names)


def test_the_carrier_gives_back_the_template_skull_and_follows_affine_maps():
    controls = reshape_vault(TEMPLATE.reference[TEMPLATE.control_ids])
    fitted = TEMPLATE.skull("model")
    skull, carrier = fitted.template.vertices, fitted.carrier
    assert np.abs(carrier @ controls - skull).max() < 0.05
    turn = np.array([[1.1, 0.1, 0], [0, 0.9, 0.05], [0.02, 0, 1]])
    shift = [3, -2, 5]
    assert np.abs(carrier @ (controls @ turn + shift) - (skull @ turn + shift)).max() < 0.05


def test_a_mirrored_skull_is_carried_by_the_mirrored_face():
    plain = draw_subject(5, 3)
    plain = replace(plain, bony={}, skull=replace(plain.skull, mirrored=False))
    turned = replace(plain, skull=replace(plain.skull, mirrored=True))
    one, other = (build_head(TEMPLATE, subject) for subject in (plain, turned))
    # A symmetric face: noise apart, the mirror image.
    assert np.abs(one.skull * [-1, 1, 1] - other.skull).mean() < 0.8
    assert np.abs(one.face - other.face).max() < 2 and one.chin_y == pytest.approx(other.chin_y, abs=2)


def test_reshaping_the_vault_folds_nothing_and_leaves_the_face_alone():
    axis = np.linspace(-120, 120, 241)
    for k in range(3):
        line = np.full((len(axis), 3), 30.0)
        line[:, k] = axis
        assert (np.diff(reshape_vault(line)[:, k]) > 0.5).all()
    face = np.array([[0, 0, 90], [30, 10, 70], [-40, -80, 60]], float)
    assert np.allclose(reshape_vault(face), face)


@pytest.mark.parametrize(("changed", "low", "high"), [("bmi", 16.0, 31.0), ("age", 20, 80)])
def test_body_mass_and_age_change_the_face_and_not_one_byte_of_the_skull(changed, low, high):
    subject = draw_subject(seed=5, index=4)
    one, other = (build_head(TEMPLATE, replace(subject, **{changed: value})) for value in (low, high))
    assert one.skull.tobytes() == other.skull.tobytes()
    assert one.skull_triangles.tobytes() == other.skull_triangles.tobytes()
    assert np.abs(one.face - other.face).max() > 3


def test_the_expected_face_knows_only_bone_and_prompt():
    subject = draw_subject(seed=5, index=4)
    twin = replace(subject, soft=draw_subject(5, 9).soft, scatter=(2.0, 1.0, -1.0, 2.0))
    twin = replace(twin, age=subject.age + 1, bmi=subject.bmi + 0.2)
    assert (age_level(twin.age), twin.body_mass) == (age_level(subject.age), subject.body_mass)
    own, expected, of_twin = (
        build_head(TEMPLATE, s) for s in (subject, expected_soft(subject), expected_soft(twin))
    )
    assert np.array_equal(own.skull, expected.skull) and np.array_equal(expected.face, of_twin.face)
    assert not np.allclose(own.face, expected.face, atol=1)


def test_the_expected_soft_shape_is_the_mean_of_the_drawn_ones():
    people = [draw_subject(6, k).soft for k in range(500)]
    expected = expected_soft(draw_subject(6, 0)).soft
    assert set().union(*people) == set(expected)
    for name, value in expected.items():
        drawn = np.array([person.get(name, 0.0) for person in people])
        assert abs(drawn.mean() - value) < 5 * drawn.std() / len(people) ** 0.5


def test_tissue_depths_are_the_tables_for_either_skull_and_grow_with_body_mass():
    subject = expected_soft(draw_subject(5, 3))
    for kind in SKULL_FILES:
        depths = []
        for bmi in (17.0, 30.0):
            who = replace(subject, skull=replace(subject.skull, kind=kind), bmi=bmi)
            depths.append(tissue_depths(build_head(TEMPLATE, who)))
            errors = depths[-1] - tissue.mean_depths(who.sex, who.age, bmi)
            assert np.nanmedian(np.abs(errors)) < 0.6 and np.nanmax(np.abs(errors)) < 4
        assert np.nanmin(depths[1] - depths[0]) > 0


def test_heads_have_the_published_mean_sizes():
    subjects = [subject for k in range(24) if (subject := draw_subject(11, k)).ethnicity == "Asian"]
    for sex, name in (("M", "male"), ("F", "female")):
        faces = [build_head(TEMPLATE, expected_soft(one)).face for one in subjects if one.sex == sex]
        marks = [face[TEMPLATE.landmark_ids] for face in faces]
        sizes = [skin_sizes(f[TEMPLATE.skin_ids], m[51], m[16]) for f, m in zip(faces, marks, strict=True)]
        assert np.abs(np.mean(sizes, 0)[:2] - NORMS_MM["asian", name][:2]).max() < 7


def test_lost_teeth_lower_the_jaw_and_leave_the_vault():
    fitted = TEMPLATE.skull("scan")
    skull = fitted.template
    traits = [
        replace(draw_subject(5, 3).skull, lost=np.full((4, 8), gone), crowding=0.0) for gone in (False, True)
    ]
    whole, lost = (reference_detail(skull, one, [], fitted.local_shapes) for one in traits)
    moved = np.abs(whole - lost).max(1)
    crowns = skull.dental_ids[(skull.dental_beyond > 5) & (skull.dental_weight > 0.9)]
    assert np.median(moved[crowns]) > 4 and moved[skull.vertices[:, 1] > -30].max() == 0


def test_contour_landmarks_lie_on_the_outline_whatever_the_body_mass():
    """Under a double chin the skin goes on into the neck without ever turning away."""
    for who, bmi in (((5, 3), 16.0), ((5, 3), 33.0), ((1, 2817), 33.0)):
        head = build_head(TEMPLATE, replace(draw_subject(*who), bmi=bmi))
        face = Scene(head.face, TEMPLATE.face_triangles, CAMERA, floor=head.chin_y - 22)
        assert (face.depth_at(head.landmarks[:33]) < 1.5).mean() > 0.8
        assert (np.diff(head.landmarks[:17, 0]) > -2.5).all()  # from the right ear to the chin
        assert head.landmarks[:33, 1].min() > head.landmarks[16, 1] - 3.5  # mm below the chin's middle


def test_nose_landmarks_go_round_the_nose():
    points = TEMPLATE.refine(TEMPLATE.reference)[TEMPLATE.landmark_ids]
    assert len(points) == 106
    assert (np.diff(points[57:64, 0]) > 0).all() and points[60, 1] == points[57:64, 1].min()
    assert np.abs(points[55:66] * [-1, 1, 1] - points[65:54:-1]).max() < 1.0


def test_a_subject_depends_on_seed_and_index_alone():
    one, again = draw_subject(7, 11), draw_subject(7, 11)
    assert one.bony == again.bony and one.soft == again.soft and one.residual_seed == again.residual_seed
    assert draw_subject(7, 12).bony != one.bony and draw_subject(8, 11).bony != one.bony
    redrawn = draw_subject(7, 11, attempt=1)
    assert (redrawn.sex, redrawn.age, redrawn.bmi) == (one.sex, one.age, one.bmi) and redrawn.bony != one.bony


def test_every_sex_body_mass_level_and_age_is_common_enough():
    people = [draw_subject(1, i) for i in range(1000)]
    levels = Counter(person.body_mass for person in people)
    assert sorted(levels) == [1, 2, 3, 4, 5] and min(levels.values()) > 0.08 * len(people)
    assert 0.45 < sum(person.sex == "M" for person in people) / len(people) < 0.55
    ages = np.array([person.age for person in people])
    assert ages.min() >= 16 and ages.max() <= 88 and 38 < np.median(ages) < 50
    assert all(14 < person.bmi < 34 for person in people)
    assert [body_mass_level(bmi) for bmi in BMI_LIMITS] == [2, 3, 4, 5]
    assert [body_mass_level(bmi - 0.1) for bmi in BMI_LIMITS] == [1, 2, 3, 4]


def test_a_camera_too_close_for_any_head_is_reported(monkeypatch):
    monkeypatch.setattr(pair_module, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(pair_module, "camera_of", lambda config: Camera(center_y=-11, half_field=80))
    with pytest.raises(FramingError, match="half_field"):
        draw_subject_pair(TEMPLATE, CohortConfig(), 0)


def test_a_head_that_does_not_fit_is_drawn_anew(monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(pair_module, "fits", lambda pair, camera: next(answers))
    _, pair = draw_subject_pair(TEMPLATE, CohortConfig(seed=4), 2)
    assert pair.subject.bony == draw_subject(4, 2, attempt=1).bony


def test_a_pair_keeps_its_distance_and_bone_stays_under_the_skin():
    scenes, pair = draw_subject_pair(TEMPLATE, CohortConfig(seed=3), 0)
    assert fits(pair, CAMERA) and min(map(border_distance, (pair.skull, pair.face))) >= BORDER_PX
    assert pair.visible.sum() > 80 and pair.visible[[51, 52, 53, 54]].all()  # the ridge of the nose
    skin, bone = scenes.face.trace().nearest(), scenes.skull.trace().nearest()
    inside = np.isfinite(bone) & np.isfinite(skin)
    depth = skin[inside] - bone[inside]
    assert (np.isfinite(bone) & ~inside).sum() < 5
    assert (depth < 0).sum() < 20 and np.median(depth) > 5  # px; none but at the edge of the mandible


def test_without_the_packages_of_the_extra_it_says_how_to_get_them(tmp_path):
    out = tmp_path / "cohort"
    code = (
        "import sys; sys.modules |= {'embreex': None, 'scipy': None}  # as if not installed\n"
        f"from data.cohort.__main__ import main; sys.exit(main([{str(out)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "embreex and scipy" in ended.stderr
    assert not out.exists()
