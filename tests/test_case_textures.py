"""Exemplars, missing bone and absent skulls in sample.py and evaluate.py: what is drawn and recorded."""

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
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
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
    return sample.main([*arguments, "device=cpu", "precision=fp32", "devices=1", "num_samples=1"])


def face(folder: Path, name: str = "skull_0.png") -> np.ndarray:
    return np.asarray(Image.open(folder / name))


@pytest.fixture
def skull(tmp_path: Path) -> Path:
    return rough(tmp_path / "skull.png", 9, 30)


def test_an_exemplar_changes_the_face_and_is_recorded(with_branch: Path, skull: Path, tmp_path: Path) -> None:
    smooth, grainy = rough(tmp_path / "smooth.png", 1, 2), rough(tmp_path / "grainy.png", 2, 40)
    common = (f"skull={skull}", f"weights={with_branch}")
    faces = {}
    for name, *settings in (
        ("none", "texture=none"),
        ("auto", "texture=auto"),  # a picture names no exemplar
        ("off", f"texture={grainy}", "sampling.texture_scale=0"),
        ("smooth", f"texture={smooth}"),
        ("grainy", f"texture={grainy}"),
        ("again", f"texture={grainy}"),
    ):
        assert run(*common, *settings, f"out={tmp_path / name}") == 0
        faces[name] = face(tmp_path / name).tobytes()
    assert faces["none"] == faces["auto"] == faces["off"] and faces["grainy"] == faces["again"]
    assert len({*faces.values()}) == 3
    record = json.loads((tmp_path / "grainy" / "record.json").read_text())
    texture = record["cases"][0]["texture"]
    assert texture["file"] == "grainy.png" and len(texture["sha256"]) == 64 and texture["patch_seed"] == 0
    assert record["config"]["texture"] == Path(grainy).name
    assert run(*common, f"texture={smooth}", f"out={tmp_path / 'grainy'}", "resume=true") == 2


def test_a_picture_that_cannot_be_an_exemplar_is_refused_and_nothing_is_written(
    with_branch: Path, weights: Path, skull: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = tmp_path / "black.png"
    Image.new("L", (64, 64)).save(black)
    for checkpoint, texture, message in (
        (weights, skull, "texture="),
        (with_branch, black, "black.png: no patch of 9 px"),
        (with_branch, tmp_path / "gone.png", "gone.png: does not exist"),
    ):
        code = run(f"skull={skull}", f"weights={checkpoint}", f"texture={texture}", f"out={tmp_path / 'o'}")
        assert code == 2 and not (tmp_path / "o").exists()
        assert message in capsys.readouterr().err


def edit_lines(root: Path, edit: Callable[[int, dict[str, str]], object]) -> Path:
    """Edit each line (its number, its object) of the test manifest; return its path."""
    path = root / "split_data" / "test.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for i, line in enumerate(lines):
        edit(i, line)
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_manifest_lends_each_its_own_exemplar(with_branch: Path, make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(test=3)
    path = edit_lines(root, lambda i, line: line.update({"texture": f"test_{i + 1}.png"} if i < 2 else {}))
    cases = cases_of(read_manifest(path))
    model, _ = load_model(with_branch)
    textures, remark = choose_textures("auto", cases, model)
    assert textures is not None and str(remark).startswith("1 of 3 skulls have no 'texture'")
    result = textures.of([cases[1], cases[2]])
    assert result.present.tolist() == [True, False] and textures.describe(cases[2]) is None
    torch.testing.assert_close(
        result.features[0], exemplar_features(root / "pairedCS/craniofacial/test_2.png", 64, BRANCH)
    )
    none, remark = choose_textures("auto", [replace(case, texture_path=None) for case in cases], model)
    assert none is None and remark is not None
    edit_lines(root, lambda i, line: line.update(texture=line["target"]))  # the person's own face
    with pytest.raises(ManifestError, match="line 2: texture: 'test_1"):
        read_manifest(path)


def test_bone_that_is_missing_is_taken_from_the_skull_that_is_read(
    weights: Path, skull: Path, tmp_path: Path
) -> None:
    case = Case("skull", skull, None, missing="left")
    whole = read_image(skull, 64)[0]
    np.testing.assert_array_equal(read_skull(case, 64), remove_bone(whole, "left", case.missing_seed))
    np.testing.assert_array_equal(read_skull(replace(case, missing=None), 64), whole)
    (tmp_path / "before").mkdir()  # a picture from which the bone was taken before
    partial = tmp_path / "before" / "skull.png"
    Image.fromarray((read_skull(case, 64) * 255).round().astype(np.uint8)).save(partial)
    for name, *settings in (
        ("whole", f"skull={skull}"),
        ("left", f"skull={skull}", "missing=left"),
        ("given", f"skull={partial}"),
    ):
        assert run(f"weights={weights}", *settings, f"out={tmp_path / name}") == 0
    assert not np.array_equal(face(tmp_path / "whole"), face(tmp_path / "left"))
    np.testing.assert_array_equal(face(tmp_path / "given"), face(tmp_path / "left"))
    record = json.loads((tmp_path / "left" / "record.json").read_text())
    assert record["cases"][0]["missing_bone"] == {"region": "left", "seed": case.missing_seed}


def test_an_evaluation_reports_exemplars_and_missing_bone(
    with_branch: Path, weights: Path, make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_pairs(train=4, valid=2, test=3)
    edit_lines(root, lambda i, line: line.update(texture=f"test_{int(i == 0)}.png"))
    common = [f"data.root={root}", "recognisers=[picture]", f"out={tmp_path / 'results'}", "device=cpu"]
    plan = make_plan([*common, f"weights={with_branch}", "missing=mandible", "texture=auto"])
    assert plan.weights["model"].shown_texture
    for remark in ("another person of the same style", "without bone (mandible)"):
        assert any(remark in line for line in plan.inputs.remarks)
    assert {case.missing for case in plan.inputs.probe_cases} == {"mandible"}
    default = make_plan([*common, f"weights={with_branch}"])
    assert default.cfg.texture == "none" and not default.weights["model"].shown_texture
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
