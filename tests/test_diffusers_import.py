"""Folders in diffusers' layout as other makers write them: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers_folders import (
    CFG,
    edit,
    exported_folder,
    imported,
    perturbed_model,
    refused,
    rewrite,
    same,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from cldm.controlled import ControlledLatentDiffusion, model_config_from_metadata
from cldm.diffusers_folder.__main__ import main
from cldm.diffusers_folder.their_configs import model_config
from ldm.latent_diffusion import ModelConfig


@pytest.fixture(scope="module")
def model() -> ControlledLatentDiffusion:
    return perturbed_model()


@pytest.fixture(scope="module")
def exported(model: ControlledLatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_folder(model, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> diffusers.StableDiffusionControlNetPipeline:
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(exported)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
        {"max_shard_size": "100KB"},
        {"max_shard_size": "100KB", "variant": "fp16"},
    ],
    ids=["safetensors", "bin", "variant", "shards", "shards of a variant"],
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


def test_older_names_and_shapes(model, copy: Path, tmp_path: Path) -> None:
    """VAE attention as diffusers < 0.12 had it, as convolutions; linear layers in the UNet; bare text keys."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(key: str) -> str:
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        return key

    rewrite(
        copy / "vae/diffusion_pytorch_model.safetensors",
        older,
        lambda key, value: value[..., None, None] if ".attentions." in key and value.ndim == 2 else value,
    )
    rewrite(
        copy / "unet/diffusion_pytorch_model.safetensors",
        lambda key: key,
        lambda key, value: value.flatten(1) if ".proj_" in key and value.ndim == 4 else value,
    )
    rewrite(
        copy / "text_encoder/model.safetensors", lambda key: key.removeprefix("text_model."), lambda _, v: v
    )
    (copy / "model_index.json").unlink()  # as a folder put together by hand has none
    state, _ = imported(copy, tmp_path / "back.safetensors")
    assert same(dict(model.state_dict()), state)


def test_without_control_the_result_is_a_base_file(copy: Path, tmp_path: Path, capsys) -> None:
    shutil.rmtree(copy / "controlnet")
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
    assert "context_dim is 1024, the UNet's 24" in error
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
    ("part", "change", "message"),
    [
        ("unet", {"in_channels": 9}, "an inpainting model"),
        ("unet", {"attention_head_dim": [5, 10, 20]}, "Stable Diffusion 2"),
        ("text_encoder", {"hidden_act": "gelu"}, "Stable Diffusion 2"),
        ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        (
            "scheduler",
            {"prediction_type": "sample"},
            "prediction_type is 'sample', but ours are epsilon and v",
        ),
        ("scheduler", {"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("unet", {"block_out_channels": [16, 40, 32]}, "multiples of the first"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 3}, "mirror image"),
        ("unet", {"down_block_types": ["AttnDownBlock2D"] * 3}, "expected 3 of DownBlock2D"),
        ("unet", {"layers_per_block": [1, 2, 1]}, "one number for all levels"),
        ("text_encoder", {"hidden_size": 32}, "make them equal"),
        ("unet", {"layers_per_block": 2}, "the ControlNet's num_res_blocks is 1, the UNet's 2"),
        ("unet", {"in_channels": "4"}, "in_channels is '4', expected a whole number"),
        ("unet", {"down_block_types": None}, "down_block_types is None"),
        ("unet", {"norm_num_groups": 0}, "norm_num_groups is 0"),
        ("vae", {"norm_num_groups": 5}, "divisible"),
        ("unet", {"transformer_layers_per_block": 10**9}, "expected a whole number of 1..16"),
        ("vae", {"scaling_factor": None}, "scaling_factor is None"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        ("vae", {"layers_per_block": 2}, "missing (encoder.down_blocks.0.resnets.1.norm1.weight"),
        ("controlnet", {"controlnet_conditioning_channel_order": "bgr"}, "channel_order is 'bgr'"),
        ("controlnet", {"conditioning_embedding_out_channels": [4, 6]}, "four widths"),
        ("controlnet", {"conditioning_embedding_out_channels": [4, 6, 8, "x"]}, "whole numbers above 0"),
        ("controlnet", {"conditioning_embedding_out_channels": [5, 6, 8, 10]}, "of another shape"),
    ],
)
def test_other_models_are_refused(copy: Path, tmp_path: Path, capsys, part, change, message: str) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(copy / part / name, lambda content: content.update(change))
    error = refused(capsys, "import", copy, tmp_path / "x.safetensors")
    assert message in error
    assert str(copy) in error
    assert not (tmp_path / "x.safetensors").exists()


def test_what_is_kept_beside_the_parts_cannot_replace_them(exported: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(exported, tmp_path / "folder")
    rest = tmp_path / "folder/iccr_diff/rest.safetensors"
    save_file({**load_file(rest), "model.diffusion_model.out.2.bias": torch.ones(4)}, rest)
    error = refused(capsys, "import", tmp_path / "folder", tmp_path / "x.ckpt")
    assert "holds model.diffusion_model.out.2.bias, which belongs to a part" in error
    (tmp_path / "folder/iccr_diff/metadata.json").write_text("[" * 100_000)
    assert "cannot be read as JSON" in refused(capsys, "import", tmp_path / "folder", tmp_path / "x.ckpt")


def test_broken_folders_are_refused(copy: Path, tmp_path: Path, capsys) -> None:
    def error(*arguments: str) -> str:
        return refused(capsys, "import", copy, tmp_path / "x.safetensors", *arguments)

    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in error()
    weights.unlink()
    assert "holds no weights; expected diffusion_pytorch_model.safetensors" in error()
    index = copy / "unet/diffusion_pytorch_model.safetensors.index.json"
    for listed, message in (
        ("../secret.safetensors", "names files beside it"),
        ("a.safetensors", "lacks a."),
    ):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": listed}}))
        assert message in error()
    index.unlink()
    for variant in ("fp16", "non_ema"):
        (copy / f"unet/diffusion_pytorch_model.{variant}.safetensors").write_bytes(whole)
    assert "as fp16 and as non_ema; choose with variant=fp16" in error()
    assert main(["import", str(copy), str(tmp_path / "ok.safetensors"), "variant=non_ema"]) == 0
    (copy / "unet/config.json").write_text("[1, 2")
    assert "cannot be read as JSON" in error()
    (copy / "unet/config.json").unlink()
    assert "it has no unet/config.json" in error()
    edit(copy / "model_index.json", lambda c: c.update(text_encoder_2=["transformers", "CLIPTextModel"]))
    assert "Stable Diffusion XL" in error()
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected export or import"),
        (("convert", "a", "b"), "got 'convert'"),
        (("export", "a"), "expected IN and OUT, got 1"),
        (("export", "a", "b", "force=true"), "not understood; export takes config="),
        (("import", "a", "b", "image_size=big"), "not understood"),
    ],
)
def test_command_line(arguments: tuple[str, ...], message: str, capsys) -> None:
    assert message in refused(capsys, *arguments)


def test_help(capsys) -> None:
    assert main(["-h"]) == 0
    assert "python -m cldm.diffusers_folder export IN" in capsys.readouterr().out
