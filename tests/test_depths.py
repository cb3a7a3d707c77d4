"""Depths of soft tissue: the user's table, what a picture from the front shows of it, and the outline that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.landmarks import point_name
from muti_control.case.depths import (
    Depth,
    bone_of,
    depths_text,
    moved_to_depths,
    place_depths,
    read_depths,
)
from settings.parsing import ContentError

SIDE_MM = 200.0


def disc() -> tuple[np.ndarray, np.ndarray]:
    """A skull that is a disc of 60 mm radius, and a face whose outline lies 12 mm outside its lower half."""
    rows, columns = np.mgrid[:400, :400]
    far = np.hypot(rows - 199.5, columns - 199.5) * SIDE_MM / 400
    angles = np.linspace(np.pi, 0, 33)
    points = np.full((106, 2), 0.5)
    points[:33] += 72 / SIDE_MM * np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.repeat((far < 60)[..., None], 3, 2).astype(np.float32), points


def test_a_depth_is_the_way_from_the_bone_to_the_outline_and_moves_it() -> None:
    picture, points = disc()
    bone = bone_of(picture)
    depths = [Depth(8, 20, 15, 25), Depth(16, 5), Depth(51, 6)]
    side, chin, nasion = place_depths(depths, points, bone, SIDE_MM)
    assert side.mm == pytest.approx(12, abs=0.6) and chin.mm == pytest.approx(12, abs=0.6)
    assert not nasion.outline and nasion.mm is None and nasion.goal is None
    moved = moved_to_depths(points, [side, chin, nasion])
    far = np.linalg.norm(moved - 0.5, axis=1) * SIDE_MM - 60
    assert far[8] == pytest.approx(20, abs=0.6) and far[16] == pytest.approx(5, abs=0.6)
    assert far[16] < far[14] < far[10] < far[8] and far[0] == pytest.approx(12, abs=1e-3)
    assert far[32] == pytest.approx(12, abs=1e-3) and np.array_equal(
        moved[33:], points[33:].astype(np.float32)
    )
    assert [m.mm for m in place_depths(depths, moved, bone, SIDE_MM)[:2]] == pytest.approx([20, 5], abs=1)


def test_where_the_picture_shows_no_edge_of_bone_a_depth_is_only_noted() -> None:
    picture, points = disc()
    depths = [Depth(8, 20), Depth(16, 5)]
    picture[300:, 150:250] = 1  # vertebrae below the chin
    side, chin = place_depths(depths, points, bone_of(picture), SIDE_MM)
    assert side.mm is not None and chin.outline and chin.mm is None
    picture[250:] = 0  # no mandible
    assert place_depths(depths, points, bone_of(picture), SIDE_MM)[1].mm is None
    assert all(m.goal is None for m in place_depths(depths, points, bone_of(picture), None))
    assert np.array_equal(moved_to_depths(points, []), points.astype(np.float32))


def test_a_table_is_read_by_number_or_name_and_written_back(tmp_path: Path) -> None:
    file = tmp_path / "depths.csv"
    file.write_text(
        "Landmark;Depth (mm);Min;Max\nMenton;8,5;5;11\n8;20;;\nnasion;6;4;\n", encoding="utf-8-sig"
    )
    depths = read_depths(file)
    assert depths == [Depth(8, 20), Depth(16, 8.5, 5, 11), Depth(51, 6, 4)]
    assert point_name(51, 106)[0] == "nasion"
    file.write_text(depths_text(depths))
    assert read_depths(file) == depths


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("chin,8", "chin"),
        ("106,8", "106"),
        ("menton,8\n16,9", "16"),
        ("menton,", "nan"),
        ("menton,-3", "-3"),
        ("menton,inf", "inf"),
        ("menton,eight", "eight"),
        ("menton,800", "800"),
        ("menton,8,9,11", "9"),
        ("", "no depths"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(lines: str, key: str, tmp_path: Path) -> None:
    file = tmp_path / "depths.csv"
    file.write_text(f"landmark,depth,lower,upper\n{lines}\n")
    with pytest.raises(ContentError, match=key) as refused:
        read_depths(file)
    assert "\n" not in str(refused.value) and str(file) in str(refused.value)
