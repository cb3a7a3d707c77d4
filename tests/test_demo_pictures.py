"""benchmarks.model.demo_pictures: who is shown, that the faces are those of sample.py, and plates pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model_config
from landmark_pairs import LAYOUT, write_landmark_model, write_landmark_pairs
from PIL import Image

import sample
from benchmarks.model import demo_pictures
from benchmarks.model.demo_pictures import PEOPLE, PicturesConfig, open_studio
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from data.cases import cases_of
from ldm.checkpoint import write_state_dict
from ldm.config import TextureConfig
from muti_control.sampling.plate import (
    CROP,
    FRAME,
    GAP,
    MARGIN,
    TILE,
    WIDE,
    Bar,
    Row,
    Tile,
    heat,
    middle,
    plate,
)
from settings.reading import parse_command_line


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people with landmarks, a model with a landmark branch, the network that reads skulls, and variants."""
    root = write_landmark_pairs(tmp_path_factory.mktemp("pairs"), side=64, test=PEOPLE + 2)
    write_landmark_model(root, len(LAYOUT), ("Asian", "African"))
    lists = root / "split_data"
    lines = [json.loads(line) for line in (lists / "test.json").read_text().splitlines()]
    for line, age, mass in zip(lines, (30, 31, 32, 33, 34, 35, 36, 37), "24315234", strict=True):
        line |= {"age": age, "body_mass": mass, "style": f"p{mass}"}
    (lists / "test.json").write_text("\n".join(map(json.dumps, lines)))
    own = lines[2]  # the first with a body mass of the grid
    others = [
        own | {"target": lines[6]["target"], "age": 57, "changed": ["age"]},
        own | {"target": lines[7]["target"], "body_mass": "5", "changed": ["body_mass"]},
        own | {"target": lines[0]["target"], "style": "p9", "changed": ["style"]},
    ]
    (lists / "variants.json").write_text("\n".join(map(json.dumps, others)))
    return root


def arguments_for(root: Path) -> list[str]:
    files = [f"weights={root}/model.safetensors", f"landmark_weights={root}/pipnet.safetensors"]
    person = [f"ct.skull={root}/pairedCS/skull/test_7.png", "ct.ethnicity=African"]
    return [*files, f"data.root={root}", "precision=fp32", *person]


def tile_at(picture: np.ndarray, top: int, left: int) -> np.ndarray:
    return picture[top : top + TILE[1], left : left + TILE[0]]


def solid(level: int) -> np.ndarray:
    return np.full((256, 256), level, np.uint8)


# ---------------------------------------------------------------- plates
def test_tiles_stand_where_they_belong_and_grey_stays_grey() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    pixels = plate([Row([Tile(solid(50)), None, Tile(noise)])], wide=[0])
    assert pixels.ndim == 2
    left = MARGIN + 2 * TILE[0] + WIDE + GAP
    assert pixels.shape[1] == left + TILE[0] + MARGIN
    assert (tile_at(pixels, MARGIN, MARGIN) == 50).all()
    assert not tile_at(pixels, MARGIN, MARGIN + TILE[0] + WIDE).any()
    np.testing.assert_array_equal(tile_at(pixels, MARGIN, left), middle(noise))
    cut = round(256 * CROP)
    np.testing.assert_array_equal(middle(noise), noise[:, cut:-cut])
    tiles = [Tile(solid(0)), Tile(solid(90), framed=True), Tile(solid(0))]
    pixels = plate([Row(tiles)]).astype(int)
    yellow = (pixels == FRAME).all(-1)
    left = MARGIN + TILE[0] + GAP
    assert yellow.any(0)[left - 3] and yellow.any(0)[left + TILE[0] + 2]
    assert not yellow[:, : left - 3].any() and not yellow[:, left + TILE[0] + 3 :].any()
    assert (tile_at(pixels, MARGIN, left) == 90).all()


def test_words_stay_above_their_own_tile() -> None:
    tiles = [Tile(solid(0), "word " * 20), Tile(solid(0))]
    pixels = plate([Row(tiles, {0: "heading " * 20, 1: ""})], ["foot " * 100])
    rows, columns = np.nonzero(pixels)
    head = rows < MARGIN + 70
    assert columns[head].max() <= MARGIN + TILE[0] + GAP
    assert columns.max() < pixels.shape[1] - MARGIN + 2 and columns.min() >= MARGIN - 1
    with pytest.raises(ValueError):
        plate([Row([None])])


