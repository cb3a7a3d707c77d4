"""sample.py from its arguments to the files, with a tiny model of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model_config
from PIL import Image

import muti_control.sampling.draw as reconstruction
import sample
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from data.cases import PersonInput, find_cases
from data.images import ImageError
from data.sheet import NOTICE
from ldm.checkpoint import sha256, write_state_dict
from muti_control.sampling import job
from muti_control.sampling import prepare as preparation
from muti_control.sampling import record as run_record
from muti_control.sampling.draw import draw_faces, read_skulls
from muti_control.sampling.job import Draw
from muti_control.sampling.prepare import recommended_sampling

QUICK = SamplingConfig(steps=3, guidance_scale=2.0, control_scales=[1.0])


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls sample.main in an empty folder with the tiny weights."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda *arguments: sample.main([f"weights={weights}", *map(str, arguments)])


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
    assert names == sorted([*faces, "contact_sheet.png", "record.json"])
    assert pixels(Path("o/test_0_0.png")).shape == (64, 64, 3)

    record = json.loads(Path("o/record.json").read_text(encoding="utf-8"))
    assert record["finished"] is True
    assert record["notice"] == NOTICE
    assert sorted(record["files"]) == names
    assert record["weights"] == {"file": "tiny.safetensors", "sha256": sha256(weights), "step": "7"}
    assert record["architecture"] == tiny_model_config().model_dump()
    manifest = root / "split_data/test.json"
    assert record["manifest"] == {"path": str(manifest), "sha256": sha256(manifest)}
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

    told = capsys.readouterr().out
    assert "3 skulls, 2 faces each: 3 steps on " in told
    assert "6 faces in" in told
    assert f"Contact sheet: {Path('o/contact_sheet.png')}" in told
    assert NOTICE in told


def test_a_repeat_is_identical_and_seed_skull_and_prompt_each_matter(
    run: Callable[..., int], make_pairs: Callable[..., Path]
) -> None:
    skulls = make_pairs(test=2) / "pairedCS/skull"
    known = ("sex=F", "age=43", "body_mass=4", "device=cpu")
    assert run(f"skull={skulls}", *known, "out=a") == 0
    assert run(f"skull={skulls}", *known, "out=b") == 0
    assert Path("a/test_0_0.png").read_bytes() == Path("b/test_0_0.png").read_bytes()
    assert run(f"skull={skulls}", *known, "seed=1", "out=c") == 0
    assert run(f"skull={skulls}", "sex=M", *known[1:], "out=d") == 0
    first = pixels(Path("a/test_0_0.png"))
    for other in ("a/test_1_0.png", "c/test_0_0.png", "d/test_0_0.png"):
        assert np.abs(first - pixels(Path(other))).max() > 20, other


def test_a_face_does_not_depend_on_its_batch(weights: Path, make_pairs: Callable[..., Path]) -> None:
    model, _ = load_model(weights)
    cases = find_cases(make_pairs(test=4) / "split_data/test.json", PersonInput())
    draws = [(case, 0, seed) for case in cases for seed in (3, 4)]

    def draw(*chosen: Draw) -> np.ndarray:
        return draw_faces(model, chosen, read_skulls(chosen, 64), QUICK).wait()

    together = draw(*draws)
    alone = [draw(one)[0] for one in draws]
    backwards = draw(*draws[::-1])[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1  # rounding: sums are ordered by the batch's shape
        assert np.abs(a.astype(int) - c).max() <= 1


def test_a_bare_picture_is_letterboxed_and_the_empty_prompt_is_said(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((90, 60), 40000, np.uint16)).save("deep.png")
    assert run("skull=deep.png") == 0
    told = capsys.readouterr().out
    assert "deep.png: letterboxed from 60 x 90 px" in told
    assert "the prompt is empty, only the skull shapes the face" in told
    record = json.loads(Path("results/deep/record.json").read_text())
    assert (record["cases"][0]["prompt"], record["cases"][0]["biometrics"]) == ("", None)
    assert record["cases"][0]["note"] == "letterboxed from 60 x 90 px"
    assert run("skull=deep.png") == 0
    assert Path("results/deep-2/deep_0.png").read_bytes() == Path("results/deep/deep_0.png").read_bytes()


def test_an_assumed_ethnicity_is_said(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (64, 64)).save("a.png")
    known = ("skull=a.png", "sex=F", "age=43", "body_mass=4")
    assert run(*known, "out=a") == 0
    assert "ethnicity not given: the prompt says Asian" in capsys.readouterr().out
    assert run(*known, "ethnicity=European", "out=b") == 0
    assert "ethnicity not given" not in capsys.readouterr().out
    assert text(Path("b/a_0.png"))["prompt"] == "3D face scan,European female,age level 3,normal face."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["skull=none.png"], "skull: none.png does not exist"),
        (["skull=a.png", "sex=F"], "age, body_mass missing"),
        (["skull=a.png", "sex=F", "age=old"], "age: "),
        (["skull=a.png", "stesp=3"], "stesp: unknown setting; did you mean sampling.steps?"),
        (["skull=a.png", "sampling.steps=0"], "sampling.steps: "),
        (["skull=a.png", "sampling.control_scales=[1, 2]"], "sampling.control_scales: "),
        (["skull=a.png", "num_samples=0"], "num_samples: "),
        (["skull=a.png", "max_sheets=0"], "max_sheets: "),
        (["skull=a.png", "overwrite=true", "resume=true"], "resume: "),
        (["skull=a.png", "seed=-1"], "seed: "),
        (["skull=a.png", "weights=none.safetensors"], "none.safetensors"),
        (["skull=a.png", "weights=a.png"], "a.png"),
        (["skull=a.png", "device=cuda:99"], "device: "),
        (["skull=a.png", "precision=half"], "precision: "),
        (["skull=a.png", "out=a.png"], "out: a.png"),
        (["skull=a.png", "model=none.yaml"], "none.yaml"),
        (["skull=empty.png"], "empty.png: "),
        (["skull=broken.png"], "broken.png: "),
        (["a.png"], "skull=a.png"),
        (["none.yaml"], "none.yaml: "),
        (["skull=bad.json"], "bad.json: 1 problem\n  line 1: "),
    ],
)
def test_a_bad_input_gets_a_message_and_exit_code_2_and_writes_nothing(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Image.new("L", (64, 64)).save("a.png")
    Path("empty.png").touch()
    Path("broken.png").write_bytes(Path("a.png").read_bytes()[:50])
    Path("bad.json").write_text("{,}")
    before = sorted(Path.cwd().iterdir())
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("sample.py: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sorted(Path.cwd().iterdir()) == before


def test_an_existing_folder_is_kept_unless_overwrite(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (64, 64)).save("a.png")
    assert run("skull=a.png", "num_samples=3", "out=o") == 0
    Path("o/mine.txt").write_text("keep")
    assert run("skull=a.png", "out=o") == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert run("skull=a.png", "out=o", "overwrite=true") == 0
    names = sorted(path.name for path in Path("o").iterdir())
    assert names == ["a_0.png", "contact_sheet.png", "mine.txt", "record.json"]


def test_overwrite_destroys_neither_its_input_nor_a_file_of_the_user(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (64, 64)).save("a.png")
    assert run("skull=a.png", "sampling.steps=1", "out=o") == 0
    assert run("skull=o/a_0.png", "out=o", "overwrite=true") == 2
    assert f"{Path('o/a_0.png')} is an input of this run" in capsys.readouterr().err
    Image.new("L", (64, 64)).save("b.png")
    Path("o/b_0.png").write_bytes(b"mine")
    assert run("skull=b.png", "out=o", "overwrite=true") == 2
    shown = capsys.readouterr().err
    assert f"{Path('o/b_0.png')} exists and is not of the earlier run" in shown
    assert len(shown.splitlines()) == 1
    assert Path("o/b_0.png").read_bytes() == b"mine"
    assert Path("o/a_0.png").is_file()
    assert json.loads(Path("o/record.json").read_text(encoding="utf-8"))["finished"] is True


def test_results_are_named_after_the_skull_however_it_is_spelled(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("case.7").mkdir()
    Image.new("L", (64, 64)).save("case.7/a.v2.png")
    monkeypatch.chdir("case.7")
    for skull, name in ((".", "case.7"), ("../case.7", "case.7-2"), ("a.v2.png", "a.v2")):
        assert run(f"skull={skull}", "sampling.steps=1") == 0
        assert Path("results", name, "a.v2_0.png").is_file()


def test_a_config_file_and_precedence(run: Callable[..., int]) -> None:
    Image.new("L", (64, 64)).save("a.png")
    Path("c.yaml").write_text("skull: a.png\nout: o\nsampling: {steps: 4, eta: 0.5}\n")
    assert run("c.yaml", "sampling.steps=2") == 0
    sampling = json.loads(Path("o/record.json").read_text())["sampling"]
    assert (sampling["steps"], sampling["eta"], sampling["guidance_scale"]) == (
        2,
        0.5,
        2.0,
    )  # line, file, weights


def test_many_cases_go_on_several_sheets(
    run: Callable[..., int],
    make_pairs: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (job, run_record):
        monkeypatch.setattr(module, "ROWS_PER_SHEET", 2)
    root = make_pairs(test=5)
    command = (f"skull={root}/split_data/test.json", "sampling.steps=1", "out=o")
    sheets = ["contact_sheet-2.png", "contact_sheet-3.png", "contact_sheet.png"]
    assert run(*command) == 0
    assert sorted(path.name for path in Path("o").glob("contact*")) == sheets
    assert "max_sheets" not in capsys.readouterr().out
    assert run(*command, "max_sheets=2", "overwrite=true") == 0
    assert sorted(path.name for path in Path("o").glob("contact*")) == [sheets[0], sheets[2]]
    assert "sheets for the first 4 of 5 skulls; max_sheets=3 makes all" in capsys.readouterr().out


FULL = torch.OutOfMemoryError("CUDA out of memory\n...")


@pytest.mark.parametrize(
    ("module", "function", "error", "code", "message"),
    [
        (preparation, "load_model", KeyboardInterrupt(), 130, "nothing was written"),
        (preparation, "load_model", FULL, 2, "precision=bf16"),
        (preparation, "load_model", OSError("disk gone"), 2, "disk gone"),
        (reconstruction, "draw_faces", ImageError("a.png: gone"), 2, "a.png: gone"),
        (reconstruction, "reconstruct", FULL, 2, "batch_size=4"),
        (reconstruction, "write_png", OSError(28, "No space left on device"), 2, "No space left on device"),
    ],
)
def test_a_failure_is_one_line(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    function: str,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    Image.new("L", (64, 64)).save("a.png")
    monkeypatch.setattr(module, function, fail)
    assert run("skull=a.png") == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sample.py")]
    assert len(lines) == 1 and message in lines[0]
    assert Path("results").exists() == (module is reconstruction)


def test_values_that_are_not_finite_become_no_picture(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (64, 64)).save("a.png")
    monkeypatch.setattr(reconstruction, "reconstruct", lambda *a, **k: torch.full((1, 3, 64, 64), torch.nan))
    assert run("skull=a.png") == 2
    assert "precision=fp32" in capsys.readouterr().err
    assert not list(Path("results").rglob("a_0.png"))


def test_steps_that_the_schedule_has_not_are_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_model_config()
    cfg.schedule.num_timesteps = 20
    short = tmp_path / "short.safetensors"
    write_state_dict(short, ControlledLatentDiffusion(cfg).state_dict(), model_metadata(cfg))
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    out = tmp_path / "o"
    assert sample.main([f"skull={tmp_path / 'a.png'}", f"weights={short}", f"out={out}"]) == 2
    assert "sampling.steps: got 50, expected 1..19" in capsys.readouterr().err
    assert not out.exists()


def test_what_weights_recommend() -> None:
    assert recommended_sampling({"sampling": '{"steps": 9}'}, 5) == {"steps": 9}
    assert recommended_sampling({}, 13) == {}
    assert recommended_sampling({}, 5) == {"control_scales": [1.0]}
    for bad in ("[1]", "{"):
        with pytest.raises(ValueError, match="metadata entry 'sampling'"):
            recommended_sampling({"sampling": bad}, 5)


def test_a_recommendation_this_version_does_not_know_is_told(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, metadata = load_model(weights)
    newer = tmp_path / "newer.safetensors"
    write_state_dict(newer, model.state_dict(), metadata | {"sampling": '{"magic": 1}'})
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    assert sample.main([f"skull={tmp_path / 'a.png'}", f"weights={newer}", f"out={tmp_path / 'o'}"]) == 2
    assert "settings in the weights: sampling.magic: unknown setting" in capsys.readouterr().err


def test_bf16_on_the_cpu(run: Callable[..., int]) -> None:
    Image.new("L", (64, 64)).save("a.png")
    assert run("skull=a.png", "precision=bf16", "out=o") == 0
    assert text(Path("o/a_0.png"))["environment"]["precision"] == "bfloat16"


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--help"]) == 0
    told = capsys.readouterr().out
    for name in (*sample.SampleConfig.model_fields, *SamplingConfig.model_fields):
        assert name in told
