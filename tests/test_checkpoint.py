"""Checkpoint files: round trips, atomic writing, hostile and damaged files, strict loading."""

from __future__ import annotations

import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import Bomb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ldm import checkpoint
from ldm.checkpoint import (
    SCHEDULE_BUFFERS,
    SD_OPTIONAL,
    CheckpointError,
    git_revision,
    load_strict,
    read_state_dict,
    sha256,
    write_state_dict,
)
from ldm.foreign import recognise

METADATA = {"format": "iccr-diff", "config": '{"image_size": 64}', "step": "12", "git": "unknown"}


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.weight": torch.randn(4, 3, generator=generator),
        "model.half": torch.randn(5, generator=generator).half(),
        "model.bfloat": torch.randn(2, 2, generator=generator).bfloat16(),
        "step": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for key, value in a.items():
        assert value.dtype == b[key].dtype
        assert value.shape == b[key].shape
        assert torch.equal(value, b[key])


# --- round trips -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]),
    suffix=st.sampled_from(["ckpt", "safetensors"]),
    transposed=st.booleans(),
)
def test_any_tensors_survive(tmp_path, shapes, dtype, suffix, transposed):
    tensors = {"anchor": torch.ones(1)}
    for i, shape in enumerate(shapes):
        value = (torch.arange(int(np.prod(shape))) % 100).reshape(shape).to(dtype)
        tensors[f"t{i}"] = value.transpose(0, -1) if transposed and shape else value
    path = tmp_path / f"any.{suffix}"
    write_state_dict(path, tensors, {})
    assert_same(read_state_dict(path)[0], tensors)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_views_and_tied_weights_are_written_on_their_own(tmp_path, suffix):
    big = torch.randn(1000, 1000)
    tensors = {"a": big[0], "tied": big[0], "column": big[:, 0], "wide": big[1:2].expand(3, 1000)}
    path = tmp_path / f"views.{suffix}"
    write_state_dict(path, tensors, {})
    assert path.stat().st_size < 60_000  # 6,000 numbers, not the million behind them
    assert_same(read_state_dict(path)[0], tensors)


