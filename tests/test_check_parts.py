"""Parts of the doctor for data sets: lists, what cannot be examined, and the arithmetic against SciPy and NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data.check.__main__ import check_data, main
from data.check.config import CheckConfig
from data.check.dataset import find_lists, read_lists, role
from data.check.flaws import CHECKS
from data.check.lists import check_lists, conflict
from data.check.measure import fill, grow, silhouette
from data.check.statistics import limit, nearest, principal_axes

SHIPPED = Path(__file__).resolve().parent.parent / "data"


# ---------------------------------------------------------------- lists alone
def lists_of(tmp_path: Path, **lists: list[dict[str, object]]) -> list[tuple[str, str]]:
    """(check, detail) of lists whose pictures are there but not looked at."""
    for folder in ("skull", "craniofacial"):
        (tmp_path / "pairedCS" / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "split_data").mkdir(exist_ok=True)
    for name, lines in lists.items():
        for line in lines:
            (tmp_path / "pairedCS/skull" / str(line["source"])).touch()
            (tmp_path / "pairedCS/craniofacial" / str(line["target"])).touch()
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / "split_data" / f"{name}.json").write_text(text, encoding="utf-8")
    data = read_lists(find_lists([tmp_path]), CheckConfig())
    return [(one.check, one.detail) for one in check_lists(data)]


def line(k: int, **fields: object) -> dict[str, object]:
    pair = {"source": f"{k}_0.png", "target": f"{k}_1.png"}
    return {**pair, "body_mass": 1 + k % 5, "gender": "F", "age": 20 + k, **fields}


@pytest.mark.parametrize(
    ("fields", "flaws"),
    [
        ({}, []),  # the published names are fine
        ({"age": 30}, [("constant_value", "age is 30 for 30 of 30 people")]),
        ({"body_mass": 18.5}, [("body_mass_is_bmi", "30 of 30 values are 18.5 to 18.5, as of BMI")]),
    ],
)
def test_attributes_of_all(tmp_path, fields, flaws):
    assert lists_of(tmp_path, train=[line(k, **fields) for k in range(30)]) == flaws


def test_a_year_of_birth_is_recognised(tmp_path):
    ((check, detail),) = lists_of(tmp_path, train=[line(1, age=1956)])
    assert check == "biometrics" and "year of birth" in detail


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ({"subject": "p7"}, {"subject": "p7"}, "p7 is in train as well"),
        ({"subject": "P-007"}, {"subject": "p7"}, "spelled otherwise"),
        ({"source": "12_0.png"}, {"source": "12_2.png"}, "by the file's number"),
        ({"subject": 7}, {"subject": "07"}, "spelled otherwise"),
        ({"subject": "1-2"}, {"subject": "12"}, ""),  # two people
        ({"subject": "李一"}, {"subject": "王二"}, ""),
        ({"source": "scan_1.png", "subject": "a"}, {"source": "scan_2.png", "subject": "b"}, ""),
    ],
)
def test_a_person_in_two_lists(first, second, how, tmp_path):
    flaws = lists_of(tmp_path, train=[line(1, **first)], test=[line(2, **second)])
    assert [check for check, _ in flaws] == (["subject_in_two_lists"] if how else [])
    assert all(how in detail for _, detail in flaws)


def test_which_lists_may_share_people():
    names = ("train", "valid", "test", "variants", "train_views")
    assert role("test_views") == "test" and role("val") == "valid" and role("variants") is None
    assert conflict("train", "test", names) and conflict("valid", "test_views", names)
    assert not conflict("train", "train_views", names) and not conflict("test", "variants", names)
    assert conflict("a", "b", ("a", "b")) and not conflict("a", "a", ("a", "b"))


def test_an_empty_key_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.json").write_text('{"source": "a"}')
    assert main(["m.json", "out="]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_hostile_lines_are_flaws(tmp_path):
    (tmp_path / "skull").mkdir()
    lines = ['{"source": "a"}', '{"source": 3}', "[]", "null", '{"source": "../x.png", "target": "\\u0000"}',
             '{"age": 1e999, "gender": [], "body_mass": {}, "landmarks": 5, "texture": []}', '{"a":' * 99]  # fmt: skip
    (tmp_path / "m.json").write_text("\n".join(lines), encoding="utf-8")
    flaws = check_data([tmp_path / "m.json"], CheckConfig(out=""), progress=False)
    assert {one.line for one in flaws} == set(range(1, 8))
    assert {one.check for one in flaws} <= {"bad_line", "incomplete_pair", "missing_file", "biometrics"}


# ---------------------------------------------------------------- parts, against independent implementations
@pytest.mark.parametrize("seed", range(6))
def test_silhouettes_against_scipy(seed):
    noise = np.random.default_rng(seed).normal(size=(40, 53))
    mask = ndimage.gaussian_filter(noise, 0.4 + seed / 3) > 0.02
    mask[:2] = mask[-2:] = mask[:, :2] = mask[:, -2:] = False
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    shape = silhouette(np.where(mask, 0.5, 0.0))
    assert np.array_equal(shape.head, (areas >= 0.02 * areas.max())[labels])
    for px in (1, 4):
        assert np.array_equal(grow(mask, px), ndimage.binary_dilation(mask, np.ones((2 * px + 1,) * 2)))
    assert (fill(mask) >= ndimage.binary_fill_holes(mask)).all()


def test_neighbours_and_axes_against_numpy():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 9)).astype(np.float32)
    people = np.repeat(np.arange(30), 2)
    products, index = nearest(rows, 3, people)
    full = rows @ rows.T
    full[people[:, None] == people] = -np.inf
    assert np.allclose(products, -np.sort(-full, axis=1)[:, :3])
    assert np.allclose(np.take_along_axis(full, index, 1), products)
    for shape in ((60, 9), (9, 60)):
        sample = rng.normal(size=shape) * np.linspace(3, 1, shape[1])
        theirs = np.linalg.svd(sample, full_matrices=False)[2][:4]
        assert np.allclose(np.abs(theirs @ principal_axes(sample, 4)), np.eye(4), atol=1e-4)


def test_limits_are_not_moved_by_the_flaws():
    values = np.random.default_rng(0).normal(10, 1, 200)
    middle, allowed = limit(values, 0.0)
    values[:40] = 1e6
    assert abs(limit(values, 0.0)[0] - middle) < 0.5 and limit(values, 0.0)[1] < 2 * allowed
    assert limit(np.ones(50), 0.3)[1] == 0.3 and limit(np.ones(50), 0.3, tolerance=2)[1] == 0.6


def test_the_documents_explain_every_check():
    text = (SHIPPED.parent / "docs/your-own-pairs.md").read_text(encoding="utf-8")
    assert not [name for name in CHECKS if f"`{name}`" not in text]
