"""Exemplars and missing bone in sample.py and evaluate.py: what is drawn, recorded and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model_config
from PIL import Image

import sample
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from data.cases import Case, cases_of, read_skull
from data.images import read_image
from data.manifest import ManifestError, read_manifest
from data.partial import remove_bone
from ldm.checkpoint import write_state_dict
from ldm.config import TextureConfig
from muti_control.conditions.case_textures import choose_textures
from muti_control.conditions.pair_textures import exemplar_features
from muti_control.evaluation.plan import make_plan

BRANCH = TextureConfig(patch_size=9, num_patches=8, width=8)


def rough(path: Path, seed: int, grain: float) -> Path:
    """A square of grain on black."""
    pixels = np.zeros((64, 64))
    pixels[4:60, 4:60] = 128 + grain * np.random.default_rng(seed).standard_normal((56, 56))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def with_branch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a texture branch that matters."""
    torch.manual_seed(0)
    cfg = tiny_model_config()
    cfg.control.texture = BRANCH
    model = ControlledLatentDiffusion(cfg)
    for name, parameter in model.named_parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5 if "texture" in name else 0.2)
    path = tmp_path_factory.mktemp("weights") / "textured.safetensors"
    recommended = {"sampling": json.dumps({"steps": 2, "guidance_scale": 1.0, "control_scales": [1.0]})}
    write_state_dict(path, model.state_dict(), model_metadata(cfg) | recommended)
    return path


def run(*arguments: str) -> int:
    return sample.main([*arguments, "device=cpu", "precision=fp32", "devices=1"])


def face(folder: Path, name: str = "skull_0.png") -> np.ndarray:
    return np.asarray(Image.open(folder / name))


@pytest.fixture
def skull(tmp_path: Path) -> Path:
    return rough(tmp_path / "skull.png", 9, 30)


def test_an_exemplar_changes_the_face_and_is_recorded(with_branch: Path, skull: Path, tmp_path: Path) -> None:
    smooth, grainy = rough(tmp_path / "smooth.png", 1, 2), rough(tmp_path / "grainy.png", 2, 40)
    common = (f"skull={skull}", f"weights={with_branch}")
    for name, choice in (("none", "none"), ("auto", "auto"), ("a", str(smooth)), ("b", str(grainy))):
        assert run(*common, f"texture={choice}", f"out={tmp_path / name}") == 0
    assert run(*common, f"texture={grainy}", "sampling.texture_scale=0", f"out={tmp_path / 'off'}") == 0
    none, auto, a, b, off = (face(tmp_path / name) for name in ("none", "auto", "a", "b", "off"))
    assert np.array_equal(none, auto)  # a picture names no exemplar
    assert np.array_equal(none, off)
    assert not np.array_equal(none, a) and not np.array_equal(a, b)
    record = json.loads((tmp_path / "b" / "record.json").read_text())
    told = record["cases"][0]["texture"]
    assert told["file"] == "grainy.png" and len(told["sha256"]) == 64 and told["patch_seed"] == 0
    assert record["config"]["texture"] == str(grainy)
    # Repeated from its record: the same picture. Another exemplar is another run.
    again = (f"texture={record['config']['texture']}", f"out={tmp_path / 'again'}")
    assert run(*common, *again) == 0 and np.array_equal(face(tmp_path / "again"), b)
    assert run(*common, f"texture={smooth}", f"out={tmp_path / 'b'}", "resume=true") == 2


def test_what_cannot_be_an_exemplar_is_told_and_nothing_is_written(
    with_branch: Path, weights: Path, skull: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = tmp_path / "black.png"
    Image.new("L", (64, 64)).save(black)
    for checkpoint, given, message in (
        (weights, str(skull), "texture="),
        (with_branch, str(black), "black.png: no patch of 9 px lies within what is drawn"),
        (with_branch, str(tmp_path / "gone.png"), "gone.png: does not exist"),
    ):
        code = run(f"skull={skull}", f"weights={checkpoint}", f"texture={given}", f"out={tmp_path / 'o'}")
        assert code == 2 and not (tmp_path / "o").exists()
        assert message in capsys.readouterr().err


def test_a_manifest_lends_each_its_own_exemplar(with_branch: Path, make_pairs: Callable[..., Path]) -> None:
    from cldm.controlled import load_model

    root = make_pairs(test=3)
    path = root / "split_data" / "test.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["texture"], lines[1]["texture"] = lines[1]["target"], lines[2]["target"]
    path.write_text("\n".join(map(json.dumps, lines)))
    cases = cases_of(read_manifest(path))
    model, _ = load_model(with_branch)
    textures, remark = choose_textures("auto", cases, model)
    assert (
        textures is not None and remark is not None and remark.startswith("1 of 3 skulls have no 'texture'")
    )
    found = textures.of([cases[1], cases[2]])
    assert found.present.tolist() == [True, False] and textures.describe(cases[2]) is None
    assert cases[1].texture_path is not None
    torch.testing.assert_close(found.features[0], exemplar_features(cases[1].texture_path, 64, BRANCH))
    bare, told = choose_textures("auto", [replace(case, texture_path=None) for case in cases], model)
    assert bare is None and told is not None


def test_the_persons_own_face_is_no_exemplar(make_pairs: Callable[..., Path]) -> None:
    path = make_pairs(test=3) / "split_data" / "test.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["texture"] = lines[1]["target"]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(
        ManifestError, match=r"line 2: texture: 'test_1.png' is the person's own face; name an"
    ):
        read_manifest(path)


