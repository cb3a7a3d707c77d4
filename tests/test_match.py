"""The matching network: towers, batches, loss, likelihood ratios, the search, and its energy of SPGD."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import read_image, write_png
from ldm.checkpoint import CheckpointError, sha256
from muti_control.case.calibration import CalibrationError
from muti_control.networks.config import MatchConfig
from muti_control.networks.match import MatchNet, load_match, sexes
from muti_control.sampling.energies import MatchEnergy
from muti_control.search.__main__ import main as search
from muti_control.search.calibrate import Pairs, cllr, figures, fitted_line
from muti_control.search.calibrate import main as calibrate
from muti_control.search.calibration import MatchCalibration, load_match_calibration
from muti_control.training.config import ExperimentConfig
from muti_control.training.stages.match import LikePeople, MatchPairs, MatchStage, ranks_of_people
from settings.reading import parse_command_line
from tests.conftest import ROOT, write_pairs

TINY = MatchConfig(image_size=32, widths=[4, 4, 8, 8], blocks=[1, 1], reduced=4, hidden=16, vector=8)


def tiny_net() -> MatchNet:
    torch.manual_seed(0)
    return MatchNet(TINY).eval()


# ---------------------------------------------------------------- network
def test_the_shipped_size_is_at_most_5_mb() -> None:
    with torch.device("meta"):
        assert 2 * sum(p.numel() for p in MatchNet(MatchConfig()).parameters()) < 5e6


def test_a_vector_depends_on_its_own_picture_and_not_on_light(tmp_path: Path) -> None:
    net, faces = tiny_net().requires_grad_(False), torch.rand(3, 3, 64, 64)
    vectors = net.face(faces)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(net.face(faces[1:2]), vectors[1:2])
    assert float((net.face(0.5 * faces + 0.2) * vectors).sum(1).min()) > 0.99
    assert float((vectors[0] * vectors[1]).sum()) < 1 - 1e-4
    skulls = net.skull(faces, sexes(["male", "female", None]))
    assert not torch.allclose(skulls[:2], net.skull(faces)[:2])
    torch.testing.assert_close(skulls[2], net.skull(faces)[2])
    net.save(tmp_path / "net.safetensors", torch.float32, {})
    torch.testing.assert_close(load_match(tmp_path / "net.safetensors").face(faces), vectors)
    with pytest.raises(CheckpointError, match="matching network"):
        load_match(ROOT / "models/demo/pipnet_face.safetensors")


def test_the_energy_pulls_a_face_towards_its_skull() -> None:
    net, skulls, sex = tiny_net(), torch.rand(2, 3, 64, 64), sexes(["male", None])
    energy = MatchEnergy(net, skulls, sex)
    faces = torch.rand(1, 3, 64, 64).mul(2).sub(1).requires_grad_()
    before = energy(faces, slice(1, 2))
    (g,) = torch.autograd.grad(before.sum(), faces)
    after = energy((faces - 0.05 * g / g.norm() * faces.norm()).detach(), slice(1, 2))
    assert after.item() < before.item() - 1e-4
    expected = 1 - (net.face(faces / 2 + 0.5)[0] * net.skull(skulls, sex)[1]).sum()
    assert before.item() == pytest.approx(expected.item(), abs=1e-6)


# ---------------------------------------------------------------- batches and loss
def test_hard_passes_keep_like_people_together_and_resume() -> None:
    groups = [("male" if k % 2 else "female", 1 + k % 3, 1) for k in range(60)]

    def batches(share: float, first: int = 0) -> LikePeople:
        loader = LikePeople(60, 10, seed=1, first_batch=first, count_passes=True)
        loader.groups, loader.hard_share = groups, share
        return loader

    def kinds(share: float) -> float:
        some = [batch for batch, _ in zip(batches(share), range(12), strict=False)]
        assert sorted(i for batch in some[:6] for i in batch) == list(range(60))
        return float(np.mean([len({groups[i % 60] for i in batch}) for batch in some]))

    assert kinds(1.0) <= 2 < 4 < kinds(0.0)
    whole = [batch for batch, _ in zip(batches(0.5), range(9), strict=False)]
    assert [batch for batch, _ in zip(batches(0.5, 4), range(5), strict=False)] == whole[4:]


def stage_of(root: Path, *settings: str) -> MatchStage:
    arguments = [str(ROOT / "configs/debug/match.yaml"), f"data.root={root}", f"out={root / 'runs'}"]
    cfg = parse_command_line(ExperimentConfig, [*arguments, "train.precision=fp32", *settings])
    return MatchStage.build(cfg, torch.device("cpu"))


def test_the_loss_is_infonce_and_a_person_is_no_negative_of_itself(tmp_path: Path) -> None:
    stage = stage_of(write_pairs(tmp_path, train=5, valid=2), "partial.share=0", "match.drop_sex=0")
    stage.eval()
    stage._trainer = type("Trainer", (), {"global_rank": 0})()  # what draws of random numbers ask for
    batch = {"skull": torch.rand(3, 1, 32, 32), "face": torch.rand(3, 1, 32, 32)}
    batch |= {"sex": sexes(["male", "female", "male"]), "index": torch.tensor([4, 1, 4])}
    loss = stage.loss_of(batch)["loss"]
    s = 10 * (stage.net.skull(batch["skull"], batch["sex"]) @ stage.net.face(batch["face"]).T)
    parts = [s[0, 0] - s[0, :2].logsumexp(0), s[1, 1] - s[1].logsumexp(0), s[2, 2] - s[2, 1:].logsumexp(0)]
    parts += [
        s[0, 0] - s[:2, 0].logsumexp(0),
        s[1, 1] - s[:, 1].logsumexp(0),
        s[2, 2] - s[1:, 2].logsumexp(0),
    ]
    assert loss.item() == pytest.approx(-sum(parts).item() / 6, rel=1e-5)


def test_pairs_are_altered_apart_and_the_same_again(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, train=5, valid=2)
    plain, altered = (stage_of(root, f"data.augment={x}", "match.flip=false").train_set for x in (0.0, 1.0))
    assert len(plain) == 5
    picture = read_image(root / "pairedCS/skull/train_2.png", 32)[0].mean(2)
    torch.testing.assert_close(plain[2]["skull"][0], torch.from_numpy(picture), atol=1 / 255, rtol=0)
    again: MatchPairs = stage_of(root, "match.flip=false").train_set
    items = [altered[2 + 5 * k] for k in range(6)]
    assert torch.equal(items[3]["face"], again[2 + 15]["face"])
    assert len({float(item["face"].sum()) for item in items}) > 3
    assert [float(plain[k]["sex"]) for k in (0, 1)] == [1, -1]


def test_ranks_are_of_people_by_other_pictures() -> None:
    scores = np.array([[9.0, 3, 4, 1], [2, 9, 5, 1], [0, 0, 9, 7], [0, 8, 0, 9]])
    assert ranks_of_people(scores, ["a", "a", "b", "c"]) == [2, 2, 1, 1]


def test_a_trained_network_can_be_loaded(trained: Callable[[str], Path]) -> None:
    net = load_match(trained("match") / "model.safetensors")
    assert net.cfg == TINY and not net.training


# ---------------------------------------------------------------- likelihood ratios
def made_up(num: int, seed: int, distance: float = 2.0) -> Pairs:
    """Scores of unit deviation, those of mated pairs so much higher: log LR = distance score - distance^2 / 2."""
    from types import SimpleNamespace

    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((num, num)) + distance * np.eye(num)
    people = [SimpleNamespace(biometrics=SimpleNamespace(sex="male")) for _ in range(num)]
    return Pairs(scores, np.arange(num), people)  # type: ignore[arg-type]


def test_the_ratio_is_that_of_two_known_distributions() -> None:
    slope, offset = fitted_line(made_up(400, 0))
    assert slope == pytest.approx(2, abs=0.25) and offset == pytest.approx(-2, abs=0.35)
    calibration = MatchCalibration(weights_sha256="", slope=2.0, offset=-2.0, limit=50.0, people=50)
    np.testing.assert_allclose(
        calibration.ratios(np.array([1.0, 2.0, 99.0, -99.0])), [1, np.exp(2), 50, 0.02]
    )
    report = figures(calibration, made_up(300, 1), 20)
    assert report["cllr_low"] < report["cllr"] < report["cllr_high"] < 0.75
    assert report["pairs_above_100"] == 0 and 0.1 < report["rank_1"] < 0.5
    for row in report["reliability"]:
        if min(row["mated"], row["others"]) > 20:
            assert abs(math.log(row["told"] / row["true"])) < 0.7
    wrong = MatchCalibration(weights_sha256="", slope=4.0, offset=4.0, limit=1e6, people=50)
    assert figures(wrong, made_up(300, 1), 5)["cllr"] > 1 < report["cllr"] + 1


def test_the_cost_of_ratios_by_hand() -> None:
    mated, other = np.array([3.0, 1.0]), np.array([1.0, 0.5, 7.0])
    expected = (np.log2(4 / 3) + 1) / 4 + (1 + np.log2(1.5) + 3) / 6
    assert cllr(mated, other, np.ones(2), np.ones(3)) == pytest.approx(expected)
    assert cllr(np.ones(4), np.ones(2), np.ones(4), np.ones(2)) == 1


# ---------------------------------------------------------------- the programs
@pytest.fixture(scope="module")
def world(trained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibrated network, and galleries of the shipped test people."""
    root = tmp_path_factory.mktemp("world")
    for kind, source in (("skulls", "skull"), ("faces", "craniofacial")):
        (root / kind).mkdir()
        for picture in sorted((ROOT / "data/pairedCS" / source).glob("*.png"))[:6]:
            (root / kind / picture.name).write_bytes(picture.read_bytes())
    (root / "net.safetensors").write_bytes((trained("match") / "model.safetensors").read_bytes())
    MatchCalibration(
        weights_sha256=sha256(root / "net.safetensors"), slope=3.0, offset=-1.0, limit=100.0, people=100
    ).save(root / "net.calibration.safetensors", np.array([[2.5, -1.0], [3.5, -1.0]]))
    return root