def test_every_length_of_header_is_recognised(tmp_path):
    """The first byte of a safetensors file is a length, which may look like the start of a pickle."""
    first_bytes = set()
    for pad in range(0, 256, 8):
        metadata = {"pad": "x" * pad}
        write_state_dict(tmp_path / "a.safetensors", {"a": torch.ones(1)}, metadata)
        first_bytes.add((tmp_path / "a.safetensors").read_bytes()[0])
        assert read_state_dict(tmp_path / "a.safetensors")[1] == metadata
    assert 0x80 in first_bytes


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_files_get_the_usual_permissions(tmp_path, suffix):
    (tmp_path / "plain").touch()
    write_state_dict(tmp_path / f"a.{suffix}", {"a": torch.ones(1)}, {})
    assert (tmp_path / f"a.{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- writing: all or nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, suffix, error):
    path = tmp_path / f"model.{suffix}"
    write_state_dict(path, {"a": torch.ones(1)}, {})
    before = path.read_bytes()

    def fail(file: Path) -> None:
        assert file.parent == tmp_path
        assert file.exists()
        raise error

    monkeypatch.setattr(checkpoint, "_flush", fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        write_state_dict(path, state(), METADATA)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


# --- reading what others wrote ---------------------------------------------------------------------------


def test_keys_get_their_level_back(tmp_path):
    flat = "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias"
    full = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    control = ("zero_convs.0.0.weight", "input_hint_block.0.weight", "x")
    for keys, expected in (
        ((flat, full), {flat.replace("transformer.", "transformer.text_model."), full}),
        (control, {f"control_model.{key}" for key in control}),
    ):
        torch.save({key: torch.ones(1) for key in keys}, tmp_path / "a.pth")
        assert set(read_state_dict(tmp_path / "a.pth")[0]) == expected


ATTENTION, UNET = "first_stage_model.decoder.mid.attn_1.", "model.diffusion_model.input_blocks.1."
SHAPES = {
    f"{UNET}1.proj_in.weight": (4, 4, 1, 1), f"{UNET}0.out_layers.3.weight": (4, 4, 3, 3),
    f"{UNET}1.transformer_blocks.0.attn1.to_q.weight": (4, 4), f"{ATTENTION}norm.weight": (4,),
    **{f"{ATTENTION}{name}.weight": (4, 4, 1, 1) for name in ("q", "k", "v", "proj_out")},
    f"{ATTENTION}q.bias": (4,), "cond_stage_model.transformer.text_model.final_layer_norm.bias": (4,),
}  # fmt: skip
PLAIN = {key: torch.full(shape, i + 0.5) for i, (key, shape) in enumerate(SHAPES.items())}
MATRICES = {k: v[:, :, 0, 0] if v.shape[2:] == (1, 1) else v for k, v in PLAIN.items()}
NAMES = {"attn_1.q.": "attn_1.to_q.", "attn_1.k.": "attn_1.to_k.", "attn_1.v.": "attn_1.to_v."}
NAMES |= {"attn_1.proj_out": "attn_1.to_out.0", "attn_1.norm": "attn_1.group_norm"}


def renamed(key: str) -> str:
    for name, other in NAMES.items():
        key = key.replace(name, other)
    return key


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "A.PTH"])
@pytest.mark.parametrize(
    "content",
    [
        MATRICES,
        {renamed(key): value for key, value in MATRICES.items()},
        {key.removeprefix("model."): value for key, value in PLAIN.items()},
        {f"module.{key}": value for key, value in PLAIN.items()},
        {f"model._orig_mod.{key}": value for key, value in PLAIN.items()},
        {"model": PLAIN, "optimizer": {"state": {}}, "epoch": 3},
        {"module": {"state_dict": PLAIN}},
        {"state_dict": {key: value.double() for key, value in PLAIN.items()}},
        {"state_dict": {key: value.half() for key, value in PLAIN.items()}},
        {"state_dict": {key: value.bfloat16() for key, value in PLAIN.items()}},
    ],
)
def test_files_as_people_have_them(tmp_path, content, name):
    """Matrices for convolutions, other names, wrappers, types; a pickle by any name, with and without a zip archive."""
    for legacy in (True, False):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        state, _ = read_state_dict(tmp_path / name)
        assert_same({key: value.float() for key, value in state.items()}, PLAIN)


def test_a_safetensors_file_by_another_name(tmp_path):
    write_state_dict(tmp_path / "a.safetensors", PLAIN, {"step": "3"})
    os.replace(tmp_path / "a.safetensors", tmp_path / "a.ckpt")
    state, metadata = read_state_dict(tmp_path / "a.ckpt")
    assert_same(state, PLAIN)
    assert metadata == {"step": "3"}


def test_averages_alone_are_named_as_such():
    state = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": x for key, x in PLAIN.items()}
    assert "model_ema" in str(recognise(state))
    assert recognise(state | PLAIN) is None


# --- hostile and damaged files ---------------------------------------------------------------------------


def test_what_is_sound_but_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    torch.save({"state_dict": state()}, tmp_path / "a.ckpt", pickle_protocol=4)
    torch.save({"state_dict": state() | {"x": torch.ones(3, device="meta")}}, tmp_path / "b.ckpt")
    for name, message in (("a", "pickle_protocol=2"), ("b", "x is sparse, quantised or empty")):
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / f"{name}.ckpt")


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_names_of_files_that_are_no_utf8_stand_escaped_in_the_metadata(tmp_path: Path, suffix: str) -> None:
    write_state_dict(tmp_path / f"a.{suffix}", state(), {"base": os.fsdecode(b"a\xff.ckpt")})
    assert read_state_dict(tmp_path / f"a.{suffix}")[1] == {"base": "a\\udcff.ckpt"}


@pytest.mark.parametrize("legacy", [True, False])
def test_hostile_pickle_is_refused_and_never_runs(tmp_path, legacy):
    marker = tmp_path / "it-ran"
    for bomb in (Bomb(os.system, f"touch {marker}"), Bomb(open, str(marker), "w")):
        path = tmp_path / "evil.ckpt"
        torch.save({"state_dict": state(), "x": bomb}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"wants to run \S+ while loading.*nothing was executed"):
            read_state_dict(path)
        assert not marker.exists()
        pickle.loads(pickle.dumps(bomb))  # the bomb is a real one
        marker.unlink()


