"""The paired dataset: ranges, shapes, memory, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import write_png
from data.manifest import Record, read_manifest
from data.paired import PairedDataset


@pytest.fixture
def records(make_pairs: Callable[..., Path]) -> list[Record]:
    root = make_pairs(train=3, size=32)
    colour = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for k in range(3):
        write_png(root / f"pairedCS/craniofacial/train_{k}.png", np.roll(colour, k, 0))
    return read_manifest(root / "split_data/train.json")


def test_items_have_the_promised_shapes_and_ranges(records: list[Record]) -> None:
    dataset = PairedDataset(records, size=32)
    item = dataset[1]
    assert len(dataset) == 3 and item["index"] == 1
    assert item["skull"].shape == item["face"].shape == (3, 32, 32)
    assert item["skull"].dtype == item["face"].dtype == torch.float32
    assert 0 <= item["skull"].min() < 0.3 < 0.7 < item["skull"].max() <= 1
    assert -1 <= item["face"].min() < -0.9 < 0.9 < item["face"].max() <= 1
    assert item["prompt"] == "3D face scan,Asian female,age level 2,normal face."


def test_a_second_read_is_from_memory_and_the_callers_own(records: list[Record]) -> None:
    dataset = PairedDataset(records, size=32)
    first, changed = dataset[0], dataset[0]
    changed["skull"].zero_()
    records[0].skull_path.unlink()
    second = dataset[0]
    assert torch.equal(first["skull"], second["skull"]) and torch.equal(first["face"], second["face"])
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


def test_refuses_no_records_and_records_without_a_face(records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        PairedDataset([])
    path = tmp_path / "split_data/skulls.json"
    path.write_text(json.dumps({"source": "train_0.png", "gender": "M", "age": 1, "body_mass": 1}))
    with pytest.raises(ValueError, match=r"1 of 1 records have no face \(the first: train_0.png, line 1\)"):
        PairedDataset(read_manifest(path, need_target=False))
