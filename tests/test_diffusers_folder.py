"""Folders in diffusers' layout: diffusers loads what we write and draws the same picture; we load what it writes."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers_folders import (
    CFG,
    PROMPT,
    SAMPLING,
    edit,
    exported_folder,
    imported,
    perturbed_model,
    refused,
    same,
)
from transformers import CLIPTokenizer

from cldm.controlled import ControlledLatentDiffusion, load_model, model_config_from_metadata, model_metadata
from cldm.diffusers_folder.__main__ import main
from cldm.diffusers_folder.configs import check_expressible, part_configs
from cldm.diffusers_folder.keys import their_keys
from cldm.sampling import SamplingConfig, reconstruct
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.latent_diffusion import ModelConfig
from ldm.text import tokenize


@pytest.fixture(scope="module")
def model() -> ControlledLatentDiffusion:
    return perturbed_model()


@pytest.fixture(scope="module")
def exported(model: ControlledLatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_folder(model, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def checkpoint(exported: Path) -> Path:
    """The file that `exported` was made from."""
    return exported.parent / "model.safetensors"


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> diffusers.StableDiffusionControlNetPipeline:
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(exported)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- out: what diffusers makes of it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "eta", "guidance", "scale"), [("leading", 0.0, 3.0, 0.7), ("trailing", 1.0, 1.0, 1.2)]
)
def test_the_pipeline_draws_our_picture(
    model: ControlledLatentDiffusion,
    pipeline: diffusers.StableDiffusionControlNetPipeline,
    spacing: str,
    eta: float,
    guidance: float,
    scale: float,
) -> None:
    """Same seed, skull, prompt and settings; the noise comes from the seed in both."""
    skulls = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    cfg = SamplingConfig(5, spacing=spacing, eta=eta, guidance_scale=guidance, control_scales=[scale])
    ours = reconstruct(model, skulls, [PROMPT] * 2, [11, 11], cfg)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing=spacing
    )
    theirs = pipeline(
        PROMPT,
        image=skulls[:1],
        num_inference_steps=5,
        eta=eta,
        guidance_scale=guidance,
        controlnet_conditioning_scale=scale,
        generator=torch.Generator().manual_seed(11),
        output_type="pt",
    ).images
    assert theirs.shape == (1, 3, 64, 64)
    assert float(theirs.std()) > 0.02  # a picture, and not one that is clipped to a flat field
    assert float((ours[:1] - theirs).abs().max()) < 1e-4
    assert float((ours[1:] - theirs).abs().max()) > 1e-2  # another skull gives another picture


def test_the_folder_says_how_the_checkpoint_wants_to_be_sampled(exported: Path, capsys) -> None:
    card = (exported / "README.md").read_text()
    for setting in ("num_inference_steps=4", "eta=1.0", "controlnet_conditioning_scale=0.9"):
        assert setting in card
    assert (
        json.loads((exported / "scheduler/scheduler_config.json").read_text())["timestep_spacing"]
        == "trailing"
    )
    script = card.split("```python\n")[1].split("```")[0]
    compile(script, "README.md", "exec")


def test_scales_and_spacing_that_diffusers_has_not_are_said(model, tmp_path: Path, capsys) -> None:
    sampling = {**SAMPLING, "spacing": "midmany", "control_scales": [1.5, 1.5, 1, 1, 1, 1, 0.7]}
    write_state_dict(
        tmp_path / "m.safetensors",
        model.state_dict(),
        {**model_metadata(CFG), "sampling": json.dumps(sampling)},
    )
    assert main(["export", str(tmp_path / "m.safetensors"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "control scale for each residual (1.5, 1.5, 1, 1, 1, 1, 0.7)" in said
    assert "'midmany'" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "controlnet_conditioning_scale=1.1," in card and "'midmany'" in card


def test_a_base_model_becomes_a_plain_pipeline(model, tmp_path: Path) -> None:
    base = {
        k: v for k, v in model.state_dict().items() if not k.startswith("control_model.") and k != "logvar"
    }
    write_state_dict(tmp_path / "base.safetensors", base, model_metadata(CFG))
    assert main(["export", str(tmp_path / "base.safetensors"), str(tmp_path / "out")]) == 0
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.config.block_out_channels == [16, 48, 32]
    assert same(base, imported(tmp_path / "out", tmp_path / "back.safetensors")[0])


def test_tokenizer_gives_our_ids(exported: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    prompts = [PROMPT, "", "a photo of a cat", "it's  a CAFÉ, naïve 1234 #@! über-straße 北京", "face " * 75]
    theirs = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(theirs.input_ids, tokenize(prompts))
    assert tokenizer.model_max_length == 77


def test_full_size_names_and_shapes_are_those_of_the_libraries() -> None:
    """Stable Diffusion 1.5 on the meta device: every parameter of theirs has one of ours, of the same shape."""
    cfg = ModelConfig(image_size=512)
    configs = {part: content for part, (_, content) in part_configs(cfg, "leading").items()}
    with torch.device("meta"):
        ours = {key: value.shape for key, value in ControlledLatentDiffusion(cfg).state_dict().items()}
        theirs = {
            "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(configs["vae"]),
            "controlnet": diffusers.ControlNetModel.from_config(configs["controlnet"]),
        }
    for part, net in theirs.items():
        known = inspect.signature(type(net).__init__).parameters
        assert not [key for key in configs[part] if key not in known and not key.startswith("_")]
        names = their_keys(cfg)[part]
        shapes = {key: value.shape for key, value in net.state_dict().items()}
        assert sorted(names.values()) == sorted(shapes)
        for key, name in names.items():
            assert ours[key] in (shapes[name], (*shapes[name], 1, 1)), key


# --- there and back --------------------------------------------------------------------------------------


def test_round_trip_is_exact(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    state, metadata = imported(exported, tmp_path / "back.safetensors")
    before, metadata_before = read_state_dict(checkpoint)
    assert same(before, state)
    assert metadata == {**metadata_before, "diffusers_folder": "folder"}
    load_model(tmp_path / "back.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_round_trip_of_an_odd_file(model, tmp_path: Path, suffix: str, capsys) -> None:
    """Half precision in places, no buffers, `position_ids`, an EMA copy, no metadata but a config elsewhere."""
    state = {key: value for key, value in model.state_dict().items() if "." in key}
    state |= {k: v.half() for k, v in state.items() if k.startswith(("first_stage_model.", "control_model."))}
    extra = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    ema = {"model_ema.decay": torch.tensor(0.9999)}
    (tmp_path / "cfg.yaml").write_text(json.dumps(json.loads(model_metadata(CFG)["config"])))
    source = tmp_path / f"odd{suffix}"
    write_state_dict(source, state | extra | ema, {})
    assert main(["export", str(source), str(tmp_path / "out"), f"config={tmp_path / 'cfg.yaml'}"]) == 0
    assert "left out" in capsys.readouterr().out
    back, metadata = imported(tmp_path / "out", tmp_path / f"back{suffix}")
    assert same(state | extra, back)
    assert model_config_from_metadata(metadata) == CFG


def test_a_folder_that_was_changed_has_the_word(exported: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(exported, tmp_path / "folder")
    edit(tmp_path / "folder/vae/config.json", lambda c: c.update(scaling_factor=0.5))
    _, metadata = imported(tmp_path / "folder", tmp_path / "back.safetensors")
    assert model_config_from_metadata(metadata).scale_factor == 0.5
    assert json.loads(metadata["sampling"]) == SAMPLING
    assert "note: the config in" in capsys.readouterr().out


def test_nothing_is_overwritten_or_left_behind(
    checkpoint: Path, exported: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file.safetensors").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert "not empty" in refused(capsys, "export", checkpoint, tmp_path / "full")
    assert "is a file" in refused(capsys, "export", checkpoint, tmp_path / "file.safetensors")
    assert "mkdir -p" in refused(capsys, "export", checkpoint, tmp_path / "no" / "where")
    assert "force=true" in refused(capsys, "import", exported, tmp_path / "file.safetensors")
    assert "must end in" in refused(capsys, "import", exported, tmp_path / "model.bin")
    assert "does not exist" in refused(capsys, "import", tmp_path / "nowhere", tmp_path / "x.ckpt")
    assert "no such file" in refused(capsys, "export", tmp_path / "nothing.ckpt", tmp_path / "out")
    wrong = refused(capsys, "export", checkpoint, tmp_path / "out", "config=models/cldm_v15.yaml")
    assert "do not have the expected architecture" in wrong
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert main(["export", str(checkpoint), str(tmp_path / "empty")]) == 0
    assert main(["import", str(tmp_path / "empty"), str(tmp_path / "file.safetensors"), "force=true"]) == 0


def test_what_diffusers_cannot_be_configured_to_be(tiny_config: ModelConfig, capsys) -> None:
    check_expressible(tiny_config)
    for section, name, value in (
        ("control", "hint_widths", [4, 5, 4, 4, 8, 8, 8]),
        ("unet", "channel_mult", [2, 2]),
        ("first_stage", "ch_mult", [2, 1, 1, 1]),
        ("cond_stage", "vocab_size", 100),
    ):
        kept = getattr(getattr(tiny_config, section), name)
        setattr(getattr(tiny_config, section), name, value)
        with pytest.raises(ValueError, match=rf"diffusers has no setting for {section}\.{name}="):
            check_expressible(tiny_config)
        setattr(getattr(tiny_config, section), name, kept)