BIG = 7_000_000_000
SMALL_FILES = {
    "bytes": Bomb(bytearray, BIG),
    "floats": Bomb(torch.FloatTensor, BIG),
    "tensor": Bomb(torch.Tensor, BIG),
    "repeated": torch.ones(1).expand(BIG),
}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_small_file_never_takes_much_memory(tmp_path, name, legacy):
    path = tmp_path / "small.ckpt"
    content = {"a": torch.ones(1), "x": SMALL_FILES[name]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limit[1]))
    try:
        with pytest.raises(CheckpointError, match="small"):
            read_state_dict(path, mmap=False)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_named(dtype, value):
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    state = {key: x.clone().to(dtype) for key, x in module.state_dict().items()}
    load_strict(module, state)
    before = {key: x.clone() for key, x in module.state_dict().items()}
    state["1.weight"][0, 1] = value
    with pytest.raises(CheckpointError, match=r"1 not finite \(1.weight\)"):
        load_strict(module, state)
    assert_same(module.state_dict(), before)
    state["1.weight"] = torch.full((1, 2), torch.finfo(dtype).max, dtype=dtype)  # whose sum is infinite
    load_strict(module, state)


def test_compressed_archive_is_refused(tmp_path):
    """PyTorch maps the entries as they lie: of a compressed archive it makes numbers that mean nothing."""
    torch.save({"a": torch.arange(100.0), "b": torch.rand(1000)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert not torch.equal(torch.load(tmp_path / "b.ckpt", mmap=True)["a"], torch.arange(100.0))
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_state_dict(tmp_path / "b.ckpt")


# --- strict loading --------------------------------------------------------------------------------------


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_load_strict_converts_by_prefix_and_allow_lists():
    source, target = net(), net()
    bias = target[1].bias.detach().clone()
    state = {f"part.{key}": value.half() for key, value in source.state_dict().items()}
    del state["part.1.bias"]
    state |= {"part.logvar": torch.ones(1), "elsewhere.x": torch.ones(1)}
    load_strict(target, state, prefix="part.", allow_missing=[r"^part\.1\."], allow_unexpected=[r"logvar$"])
    assert torch.equal(target[1].bias, bias)
    assert torch.equal(target[1].weight, source[1].weight.half().float())


def test_load_strict_names_every_kind_of_difference_and_changes_nothing():
    target = net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {"0.weight": torch.zeros(9, 2), "0.bias": torch.zeros(3, dtype=torch.int8), "new": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(target, state)
    message = str(caught.value)
    for part in ("1.weight, 1.bias", "0.weight ([9, 2] in the file, [3, 2] in", "0.bias (torch.int8", "new"):
        assert part in message
    assert_same(dict(target.state_dict()), before)


def test_optional_keys_of_stable_diffusion():
    module = nn.Module()
    module.register_buffer("betas", torch.ones(1))
    module.register_buffer("weight", torch.zeros(1))
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    names = [ids, "model_ema.decay", "model_ema.diffusion_modelout0weight", "logvar", *SCHEDULE_BUFFERS[1:]]
    state = {name: torch.ones(1) for name in [*names, "weight"]}
    allowed = {"allow_missing": SD_OPTIONAL, "allow_unexpected": SD_OPTIONAL}
    load_strict(module, state, **allowed)
    for name in ("betas2", "model.betas", "xlogvar", "model.model_ema.x"):
        with pytest.raises(CheckpointError, match="unexpected"):
            load_strict(module, {**state, name: torch.ones(1)}, **allowed)


# --- provenance ------------------------------------------------------------------------------------------


def test_sha256_and_git_revision(tmp_path, monkeypatch):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    revision = git_revision()
    assert revision == "unknown" or len(revision.removesuffix("-dirty")) == 40
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "ldm" / "checkpoint.py"))
    assert git_revision() == "unknown"