def run(world: Path, *settings: str) -> int:
    return search([f"weights={world / 'net.safetensors'}", f"cache={world / 'cache'}", *settings])


@pytest.mark.parametrize(("query", "gallery"), [("skull", "faces"), ("face", "skulls")])
def test_a_search_ranks_a_gallery_and_keeps_its_vectors(world, query, gallery, tmp_path, capsys):
    own = sorted((world / ("skulls" if query == "skull" else "faces")).iterdir())[0]
    told = (f"{query}={own}", f"gallery={world / gallery}", "sex=male")
    assert run(world, *told, f"out={tmp_path / 'one'}") == 0
    with (tmp_path / "one/ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, 7))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len({row["file"] for row in rows}) == 6
    ratio = math.exp(3 * scores[0] - 1)
    assert float(rows[0]["likelihood_ratio"]) == pytest.approx(ratio, rel=1e-4)
    assert float(rows[0]["low"]) < ratio < float(rows[0]["high"])
    sheet, _ = read_image(tmp_path / "one/sheet.png", 64)
    record = json.loads((tmp_path / "one/record.json").read_text())
    assert sheet.max() > 0.5 and "never an identification" in record["notice"][0]
    (world / gallery / "broken.png").write_text("no picture")
    capsys.readouterr()
    assert run(world, *told, f"out={tmp_path / 'two'}") == 0
    said = capsys.readouterr()
    assert "(0 new)" in said.out and "broken.png" in said.err
    assert (tmp_path / "two/ranking.csv").read_text() == (tmp_path / "one/ranking.csv").read_text()
    (world / gallery / "broken.png").unlink()


def test_a_changed_picture_is_read_again(world, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    write_png(folder / "a.png", picture)
    told = (
        f"skull={next((world / 'skulls').iterdir())}",
        f"gallery={folder}",
        "prepare=off",
        "overwrite=true",
    )
    assert run(world, *told, f"out={tmp_path / 'out'}") == 0
    before = (tmp_path / "out/ranking.csv").read_text()
    write_png(folder / "a.png", 255 - picture)
    os.utime(folder / "a.png", ns=(1, 1))
    assert run(world, *told, f"out={tmp_path / 'out'}") == 0
    assert (tmp_path / "out/ranking.csv").read_text() != before


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["gallery=FACES"], "skull"),
        (["skull=SKULL", "face=SKULL", "gallery=FACES"], "skull"),
        (["skull=SKULL"], "gallery"),
        (["skull=SKULL", "gallery=NOWHERE"], "gallery"),
        (["skull=SKULL", "gallery=EMPTY"], "gallery"),
        (["skull=NOWHERE", "gallery=FACES"], "NOWHERE"),
        (["skull=SKULL", "gallery=FACES", "sex=both"], "sex"),
        (["skull=SKULL", "gallery=FACES", "out=FACES"], "out"),
        (["skull=BLACK", "gallery=FACES"], "black.png"),
    ],
)
def test_what_cannot_be_searched_is_refused(world, tmp_path, settings, key, capsys):
    (tmp_path / "empty").mkdir()
    write_png(tmp_path / "black.png", np.zeros((64, 64, 3), np.uint8))
    places = {"FACES": world / "faces", "SKULL": sorted((world / "skulls").iterdir())[0]}
    places |= {"EMPTY": tmp_path / "empty", "BLACK": tmp_path / "black.png"}
    for name, place in places.items():
        settings = [setting.replace(name, str(place)) for setting in settings]
    out = [] if key == "out" else [f"out={tmp_path / 'out'}"]
    assert run(world, *settings, *out) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_calibration_of_other_weights_is_refused(world):
    with pytest.raises(CalibrationError, match="belongs to weights"):
        load_match_calibration(world / "net.safetensors", "0" * 64)


def test_calibrate_writes_what_the_search_reads(tmp_path):
    net = tmp_path / "net.safetensors"
    net.write_bytes((ROOT / "models/demo/match.safetensors").read_bytes())
    arguments = [f"weights={net}", f"data.root={ROOT / 'data'}", "valid=train.json", "test=test.json"]
    assert calibrate([*arguments, "people=6", "draws=3"]) == 0
    calibration, draws = load_match_calibration(net, sha256(net)) or pytest.fail("no calibration")
    assert calibration.people == 6 and draws.shape == (3, 2) and calibration.test["people"] == 6
