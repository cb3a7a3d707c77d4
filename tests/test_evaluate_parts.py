"""The parts of an evaluation, on arrays whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from ldm.checkpoint import write_state_dict
from muti_control.evaluation.judges import photo_networks
from muti_control.evaluation.judges.dlib_recogniser import RecogniserError
from muti_control.evaluation.judges.onnx_recogniser import (
    TEMPLATE,
    OnnxEye,
    aligned,
    cosine_distances,
    five_points,
)
from muti_control.evaluation.judges.ood import Density, OddityError, nearest_distances, score_skulls
from muti_control.evaluation.judges.sightings import CacheError, Sightings
from muti_control.evaluation.measuring import Verdict

RNG_SEED = 3


def test_the_density_agrees_with_the_covariance_it_stands_for():
    rng = np.random.default_rng(RNG_SEED)
    rows = rng.normal(size=(400, 12)) * np.array([5, 3, 2, *[0.5] * 9])
    density = Density.fit(rows, num=3)
    covariance = density.axes.T @ np.diag(density.variances - density.noise) @ density.axes
    covariance += density.noise * np.eye(12)
    other = rng.normal(size=(5, 12)) * 4
    centred = other - rows.mean(axis=0)
    expected = np.sqrt((centred @ np.linalg.inv(covariance) * centred).sum(axis=1) / 12)
    np.testing.assert_allclose(density.distances(other), expected, rtol=1e-9)
    assert 0.9 < density.distances(rows).mean() < 1.05  # about 1 for its own


def test_strange_skulls_score_high_and_usual_ones_as_the_training_skulls_do():
    rng = np.random.default_rng(RNG_SEED)
    mixing = rng.normal(size=(6, 40))

    def skulls(num: int) -> np.ndarray:
        return rng.normal(size=(num, 6)) @ mixing + 0.1 * rng.normal(size=(num, 40))

    train = skulls(300)
    subjects = [f"s{i // 2}" for i in range(300)]
    usual, scores = score_skulls(skulls(300), train, subjects)
    assert (usual > scores.threshold).mean() < 0.05
    assert sum(scores.reference) == pytest.approx(1) and len(scores.edges) == len(scores.reference) + 1
    strange, _ = score_skulls(skulls(20) + 3, train, subjects)  # off the plane of all others
    assert strange.min() > scores.threshold
    twin, _ = score_skulls(train[:3], train, subjects)
    assert nearest_distances(train[:3], train).max() < 1e-6 and twin.max() < strange.min()
    with pytest.raises(OddityError, match="needs 20"):
        score_skulls(usual, train[:10], subjects[:10])


# ---------------------------------------------------------------- networks of the user's own
def test_an_onnx_network_gets_the_aligned_face(tmp_path):
    shapes = {"x": [1, 3, 56, 56], "y": [1, 3 * 56 * 56]}  # it gives its input as one row
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "flat", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    path = tmp_path / "flat.onnx"
    path.write_bytes(model.SerializeToString())
    picture, face = made_up_face()
    dlib = SimpleNamespace(identity={}, look=lambda _: np.concatenate([np.zeros(128), face.ravel()]))
    vector = OnnxEye(path, dlib).look(picture)
    expected = (aligned(picture, face, 56).astype(np.float32) - 127.5) / 127.5
    np.testing.assert_allclose(vector, np.tile(expected.ravel(), 3), atol=1e-6)
    dlib.look = lambda _: None
    assert OnnxEye(path, dlib).look(picture) is None
    path.write_bytes(b"no network")
    for file, message in (
        (path, "flat.onnx cannot be read as a network"),
        (tmp_path / "none.onnx", "is no file"),
    ):
        with pytest.raises(RecogniserError, match=message):
            OnnxEye(file, dlib)
    a, b = np.random.default_rng(1).normal(size=(2, 3, 5))
    expected = [[1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
    np.testing.assert_allclose(cosine_distances(a, b), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "usable"),
    [
        (["n", 3, 56, 56], True), ([1, 3, "h", "w"], True), (["n", "c", "h", "w"], True),
        ([1, 3, 0, 0], False), ([1, 3, 2**20, 2**20], False), ([1, 56, 56, 3], False), ([3, 56, 56], False),
        ([1, 3, 56, 112], False), ([8, 3, 56, 56], False), ([], False),
    ],
)  # fmt: skip
def test_inputs_of_onnx_networks(tmp_path, shape, usable):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "flat", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    path = tmp_path / "flat.onnx"
    path.write_bytes(model.SerializeToString())
    picture, face = made_up_face()
    dlib = SimpleNamespace(identity={}, look=lambda _: np.concatenate([np.zeros(128), face.ravel()]))
    if usable:
        side = 56 if 56 in shape else 112
        assert OnnxEye(path, dlib).look(picture).shape == (3 * side * side,)
    else:
        with pytest.raises(RecogniserError, match=r"onnx: .*flat\.onnx"):
            OnnxEye(path, dlib)


def made_up_face(size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a bright spot at each of five of 68 points."""
    face = np.random.default_rng(0).uniform(60, 190, (68, 2))
    places = {36: (92, 110), 42: (150, 112), 30: (121, 145), 48: (98, 175), 54: (146, 177)}
    for first, place in places.items():
        face[first : first + 6 if first in (36, 42) else first + 1] = place
    picture = np.zeros((size, size), np.uint8)
    for x, y in places.values():
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    return picture, face


