"""Folders in diffusers' layout: diffusers loads what we write and draws the same picture; we load what it writes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers_folders import (
    CFG,
    PROMPT,
    SAMPLING,
    edit,
    exported_as,
    imported,
    perturbed_model,
    refused,
    same,
)
from diffusers_folders import exported as exported
from diffusers_folders import model as model
from PIL import Image
from transformers import CLIPTokenizer

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_config_from_metadata, model_metadata
from cldm.diffusers_folder.__main__ import main
from cldm.diffusers_folder.configs import CLASSES, check_expressible, settings_of
from cldm.diffusers_folder.keys import their_keys
from cldm.sampling import reconstruct
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import LandmarkConfig, ModelConfig, TextureConfig
from ldm.text import tokenize


@pytest.fixture
def checkpoint(exported: Path) -> Path:
    """The file that `exported` was made from."""
    return exported.parent / "model.safetensors"


# --- out: what diffusers makes of it ---------------------------------------------------------------------


def exported_with(model: ControlledLatentDiffusion, sampling: SamplingConfig, parent: Path) -> Path:
    metadata = {**model_metadata(CFG), "sampling": sampling.model_dump_json()}
    return exported_as(parent, model.state_dict(), metadata)


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim", "spacing": "leading", "eta": 1.0, "guidance_scale": 3.0},
        {"sampler": "dpmpp_2m", "spacing": "midmany", "eta": 1.0, "guidance_scale": 1.0},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_the_script_in_the_folder_draws_what_sample_py_draws(
    model: ControlledLatentDiffusion, tmp_path: Path, monkeypatch, settings: dict, capsys
) -> None:
    """The README.md's own script, run as it stands: the recommended settings, seed 0, a picture of 8 bits."""
    sampling = SamplingConfig(steps=6, control_scales=[0.9], **settings)
    folder = exported_with(model, sampling, tmp_path)
    assert "the same seed gives sample.py's face" in capsys.readouterr().out
    skull = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(skull).save(tmp_path / "skull.png")
    script = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(script.replace('"FOLDER"', '"folder"'), "README.md", "exec"), {})
    theirs = np.asarray(Image.open(tmp_path / "face.png")).astype(float)
    skulls = torch.from_numpy(skull).permute(2, 0, 1)[None] / 255
    ours = reconstruct(model, skulls, [PROMPT], [0], sampling)[0].permute(1, 2, 0).numpy() * 255
    assert theirs.std() > 5
    assert np.abs(ours - theirs).max() < 2  # half a level by rounding to 8 bits, the rest by float32
    assert np.abs(ours - theirs).mean() < 0.3


@pytest.mark.parametrize(
    ("settings", "message", "argument"),
    [
        (
            {"control_scales": [1.5, 1.5, 1.0, 1.0, 1.0, 1.0, 0.7]},
            "control scale",
            "controlnet_conditioning_scale=1.1,",
        ),
        ({"spacing": "midmany"}, "'midmany'", "num_inference_steps=4,"),
        ({"sampler": "unipc", "eta": 0.0}, "UniPC", "num_inference_steps=4,"),
        ({"sampler": "dpmpp_2m", "eta": 0.3}, "eta 0.3", "timesteps=[999, 749, 499, 249],"),
        ({"control_end": 0.5}, "skull", "control_guidance_end=0.5,"),
        ({"guidance_scale": 0.5}, "Guidance 0.5", "guidance_scale=0.5,"),
    ],
)
def test_settings_that_diffusers_has_not_are_said(model, tmp_path: Path, capsys, settings, message, argument):
    sampling = SamplingConfig(**{**SAMPLING, **settings})
    card = (exported_with(model, sampling, tmp_path) / "README.md").read_text()
    output = capsys.readouterr().out
    assert message in output and message in card
    assert f"    {argument}\n" in card


