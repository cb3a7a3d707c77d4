"""Reading ahead and writing behind: order, bounds, errors; and the pictures that come of it."""

from __future__ import annotations

import json
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import muti_control.sampling.draw as reconstruction
import muti_control.sampling.prepare as sampling_prepare
from cldm.sampling import reconstruct
from data.images import read_image, to_uint8
from muti_control.sampling.draw import read_ahead
from muti_control.sampling.job import Job


def test_items_come_in_order_and_only_so_many_are_read_ahead() -> None:
    read: list[int] = []
    taken: list[int] = []

    def square(item: int) -> int:
        assert item - len(taken) <= 3, "read too far ahead"
        read.append(item)
        return item * item

    for item, result in read_ahead(square, range(20), ahead=2):
        assert result == item * item
        taken.append(item)
    assert taken == read == list(range(20))
    assert list(read_ahead(square, [])) == []


def test_the_next_item_is_read_while_one_is_worked_on() -> None:
    second = threading.Event()
    with closing(read_ahead(lambda item: second.set() if item == 1 else None, [0, 1])) as items:
        assert next(items)[0] == 0
        assert second.wait(10)


def test_an_error_of_reading_comes_in_its_items_place_and_leaving_early_reads_no_further() -> None:
    def read(item: int) -> int:
        taken.append(item)
        if item == 2:
            raise OSError("disk gone")
        return item

    taken: list[int] = []
    items = read_ahead(read, range(1000), ahead=3)
    assert [next(items)[0], next(items)[0]] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert len(taken) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_pictures_read_by_many_threads_leave_the_warnings_as_they_were(tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read_image(tmp_path / "a.png", 64), range(160)))
    assert warnings.filters == before


# ---------------------------------------------------------------- the run as a whole
@pytest.fixture
def prepared(weights: Path, make_pairs: Callable[..., Path], tmp_path: Path) -> Callable[..., Job]:
    """A job of seven skulls, of two faces each, in batches of four."""
    root = make_pairs(test=7)

    def prepare(*arguments: str) -> Job:
        common = (f"weights={weights}", f"skull={root}/split_data/test.json", "num_samples=2", "device=cpu")
        return sampling_prepare.prepare([*common, "batch_size=4", f"out={tmp_path / 'o'}", *arguments])

    return prepare


def test_the_files_hold_what_drawing_one_batch_after_the_other_gives(
    prepared: Callable[..., Job], tmp_path: Path
) -> None:
    job = prepared("seed=3")
    reconstruction.reconstruct_cases(job)
    for _, batch in job.missing:  # one after the other
        skulls = np.stack([read_image(case.skull_path, 64)[0].transpose(2, 0, 1) for case, _, _ in batch])
        prompts, seeds = [case.prompt for case, _, _ in batch], [seed for _, _, seed in batch]
        faces = reconstruct(job.model, torch.from_numpy(skulls), prompts, seeds, job.sampling)
        for (case, k, seed), face in zip(batch, faces, strict=True):
            with Image.open(tmp_path / "o" / f"{case.name}_{k}.png") as image:
                np.testing.assert_array_equal(np.asarray(image), to_uint8(face.permute(1, 2, 0).numpy()))
                text = json.loads(image.info["iccr-diff"])
            assert (text["seed"], text["prompt"]) == (seed, case.prompt)
            assert text["skull"]["file"] == case.skull_path.name


def test_the_pictures_in_memory_do_not_grow_with_the_run(
    prepared: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = weakref.WeakSet(), [0]  # batches of faces
    draw = reconstruction.draw_faces

    def counted(*arguments: Any) -> reconstruction.DrawnFaces:
        faces = draw(*arguments)
        alive.add(faces)
        most[0] = max(most[0], len(alive))
        return faces

    monkeypatch.setattr(reconstruction, "draw_faces", counted)
    monkeypatch.setattr(reconstruction, "write_png", lambda *_: time.sleep(0.05))
    monkeypatch.setattr(reconstruction, "finish", lambda *_: None)
    reconstruction.reconstruct_cases(prepared("num_samples=4", "batch_size=2", "sampling.steps=1"))
    assert 2 <= most[0] <= 4  # two waiting to be written, one just drawn, one in the hands of a thread
