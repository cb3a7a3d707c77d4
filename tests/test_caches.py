"""Latents, text embeddings and hashes on disk: computed once, and anew when what they depend on changes."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import data.files
from cldm.controlled import ControlledLatentDiffusion
from data.files import FileHashes
from data.manifest import read_manifest
from data.paired import PairedDataset
from ldm.checkpoint import CheckpointError
from ldm.config import ModelConfig
from muti_control.distributed import is_first, wait_for
from muti_control.training import latents
from muti_control.training.latents import LatentPairs, Rows, RowStore, face_moments
from muti_control.training.texts import TextTable, tabulate_texts, text_embeddings
from settings.messages import ConfigError

CPU = torch.device("cpu")


def pairs_of(root: Path) -> PairedDataset:
    return PairedDataset(read_manifest(root / "split_data/train.json"), size=64)


def all_rows(rows: Rows) -> Tensor:
    return torch.stack([rows[k] for k in range(len(rows))])


@pytest.fixture
def model(tiny_config: ModelConfig) -> ControlledLatentDiffusion:
    return ControlledLatentDiffusion(tiny_config).eval()


@pytest.fixture
def moments(model: ControlledLatentDiffusion, tmp_path: Path) -> Callable[..., Tensor]:
    """Return all rows of the faces' latents: moments(pairs, cache="cache")."""
    return lambda pairs, cache="cache": all_rows(face_moments(model, pairs, tmp_path / cache, CPU))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Mock, Mock]:
    """Calls that read a file for its hash, and that read a picture to encode it."""
    hashed, encoded = Mock(wraps=data.files.read_bytes), Mock(wraps=latents.read_image)
    monkeypatch.setattr(data.files, "read_bytes", hashed)
    monkeypatch.setattr(latents, "read_image", encoded)
    return hashed, encoded


