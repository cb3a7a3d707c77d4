"""Folders in diffusers' layout as other makers write them: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers_folders import (
    CFG,
    edit,
    imported,
    refused,
    same,
)
from diffusers_folders import exported as exported
from diffusers_folders import model as model
from diffusers_folders import pipeline as pipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from cldm.controlled import model_config_from_metadata
from cldm.diffusers_folder.__main__ import main
from cldm.diffusers_folder.configs import model_config
from ldm.config import ModelConfig


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """The exported folder, to be changed by a test, as another maker would have it."""
    shutil.copytree(exported, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "iccr_diff")
    return tmp_path / "folder"


# --- in: what others write -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"safe_serialization": True},
        {"safe_serialization": False},
        {"variant": "fp16"},
        {"max_shard_size": "100KB", "variant": "fp16"},
    ],
    ids=["safetensors", "bin", "variant", "shards of a variant"],
)
def test_what_diffusers_saves_is_imported(model, pipeline, tmp_path: Path, how: dict, capsys) -> None:
    pipeline.save_pretrained(tmp_path / "theirs", **how)
    files = {path.suffix for path in (tmp_path / "theirs/unet").iterdir()} - {".json"}
    assert files == ({".bin"} if how.get("safe_serialization") is False else {".safetensors"})
    shards = list((tmp_path / "theirs/unet").glob("*-of-*"))
    assert bool(shards) == ("max_shard_size" in how)
    state, metadata = imported(tmp_path / "theirs", tmp_path / "back.safetensors")
    assert same(dict(model.state_dict()), state)
    assert model_config_from_metadata(metadata) == CFG


def test_full_precision_is_preferred_and_a_variant_can_be_chosen(pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "theirs")
    half = {key: value.half() for key, value in pipeline.unet.state_dict().items()}
    save_file(half, tmp_path / "theirs/unet/diffusion_pytorch_model.fp16.safetensors")
    key = "model.diffusion_model.out.2.weight"
    assert imported(tmp_path / "theirs", tmp_path / "a.safetensors")[0][key].dtype == torch.float32
    state, _ = imported(tmp_path / "theirs", tmp_path / "b.safetensors", "variant=fp16")
    assert state[key].dtype == torch.float16
    assert state["control_model.zero_convs.0.0.weight"].dtype == torch.float32  # of which there is no variant


def test_without_control_the_result_is_a_base_file(copy: Path, tmp_path: Path, capsys) -> None:
    shutil.rmtree(copy / "controlnet")
    (copy / "model_index.json").unlink()  # as a folder put together by hand has none
    state, metadata = imported(copy, tmp_path / "base.safetensors", "image_size=128")
    assert "tool_add_control.py adds" in capsys.readouterr().out
    assert not [key for key in state if key.startswith("control_model.")]
    assert model_config_from_metadata(metadata).image_size == 128
    from tool_add_control import main as add_control

    target = tmp_path / "control.safetensors"
    assert add_control([str(tmp_path / "base.safetensors"), str(target)]) == 0


def test_a_single_controlnet_goes_onto_a_base(model, copy: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(copy / "controlnet", tmp_path / "alone")
    shutil.rmtree(copy / "controlnet")
    imported(copy, tmp_path / "base.safetensors")
    state, metadata = imported(
        tmp_path / "alone", tmp_path / "both.safetensors", f"base={tmp_path / 'base.safetensors'}"
    )
    assert same(dict(model.state_dict()), state)
    assert model_config_from_metadata(metadata) == CFG
    assert metadata["base"] == "base.safetensors" and metadata["control"] == "alone"
    error = refused(capsys, "import", tmp_path / "alone", tmp_path / "x.ckpt")
    assert "base=CHECKPOINT" in error
    edit(tmp_path / "alone/config.json", lambda c: c.update(cross_attention_dim=1024))
    base = f"base={tmp_path / 'base.safetensors'}"
    error = refused(capsys, "import", tmp_path / "alone", tmp_path / "x.ckpt", base)
    assert "cross_attention_dim is 1024" in error
    assert not (tmp_path / "x.ckpt").exists()


def test_the_published_configs_of_stable_diffusion_15_are_understood() -> None:
    """As they stand on the hub: what a file leaves out has the libraries' defaults."""
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    unet = {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False,
        "cross_attention_dim": 768, "down_block_types": down, "downsample_padding": 1, "flip_sin_to_cos": True,
        "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
        "norm_num_groups": 32, "out_channels": 4, "sample_size": 64, "up_block_types": up,
    }  # fmt: skip
    vae = {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4,
        "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None, "clip_sample": False,
    }  # fmt: skip
    control = {key: value for key, value in unet.items() if key not in ("sample_size", "up_block_types")}
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler, "controlnet": control}
    for written in (text.to_diff_dict(), text.to_dict()):
        assert model_config({**parts, "text_encoder": written}) == ModelConfig(image_size=512)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("unet", {"in_channels": 9}, "inpainting"),
        ("text_encoder", {"hidden_act": "gelu"}, "Stable Diffusion 2"),
        ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("unet", {"attention_head_dim": [5, 10, 20]}, "unet.num_heads"),
        ("unet", {"block_out_channels": [16, 40, 32]}, "block_out_channels"),
        ("unet", {"down_block_types": None}, "down_block_types"),
        ("unet", {"norm_num_groups": 0}, "norm_groups"),
        ("text_encoder", {"hidden_size": 32}, "context_dim"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("vae", {"shift_factor": 0.1}, "shift_factor"),
        ("vae", {"layers_per_block": 2}, "missing (decoder.up_blocks.0.resnets.2.conv1.bias"),
        ("controlnet", {"conditioning_embedding_out_channels": [4, 6, 8, "x"]}, "embedding_out_channels"),
        ("controlnet", {"conditioning_embedding_out_channels": [5, 6, 8, 10]}, "controlnet_cond_embedding"),
    ],
)
def test_other_models_are_refused(copy: Path, tmp_path: Path, capsys, part, change, named: str) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(copy / part / name, lambda content: content.update(change))
    error = refused(capsys, "import", copy, tmp_path / "x.safetensors")
    assert named in error
    assert str(copy) in error
    assert not (tmp_path / "x.safetensors").exists()


