"""Files as the public has them, through the tool and into the model: bases, and ready-made control networks."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import tiny_model_config
from public_files import NUMPY_CORES, TEXT, lightning_content, public_weights, write_lightning, write_public

import sample
import tool_add_control
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from ldm.checkpoint import CheckpointError, read_state_dict, write_state_dict
from ldm.foreign import recognise
from settings.reading import to_yaml

ROOT = Path(__file__).resolve().parent.parent
CFG = tiny_model_config()
UNET, CONTROL = "model.diffusion_model.", "control_model."


@pytest.fixture(scope="module")
def whole() -> ControlledLatentDiffusion:
    """A model none of whose layers is zero: base and trained control network."""
    torch.manual_seed(0)
    model = ControlledLatentDiffusion(CFG).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The setting that names the tiny architecture, which a foreign file does not carry."""
    (tmp_path / "tiny.yaml").write_text(to_yaml(CFG))
    return f"config={tmp_path / 'tiny.yaml'}"


def tool(*arguments: object) -> int:
    return tool_add_control.main([str(argument) for argument in arguments])


def base_state(whole: ControlledLatentDiffusion) -> dict[str, torch.Tensor]:
    return {k: v for k, v in whole.state_dict().items() if not k.startswith(CONTROL) and k != "logvar"}


def control_state(whole: ControlledLatentDiffusion) -> dict[str, torch.Tensor]:
    return {k: v for k, v in whole.state_dict().items() if k.startswith(CONTROL)}


# --- base models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("numpy_core", NUMPY_CORES)
@pytest.mark.parametrize("legacy", [False, True])
def test_everything_lightning_adds_is_passed_over_and_nothing_runs(
    tmp_path: Path, numpy_core: str, legacy: bool
) -> None:
    path = tmp_path / "sd.ckpt"
    weights = {"model.a": torch.randn(3), "model.b": torch.arange(4)}
    write_lightning(path, lightning_content(weights), numpy_core, legacy)
    raw = path.read_bytes() if legacy else zipfile.ZipFile(path).read("sd/data.pkl")
    for name in (numpy_core.encode() + b"\nscalar", b"ModelCheckpoint\n", b"_codecs\nencode"):
        assert name in raw
    with pytest.raises(pickle.UnpicklingError):  # what torch alone makes of it
        torch.load(path, weights_only=True)
    allowed = set(torch.serialization.get_safe_globals())
    read, metadata = read_state_dict(path)
    assert set(read) == set(weights)
    assert all(torch.equal(read[key], weights[key]) for key in weights)
    assert metadata == {"step": "470000"}
    assert set(torch.serialization.get_safe_globals()) == allowed  # nothing more stays allowed


@pytest.mark.parametrize(
    ("container", "dtype", "text_model", "ema", "buffers"),
    [
        ("lightning", torch.float32, True, True, True),  # v1-5-pruned.ckpt
        ("lightning", torch.float32, True, False, True),  # v1-5-pruned-emaonly.ckpt
        ("legacy", torch.float32, False, True, False),
        ("safetensors", torch.float16, True, True, False),
        ("bare", torch.float16, False, False, False),
    ],
)
def test_a_public_base_becomes_a_controlled_model(
    whole,
    tmp_path: Path,
    config: str,
    container: str,
    dtype: torch.dtype,
    text_model: bool,
    ema: bool,
    buffers: bool,
) -> None:
    expected = base_state(whole)
    weights = public_weights(expected, dtype, text_model=text_model, ema=ema, buffers=buffers)
    source = tmp_path / "v1-5.file"  # the content says what it is, not the name
    write_public(source, weights, container)
    assert tool(source, tmp_path / "out.safetensors", config) == 0
    model, metadata = load_model(tmp_path / "out.safetensors")
    for key, value in model.state_dict().items():
        if key in expected and "." in key:
            assert torch.equal(value, expected[key].to(dtype).float()), key
    assert torch.equal(model.alphas_cumprod, whole.alphas_cumprod)  # in full precision, whatever the file has
    assert metadata.get("base_step") == ("470000" if container in ("lightning", "legacy") else None)
    assert not any(key.startswith("model_ema.") for key in read_state_dict(tmp_path / "out.safetensors")[0])


# --- ready-made control networks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "prefix", "dtype"),
    [
        ("bare", "", torch.float16),
        ("safetensors", CONTROL, torch.float16),
        ("legacy", "", torch.float32),
        ("whole model", CONTROL, torch.float32),
    ],
)
def test_a_public_control_network_is_joined_with_its_base(
    whole, tmp_path: Path, capsys, container: str, prefix: str, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in control_state(whole).items()}
    state = {prefix + key.removeprefix(CONTROL): value for key, value in state.items()}
    if container == "whole model":
        state |= {key: torch.zeros_like(value) for key, value in base_state(whole).items()}
    given = tmp_path / "control_v11p_sd15.pth"
    write_public(given, state, "bare" if container == "whole model" else container)
    base = tmp_path / "base.safetensors"
    write_state_dict(base, base_state(whole), model_metadata(CFG))
    assert tool(base, tmp_path / "out.safetensors", f"control={given}") == 0
    assert f"ready-made      {len(control_state(whole)):>5}  control_model." in capsys.readouterr().out
    model, metadata = load_model(tmp_path / "out.safetensors")
    assert metadata["control"] == given.name
    assert len(metadata["control_sha256"]) == 64
    assert "seed" not in metadata
    for key, value in whole.state_dict().items():
        cast = value.to(dtype).float() if key.startswith(CONTROL) else value
        assert torch.equal(model.state_dict()[key], cast), key