def test_latents_are_those_of_the_encoder(
    model: ControlledLatentDiffusion,
    moments: Callable[..., Tensor],
    make_pairs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pairs = pairs_of(make_pairs(train=5))
    rows = moments(pairs)
    with torch.no_grad():
        for k in range(5):
            posterior = model.first_stage_model.encode(pairs[k]["face"][None])
            assert torch.allclose(rows[k], torch.cat([posterior.mean, posterior.logvar], dim=1)[0], atol=1e-5)
    item = LatentPairs(pairs, face_moments(model, pairs, tmp_path / "cache", CPU), with_skull=True)[3]
    assert torch.equal(item["moments"], rows[3]) and torch.equal(item["skull"], pairs[3]["skull"])


def test_a_changed_picture_alone_is_computed_anew(
    moments: Callable[..., Tensor], make_pairs: Callable[..., Path], counted: tuple[Mock, Mock]
) -> None:
    root = make_pairs(train=6)
    before = moments(pairs_of(root))
    path, other = (pairs_of(root).records[k].face_path for k in (2, 4))
    assert path is not None and other is not None
    status = path.stat()
    size = status.st_size
    path.write_bytes(other.read_bytes()[:size].ljust(size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time: only its entry tells
    counted[0].reset_mock()
    after = moments(pairs_of(root))
    counted[0].assert_called_once_with(path)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [k != 2 for k in range(6)]


def test_a_changed_weight_of_the_encoder_computes_all_anew(
    model: ControlledLatentDiffusion,
    moments: Callable[..., Tensor],
    make_pairs: Callable[..., Path],
    tmp_path: Path,
    counted: tuple[Mock, Mock],
) -> None:
    hashed, encoded = counted
    pairs = pairs_of(make_pairs(train=4))
    before = moments(pairs)
    with torch.no_grad():  # latents do not depend on these
        next(model.first_stage_model.decoder.parameters()).add_(1)
        next(model.control_model.parameters()).add_(1)
    assert torch.equal(before, moments(pairs))
    assert hashed.call_count == encoded.call_count == 4
    with torch.no_grad():
        model.first_stage_model.quant_conv.bias[0] += 0.5
    after = moments(pairs)
    assert hashed.call_count == 4 and encoded.call_count == 8
    assert torch.allclose(after[:, 0], before[:, 0] + 0.5, atol=1e-5)
    before_text = all_rows(text_embeddings(model, ["a", ""], tmp_path / "cache", CPU))
    with torch.no_grad():
        model.cond_stage_model.transformer.text_model.final_layer_norm.bias[0] += 0.5
    after_text = all_rows(text_embeddings(model, ["a", ""], tmp_path / "cache", CPU))
    assert torch.allclose(after_text[..., 0], before_text[..., 0] + 0.5, atol=1e-5)


def test_an_interrupted_computation_continues(
    moments: Callable[..., Tensor],
    make_pairs: Callable[..., Path],
    counted: tuple[Mock, Mock],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = pairs_of(make_pairs(train=10))
    whole = moments(pairs, "whole")
    monkeypatch.setattr(latents, "ROWS_PER_PART", 4)
    monkeypatch.setattr(latents, "_BATCH", 2)
    write = RowStore.write

    def breaks(store: RowStore, keys: list[str], rows: Tensor) -> None:
        if len(list(store.folder.glob("part-*"))) == 2:
            raise KeyboardInterrupt
        write(store, keys, rows)

    monkeypatch.setattr(RowStore, "write", breaks)
    with pytest.raises(KeyboardInterrupt):
        moments(pairs)
    monkeypatch.setattr(RowStore, "write", write)
    for calls in counted:
        calls.reset_mock()
    assert torch.allclose(moments(pairs), whole, atol=1e-6)
    assert counted[1].call_count == 2 and not counted[0].called


def test_rows_are_read_where_they_lie(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows")
    values = torch.randn(6, 3)
    store.write(["a", "b", "c"], values[:3])
    store.write(["d", "e", "f"], values[3:])
    store.write(["a", "b", "c"], values[:3])  # once more, as a second process would
    assert len(list(store.folder.iterdir())) == 2
    assert RowStore(store.folder).missing(["x", "a", "x"]) == ["x"]
    rows = RowStore(store.folder).rows(["e", "a", "e"])
    assert torch.equal(all_rows(rows), values[[4, 0, 4]])
    assert len(pickle.dumps(rows)) < 2000  # a loader's process maps the files itself
    assert torch.equal(all_rows(pickle.loads(pickle.dumps(rows))), values[[4, 0, 4]])
    part = next(store.folder.iterdir())
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="remove it"):
        RowStore(store.folder)


def test_a_damaged_index_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    index = tmp_path / "index.json"
    hashes = FileHashes(index)
    right = hashes.of([tmp_path / "file"])
    for damage in ("{", '{"format": 1, "files": 3}', "[]"):
        index.write_text(damage)
        assert FileHashes(index).of([tmp_path / "file"]) == right
        assert "damaged" in capsys.readouterr().err
    hashes.save()
    assert json.loads(index.read_text())["files"]


def test_texts_come_from_the_table_and_the_file_still_has_the_encoder(
    model: ControlledLatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"prompt {k}" for k in range(5)]
    with torch.no_grad():
        expected = {p: model.encode_text([p])[0] for p in [*prompts, "", "unforeseen"]}
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    tabulate_texts(model, prompts, tmp_path, CPU)
    assert isinstance(model.cond_stage_model, TextTable)
    requests = ["prompt 3", "", "unforeseen", "prompt 3"]
    rows = model.encode_text(requests)
    assert torch.allclose(rows, torch.stack([expected[prompt] for prompt in requests]), atol=1e-5)
    state = model.state_dict()
    assert state.keys() == whole.keys() and all(torch.equal(state[name], whole[name]) for name in whole)
    assert not any("cond_stage" in name for name, _ in model.named_parameters())
    changed = {name: value + (1 if "cond_stage" in name else 0) for name, value in whole.items()}
    model.load_state_dict(changed)
    assert all(torch.equal(model.state_dict()[name], changed[name]) for name in whole)
    model.load_state_dict(whole)

    again = ControlledLatentDiffusion(model.cfg).eval()
    again.load_state_dict(whole)
    monkeypatch.setattr(type(again.cond_stage_model), "encode", lambda *a: pytest.fail("encoded again"))
    tabulate_texts(again, reversed(prompts), tmp_path, CPU)
    assert torch.equal(again.encode_text(["prompt 3"])[0], rows[0])


def test_who_is_first() -> None:
    assert is_first({})
    assert is_first({"RANK": "0", "LOCAL_RANK": "0"})
    assert not is_first({"RANK": "8", "LOCAL_RANK": "0"})  # of the second machine
    assert not is_first({"LOCAL_RANK": "1", "SLURM_PROCID": "0"})  # begun by Lightning within one SLURM task
    assert not is_first({"SLURM_PROCID": "3"})


def test_the_others_wait_and_give_up_when_nothing_comes(
    moments: Callable[..., Tensor],
    make_pairs: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="all of them see"):
        wait_for(lambda: None, tmp_path, "nothing", patience=0.1)
    pairs = pairs_of(make_pairs(train=3))
    whole = moments(pairs)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(latents, "_encode", lambda *a: pytest.fail("the second process encoded"))
    assert torch.equal(moments(pairs), whole)
    store = RowStore(tmp_path / "later")
    later = threading.Timer(0.3, lambda: RowStore(store.folder).write(["a"], torch.ones(1, 2)))
    later.start()
    assert store.rows_of_all(["a"]) is None
    rows = wait_for(lambda: store.rows_of_all(["a"]), store.folder, "rows", patience=60)
    assert torch.equal(rows[0], torch.ones(2))
    later.join()
