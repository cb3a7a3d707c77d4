"""Contact sheets: every picture is on them, unchanged, with the notice."""

from __future__ import annotations

import numpy as np
import pytest

from data.sheet import MAX_ACROSS, SheetRow, contact_sheet


def flat(level: int, size: int = 256) -> np.ndarray:
    return np.full((size, size), level, np.uint8)


def levels(sheet: np.ndarray) -> set[int]:
    """Grey levels that fill whole tiles."""
    values, counts = np.unique(sheet[..., 0], return_counts=True)
    return {int(v) for v, n in zip(values, counts, strict=True) if n >= 250 * 250}


@pytest.mark.parametrize(
    ("num_faces", "with_truth"), [(0, True), (1, False), (3, True), (MAX_ACROSS + 3, True)]
)
def test_every_picture_is_on_the_sheet(num_faces: int, with_truth: bool) -> None:
    faces = [flat(60 + 5 * k) for k in range(num_faces)]
    labels = [f"seed {k}" for k in range(num_faces)]
    row = SheetRow("a name " * 40, "detail", flat(200), faces, labels, flat(220) if with_truth else None)
    sheet = contact_sheet([row, SheetRow("颅骨", "", flat(201), [], [])], ["footer"])
    expected = {200, 201, *(int(face[0, 0]) for face in faces), *([220] if with_truth else [])}
    assert expected <= levels(sheet)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert (sheet[-40:] > 200).sum() > 200  # the notice is visible


def test_other_sizes_and_colour_are_scaled_into_the_tile() -> None:
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[..., 0] = 150
    sheet = contact_sheet([SheetRow("a", "", flat(200, 512), [colour], ["seed 0"])])
    assert {150, 200} <= levels(sheet)


def test_refuses_no_rows_and_missing_labels() -> None:
    with pytest.raises(ValueError, match="no rows"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 faces and 0 labels"):
        contact_sheet([SheetRow("a", "", flat(0), [flat(0)], [])])
