"""The paired dataset: ranges, shapes, memory, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.images import ImageError, write_png
from data.manifest import Record, read_manifest
from data.paired import PairedDataset


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    for folder in ("pairedCS/skull", "pairedCS/craniofacial", "split_data"):
        (tmp_path / folder).mkdir(parents=True)
    lines = []
    for i in range(3):
        write_png(tmp_path / f"pairedCS/skull/{i}.png", rng.integers(0, 256, (32, 32), dtype=np.uint8))
        write_png(
            tmp_path / f"pairedCS/craniofacial/{i}.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        )
        row = {
            "source": f"{i}.png",
            "target": f"{i}.png",
            "gender": "F",
            "age": 20 + 20 * i,
            "body_mass": i + 1,
        }
        lines.append(json.dumps(row))
    (tmp_path / "split_data/train.json").write_text("\n".join(lines))
    return read_manifest(tmp_path / "split_data/train.json")


def test_items_have_the_promised_shapes_and_ranges(records: list[Record]) -> None:
    dataset = PairedDataset(records, size=32)
    item = dataset[1]
    assert len(dataset) == 3
    assert item["skull"].shape == item["face"].shape == (3, 32, 32)
    assert item["skull"].dtype == item["face"].dtype == torch.float32
    assert 0 <= item["skull"].min() < 0.1 < 0.9 < item["skull"].max() <= 1
    assert -1 <= item["face"].min() < -0.9 < 0.9 < item["face"].max() <= 1
    assert item["prompt"] == "3D face scan,Asian female,age level 3,thin face."
    assert item["index"] == 1


def test_a_second_read_is_from_memory_and_the_same(records: list[Record]) -> None:
    dataset = PairedDataset(records, size=32)
    first = dataset[0]
    records[0].skull_path.unlink()
    second = dataset[0]
    assert torch.equal(first["skull"], second["skull"])
    assert torch.equal(first["face"], second["face"])
    sizes = sorted(picture.nbytes for picture in dataset._pictures.values())
    assert sizes == [32 * 32, 32 * 32 * 3]  # a grey picture is kept as one channel


def test_memory_for_pictures_is_limited(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PairedDataset(records, size=64)
    monkeypatch.setattr("data.paired.CACHE_BYTES", 3 * 64 * 64)  # one colour picture, or three grey ones
    limited = PairedDataset(records, size=64)
    for _ in range(2):
        for k in range(len(records)):
            assert torch.equal(limited[k]["skull"], whole[k]["skull"])
            assert torch.equal(limited[k]["face"], whole[k]["face"])
    assert 0 < sum(pixels.nbytes for pixels in limited._pictures.values()) <= 3 * 64 * 64


def test_items_are_the_callers_own(records: list[Record]) -> None:
    dataset = PairedDataset(records, size=32)
    dataset[0]["skull"].zero_()
    assert dataset[0]["skull"].max() > 0


def test_a_loader_batches_it(records: list[Record]) -> None:
    batch = next(iter(DataLoader(PairedDataset(records, size=16), batch_size=3)))
    assert batch["skull"].shape == (3, 3, 16, 16)
    assert batch["index"].tolist() == [0, 1, 2]
    assert len(batch["prompt"]) == 3


def test_pictures_that_moved(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "pairedCS").rename(tmp_path / "elsewhere")
    assert PairedDataset(records, tmp_path / "elsewhere", 32)[2]["index"] == 2
    with pytest.raises(ImageError, match="does not exist"):
        PairedDataset(records, size=32)[2]


def test_refuses_no_records_and_records_without_a_face(records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        PairedDataset([])
    path = tmp_path / "split_data/skulls.json"
    path.write_text(json.dumps({"source": "0.png", "gender": "M", "age": 1, "body_mass": 1}))
    with pytest.raises(ValueError, match=r"1 of 1 records have no face \(the first: 0.png, line 1\)"):
        PairedDataset(read_manifest(path, need_target=False))
