"""Packs: the same pictures from a few large files, and what is said when one of them is damaged."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import train
from data.cases import Known, find_cases
from data.images import ImageError, read_image
from data.manifest import ManifestError, read_manifest, relocate
from data.pack import INDEX, PackConfig, main, pack
from data.packs.shards import ShardError, open_pack, read_bytes
from data.paired import PairedDataset
from ldm.latent_diffusion import ModelConfig
from muti_control.training.config import DataConfig, ExperimentConfig, TrainConfig
from muti_control.training.run import prepare

NUM = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of the kinds of files people have: grey and colour PNG, JPEG, 16-bit TIFF, odd shapes and names."""
    rng = np.random.default_rng(3)
    root = tmp_path / "own"
    for name in ("pairedCS/Skulls", "pairedCS/faces/sub folder", "pairedCS/landmarks", "split_data"):
        (root / name).mkdir(parents=True)
    lines = []
    for i in range(NUM):
        skull, face = f"Schädel {i}.{('png', 'tif')[i % 2]}", f"sub folder/{i}.{('png', 'jpg')[i % 2]}"
        deep = rng.integers(0, 65536, (40, 40), dtype=np.uint16)
        Image.fromarray(deep if i % 2 else (deep >> 8).astype(np.uint8)).save(
            root / "pairedCS/Skulls" / skull
        )
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(
            root / "pairedCS/faces" / face
        )
        (root / f"pairedCS/landmarks/{i}.json").write_text(json.dumps({"points": [[i, i]]}))
        line = {"source": skull, "target": face, "gender": "F", "age": 30 + i, "body_mass": 4}
        line |= {
            "landmarks": f"landmarks/{i}.json",
            "texture": f"sub folder/{(i + 2) % NUM}.{('png', 'jpg')[i % 2]}",
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    (root / "split_data/train.json").write_text("\n".join(lines[:8]), encoding="utf-8")
    (root / "split_data/valid.json").write_text("\n".join(lines[8:]), encoding="utf-8")
    return root


@pytest.fixture
def packed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same set in several shards."""
    monkeypatch.setattr("data.pack._MB", 8_000)
    out = tmp_path / "packed"
    assert pack(folder, out, PackConfig(shard_mb=1), progress=False) > 2
    return out


def test_a_pack_gives_the_same_pictures_bit_for_bit(folder: Path, packed: Path) -> None:
    for split, num in (("train", 8), ("valid", 4)):
        lists = [read_manifest(root / f"split_data/{split}.json") for root in (folder, packed)]
        assert [len(records) for records in lists] == [num, num]
        for loose, dense in zip(*lists, strict=True):
            for field in ("skull_path", "face_path", "landmarks_path", "texture_path"):
                assert read_bytes(getattr(loose, field)) == read_bytes(getattr(dense, field))
            assert np.array_equal(read_image(loose.skull_path, 32)[0], read_image(dense.skull_path, 32)[0])
            assert loose.biometrics == dense.biometrics and loose.subject == dense.subject
        for one, other in zip(*(PairedDataset(records, size=32) for records in lists), strict=True):
            assert torch.equal(one["skull"], other["skull"]) and torch.equal(one["face"], other["face"])
            assert (one["prompt"], one["index"]) == (other["prompt"], other["index"])


def test_loader_processes_read_the_same_pack(packed: Path) -> None:
    dataset = PairedDataset(read_manifest(packed / "split_data/train.json"), size=16)
    alone, shared = (list(DataLoader(dataset, batch_size=4, num_workers=n)) for n in (0, 2))
    assert all(torch.equal(a["face"], b["face"]) for a, b in zip(alone, shared, strict=True))


def test_the_pack_is_found_wherever_the_folder_would_be(folder: Path, packed: Path) -> None:
    index = packed / INDEX
    records = read_manifest(folder / "split_data/train.json", index)
    assert records[0].skull_path == index / "Skulls" / records[0].source
    assert relocate(read_manifest(folder / "split_data/train.json"), index) == records
    cases = find_cases(packed / "split_data/valid.json", Known())
    assert [read_image(case.skull_path, 16)[0].shape for case in cases] == [(16, 16, 3)] * 4
    assert len(PairedDataset(read_manifest(folder / "split_data/train.json"), index, 16)) == 8


def test_a_pack_is_plain_tar_and_the_same_for_the_same_set(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    pack(folder, again, PackConfig(shard_mb=1), progress=False)
    files = sorted(path.name for path in packed.iterdir() if path.is_file())
    assert files == sorted(path.name for path in again.iterdir() if path.is_file())
    assert all((packed / name).read_bytes() == (again / name).read_bytes() for name in files)
    for shard in packed.glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path / "loose", filter="data")
    loose = {
        path.relative_to(tmp_path / "loose"): path.read_bytes() for path in (tmp_path / "loose").rglob("*.*")
    }
    whole = {
        path.relative_to(folder / "pairedCS"): path.read_bytes()
        for path in (folder / "pairedCS").rglob("*.*")
    }
    assert loose == whole
    # and a pack packed again is the pack
    pack(packed, tmp_path / "third", PackConfig(shard_mb=1), progress=False)
    assert (tmp_path / "third" / INDEX).read_bytes() == (packed / INDEX).read_bytes()


def test_a_whole_pack_passes_the_check(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(packed)]) == 0
    assert f"{4 * NUM - NUM} files" in capsys.readouterr().out  # the textures are faces of others


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


@pytest.mark.parametrize(
    ("damage", "said"), [(_cut, "bytes, expected"), (Path.unlink, "is missing")], ids=["cut", "lost"]
)
def test_a_cut_or_lost_shard_is_told_before_anything_starts(
    damage: Callable[[Path], None], said: str, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(packed / "pairedCS-00001.tar")
    with pytest.raises(ManifestError, match=r"pairedCS-00001\.tar") as caught:
        read_manifest(packed / "split_data/train.json")
    assert (
        said in str(caught.value)
        and str(caught.value).count("\n") == 1
        and "copy the pack" in str(caught.value)
    )
    assert main(["--check", str(packed)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_changed_bytes_are_told_by_the_file_they_are_in(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read_manifest(packed / "split_data/train.json")
    entry = open_pack(packed / INDEX).files[f"Skulls/{records[0].source}"]
    shard = packed / f"pairedCS-{entry.shard:05d}.tar"
    contents = bytearray(shard.read_bytes())
    contents[entry.offset + 40] ^= 1
    shard.write_bytes(contents)
    with pytest.raises(ImageError, match=r"pairedCS-0000\d\.tar: Skulls/Schädel 0.* is damaged"):
        read_image(records[0].skull_path)
    assert read_image(records[1].skull_path, 40)[0].any()
    assert main(["--check", str(packed)]) == 2
    assert "checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    "contents",
    ["", "[]", "{", '{"format": 2}', '{"format": 1, "shards": []}', '{"format": 1, "shards": 3, "files": 4}'],
)
def test_a_damaged_index_is_told(contents: str, packed: Path) -> None:
    (packed / INDEX).write_text(contents)
    with pytest.raises(ManifestError, match=INDEX) as caught:
        read_manifest(packed / "split_data/train.json")
    assert len(caught.value.problems) == 1


def test_an_index_cannot_lead_out_of_its_folder(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    shard = {"file": "../secret", "size": 1, "sha256": ""}
    (packed / INDEX).write_text(json.dumps({"format": 1, "shards": [shard], "files": {"a": [0, 0, 1, 0]}}))
    with pytest.raises(ShardError, match="not beside it"):
        open_pack(packed / INDEX)


def test_what_is_not_in_the_pack_is_a_line_of_the_manifest(packed: Path) -> None:
    path = packed / "split_data/train.json"
    path.write_text(path.read_text(encoding="utf-8").replace("Schädel 1", "Schädel 99"), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"line 2: source: no file .*Schädel 99"):
        read_manifest(path)
    with pytest.raises(ShardError, match="no file"):
        read_bytes(packed / INDEX / "Skulls" / "none.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["own"], "expected the folder"),
        (["none", "out"], "no split_data"),
        (["own", "own"], "choose another"),
        (["own", "packed"], "overwrite=true"),
        (["own", "out", "shard_mb=0"], "shard_mb=0"),
        (["own", "out", "shards=3"], "shards"),
        (["own", "out", "16"], "key=value"),
        (["--check", "own"], INDEX),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    arguments: list[str], said: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_pack_is_none_and_is_made_anew(folder: Path, packed: Path) -> None:
    whole = (packed / INDEX).read_bytes()
    (packed / INDEX).unlink()
    (packed / "pairedCS-00001.tar").unlink()
    (packed / "pairedCS-00099.tar").write_text("of an older, larger pack")
    with pytest.raises(ManifestError):
        read_manifest(packed / "split_data/train.json")
    pack(folder, packed, PackConfig(shard_mb=1), progress=False)
    assert (packed / INDEX).read_bytes() == whole and not (packed / "pairedCS-00099.tar").exists()


def losses(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "csv/version_0/metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "loss" in k or k == "step"} for row in csv.DictReader(file)]


def test_training_from_a_pack_is_training_from_the_folder(
    make_pairs: Callable[..., Path],
    tiny_config: ModelConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_pairs(train=6, valid=2)
    pack(folder, tmp_path / "dense", progress=False)
    seen = []
    for name, root in (("loose", folder), ("dense", tmp_path / "dense")):
        cfg = ExperimentConfig(
            stage="autoencoder", name=name, out=str(tmp_path / "runs"), model=tiny_config,
            data=DataConfig(root=str(root)),
            train=TrainConfig(max_steps=4, batch_size=2, val_every=2, num_valid=2, precision="32-true",
                              accelerator="cpu"),
        )  # fmt: skip
        assert prepare(cfg).fit() is not None
        seen.append(losses(cfg.run_dir))
    assert seen[0] == seen[1] and len(seen[0]) >= 2 and any(row.values() for row in seen[0])
    shard = next((tmp_path / "dense").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    capsys.readouterr()
    config = str(Path(__file__).parent.parent / "configs/debug/autoencoder.yaml")
    assert train.main([config, f"data.root={tmp_path / 'dense'}", f"out={tmp_path / 'runs'}"]) == 2
    assert "bytes, expected" in capsys.readouterr().err