def test_recommended_settings_that_are_nonsense_are_refused(model, tmp_path: Path, capsys) -> None:
    for wrong in ("[1]", "{", '{"stepps": 3}', '{"control_scales": "many"}'):
        metadata = {**model_metadata(CFG), "sampling": wrong}
        write_state_dict(tmp_path / "m.safetensors", model.state_dict(), metadata)
        assert "'sampling'" in refused(capsys, "export", tmp_path / "m.safetensors", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_base_model_becomes_a_plain_pipeline(model, tmp_path: Path, capsys) -> None:
    """Nothing is left out: the branches that are planned for its control network stay planned."""
    cfg = CFG.with_(control=CFG.control.with_(landmarks=LandmarkConfig(num_points=5, widths=[4, 4])))
    base = {
        k: v for k, v in model.state_dict().items() if not k.startswith("control_model.") and k != "logvar"
    }
    folder = exported_as(tmp_path, base, model_metadata(cfg))
    assert "left out" not in capsys.readouterr().out
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.unet.config.block_out_channels == [16, 48, 32]
    back, metadata = imported(folder, tmp_path / "back.safetensors")
    assert same(base, back)
    assert model_config_from_metadata(metadata) == cfg


def test_tokenizer_gives_our_ids(exported: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    prompts = [PROMPT, "", "a photo of a cat", "it's  a CAFÉ, naïve 1234 #@! über-straße 北京", "face " * 75]
    theirs = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(theirs.input_ids, tokenize(prompts))
    assert tokenizer.model_max_length == 77


def test_full_size_names_and_shapes_are_those_of_the_libraries() -> None:
    """Stable Diffusion 1.5 on the meta device: each of their parameters is one of ours, of the same shape."""
    cfg = ModelConfig(image_size=512)
    settings = settings_of(cfg)
    with torch.device("meta"):
        ours = {key: value.shape for key, value in ControlledLatentDiffusion(cfg).state_dict().items()}
        nets = {part: CLASSES[part](**settings[part]) for part in ("unet", "vae", "controlnet")}
    for part, net in nets.items():
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


def test_round_trip_of_an_odd_file(model, tmp_path: Path, capsys) -> None:
    """Half precision in places, no buffers, `position_ids`, an EMA copy, no metadata but a config elsewhere."""
    state = {key: value for key, value in model.state_dict().items() if "." in key}
    state |= {k: v.half() for k, v in state.items() if k.startswith(("first_stage_model.", "control_model."))}
    extra = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    ema = {"model_ema.decay": torch.tensor(0.9999)}
    (tmp_path / "cfg.yaml").write_text(model_metadata(CFG)["config"])
    source = tmp_path / "odd.ckpt"
    write_state_dict(source, state | extra | ema, {})
    assert main(["export", str(source), str(tmp_path / "out"), f"config={tmp_path / 'cfg.yaml'}"]) == 0
    assert "left out" in capsys.readouterr().out
    back, metadata = imported(tmp_path / "out", tmp_path / "back.ckpt")
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
    for arguments, named in (
        ((), "export or import"),
        (("export", "a"), "got 1"),
        (("import", "a", "b", "image_size=big"), "image_size"),
        (("export", checkpoint, tmp_path / "full"), "full"),
        (("export", checkpoint, tmp_path / "file.safetensors"), "file.safetensors"),
        (("export", checkpoint, tmp_path / "out", "config=models/cldm_v15.yaml"), "do not fit"),
        (("import", exported, tmp_path / "file.safetensors"), "overwrite=true"),
        (("import", tmp_path / "nowhere", tmp_path / "x.ckpt"), "nowhere"),
    ):
        assert named in refused(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert main(["export", str(checkpoint), str(tmp_path / "empty")]) == 0
    assert (
        main(["import", str(tmp_path / "empty"), str(tmp_path / "file.safetensors"), "overwrite=true"]) == 0
    )


def test_branches_are_left_out_and_the_rest_draws_as_without_their_conditions(tmp_path: Path, capsys) -> None:
    cfg = CFG.with_(
        control=CFG.control.with_(
            landmarks=LandmarkConfig(num_points=5, widths=[4, 4]), texture=TextureConfig()
        ),
        first_stage=CFG.first_stage.with_(grain=4),
    )
    model = perturbed_model(cfg)
    metadata = {**model_metadata(cfg), "sampling": json.dumps(SAMPLING)}
    folder = exported_as(tmp_path, model.state_dict(), metadata)
    for text in (capsys.readouterr().out, (folder / "README.md").read_text()):
        assert "landmarks=none texture=none" in text and "grain" in text
    imported(folder, tmp_path / "back.safetensors")
    back, _ = load_model(tmp_path / "back.safetensors")
    assert back.cfg.control.landmarks is None and back.cfg.control.texture is None
    skulls = torch.rand(1, 3, 64, 64)
    ours, theirs = (
        reconstruct(net, skulls, [PROMPT], [11], SamplingConfig(**SAMPLING, grain=False))
        for net in (model, back)
    )
    assert torch.equal(ours, theirs)


def test_what_diffusers_cannot_be_configured_to_be(tiny_config: ModelConfig, capsys) -> None:
    check_expressible(tiny_config)
    for section, name, value in (
        ("control", "hint_widths", [4, 5, 4, 4, 8, 8, 8]),
        ("unet", "channel_mult", [2, 2]),
        ("first_stage", "ch_mult", [2, 1, 1, 1]),
        ("cond_stage", "vocab_size", 100),
    ):
        changed = getattr(tiny_config, section).with_(**{name: value})
        with pytest.raises(ValueError, match=rf"diffusers has no setting for {section}\.{name}\b"):
            check_expressible(tiny_config.with_(**{section: changed}))


def test_a_missing_library_gives_one_message(checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install diffusers" in refused(capsys, "export", checkpoint, tmp_path / "out")
    assert "pip install diffusers" in refused(capsys, "import", tmp_path, tmp_path / "out.safetensors")