def test_bone_that_is_missing_is_taken_from_the_skull_that_is_read(
    weights: Path, skull: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("skull", skull, None, missing="left")
    whole = read_image(skull, 64)[0]
    np.testing.assert_array_equal(read_skull(case, 64), remove_bone(whole, "left", case.missing_seed))
    np.testing.assert_array_equal(read_skull(replace(case, missing=None), 64), whole)
    common = (f"skull={skull}", f"weights={weights}")
    assert run(*common, f"out={tmp_path / 'whole'}") == 0
    assert run(*common, "missing=left", f"out={tmp_path / 'left'}") == 0
    assert not np.array_equal(face(tmp_path / "whole"), face(tmp_path / "left"))
    record = json.loads((tmp_path / "left" / "record.json").read_text())
    assert record["cases"][0]["missing_bone"] == {"region": "left", "seed": case.missing_seed}
    # The same as of a picture that bone was taken from before.
    partial = tmp_path / "before" / "skull.png"
    partial.parent.mkdir()
    Image.fromarray((read_skull(case, 64) * 255).round().astype(np.uint8)).save(partial)
    assert run(f"skull={partial}", f"weights={weights}", f"out={tmp_path / 'given'}") == 0
    np.testing.assert_array_equal(face(tmp_path / "given"), face(tmp_path / "left"))
    capsys.readouterr()
    assert run(*common, "missing=nose", f"out={tmp_path / 'x'}") == 2
    assert "missing: got 'nose', expected one of mandible, vault, left, right" in capsys.readouterr().err


def test_an_evaluation_is_told_of_exemplars_and_missing_bone(
    with_branch: Path, weights: Path, make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_pairs(train=4, valid=2, test=3)
    path = root / "split_data" / "test.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["texture"] = "test_1.png" if line["target"] == "test_0.png" else "test_0.png"
    path.write_text("\n".join(map(json.dumps, lines)))
    common = [f"data.root={root}", "recognisers=[picture]", f"out={tmp_path / 'results'}", "device=cpu"]
    plan = make_plan([*common, f"weights={with_branch}", "missing=mandible", "texture=auto"])
    assert any("no baseline is told that" in remark for remark in plan.inputs.remarks)
    assert plan.weights["model"].shown_texture
    assert any("another person of the same style" in remark for remark in plan.inputs.remarks)
    assert any("without bone (mandible)" in remark for remark in plan.inputs.remarks)
    assert {case.missing for case in plan.inputs.probe_cases} == {"mandible"}
    default = make_plan([*common, f"weights={with_branch}"])
    assert default.cfg.texture == "none" and not default.weights["model"].shown_texture
    assert not any("look of the skin" in remark for remark in default.inputs.remarks)
    with pytest.raises(ValueError, match="none of the weights has a texture branch"):
        make_plan([*common, f"weights={weights}", f"texture={root / 'pairedCS' / 'skull' / 'test_0.png'}"])


def test_without_a_skull_landmarks_and_text_draw_the_face(
    weights: Path, with_branch: Path, skull: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texture = rough(tmp_path / "exemplar.png", 3, 20)
    person = ("sex=male", "age=40", "body_mass=3")
    common = ("skull=none", f"weights={with_branch}", *person)
    assert run(*common, f"out={tmp_path / 'text'}") == 0
    assert "not trained to do without" in capsys.readouterr().out
    assert run(*common, f"texture={texture}", f"out={tmp_path / 'texture'}") == 0
    base = (f"skull={skull}", f"weights={with_branch}", *person, "sampling.control_end=0")
    assert run(*base, f"out={tmp_path / 'base'}") == 0
    text = face(tmp_path / "text", "no_skull_0.png")
    assert np.array_equal(text, face(tmp_path / "base"))  # the text alone: the base model
    assert not np.array_equal(text, face(tmp_path / "texture", "no_skull_0.png"))
    record = json.loads((tmp_path / "texture" / "record.json").read_text())
    assert record["cases"][0]["skull"] is None and record["cases"][0]["texture"]["file"] == "exemplar.png"
    assert run(*common, f"texture={texture}", f"out={tmp_path / 'texture'}", "resume=true") == 0