def test_what_is_kept_beside_the_parts_cannot_replace_them(exported: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(exported, tmp_path / "folder")
    rest = tmp_path / "folder/iccr_diff/rest.safetensors"
    save_file({**load_file(rest), "model.diffusion_model.out.2.bias": torch.ones(4)}, rest)
    error = refused(capsys, "import", tmp_path / "folder", tmp_path / "x.ckpt")
    assert "model.diffusion_model.out.2.bias" in error
    (tmp_path / "folder/iccr_diff/metadata.json").write_text("[" * 100_000)
    assert "metadata.json" in refused(capsys, "import", tmp_path / "folder", tmp_path / "x.ckpt")


def test_broken_folders_are_refused(copy: Path, tmp_path: Path, capsys) -> None:
    def error(*arguments: str) -> str:
        return refused(capsys, "import", copy, tmp_path / "x.safetensors", *arguments)

    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert weights.name in error()
    weights.unlink()
    assert "unet" in error()
    index = copy / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "a.safetensors"}}))
    assert "unet" in error()
    index.unlink()
    for variant in ("fp16", "non_ema"):
        (copy / f"unet/diffusion_pytorch_model.{variant}.safetensors").write_bytes(whole)
    assert "variant=fp16" in error()
    assert main(["import", str(copy), str(tmp_path / "ok.safetensors"), "variant=non_ema"]) == 0
    (copy / "unet/config.json").write_text("[1, 2")
    assert "unet/config.json" in error()
    (copy / "unet/config.json").unlink()
    assert "unet/config.json" in error()
    edit(copy / "model_index.json", lambda c: c.update(text_encoder_2=["transformers", "CLIPTextModel"]))
    assert "Stable Diffusion XL" in error()
    assert not (tmp_path / "x.safetensors").exists()
