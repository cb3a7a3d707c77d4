"""The baselines of an evaluation, its controls and the distance of pictures, on arrays whose answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.manifest import read_manifest
from muti_control.evaluation.judges.features import DISTANCES, picture_features
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
from muti_control.evaluation.results.statistics import (
    ranks_of_truth,
)

NUM = 40


@pytest.fixture
def gallery() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1, 0.9, (NUM, 64)).astype(np.float32)


def ranks(probes: np.ndarray, gallery: np.ndarray, truth: np.ndarray, distance: str) -> np.ndarray:
    return ranks_of_truth(DISTANCES[distance](probes, gallery, gallery.mean(axis=0)), truth)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_perfect_reconstruction_is_always_first(gallery, distance):
    assert (ranks(gallery, gallery, np.arange(NUM), distance) == 1).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_predictions_that_know_nothing_do_as_chance(gallery, distance):
    rng = np.random.default_rng(2)
    predictions = rng.uniform(0.1, 0.9, (2000, 64)).astype(np.float32)
    found = ranks(predictions, gallery, np.arange(2000) % NUM, distance)
    assert (found == 1).mean() == pytest.approx(1 / NUM, abs=0.012)
    assert (found <= 5).mean() == pytest.approx(5 / NUM, abs=0.025)
    assert found.mean() == pytest.approx((NUM + 1) / 2, abs=1)


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


def test_ties_count_against_the_truth():
    assert ranks_of_truth(np.zeros((2, 7)), np.array([0, 6])).tolist() == [7, 7]


def test_the_donors_own_face_does_not_count(gallery):
    donors = np.roll(np.arange(NUM), 1)
    donors[0] = -1  # a donor from outside the gallery
    shuffled = gallery[donors]  # a model that draws the skull it was given, perfectly
    truth = np.arange(NUM)
    every, excluded = (
        ranks_of_truth(DISTANCES["rms"](shuffled, gallery, gallery[0]), truth, columns)
        for columns in (None, donors)
    )
    assert every[1:].min() > 1  # the donor is always nearer: below chance by construction
    assert (every[1:] - excluded[1:] == 1).all() and every[0] == excluded[0]


def test_a_broken_reconstruction_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        ranks_of_truth(np.full((1, 3), np.nan), np.array([0]))


def test_block_averages():
    pictures = np.kron(np.arange(16.0).reshape(1, 4, 4), np.ones((1, 8, 8)))
    np.testing.assert_allclose(picture_features(pictures, size=4), np.arange(16.0)[None])
    coloured = np.stack([pictures, pictures + 3, pictures - 3], axis=-1)
    np.testing.assert_allclose(picture_features(coloured, size=4), np.arange(16.0)[None])
    with pytest.raises(ValueError, match="multiples of 5"):
        picture_features(pictures, size=5)


def test_the_nearest_skull_and_the_mean_of_a_group():
    train = np.array([[0.0, 0.0], [1.0, 1.0], [0.1, 0.0]])
    assert nearest_skull(train, np.array([[0.09, 0.0], [0.8, 0.9]])).tolist() == [2, 1]
    faces = np.array([[0.0], [1.0], [5.0]])
    groups = [("male", 1, 4, "Asian"), ("male", 1, 3, "Asian"), ("female", 2, 4, "Asian")]
    asked = [("male", 1, 3, "Asian"), ("male", 1, 1, "Asian"), ("other", 1, 1, "Asian")]  # two fall back
    np.testing.assert_allclose((group_weights(groups, asked) @ faces)[:, 0], [1.0, 0.5, 2.0])


def test_shuffling_keeps_the_group_and_changes_the_subject():
    rng = np.random.default_rng(3)
    groups = [("m", 1), ("m", 1), ("f", 1)]
    chosen = shuffle_within_groups(groups, groups, ["a", "b", "c"], ["a", "b", "c"], rng)
    assert chosen.tolist() == [1, 0, -1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 12), st.integers(1, 12))
def test_donors_are_drawn_without_replacement(seed, size, asked):
    subjects = [f"s{i}" for i in range(size)]
    probes = [f"s{i}" for i in range(asked)]  # some of them in the pool, and some not
    rng = np.random.default_rng(seed)
    inside = probes[:size]
    chosen = shuffle_within_groups(["g"] * len(inside), ["g"] * size, inside, subjects, rng)
    assert len(set(chosen.tolist())) == len(inside)
    assert all(j != i for i, j in enumerate(chosen))
    strangers = [f"t{i}" for i in range(asked)]
    chosen = shuffle_within_groups(["g"] * asked, ["g"] * size, strangers, subjects, rng)
    assert len(set(chosen.tolist())) == min(asked, size)


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


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**16))
def test_permuted_names_are_others(num, seed):
    other = permuted(num, seed)
    assert sorted(other) == list(range(num)) and (other != np.arange(num)).all()


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
    ridge, strength, chosen = choose_ridge(split[0], split[1], num_components=(5, 60))
    assert chosen["components"] == 60
    np.testing.assert_allclose(
        ridge.predict(skulls[test], attributes[test], strength), faces[test], atol=0.05
    )
    skull, face = (Components.fit(split[0][i], 60) for i in (0, 2))
    shrunk = Ridge(*split[0], skull, face).predict(skulls[test], attributes[test], 1e9)
    np.testing.assert_allclose(shrunk, np.tile(faces[train].mean(axis=0), (50, 1)), atol=1e-4)
    weights = ridge.weights(skulls[test], attributes[test], strength)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    predicted = ridge.predict(skulls[test], attributes[test], strength)
    np.testing.assert_allclose(weights @ faces[train], predicted, atol=1e-6)


def test_vocabulary_leaves_unseen_levels_blank():
    groups = [("male", 1, 4, "Asian"), ("female", 3, 4, "Asian")]
    vocabulary = Vocabulary.of(groups)
    np.testing.assert_array_equal(vocabulary.encode([("female", 1, 5, "Asian")]), [[1, 0, 1, 0, 0, 1]])


def test_probes_are_drawn_once_and_in_order():
    assert probe_rows(5, 0, 0).tolist() == [0, 1, 2, 3, 4]
    rows = probe_rows(100, 30, 7)
    assert len(set(rows.tolist())) == 30
    assert (np.diff(rows) > 0).all()
    assert probe_rows(100, 101, 0).tolist() == list(range(100))
