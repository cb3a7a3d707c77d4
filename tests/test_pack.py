"""Packs: the same pictures from one zip file, and one message when it is damaged."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.cases import find_cases
from data.files import FileHashes, file_names, folder_names, is_folder, open_pack, read_bytes
from data.images import ImageError, read_image
from data.manifest import ManifestError, read_manifest
from data.pack import ARCHIVE, main, pack
from data.paired import PairedDataset

NUM = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of the kinds of files people have: grey and colour PNG, JPEG, 16-bit TIFF, odd shapes and names."""
    rng = np.random.default_rng(3)
    root = tmp_path / "own"
    pictures = root / "pairedCS"
    for name in ("Skulls", "faces/sub folder", "landmarks", "../split_data"):
        (pictures / name).mkdir(parents=True)
    lines = []
    for i in range(NUM):
        skull, face = f"Schädel {i}.{('png', 'tif')[i % 2]}", f"sub folder/{i}.{('png', 'jpg')[i % 2]}"
        deep = rng.integers(0, 65536, (40, 40), dtype=np.uint16)
        Image.fromarray(deep if i % 2 else (deep >> 8).astype(np.uint8)).save(pictures / "Skulls" / skull)
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(pictures / "faces" / face)
        (pictures / f"landmarks/{i}.json").write_text(json.dumps({"points": [[i, i]]}))
        line = {"source": skull, "target": face, "gender": "F", "age": 30 + i, "body_mass": 4}
        texture = f"sub folder/{(i + 2) % NUM}.{('png', 'jpg')[i % 2]}"
        lines.append(json.dumps(line | {"landmarks": f"landmarks/{i}.json", "texture": texture}))
    (root / "split_data/train.json").write_text("\n".join(lines[:8]), encoding="utf-8")
    (root / "split_data/valid.json").write_text("\n".join(lines[8:]), encoding="utf-8")
    return root


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    assert pack(folder, tmp_path / "packed", progress=False) == 3 * NUM  # the textures are faces of others
    return tmp_path / "packed"


def test_a_pack_gives_the_same_files_pictures_and_hashes(folder: Path, packed: Path, tmp_path: Path) -> None:
    for split, num in (("train", 8), ("valid", 4)):
        lists = [read_manifest(root / f"split_data/{split}.json") for root in (folder, packed)]
        for loose, dense in zip(*lists, strict=True):
            for field in ("skull_path", "face_path", "landmarks_path", "texture_path"):
                assert read_bytes(getattr(loose, field)) == read_bytes(getattr(dense, field))
            assert np.array_equal(read_image(loose.skull_path, 32)[0], read_image(dense.skull_path, 32)[0])
            assert loose.biometrics == dense.biometrics and loose.subject == dense.subject
        first, second = (
            FileHashes(tmp_path / f"{k}.json").of([record.skull_path for record in records])
            for k, records in enumerate(lists)
        )
        assert first == second and len(set(first)) == num


def test_loader_processes_read_the_same_pack(packed: Path) -> None:
    dataset = PairedDataset(read_manifest(packed / "split_data/train.json"), size=16)
    alone, shared = (list(DataLoader(dataset, batch_size=1, num_workers=n)) for n in (0, 2))
    assert all(torch.equal(a["face"], b["face"]) for a, b in zip(alone, shared, strict=True))


def test_the_pack_is_found_wherever_the_folder_would_be(folder: Path, packed: Path) -> None:
    archive = packed / ARCHIVE
    records = read_manifest(folder / "split_data/train.json", archive)
    assert records[0].skull_path == archive / "Skulls" / records[0].source
    assert len(find_cases(packed / "split_data/valid.json")) == 4
    assert folder_names(archive) == {"Skulls", "faces", "landmarks"}
    assert folder_names(archive / "faces") == {"sub folder"} and file_names(archive / "faces") == frozenset()
    assert [is_folder(archive / name) for name in ("", "faces", "fac", "faces/sub folder")] == [1, 1, 0, 1]


def test_a_pack_is_a_plain_zip_and_the_same_for_the_same_set(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    for source, out in ((folder, "again"), (packed, "of a pack")):
        pack(source, tmp_path / out, progress=False)
        assert (tmp_path / out / ARCHIVE).read_bytes() == (packed / ARCHIVE).read_bytes()
    with zipfile.ZipFile(packed / ARCHIVE) as archive:
        archive.extractall(tmp_path / "loose")
    for path in (folder / "pairedCS").rglob("*.*"):
        assert (tmp_path / "loose" / path.relative_to(folder / "pairedCS")).read_bytes() == path.read_bytes()


def test_a_whole_pack_passes_the_check_and_changed_bytes_do_not(packed: Path) -> None:
    assert main(["--check", str(packed)]) == 0
    records = read_manifest(packed / "split_data/train.json")
    entry = open_pack(packed / ARCHIVE).files[f"Skulls/{records[0].source}"]
    contents = bytearray((packed / ARCHIVE).read_bytes())
    contents[entry.header_offset + 30 + len(entry.filename.encode()) + 40] ^= 1
    (packed / ARCHIVE).write_bytes(contents)
    with pytest.raises(ImageError, match="Schädel 0"):
        read_image(records[0].skull_path)
    assert read_image(records[1].skull_path, 40)[0].any()
    assert main(["--check", str(packed)]) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "lost", "old", "compressed"])
def test_a_damaged_or_old_pack_is_one_problem_before_anything_starts(damage: str, packed: Path) -> None:
    archive = packed / ARCHIVE
    content = archive.read_bytes()
    archive.unlink()
    if damage in ("cut", "empty"):
        archive.write_bytes(content[:-700] if damage == "cut" else b"")
    elif damage == "old":
        archive.with_name("pairedCS.shards.json").write_text("{}")
    elif damage == "compressed":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("skull/1.png", b"0" * 1000)
    with pytest.raises(ManifestError) as caught:
        read_manifest(packed / "split_data/train.json")
    assert len(caught.value.problems) == 1 or not archive.exists()
    assert ("62346ae" in str(caught.value)) == (damage == "old")
    assert main(["--check", str(packed)]) == 2