def test_heat_is_black_at_nothing_white_at_its_end_and_brighter_between() -> None:
    colours = heat(np.linspace(0, 40, 256)[None], 40.0)[0].astype(int)
    assert colours[0].tolist() == [0, 0, 0] and colours[-1].tolist() == [255, 255, 255]
    assert (np.diff(colours.sum(1)) >= 0).all() and colours.sum(1)[128] == pytest.approx(382, abs=3)
    assert heat(np.array([[90.0]]), 40.0).tolist() == [[[255, 255, 255]]]
    with_bar = plate([Row([Tile(solid(0))] * 3)], bar=Bar(40.0, "grey levels"))
    assert with_bar.ndim == 3 and (with_bar == (255, 255, 255)).all(-1).any()


# ---------------------------------------------------------------- the pictures
def test_every_picture_is_made_and_its_people_follow_from_the_list(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo_pictures.main([*arguments_for(root), f"out={tmp_path}/p", "ct.face=null"]) == 0
    assert "texture.png: left out, these weights have no texture branch" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "p").iterdir()}
    assert files == {"reconstruction.png", "edits.png", "variants.png", "ct.png", "pictures.json"}
    record = json.loads((tmp_path / "p/pictures.json").read_text())
    assert record["pictures"]["reconstruction"]["people"] == [f"test_{i}" for i in range(PEOPLE)]
    edits = record["pictures"]["edits"]
    assert edits["person"] == "test_2" and edits["ages"] == [
        22,
        32,
        57,
        72,
    ]  # 32: the person's own, of level 3
    assert min(record["pictures"]["variants"]["mean spread within the head, grey levels"].values()) > 0
    with Image.open(tmp_path / "p/edits.png") as picture:  # the person's own values are framed
        yellow = (np.asarray(picture).astype(int) == FRAME).all(-1)
    assert yellow.sum(1).max() >= 2 * TILE[0] and yellow.sum(0).max() >= 2 * TILE[1]


def test_the_faces_are_those_of_sample(root: Path, tmp_path: Path) -> None:
    listed = f"skull={root}/split_data/test.json"
    settings = [word for word in arguments_for(root) if not word.startswith(("data", "ct"))]
    assert sample.main([listed, *settings, "limit=1", "num_samples=2", f"out={tmp_path}/s", "seed=3"]) == 0
    studio = open_studio(parse_command_line(PicturesConfig, [*arguments_for(root), "batch_size=3"]))
    faces = studio.draw(cases_of(studio.records[:1]) * 2, [3, 4])
    for k, face in enumerate(faces):
        with Image.open(tmp_path / f"s/test_0_{k}.png") as pixels:
            np.testing.assert_allclose(face.astype(int), np.asarray(pixels).astype(int), atol=1)
    assert (faces[0] != faces[1]).any()


def test_exemplars_of_other_styles_change_the_face(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = tiny_model_config()
    cfg.control.texture = TextureConfig(patch_size=9, num_patches=8, width=8)
    model = ControlledLatentDiffusion(cfg)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    metadata = model_metadata(cfg) | {"sampling": json.dumps({"steps": 2, "control_scales": [1.0]})}
    write_state_dict(tmp_path / "textured.safetensors", model.state_dict(), metadata)
    out = [f"out={tmp_path}/p", "only=[texture]", "ct.face=null"]
    # the discs of these pairs are smaller than a patch: lend faces that are skin all over
    pictures = np.random.default_rng(0).integers(60, 255, (8, 64, 64), np.uint8)
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"pairedCS/craniofacial/test_{k}.png")
    assert (
        demo_pictures.main([*arguments_for(root)[2:], f"weights={tmp_path}/textured.safetensors", *out]) == 0
    )
    record = json.loads((tmp_path / "p/pictures.json").read_text())["pictures"]["texture"]
    assert record == {
        "person": "test_0",
        "exemplars": {"p4": "test_1.png", "p3": "test_2.png", "p1": "test_3.png", "p5": "test_4.png"},
    }
    with Image.open(tmp_path / "p/texture.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    left = MARGIN + TILE[0] + WIDE
    bare = tile_at(pixels, MARGIN + 37 + 2 * 28 + TILE[1] + GAP, left)
    lefts = [left + TILE[0] + WIDE + k * (TILE[0] + GAP) for k in range(4)]
    faces = [tile_at(pixels, MARGIN + 37 + 2 * 28 + TILE[1] + GAP, x) for x in lefts]
    assert bare.any() and all((face != bare).any() for face in faces) and (faces[0] != faces[1]).any()


def test_wrong_settings_are_refused_before_anything_is_written(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_landmark_pairs(tmp_path / "few", side=64, test=3)
    for setting, message in (
        ("only=[nose]", "only"),
        (f"data.root={few}", "data.root"),
        (f"landmark_weights={tmp_path}/none.safetensors", "none.safetensors"),
        (f"ct.skull={tmp_path}/none.png", "none.png"),
        ("ct.sex=other", "sex"),
        ("ct.ethnicity=Caucasian", "ethnicity"),
    ):
        assert demo_pictures.main([*arguments_for(root), setting, f"out={tmp_path}/p"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "p").exists()
