"""tool_add_control.py as its users call it: what is copied, what is new, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import tiny_model_config

import tool_add_control
from cldm.branches import branches_among
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from ldm.checkpoint import read_state_dict, sha256, write_state_dict
from ldm.config import ModelConfig
from ldm.latent_diffusion import LatentDiffusion
from settings.reading import to_yaml

CFG = tiny_model_config()
NEW = ("input_hint_block.", "zero_convs.", "middle_block_out.")


def perturbed(cfg: ModelConfig = CFG) -> LatentDiffusion:
    """A base model none of whose layers is left at zero or one, in the memory format `load_model` chooses."""
    torch.manual_seed(0)
    model = LatentDiffusion(cfg).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def base() -> LatentDiffusion:
    return perturbed()


@pytest.fixture
def base_file(base: LatentDiffusion, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    write_state_dict(path, base.state_dict(), {**model_metadata(CFG), "step": "77"})
    return path


def tool(*arguments: object) -> int:
    return tool_add_control.main([str(argument) for argument in arguments])


def eps_of_both(base: LatentDiffusion, model: ControlledLatentDiffusion) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 4, 4, generator=generator)
    t = torch.tensor([981, 3])
    with torch.no_grad():
        context = base.encode_text(["3D face scan,Asian male,age level 3,normal face.", ""])
        hint = model.encode_hint(torch.rand(2, 3, 32, 32, generator=generator))
        return base.unet(x, t, context), model.eps(x, t, context, hint)


def test_the_result_gives_the_base_models_eps(base, tmp_path: Path, monkeypatch) -> None:
    """Bit for bit, with any skull, and a bare output name lands in the working directory."""
    source = "epoch=3-step=77.ckpt"  # a name as Lightning makes them
    write_state_dict(tmp_path / source, base.state_dict(), model_metadata(CFG))
    monkeypatch.chdir(tmp_path)
    assert tool(source, "out.safetensors") == 0
    assert sorted(os.listdir(tmp_path)) == [source, "out.safetensors"]
    model, _ = load_model(tmp_path / "out.safetensors")
    expected, eps = eps_of_both(base, model)
    assert torch.equal(expected, eps)
    assert expected.abs().max() > 0.1
    with torch.no_grad():  # the control branch is connected: once a zero layer moves, eps does
        model.control_model.middle_block_out[0].bias.fill_(0.5)
    assert not torch.equal(*eps_of_both(base, model))


def test_interrupt_leaves_nothing(base_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cldm.add_control.add_control", interrupt)
    assert tool(base_file, tmp_path / "out.ckpt") == 130
    assert "interrupted" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [base_file.name]


def test_every_key_comes_from_where_it_should(base, base_file: Path, tmp_path: Path) -> None:
    assert tool(base_file, tmp_path / "out.safetensors", "branches=[skull]") == 0
    state, _ = read_state_dict(tmp_path / "out.safetensors")
    assert set(state) == set(ControlledLatentDiffusion(CFG).state_dict())
    for key, value in base.state_dict().items():
        assert torch.equal(state[key], value), key
    control = {
        k.removeprefix("control_model."): v for k, v in state.items() if k.startswith("control_model.")
    }
    new = {name for name in control if name.startswith(NEW)}
    assert len(new) == 16 + 2 * CFG.unet.num_control_outputs
    for name, value in control.items():
        if name in new:
            is_zero = name.startswith(("zero_convs.", "middle_block_out.", "input_hint_block.14."))
            is_zero |= name.startswith("input_hint_block.") and name.endswith(".bias")
            assert (value.abs().max() == 0) == is_zero, name
        else:
            assert torch.equal(value, state[f"model.diffusion_model.{name}"]), name


def test_metadata_records_the_origin(base_file: Path, tmp_path: Path) -> None:
    assert tool(base_file, tmp_path / "out.ckpt", "seed=5") == 0
    _, metadata = read_state_dict(tmp_path / "out.ckpt")
    expected = {"format": "iccr-diff", "step": "0", "base_step": "77", "base": base_file.name, "seed": "5"}
    assert metadata.items() >= (expected | {"base_sha256": sha256(base_file)}).items()
    assert json.loads(metadata["config"])["unet"]["model_channels"] == CFG.unet.model_channels
    assert metadata["git"]


def test_foreign_file_with_a_config(base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half precision and keys of no use; public_files.py has the rest of what public files hold."""
    state = {key: v.half() for key, v in base.state_dict().items() if "." in key}
    torch.save({"state_dict": state | {"junk": torch.ones(2)}}, tmp_path / "sd.ckpt")
    (tmp_path / "tiny.yaml").write_text(to_yaml(CFG), encoding="utf-8")
    assert tool(tmp_path / "sd.ckpt", tmp_path / "out.safetensors", f"config={tmp_path / 'tiny.yaml'}") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ignored", "1", "junk"] in table
    out, _ = read_state_dict(tmp_path / "out.safetensors")
    assert torch.equal(out["alphas_cumprod"], base.alphas_cumprod)
    assert torch.equal(out["logvar"], torch.zeros(1000))
    assert {v.dtype for k, v in out.items() if k.startswith("control_model.")} == {torch.float16}
    plain = perturbed()
    plain.load_state_dict(plain.state_dict() | {key: value.float() for key, value in state.items()})
    assert torch.equal(*eps_of_both(plain, load_model(tmp_path / "out.safetensors")[0]))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """The one line of a refusal that writes nothing."""
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert tool(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("tool_add_control.py: ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return output.err


def test_existing_output_is_kept_unless_forced(base_file: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    assert "exists already" in refused(capsys, tmp_path, base_file, target)
    assert "exists already" in refused(capsys, tmp_path, base_file, target, "overwrite=false")
    assert tool(base_file, target, "overwrite=true") == 0
    assert read_state_dict(target)[1]["format"] == "iccr-diff"
    capsys.readouterr()
    assert "the input itself" in refused(capsys, tmp_path, base_file, base_file, "overwrite=true")


def test_an_untrained_control_network_is_made_anew(base_file: Path, tmp_path: Path, capsys) -> None:
    assert tool(base_file, tmp_path / "once.ckpt") == 0
    assert tool(tmp_path / "once.ckpt", tmp_path / "twice.ckpt") == 0
    assert "ignored" in capsys.readouterr().out
    once, again = (read_state_dict(tmp_path / f"{name}.ckpt")[0] for name in ("once", "twice"))
    assert all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.parametrize(
    ("arguments", "branches", "points"),
    [
        ([], ["landmarks", "skull", "texture"], 106),
        (["num_landmarks=5"], ["landmarks", "skull", "texture"], 5),
        (["branches=[skull]"], ["skull"], None),
        (["branches=[texture,skull]"], ["skull", "texture"], None),
    ],
)
def test_the_branches_are_all_of_them_or_those_of_the_key(
    base_file: Path, tmp_path: Path, arguments: list[str], branches: list[str], points: int | None
) -> None:
    assert tool(base_file, tmp_path / "out.safetensors", *arguments) == 0
    state, metadata = read_state_dict(tmp_path / "out.safetensors")
    assert json.loads(metadata["untrained_branches"]) == branches
    control = json.loads(metadata["config"])["control"]
    assert (control["texture"] is not None) == ("texture" in branches)
    assert (control["landmarks"] or {}).get("num_points") == points
    assert branches_among(key for key in state if key.startswith("control_model.")) == set(branches)


def test_a_trained_control_network_is_never_lost_unless_replaced(
    base_file: Path, tmp_path: Path, capsys
) -> None:
    """Its branches stay trained, those it lacks are added; replace=true alone makes a fresh one, of the same size."""
    first, more, fresh = (tmp_path / f"{name}.safetensors" for name in ("first", "more", "fresh"))
    assert tool(base_file, first, "branches=[skull,landmarks]", "num_landmarks=5") == 0
    state, metadata = read_state_dict(first)
    state["control_model.zero_convs.0.0.bias"][0] = 1e-3
    facts = {"untrained_branches": '["landmarks"]', "sampling": '{"steps": 3}', "conditions": "{}"}
    write_state_dict(first, state, metadata | facts)
    for branches in ("branches=[skull]", "branches=[skull,landmarks]"):  # nothing to add
        assert "replace=true" in refused(capsys, tmp_path, first, tmp_path / "no.ckpt", branches)
    assert "num_landmarks" in refused(capsys, tmp_path, first, tmp_path / "no.ckpt", "num_landmarks=6")
    own = f"control={first}"
    assert "replace=true" in refused(capsys, tmp_path, first, tmp_path / "no.ckpt", own)
    for branches in ((), ("branches=[skull,texture]",)):  # what IN has is kept, named or not
        assert tool(first, more, *branches, "overwrite=true") == 0
        line = capsys.readouterr().out.splitlines()[-2]
        assert (
            "first.safetensors: landmarks, skull; added: texture; not trained yet: landmarks, texture" in line
        )
        again, kept = read_state_dict(more)
        assert all(torch.equal(again[key], value) for key, value in state.items())
        assert all(kept[key] == facts[key] for key in ("sampling", "conditions"))
        assert load_model(more)[0].untrained_branches == {"landmarks", "texture"}
    assert tool(more, fresh, "replace=true", "branches=[skull,landmarks]") == 0
    model, _ = load_model(fresh)
    assert model.untrained_branches == {"skull", "landmarks"}
    assert not model.control_model.zero_convs[0][0].bias.any()
    assert model.cfg.control.landmarks is not None and model.cfg.control.landmarks.num_points == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base.safetensors", "out.bin"), "out.bin"),
        (("base.safetensors", "out.ckpt", "config=other.yaml"), "unet.norm_groups"),
        (("base.safetensors", "out.ckpt", "overwirte=true"), "overwrite"),
        (("base.safetensors", "out.ckpt", "branches=[landmarks]"), "branches"),
        (("base.safetensors", "out.ckpt", "branches=[skull,bone]"), "branches[1]"),
        (("base.safetensors", "out.ckpt", "num_landmarks=0"), "num_landmarks"),
        (("base.safetensors", "out.ckpt", "landmarks=106"), "branches"),
        (("base.safetensors", "out.ckpt", "texture=true"), "branches"),
    ],
)
def test_refusals(base_file: Path, tmp_path: Path, monkeypatch, capsys, arguments, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("unet: {model_channels: 7}")
    assert message in refused(capsys, tmp_path, *arguments)
