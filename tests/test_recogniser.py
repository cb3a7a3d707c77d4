"""The independent judge of identity: distances against other implementations, dlib on faces that the cohort draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import orthogonal_procrustes

from muti_control.evaluation.judges.dlib_recogniser import (
    Recogniser,
    RecogniserError,
    descriptor_distances,
    procrustes_distances,
)

DATA = Path(__file__).resolve().parent.parent / "data"
# dlib's 68 points -> our 106: chin, bridge and tip of the nose, mouth corners
DLIB_OF_OURS = {8: 16, 27: 51, 30: 54, 33: 57, 48: 84, 54: 90}


@pytest.fixture(scope="module")
def faces() -> dict[str, np.ndarray]:
    paths = sorted((DATA / "pairedCS" / "craniofacial").glob("*.png"))[:4]
    return {path.stem: np.asarray(Image.open(path).convert("L")) for path in paths}


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser()


def test_procrustes_is_what_rotating_and_subtracting_gives():
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(5, 68, 2))
    result = procrustes_distances(shapes[:3], shapes)
    for i in range(3):
        for j in range(5):
            a, b = (s - s.mean(0) for s in (shapes[i], shapes[j]))
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
            rotation, _ = orthogonal_procrustes(a, b)
            if np.linalg.det(rotation) < 0:  # a reflection: not allowed here
                u, _, vt = np.linalg.svd(a.T @ b)
                rotation = u @ np.diag([1, -1]) @ vt
            assert result[i, j] == pytest.approx(np.linalg.norm(a @ rotation - b), abs=1e-7)
    for wrong in (np.zeros((1, 68, 2)), shapes[0]):
        with pytest.raises(ValueError):
            procrustes_distances(wrong, shapes)


def test_points_lie_on_the_face(recogniser, faces):
    for name, face in faces.items():
        _, points = recogniser.look(face)
        record = json.loads((DATA / "pairedCS" / "landmarks" / f"{name}.json").read_text(encoding="utf-8"))
        truth = np.array(record["points"])
        error = [np.linalg.norm(points[k] - truth[ours]) for k, ours in DLIB_OF_OURS.items()]
        assert np.median(error) < 5, name  # px; the face is about 120 px wide


def test_a_person_is_nearer_to_a_blurred_self_than_to_others(recogniser, faces):
    pictures = list(faces.values())
    shrunk = [Image.fromarray(face).resize((160, 160), Image.Resampling.BICUBIC) for face in pictures]
    again = [np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC)) for small in shrunk]
    gallery, shapes, probes, probe_shapes = (
        np.stack([recogniser.look(picture)[k] for picture in side])
        for side in (pictures, again)
        for k in (0, 1)
    )
    assert (descriptor_distances(probes, gallery).argmin(1) == np.arange(len(pictures))).all()
    assert (procrustes_distances(probe_shapes, shapes).argmin(1) == np.arange(len(pictures))).all()


def test_the_detector_agrees_with_the_fixed_rectangle_and_refuses_what_is_no_face(recogniser, faces):
    face, detector = next(iter(faces.values())), Recogniser(rectangle=None)
    assert np.linalg.norm(recogniser.look(face)[1] - detector.look(face)[1], axis=1).mean() < 6
    black = np.zeros((256, 256), np.uint8)
    for judge, picture, message in ((detector, black, "no face"), (recogniser, black / 1, "expected")):
        with pytest.raises(RecogniserError, match=message):
            judge.look(picture)
