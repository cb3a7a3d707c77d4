"""The baselines of an evaluation, its controls and the distance of pictures, on arrays whose answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.manifest import read_manifest
from muti_control.evaluation.judges.features import DISTANCES, feature
from muti_control.evaluation.methods.baselines import (
    Components,
    Ridge,
    Vocabulary,
    choose_ridge,
    group_weights,
    nearest_skull,
    shuffle_within_groups,
)
from muti_control.evaluation.methods.controls import permuted, shuffled_donors
from muti_control.evaluation.protocol.inputs import probe_rows
from muti_control.evaluation.results.statistics import ranks_of_truth

NUM = 40


@pytest.fixture
def gallery() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1, 0.9, (NUM, 64)).astype(np.float32)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_agree_with_their_definition(gallery, distance):
    gallery[:, :20] = 0.0  # background
    probes = gallery[:5] * 0.9 + 0.03
    mean = gallery.mean(axis=0)

    def definition(a: np.ndarray, b: np.ndarray) -> float:
        if distance == "rms":
            return float(np.sqrt(((a - b) ** 2).mean()))
        if distance == "face_rms":
            return float(np.sqrt(((a - b)[b > 0.02] ** 2).mean()))
        if distance == "mean_absolute":
            return float(np.abs(a - b).mean())
        return float(1 - (a - mean) @ (b - mean) / np.linalg.norm(a - mean) / np.linalg.norm(b - mean))

    expected = [[definition(a, b) for b in gallery] for a in probes]
    np.testing.assert_allclose(DISTANCES[distance](probes, gallery, mean), expected, atol=1e-5)


def test_donors_come_from_where_the_record_says(make_pairs):
    root = make_pairs(train=8, valid=2, test=5)  # groups of the test split: 2, 1, 1, 1
    train, gallery = (read_manifest(root / "split_data" / f"{name}.json") for name in ("train", "test"))
    donors = shuffled_donors(gallery, gallery, train, seed=0)
    assert donors.counts() == {"held_out": 2, "train": 3, "outside": 0, "nobody": 0}
    assert donors.records[0].subject == "test4" and donors.records[4].subject == "test0"
    assert donors.columns.tolist() == [4, -1, -1, -1, 0]
    for record, probe in zip(donors.records, gallery, strict=True):
        assert record.biometrics.sex == probe.biometrics.sex
    lonely = shuffled_donors(gallery, gallery, [], seed=0)
    assert lonely.counts()["nobody"] == 3 and lonely.records[1] is None


def test_components_rebuild_their_rows():
    rows = np.random.default_rng(4).normal(size=(12, 30))
    components = Components.fit(rows, 100)
    np.testing.assert_allclose(components.axes @ components.axes.T, np.eye(11), atol=1e-9)
    np.testing.assert_allclose(components.project(rows) @ components.axes + components.mean, rows, atol=1e-9)
    np.testing.assert_allclose(components.project(rows).std(axis=0), components.deviations, atol=1e-9)


def test_ridge_finds_a_linear_map_and_shrinks_to_the_mean():
    rng = np.random.default_rng(5)
    skulls, attributes = rng.normal(size=(200, 40)), rng.integers(0, 2, (200, 3)).astype(float)
    faces = skulls @ rng.normal(size=(40, 25)) + attributes @ rng.normal(size=(3, 25)) + 0.5
    train, test = slice(0, 150), slice(150, 200)
    split = [(skulls[s], attributes[s], faces[s]) for s in (train, test)]
    ridge, strength, choice = choose_ridge(split[0], split[1], num_components=(5, 60))
    assert choice["components"] == 60
    predicted = ridge.predict(skulls[test], attributes[test], strength)
    np.testing.assert_allclose(predicted, faces[test], atol=0.05)
    skull, face = (Components.fit(split[0][i], 60) for i in (0, 2))
    shrunk = Ridge(*split[0], skull, face).predict(skulls[test], attributes[test], 1e9)
    np.testing.assert_allclose(shrunk, np.tile(faces[train].mean(axis=0), (50, 1)), atol=1e-4)
    weights = ridge.weights(skulls[test], attributes[test], strength)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights @ faces[train], predicted, atol=1e-6)


def test_ranks_without_the_donors_face_and_with_ties(gallery):
    donors = np.roll(np.arange(NUM), 1)
    donors[0] = -1  # a donor from outside the gallery
    # of a model that draws its skull perfectly
    distances = DISTANCES["rms"](gallery[donors], gallery, gallery[0])
    every, excluded = (ranks_of_truth(distances, np.arange(NUM), columns) for columns in (None, donors))
    assert every[1:].min() > 1  # the donor is always nearer: below chance by construction
    assert (every[1:] - excluded[1:] == 1).all() and every[0] == excluded[0]
    assert ranks_of_truth(np.zeros((2, 7)), np.array([0, 6])).tolist() == [7, 7]
    with pytest.raises(ValueError, match="not finite"):
        ranks_of_truth(np.full((1, 3), np.nan), np.array([0]))


def test_features_are_block_averages_of_grey():
    picture = np.kron(np.arange(16).reshape(4, 4), np.ones((8, 8))).astype(np.uint8)
    np.testing.assert_allclose(feature(picture, side=4), np.arange(16) / 255, rtol=1e-6)
    with pytest.raises(ValueError, match="multiples of 5"):
        feature(picture, side=5)


def test_the_nearest_skull_the_mean_of_a_group_and_levels():
    train = np.array([[0.0, 0.0], [1.0, 1.0], [0.1, 0.0]])
    assert nearest_skull(train, np.array([[0.09, 0.0], [0.8, 0.9]])).tolist() == [2, 1]
    groups = [("male", 1, 4, "Asian"), ("male", 1, 3, "Asian"), ("female", 2, 4, "Asian")]
    others = [("male", 1, 3, "Asian"), ("male", 1, 1, "Asian"), ("other", 1, 1, "Asian")]  # two fall back
    weights = group_weights(groups, others)
    np.testing.assert_allclose(weights @ np.array([0.0, 1.0, 5.0]), [1.0, 0.5, 2.0])
    codes = Vocabulary.of(groups).encode([("female", 1, 5, "Asian")])  # training had no such body mass
    np.testing.assert_array_equal(codes, [[1, 0, 1, 0, 0, 0, 1]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 40), st.integers(1, 12))
def test_others_are_drawn_without_replacement_and_are_others(seed, size, num):
    other = permuted(size, seed)
    assert sorted(other) == list(range(size)) and (other != np.arange(size)).all()
    rows = probe_rows(size, num, seed)
    assert len(set(rows.tolist())) == min(size, num) and (np.diff(rows) > 0).all()

    pool, rng = [f"s{i}" for i in range(size)], np.random.default_rng(seed)
    own, strangers = pool[:num], [f"t{i}" for i in range(num)]
    for subjects in (own, strangers):
        donors = shuffle_within_groups(["g"] * len(subjects), ["g"] * size, subjects, pool, rng)
        assert len(set(donors[donors >= 0].tolist())) == min(len(subjects), size)
        assert all(pool[j] != subject for j, subject in zip(donors, subjects, strict=True) if j >= 0)


@pytest.mark.parametrize("num", [1, 2])
def test_one_training_pair_and_two_of_one_skull_give_their_mean(num: int) -> None:
    rng = np.random.default_rng(0)
    skull, faces, attributes = rng.random((1, 50)), rng.random((num, 40)), np.ones((num, 1))
    train = (np.repeat(skull, num, axis=0), attributes, faces)
    valid = (rng.random((1, 50)), attributes[:1], rng.random((1, 40)))
    ridge, strength, _ = choose_ridge(train, valid, num_components=(5, 60))
    np.testing.assert_allclose(ridge.predict(*valid[:2], strength), faces.mean(0)[None], atol=1e-9)
    np.testing.assert_allclose(ridge.weights(*valid[:2], strength), np.full((1, num), 1 / num), atol=1e-9)