def test_a_control_network_alone_needs_its_base(whole, tmp_path: Path, capsys) -> None:
    path = tmp_path / "control.safetensors"
    write_public(path, {k.removeprefix(CONTROL): v for k, v in control_state(whole).items()}, "safetensors")
    with pytest.raises(CheckpointError, match=rf"BASE OUT control={path}"):
        load_model(path)
    assert tool(path, tmp_path / "out.ckpt") == 2
    assert "control=FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (
            {CONTROL + "input_hint_block.0.weight": torch.ones(4, 1, 3, 3)},
            "input_hint_block.0.weight is [4, 1",
        ),
        ({CONTROL + "input_hint_block.14.bias": None}, "1 missing (control_model.input_hint_block.14.bias)"),
        ({CONTROL + "extra": torch.ones(1)}, "1 unknown (control_model.extra)"),
        (
            {CONTROL + "zero_convs.0.0.bias": torch.ones(8, dtype=torch.int8)},
            "zero_convs.0.0.bias is torch.int8",
        ),
        ({"difference": torch.ones(1)}, "difference"),
        ({"other.weight": torch.ones(2), CONTROL: None}, "control_model.*"),
        ({"lora_unet_down_blocks_0.lora_down.weight": torch.ones(1), CONTROL: None}, "LoRA"),
    ],
)
def test_a_control_file_that_does_not_fit(
    whole, tmp_path: Path, capsys, extra: dict[str, torch.Tensor | None], named: str
) -> None:
    """None takes away the keys that begin so."""
    gone = tuple(key for key, value in extra.items() if value is None)
    state = {key: value for key, value in control_state(whole).items() if not key.startswith(gone)}
    base, given = tmp_path / "base.safetensors", tmp_path / "given.pth"
    write_state_dict(base, base_state(whole), model_metadata(CFG))
    torch.save(state | {key: value for key, value in extra.items() if value is not None}, given)
    assert tool(base, tmp_path / "out.ckpt", f"control={given}") == 2
    message = capsys.readouterr().err
    assert str(given) in message and named in message and message.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [base.name, given.name]


# --- what else is about ----------------------------------------------------------------------------------


FIRST, CONTEXT = UNET + "input_blocks.0.0.weight", UNET + "a.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        ({FIRST: (8, 9, 3, 3)}, "an inpainting model (9 input channels"),
        ({FIRST: (8, 8, 3, 3)}, "an InstructPix2Pix model"),
        ({FIRST: (8, 4, 3, 3), "cond_stage_model.model.x": (1,)}, "Stable Diffusion 2 (text"),
        ({FIRST: (8, 5, 3, 3), CONTEXT: (8, 1024)}, "the depth-to-image model (5 input channels"),
        ({FIRST: (8, 4, 3, 3), "conditioner.embedders.0.x": (1,)}, "Stable Diffusion XL"),
        ({UNET + "label_emb.0.0.weight": (1,)}, "Stable Diffusion XL (label_emb.* keys)"),
        ({UNET + "double_blocks.0.x": (1,)}, "Stable Diffusion 3 or Flux"),
        ({"unet.down_blocks.0.x": (1,)}, "a diffusers export"),
        ({"net.control_model.x": (1,)}, "a training checkpoint of this program"),
        ({"first_stage_model.encoder.x": (1,)}, "an autoencoder without a UNet"),
        ({"text_model.x": (1,)}, "a text encoder without a UNet"),
        ({"lora_te_x": (1,)}, "a LoRA"),
        ({FIRST: (320, 4, 3, 3), CONTEXT: (8, 768), TEXT + "x": (1,)}, "None"),
        ({"a": (1,)}, "None"),
    ],
)
def test_models_of_another_make_have_a_name(shapes: dict[str, tuple[int, ...]], name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert str(recognise(state)).startswith(name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("pipnet_face.safetensors", "a landmark network (PIPNet)"),
        ("guidance_decoder.safetensors", "a small decoder for guidance"),
    ],
)
def test_our_other_networks_are_called_by_their_name(
    file: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(ROOT / "models" / "demo" / file)
    assert recognise(read_state_dict(path)[0]) == name
    assert sample.main([f"weights={path}", f"out={tmp_path / 'faces'}"]) == 2
    assert f"this is {name}; expected" in capsys.readouterr().err
    assert tool_add_control.main([path, str(tmp_path / "out.safetensors")]) == 2
    assert f"it is {name}" in capsys.readouterr().err
