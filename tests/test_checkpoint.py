"""Checkpoint files: round trips, atomic writing, hostile and damaged files, strict loading."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
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

METADATA = {"format": "iccr-diff", "config": '{"image_size": 64}', "step": "12", "git": "unknown"}
SUFFIXES = ("safetensors", "ckpt", "pth", "pt")


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
def test_any_tensors_survive(
    tmp_path: Path, shapes, dtype: torch.dtype, suffix: str, transposed: bool
) -> None:
    tensors = {"anchor": torch.ones(1)}
    for i, shape in enumerate(shapes):
        value = (torch.arange(int(np.prod(shape))) % 100).reshape(shape).to(dtype)
        tensors[f"t{i}"] = value.transpose(0, -1) if transposed and shape else value
    path = tmp_path / f"any.{suffix}"
    write_state_dict(path, tensors, {})
    assert_same(read_state_dict(path)[0], tensors)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_views_and_tied_weights_are_written_on_their_own(tmp_path: Path, suffix: str) -> None:
    big = torch.randn(1000, 1000)
    tensors = {"a": big[0], "tied": big[0], "column": big[:, 0], "wide": big[1:2].expand(3, 1000)}
    path = tmp_path / f"views.{suffix}"
    write_state_dict(path, tensors, {})
    assert path.stat().st_size < 60_000  # 6,000 numbers, not the million behind them
    assert_same(read_state_dict(path)[0], tensors)


def test_every_length_of_header_is_recognised(tmp_path: Path) -> None:
    """The first byte of a safetensors file is a length, which may look like the start of a pickle."""
    first_bytes = set()
    for pad in range(0, 256, 8):
        metadata = {"pad": "x" * pad}
        write_state_dict(tmp_path / "a.safetensors", {"a": torch.ones(1)}, metadata)
        first_bytes.add((tmp_path / "a.safetensors").read_bytes()[0])
        assert read_state_dict(tmp_path / "a.safetensors")[1] == metadata
    assert 0x80 in first_bytes


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_files_get_the_usual_permissions(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "plain").touch()
    write_state_dict(tmp_path / f"a.{suffix}", {"a": torch.ones(1)}, {})
    assert (tmp_path / f"a.{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_parameters_can_be_written_and_the_mapped_tensors_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    layer = nn.Linear(2, 2)
    write_state_dict(path, dict(layer.named_parameters()), {})
    before = sha256(path)
    read, _ = read_state_dict(path)
    read["weight"].zero_()
    assert sha256(path) == before
    assert not torch.equal(read_state_dict(path)[0]["weight"], read["weight"])


# --- writing: all or nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch, suffix: str, error) -> None:
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


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_unwritable_tensor_is_reported_and_nothing_is_left(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        write_state_dict(tmp_path / f"a.{suffix}", {"a": torch.empty(2, device="meta")}, {})
    assert os.listdir(tmp_path) == []


def refuse(**_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_bad_targets(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(CheckpointError, match="must end in one of"):
        write_state_dict(tmp_path / "model.bin", state(), {})
    with pytest.raises(CheckpointError, match="not an existing folder"):
        write_state_dict(tmp_path / "no" / "model.ckpt", state(), {})
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        write_state_dict(tmp_path / "folder.ckpt", state(), {})
    monkeypatch.setattr(checkpoint.tempfile, "TemporaryFile", refuse)
    with pytest.raises(CheckpointError, match="no file can be made there"):
        write_state_dict(tmp_path / "model.ckpt", state(), {})
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(CheckpointError, match=r"needs 40 MiB.*1 MiB free"):
        write_state_dict(tmp_path / "model.ckpt", {"a": torch.empty(10 << 20, device="meta")}, {})
    assert os.listdir(tmp_path) == ["folder.ckpt"]


# --- reading what others wrote ---------------------------------------------------------------------------


def test_legacy_container_and_bare_state_dict(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "old.pth")[0], state())
    torch.save({**state(), "epoch": 3, "note": "x"}, tmp_path / "bare.pt")
    assert_same(read_state_dict(tmp_path / "bare.pt")[0], state())


def test_text_encoder_keys_get_their_level_back(tmp_path: Path) -> None:
    flat = "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias"
    full = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    write_state_dict(tmp_path / "a.ckpt", {flat: torch.ones(1), full: torch.zeros(1)}, {})
    read, _ = read_state_dict(tmp_path / "a.ckpt")
    assert set(read) == {flat.replace("transformer.", "transformer.text_model."), full}


def test_control_network_keys_get_their_level_back(tmp_path: Path) -> None:
    bare = {
        "zero_convs.0.0.weight": torch.ones(1),
        "input_hint_block.0.weight": torch.ones(2),
        "x": torch.ones(3),
    }
    torch.save(bare, tmp_path / "a.pth")
    assert set(read_state_dict(tmp_path / "a.pth")[0]) == {f"control_model.{key}" for key in bare}


# --- hostile and damaged files ---------------------------------------------------------------------------


class Bomb:
    """Runs a command when unpickled naively."""

    def __init__(self, call: Callable, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", ["os.system", "eval", "open"])
def test_hostile_pickle_is_refused_and_never_runs(tmp_path: Path, kind: str, legacy: bool) -> None:
    marker = tmp_path / "it-ran"
    bomb = {
        "os.system": Bomb(os.system, f"touch {marker}"),
        "eval": Bomb(eval, f"open({str(marker)!r}, 'w')"),
        "open": Bomb(open, str(marker), "w"),
    }[kind]
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": state(), "x": bomb}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"wants to run \S+ while loading.*nothing was executed"):
        read_state_dict(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(bomb))  # the bomb is a real one
    assert marker.exists()


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"model.{suffix}"
    write_state_dict(path, {"a": torch.randn(100, 100)}, METADATA)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<html><body>404</body></html>", "expected safetensors or a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x80\x02garbage", "not a readable PyTorch checkpoint"),
        (b"PK\x03\x04garbage", "not a readable PyTorch checkpoint"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "not a readable safetensors file"),
    ],
)
def test_other_content(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_tensorless(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_dict(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_state_dict(tmp_path)
    for content, message in (
        ({"params": {"a": torch.ones(1)}}, "its keys are: params"),
        ({"state_dict": [1]}, "state_dict is a list"),
        ([torch.ones(1)], "holds a list"),
    ):
        torch.save(content, tmp_path / "odd.ckpt")
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / "odd.ckpt")


# --- strict loading --------------------------------------------------------------------------------------


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_load_strict_copies_everything_and_converts() -> None:
    source, target = net(), net()
    load_strict(target, {key: value.half() for key, value in source.state_dict().items()})
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.half().float())


def test_load_strict_allow_lists_and_prefix() -> None:
    source, target = net(), net()
    bias = target[1].bias.detach().clone()
    given = {f"part.{key}": value for key, value in source.state_dict().items()}
    del given["part.1.bias"]
    given |= {"part.logvar": torch.ones(1), "elsewhere.x": torch.ones(1)}
    load_strict(target, given, prefix="part.", allow_missing=[r"^part\.1\."], allow_unexpected=[r"logvar$"])
    assert torch.equal(target[1].bias, bias)
    assert torch.equal(target[1].weight, source[1].weight)


def test_load_strict_names_every_kind_of_difference_and_changes_nothing() -> None:
    target = net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    given = {"0.weight": torch.zeros(9, 2), "0.bias": torch.zeros(3), "new": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(target, given)
    message = str(caught.value)
    assert "do not fit Sequential" in message
    assert "1.weight, 1.bias" in message
    assert "0.weight ([9, 2] in the file, [3, 2] in the model)" in message
    assert "new" in message
    assert "Use the config" in message
    assert_same(dict(target.state_dict()), before)


def test_load_strict_refuses_quantised_weights() -> None:
    given = {key: value.to(torch.int8) for key, value in net().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"4 another type \(0.weight \(torch.int8 in the file\), "):
        load_strict(net(), given)


def test_optional_keys_of_stable_diffusion() -> None:
    module = nn.Module()
    module.register_buffer("betas", torch.ones(1))
    module.register_buffer("weight", torch.zeros(1))
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    names = [ids, "model_ema.decay", "model_ema.diffusion_modelout0weight", "logvar", *SCHEDULE_BUFFERS[1:]]
    given = {name: torch.ones(1) for name in [*names, "weight"]}
    load_strict(module, given, allow_missing=SD_OPTIONAL, allow_unexpected=SD_OPTIONAL)
    for name in ("betas2", "model.betas", "xlogvar", "model.model_ema.x"):
        with pytest.raises(CheckpointError, match="unexpected"):
            load_strict(
                module,
                {**given, name: torch.ones(1)},
                allow_missing=SD_OPTIONAL,
                allow_unexpected=SD_OPTIONAL,
            )


# --- provenance ------------------------------------------------------------------------------------------


def test_sha256_and_git_revision(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    revision = git_revision()
    assert revision == "unknown" or len(revision.removesuffix("-dirty")) == 40
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "ldm" / "checkpoint.py"))
    assert git_revision() == "unknown"
