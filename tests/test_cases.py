"""What a user may hand to sample.py: a picture, a folder, a manifest, and attributes of the person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.biometrics import Attributes, Biometrics
from data.cases import Case, CaseError, check_pictures, find_cases, safe_names

WOMAN = dict(sex="F", age=43, ethnicity="Asian", body_mass=4)


def picture(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((32, 32), level, np.uint8)
    pixels[8:24, 8:24] = 255 - level
    Image.fromarray(pixels).save(path)
    return path


def test_one_picture_with_and_without_a_person(tmp_path: Path) -> None:
    (case,) = find_cases(picture(tmp_path / "my skull.png"), WOMAN)
    assert (case.name, case.face_path, case.biometrics) == ("my_skull", None, Biometrics("female", 43.0))
    assert case.prompt == "3D face scan,Asian female,age level 3,normal face."
    (case,) = find_cases(tmp_path / "my skull.png", dict(sex="F", age="35-50"))
    assert (case.biometrics, case.attributes) == (None, Attributes("female", (35, 50)))
    (case,) = find_cases(tmp_path / "my skull.png")
    assert (case.biometrics, case.prompt) == (None, "")


def test_a_folders_pictures_in_order_without_the_rest(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "a.png", "._a.png", "sub/c.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("x")
    cases = find_cases(tmp_path / "in", WOMAN)
    assert [case.name for case in cases] == ["a", "a-2", "b"]
    assert [case.skull_path.name for case in cases] == ["a.jpg", "a.png", "b.PNG"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("set", r"did you mean .*skull\?"),
        ("set/pairedCS", r"did you mean .*skull\?"),
        ("empty", "holds no picture"),
        ("none.png", "does not exist"),
        ("set/pairedCS/skull/a.png", "images_dir"),
    ],
)
def test_a_folder_without_pictures_says_where_they_are(tmp_path: Path, place: str, message: str) -> None:
    picture(tmp_path / "set/pairedCS/skull/a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match=message):
        find_cases(tmp_path / place, WOMAN, images_dir=tmp_path if message == "images_dir" else None)


def test_a_manifest_brings_its_own_and_explicit_values_override(make_pairs: Callable[..., Path]) -> None:
    manifest = make_pairs(test=4) / "split_data/test.json"
    cases = find_cases(manifest)
    assert [case.biometrics.sex for case in cases if case.biometrics] == ["male", "female", "male", "female"]
    assert all(case.face_path is not None and case.attributes.ethnicity == "Asian" for case in cases)
    older = find_cases(manifest, dict(sex="F", age=70))
    assert all(case.biometrics == Biometrics("female", 70.0) for case in older)
    unknown = find_cases(manifest, dict(body_mass="unknown", age="30-40"))
    assert [(case.biometrics, case.attributes.age) for case in unknown] == [(None, (30, 40))] * 4
    assert [case.attributes.sex for case in unknown] == ["male", "female", "male", "female"]


def test_limit_spreads_evenly(make_pairs: Callable[..., Path]) -> None:
    manifest = make_pairs(test=6) / "split_data/test.json"
    cases = find_cases(manifest, limit=3)
    assert [case.name for case in cases] == ["test_0", "test_2", "test_4"]
    assert len(find_cases(manifest, limit=99)) == 6
    with pytest.raises(CaseError, match="limit: got 0"):
        find_cases(manifest, limit=0)


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a/b", "..", "", "颅", "CON"]), max_size=8))
def test_names_aresafe_names_and_safe(names: list[str]) -> None:
    distinct = safe_names(names)
    assert len({name.lower() for name in distinct}) == len(names)
    assert not any("/" in name or name in ("", ".", "..") for name in distinct)


def test_all_pictures_are_checked_and_all_bad_ones_reported(tmp_path: Path) -> None:
    good = Case("good", picture(tmp_path / "good.png"), None)
    broken, none = tmp_path / "broken.png", tmp_path / "none.png"
    broken.write_bytes(good.skull_path.read_bytes()[:60])
    assert check_pictures([good], 32) == {}
    assert "enlarged" in check_pictures([good], 64)[good.skull_path]
    with pytest.raises(CaseError) as caught:
        check_pictures([Case("a", broken, None), good, Case("b", good.skull_path, None, face_path=none)], 32)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [str(broken), str(none)]
