"""sample.py from its arguments to the files, with a tiny model of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import tiny_model_config
from PIL import Image

import muti_control.sampling.draw as reconstruction
import sample
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from data.images import ImageError
from data.sheet import NOTICE
from ldm.checkpoint import sha256, write_state_dict
from muti_control.sampling import job
from muti_control.sampling import prepare as preparation
from muti_control.sampling import record as run_record
from muti_control.sampling.prepare import recommended_sampling

BESIDE = (".log.lock", "local.json", "log.jsonl")  # in the folder of each run


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls sample.main in an empty folder with the tiny weights."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: object) -> int:
        words = [f"weights={weights}", *map(str, arguments)]
        return sample.main(words + ["num_samples=1"] * ("num_samples" not in str(words)))

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def text(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info["iccr-diff"])


def test_a_manifest_becomes_faces_sheet_and_record(
    run: Callable[..., int],
    make_pairs: Callable[..., Path],
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_pairs(test=3)
    assert run(f"skull={root}/split_data/test.json", "num_samples=2", "seed=5", "batch_size=4", "out=o") == 0
    names = sorted(path.name for path in Path("o").iterdir())
    faces = [f"test_{i}_{k}.png" for i in range(3) for k in range(2)]
    together = [f"test_{i}_{name}.png" for i in range(3) for name in ("mean", "spread", "overlay")]
    assert names == sorted([*faces, *together, "contact_sheet.png", "record.json", *BESIDE])
    assert pixels(Path("o/test_0_0.png")).shape == (64, 64, 3)

    record = json.loads(Path("o/record.json").read_text(encoding="utf-8"))
    assert record["finished"] is True and record["notice"] == NOTICE
    assert {*record["files"], *BESIDE} == set(names)
    assert record["weights"] == {"file": "tiny.safetensors", "sha256": sha256(weights), "step": "7"}
    assert record["architecture"] == tiny_model_config().model_dump()
    manifest = root / "split_data/test.json"
    assert record["manifest"] == {"file": "test.json", "sha256": sha256(manifest)}
    assert record["sampling"]["steps"] == record["config"]["sampling"]["steps"] == 3
    assert record["environment"]["torch"] == torch.__version__
    case = record["cases"][1]
    assert case["prompt"] == "3D face scan,Asian female,age level 2,normal face."
    assert case["biometrics"] == {"sex": "female", "age": 20.0, "ethnicity": "Asian", "body_mass": 4}
    assert case["skull"]["sha256"] == sha256(root / "pairedCS/skull/test_1.png")
    assert case["true_face"]["sha256"] == sha256(root / "pairedCS/craniofacial/test_1.png")
    assert [face["seed"] for face in case["faces"]] == [5, 6]
    assert case["faces"][1]["sha256"] == sha256("o/test_1_1.png")

    chunk = text(Path("o/test_1_1.png"))
    assert (chunk["seed"], chunk["prompt"], chunk["notice"]) == (6, case["prompt"], NOTICE)
    assert chunk["skull"] == {"file": "test_1.png", "sha256": case["skull"]["sha256"]}
    assert chunk["weights"]["sha256"] == sha256(weights)
    assert chunk["sampling"] == record["sampling"]
    output = capsys.readouterr().out
    assert "3 skulls, 2 faces each: 3 steps on " in output and "6 faces in" in output and NOTICE in output


def test_a_bare_picture_is_letterboxed_and_gives_an_empty_prompt(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((90, 60), 40000, np.uint16)).save("deep.png")
    assert run("skull=deep.png") == 0
    output = capsys.readouterr().out
    assert "deep.png: letterboxed from 60 x 90 px" in output and "the prompt is empty" in output
    record = json.loads(Path("results/deep/record.json").read_text())
    assert (record["cases"][0]["prompt"], record["cases"][0]["biometrics"]) == ("", None)
    assert record["cases"][0]["note"] == "letterboxed from 60 x 90 px"
    assert run("skull=deep.png") == 0
    assert Path("results/deep-2/deep_0.png").read_bytes() == Path("results/deep/deep_0.png").read_bytes()


def test_what_is_unknown_is_assumed_and_said(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (64, 64)).save("a.png")
    person = (
        "skull=a.png",
        "sex=woman",
        "age=35-50",
        "body_mass=unknown",
        "precision=bf16",
        "sampling.steps=1",
    )
    assert run(*person, "num_samples=8", "out=a") == 0
    output = capsys.readouterr().out
    assert "female, 35-50 y; unknown: ethnicity, body mass." in output and "no calibration file" in output
    case = json.loads(Path("a/record.json").read_text())["cases"][0]
    assert case["attributes"]["sex"] == {"value": "female", "source": "stated"}
    assert case["attributes"]["age"] == {"value": None, "source": "assumed", "range": [35, 50]}
    assert (case["biometrics"], case["prompt"]) == (None, None)
    assert case["outputs"] == {name: f"a_{name}.png" for name in ("mean", "spread", "overlay")}
    chunks = [text(Path(f"a/a_{k}.png")) for k in range(8)]
    assert [face["attributes"] for face in case["faces"]] == [chunk["attributes"] for chunk in chunks]
    assert [face["prompt"] for face in case["faces"]] == [chunk["prompt"] for chunk in chunks]
    assert {chunk["attributes"]["body_mass"]["value"] for chunk in chunks} == {1, 2, 3, 4, 5}
    assert all(35 <= chunk["attributes"]["age"]["value"] <= 50 for chunk in chunks)
    assert all(
        chunk["attributes"]["ethnicity"] == {"value": "Asian", "source": "assumed"} for chunk in chunks
    )
    assert run(*person, "num_samples=8", "out=a", "resume=true") == 0
    assert "8 faces are there already" in capsys.readouterr().out
    whole = ("skull=a.png", "sex=F", "age=43", "body_mass=4", "ethnicity=European")
    assert run(*whole, "sampling.steps=1", "out=b") == 0
    assert "unknown" not in capsys.readouterr().out
    face = text(Path("b/a_0.png"))
    assert (
        face["prompt"] == "3D face scan,European female,age level 3,normal face." and "attributes" not in face
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("skull=a.png sex=F ethnicity=asain", "ethnicity: got 'asain', did you mean Asian?"),
        ("skull=a.png stesp=3", "stesp: unknown setting; did you mean sampling.steps?"),
        ("skull=a.png sampling.control_scales=[1,2]", "sampling.control_scales: "),
        ("skull=a.png weights=short.safetensors", "sampling.steps: got 50, expected 1..19"),
        ("skull=a.png max_sheets=0", "max_sheets: "),
        ("skull=a.png device=cuda:99", "device: "),
    ],
)
def test_a_bad_input_gets_a_message_and_exit_code_2_and_writes_nothing(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    """``test_hostile`` has more of them."""
    Image.new("L", (64, 64)).save("a.png")
    cfg = tiny_model_config()
    cfg.schedule.num_timesteps = 20
    write_state_dict("short.safetensors", ControlledLatentDiffusion(cfg).state_dict(), model_metadata(cfg))
    before = sorted(Path.cwd().iterdir())
    assert run(*arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("sample.py: ") and message in error and "Traceback" not in error
    assert sorted(Path.cwd().iterdir()) == before


def test_overwrite_destroys_neither_its_input_nor_a_file_of_the_user(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        Image.new("L", (64, 64)).save(f"{name}.png")
    assert run("skull=a.png", "num_samples=3", "sampling.steps=1", "out=o") == 0
    Path("o/b_0.png").write_bytes(b"mine")
    for arguments, message in (
        (("skull=a.png",), "overwrite=true"),
        (("skull=o/a_0.png", "overwrite=true"), "o/a_0.png is an input of this run"),
        (("skull=b.png", "overwrite=true"), "o/b_0.png exists and is not of the earlier run"),
    ):
        assert run(*arguments, "out=o") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert Path("o/b_0.png").read_bytes() == b"mine" and Path("o/a_2.png").is_file()
    assert json.loads(Path("o/record.json").read_text(encoding="utf-8"))["finished"] is True
    assert run("skull=a.png", "out=o", "overwrite=true") == 0
    names = sorted(path.name for path in Path("o").iterdir())
    assert names == sorted(["a_0.png", "b_0.png", "contact_sheet.png", "record.json", *BESIDE])


def test_results_are_named_after_the_skull_however_it_is_spelled(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("case.7").mkdir()
    Image.new("L", (64, 64)).save("case.7/a.v2.png")
    monkeypatch.chdir("case.7")
    for skull, name in ((".", "case.7"), ("../case.7", "case.7-2"), ("a.v2.png", "a.v2")):
        assert run(f"skull={skull}", "sampling.steps=1") == 0
        assert Path("results", name, "a.v2_0.png").is_file()


def test_the_line_overrules_the_file_and_the_file_the_weights(run: Callable[..., int]) -> None:
    Image.new("L", (64, 64)).save("a.png")
    Path("c.yaml").write_text("skull: a.png\nout: o\nsampling: {steps: 4, eta: 0.5}\n")
    assert run("c.yaml", "sampling.steps=2") == 0
    sampling = json.loads(Path("o/record.json").read_text())["sampling"]
    assert [sampling[key] for key in ("steps", "eta", "guidance_scale")] == [2, 0.5, 2.0]


def test_many_cases_go_on_several_sheets(
    run: Callable[..., int], make_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (job, run_record):
        monkeypatch.setattr(module, "ROWS_PER_SHEET", 2)
    command = (f"skull={make_pairs(test=5)}/split_data/test.json", "sampling.steps=1", "out=o")
    sheets = ["contact_sheet-2.png", "contact_sheet-3.png", "contact_sheet.png"]
    assert run(*command) == 0
    assert sorted(path.name for path in Path("o").glob("contact*")) == sheets
    assert run(*command, "max_sheets=2", "overwrite=true") == 0
    assert sorted(path.name for path in Path("o").glob("contact*")) == [sheets[0], sheets[2]]


@pytest.mark.parametrize(
    ("module", "function", "error", "code", "message"),
    [
        (preparation, "load_model", KeyboardInterrupt(), 130, "nothing was written"),
        (preparation, "load_model", torch.OutOfMemoryError(), 2, "precision=bf16"),
        (preparation, "load_model", OSError("disk gone"), 2, "disk gone"),
        (reconstruction, "draw_faces", ImageError("a.png: gone"), 2, "a.png: gone"),
        (reconstruction, "reconstruct", torch.OutOfMemoryError(), 2, "batch_size=4"),
        (reconstruction, "reconstruct", None, 2, "precision=fp32"),
        (reconstruction, "write_png", OSError(28, "No space left on device"), 2, "No space left on device"),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_face(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    function: str,
    error: BaseException | None,
    code: int,
    message: str,
) -> None:
    Image.new("L", (64, 64)).save("a.png")
    not_finite = torch.full((1, 3, 64, 64), torch.nan)
    monkeypatch.setattr(module, function, Mock(side_effect=error, return_value=not_finite))
    assert run("skull=a.png") == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sample.py")]
    assert len(lines) == 1 and message in lines[0]
    assert Path("results").exists() == (module is reconstruction)
    assert not list(Path("results").rglob("a_0.png"))


def test_recommendations_of_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommended_sampling({"sampling": '{"steps": 9}'}, 5) == {"steps": 9}
    assert recommended_sampling({}, 13) == {}
    assert recommended_sampling({}, 5) == {"control_scales": [1.0]}
    for bad in ("[1]", "{"):
        with pytest.raises(ValueError, match="metadata entry 'sampling'"):
            recommended_sampling({"sampling": bad}, 5)
    model, metadata = load_model(weights)
    newer = tmp_path / "newer.safetensors"
    write_state_dict(newer, model.state_dict(), metadata | {"sampling": '{"magic": 1}'})
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    assert sample.main([f"skull={tmp_path / 'a.png'}", f"weights={newer}", f"out={tmp_path / 'o'}"]) == 2
    assert "settings in the weights: sampling.magic: unknown setting" in capsys.readouterr().err


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--help", "all"]) == 0
    output = capsys.readouterr().out
    for name in (*sample.SampleConfig.model_fields, *SamplingConfig.model_fields):
        assert f"{name}=" in output or f"{name}." in output
    assert "sampling.guidance_drops=[skull, landmarks, texture]" in output, "as the shipped weights have it"
