"""Format 9 of the cohort: what it varies, within which limits, and what it leaves as format 8 has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.cohort import wide
from data.cohort.config import CohortConfig
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.skulls import CRANIUM, MANDIBLE
from data.cohort.heads.subject import draw_subject, expected_soft
from data.cohort.heads.template import HeadTemplate
from data.cohort.lists import Exemplars, _line
from data.cohort.pair import camera_of, draw_subject_of
from data.cohort.protocols import draw_face_style
from data.cohort.variants import draw_pairs

CONFIG = CohortConfig.of(
    format=9, num_subjects=30, seed=3, valid_subjects=1, test_subjects=1, size=128, views=1
)


def test_people_keep_sex_age_and_ethnicity_and_vary_more() -> None:
    plain = [draw_subject(3, k) for k in range(300)]
    people = [draw_subject_of(CONFIG, k) for k in range(300)]
    for one, other in zip(plain, people, strict=True):
        same = ("name", "sex", "age", "ethnicity", "body_mass", "soft", "femininity")
        assert all(getattr(one, name) == getattr(other, name) for name in same)
    heavy = np.array([one.bmi for one in people if one.body_mass == 5])
    assert 40 < heavy.max() <= 44 and heavy.min() >= 25
    expected = [expected_soft(one).bmi for one in people if one.body_mass == 5]
    assert expected == pytest.approx([25 + 19 / 2.7] * len(expected))  # the mean of what is drawn
    assert heavy.mean() == pytest.approx(25 + 19 / 2.7, abs=1.5)
    deviations = [np.std([one.bony.get("asym-jaw-1-l", 0.0) for one in group]) for group in (people, plain)]
    assert deviations[0] / deviations[1] == pytest.approx(1.8)
    jaws = np.array([one.skull.jaw for one in people])
    toothless = np.array([one.skull.lost.all() for one in people])
    assert 0.02 < toothless.mean() < 0.12 and (jaws[toothless, 0] <= -2).all()
    assert jaws[~toothless, 0].min() == 0 and 4 < jaws[~toothless, 0].max() <= 5
    assert {one.skull.kind for one in people} == {"scan", "model"}
    assert all(np.isfinite(one.neck_mm) and 12 <= one.neck_mm <= 34 for one in people)


def test_a_mandible_opens_about_its_condyles_and_the_cranium_stays() -> None:
    template, subject = HeadTemplate.load(), draw_subject(3, 0)
    subject = replace(subject, skull=replace(subject.skull, kind="model"))
    rest = build_head(template, subject)
    posed = {
        jaw: build_head(template, replace(subject, skull=replace(subject.skull, jaw=jaw)))
        for jaw in ((5.0, 0.0, 0.0), (0.0, 2.0, -1.0))
    }
    part = template.skull(subject.skull.kind).template.part
    for head in posed.values():
        assert np.array_equal(head.skull[part == CRANIUM], rest.skull[part == CRANIUM])
        assert np.array_equal(head.face, rest.face) and head.chin_y == rest.chin_y
    opened, shifted = (head.skull[part == MANDIBLE] - rest.skull[part == MANDIBLE] for head in posed.values())
    front = rest.skull[part == MANDIBLE][:, 2].argmax()
    assert -10 < opened[front, 1] < -5  # the condyles stand about 85 mm behind: sin 5 degrees of that
    assert np.linalg.norm(opened, axis=1).min() < 1  # at the condyles
    assert np.allclose(shifted, [-1.0, 0.0, 2.0])


def test_poses_and_lamps_stay_within_their_limits() -> None:
    front = camera_of(CONFIG)
    poses = np.array([
        [(c.yaw, c.pitch, c.roll) for view in (0, 1) for c in [wide.posed(front, 3, k, view)]] for k in range(300)
    ])  # fmt: skip
    assert np.abs(poses).max() <= 6 and poses[:, 1].std(0) == pytest.approx(6 / np.sqrt(3), rel=0.1)
    assert poses[:, 0].std(0) == pytest.approx(2.5, rel=0.15)
    scans = [wide.skull_style(3, k) for k in range(300)]
    lamps = [scan.lamp for scan in scans if scan.lamp is not None]
    assert 0.5 < len(lamps) / 300 < 0.7
    assert 40 < max(one.degrees for one in lamps) <= 45 and 0.35 < max(one.falloff for one in lamps) <= 0.4
    plain = [
        one for one in (scan.surface for scan in scans) if (one.grain, one.noise, one.kernel) == (0, 0, 0)
    ]
    assert 0.25 < len(plain) / 300 < 0.45  # as data.ct draws bone
    assert wide.skull_style(3, 1) != wide.skull_style(3, 1, view=1) != wide.skull_style(3, 2, view=1)


def test_a_subject_is_shown_in_several_poses_lamps_and_surfaces(tmp_path: Path) -> None:
    index = next(k for k in range(30) if draw_subject_of(CONFIG, k).skull.kind == "model")
    template, name = HeadTemplate.load(), f"s{index:05d}"
    pairs = [*draw_pairs(template, CONFIG, index, frozenset([name, f"{name}_v1"]))]
    assert [pair.stem for pair in pairs] == [name, f"views/{name}_v1"]
    facts = [pair.record() for pair in pairs]
    assert facts[0]["style"] == facts[1]["style"] == draw_face_style(3, index).name
    assert facts[0]["skull_scan"] != facts[1]["skull_scan"] and facts[0]["face_scan"] == facts[1]["face_scan"]
    head = build_head(template, pairs[0].subject)
    for number, (pair, fact) in enumerate(zip(pairs, facts, strict=True)):
        camera = wide.posed(camera_of(CONFIG), 3, index, number)
        assert pair.landmarks.shape == (106, 2) and np.allclose(
            pair.landmarks, camera.project(head.landmarks)
        )
        (tmp_path / "subjects").mkdir(exist_ok=True)
        (tmp_path / f"subjects/{pair.name}.json").write_text(json.dumps(fact))
        extra = _line(tmp_path, pair.name, Exemplars(CONFIG), False)["extra"]
        assert extra == {
            key: pytest.approx(getattr(camera, key), abs=0.01) for key in ("yaw", "pitch", "roll")
        }
    assert CONFIG.identity()["format"] == 9 and CohortConfig().identity()["format"] == 8