def test_faces_are_laid_onto_the_template_as_scikit_image_does():
    transform = pytest.importorskip("skimage.transform")
    picture, face = made_up_face()
    fitted = transform.SimilarityTransform.from_estimate(five_points(face), TEMPLATE)
    expected = transform.warp(picture / 255, fitted.inverse, output_shape=(112, 112), order=3)
    laid = aligned(picture, face, 112) / 255
    assert np.abs(laid - expected).mean() < 0.004 and np.abs(laid - expected).max() < 0.2
    x, y = np.rint(TEMPLATE[2]).astype(int)
    assert laid[y - 3 : y + 4, x - 3 : x + 4].max() > 0.5


def test_features_for_kid_are_those_of_torchvisions_network(tmp_path, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setattr(photo_networks, "LAYOUTS", {"layer4.1.conv2.weight": ("resnet18", 64)})
    network = models.resnet18(weights=None).eval()
    path = tmp_path / "resnet.safetensors"
    write_state_dict(path, network.state_dict(), {})
    pictures = np.random.default_rng(2).integers(0, 256, (2, 64, 64)).astype(np.uint8)
    features = photo_networks.Backbone(path).features(pictures)
    normalise = pytest.importorskip("torchvision.transforms").Normalize(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        x = normalise(torch.from_numpy(pictures)[:, None].expand(-1, 3, -1, -1) / 255)
        np.testing.assert_allclose(features, network(x).numpy(), atol=1e-5)
    write_state_dict(path, {"a.weight": torch.zeros(2)}, {})
    with pytest.raises(photo_networks.BackboneError, match="no state dict of torchvision's resnet18"):
        photo_networks.Backbone(path)


# ---------------------------------------------------------------- ranks, cache
def test_faces_that_miss_alone_find_the_truth_together():
    verdict = Verdict.empty(2)
    for row in ([4, 1, 9, 9], [4, 9, 1, 9], [4, 9, 9, 1]):  # each mistakes the first face for another one
        verdict.enter(0, np.array(row, float), truth=0, excluded=-1, size=4)
    assert verdict.draws[0] == [2, 2, 2] and verdict.together[0] == [2, 1, 1]
    assert verdict.ranks[0] == 2  # that of the first face, as of a method that draws one
    # no face in the first picture, the truth in the second, and then the skull's lender, who does not count
    for row, excluded in ((None, -1), ([5, 1, 9, 9], -1), ([0, 7, 9, 9], 0)):
        verdict.enter(1, row and np.array(row, float), truth=1, excluded=excluded, size=4)
    assert verdict.draws[1][:2] == [4, 1] and verdict.together[1] == [4, 1, 1] and verdict.missed == {1}


class CountingEye:
    """Sees the mean of a picture, and no face in a black one."""

    name, cached = "counting", True

    def __init__(self, version: int = 1) -> None:
        self.identity, self.looks = {"version": version}, 0

    def look(self, picture):
        self.looks += 1
        return np.array([picture.mean()], np.float32) if picture.any() else None


def test_nothing_is_looked_at_twice_but_by_another_eye(tmp_path):
    pictures = [np.full((8, 8), value, np.uint8) for value in (0, 3, 3, 5)]
    eye = CountingEye()
    for _ in range(2):
        with Sightings(tmp_path / "seen.sqlite") as sightings:
            seen = [sightings.look(eye, picture) for picture in pictures]
        assert seen[0] is None and [float(v[0]) for v in seen[1:]] == [3, 3, 5]
    assert eye.looks == 3
    with Sightings(tmp_path / "seen.sqlite") as sightings:
        sightings.look(newer := CountingEye(version=2), pictures[1])
    assert newer.looks == 1
    (tmp_path / "broken.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 50)
    with pytest.raises(CacheError, match=r"broken.sqlite cannot be used"):
        Sightings(tmp_path / "broken.sqlite")
