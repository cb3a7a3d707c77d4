"""Manifests as people write them: what is read, and which problems are reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.biometrics import Biometrics
from data.images import write_png
from data.manifest import ManifestError, ManifestProblem, Record, check_disjoint, read_manifest


def row(i: int = 0, **changes: Any) -> dict[str, Any]:
    """A good line; a change to None removes the field."""
    fields = {"source": f"{i}_0.png", "target": f"{i}_1.png", "body_mass": "1", "gender": "M", "age": 82}
    fields |= changes
    return {key: value for key, value in fields.items() if value is not None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for i in range(4):
        write_pair(root / "pairedCS", "skull", "craniofacial", i)
    (root / "pairedCS/landmarks").mkdir()
    (root / "pairedCS/landmarks/0.json").write_text("{}")
    return root


def read(root: Path, *rows: dict[str, Any] | str, **options: Any) -> list[Record]:
    path = root / "split_data" / "some.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return read_manifest(path, **options)


def problems(root: Path, *rows: dict[str, Any] | str, **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(root, *rows, **options)
    assert str(caught.value).startswith(str(root))
    return [str(problem) for problem in caught.value.problems]


def test_reads_the_published_line(root):
    (record,) = read(root, row())
    assert (record.source, record.target, record.line, record.subject) == ("0_0.png", "0_1.png", 1, "0_0")
    assert record.biometrics == Biometrics("male", 82.0, "Asian", 1) and not record.ethnicity_given
    assert record.skull_path == root / "pairedCS/skull/0_0.png"
    assert record.face_path == root / "pairedCS/craniofacial/0_1.png"
    assert record.landmarks is record.texture is None


def test_reads_the_optional_fields(root):
    extras = {"landmarks": "landmarks\\0.json", "texture": "2_1.png", "subject": 7, "extra": {"site": "A"}}
    (record,) = read(root, row(ethnicity="European", **extras))
    assert record.landmarks_path == root / "pairedCS/landmarks/0.json"
    assert record.texture_path == root / "pairedCS/craniofacial/2_1.png"
    assert (record.subject, record.extra, record.biometrics.ethnicity) == ("7", {"site": "A"}, "European")
    assert record.ethnicity_given


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_windows_line_ends_and_blank_lines(root, encoding):
    path = root / "split_data/some.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("\r\n".join([json.dumps(row(0)), "", json.dumps(row(1)), "   ", ""]).encode(encoding))
    assert [record.line for record in read_manifest(path)] == [1, 3]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ([{"gender": "X"}, {"age": "old"}, {"ethnicity": "a,b"}, {"gender": None}, {"body_mass": ""}], "biometrics"),
        ([{"source": None}, {"target": None}], "incomplete_pair"),
        ([{"source": 3}, {"source": "../0_0.png"}, {"source": "C:\\x.png"}, {"subject": [1]}], "bad_line"),
        ([{"style": 3}, {"changed": [1]}, {"extra": 4}, {"texture": "0_1.png"}], "bad_line"),
        ([{"source": "9_0.png"}, {"landmarks": "9.json"}], "missing_file"),
        ([{"gendre": "M"}, {"Sex": "M"}, {"bmi": 22}, {"prompt": "a face"}, {"zzz": 1}], "unknown_field"),
    ],
)  # fmt: skip
def test_a_problem_has_line_field_and_kind(root, changes, kind):
    for change in changes:
        with pytest.raises(ManifestError) as caught:
            read(root, row(1), row(0, **change))
        (problem,) = caught.value.problems
        assert (problem.line, problem.field, problem.kind) == (2, next(iter(change)), kind)
        assert problem.got and problem.remedy


def test_collects_all_problems_and_shows_twenty(root):
    texts = problems(root, row(0, gender="X", age=-1, body_mass=0, ethnicity="", source="9.png"))
    fields = ["age", "body_mass", "ethnicity", "gender", "source"]
    assert sorted(text.split(": ")[1] for text in texts) == fields
    with pytest.raises(ManifestError) as caught:
        read(root, *[row(0, source=f"missing{i}.png") for i in range(33)])
    message = str(caught.value).splitlines()
    assert len(caught.value.problems) == 33 and "33 problems" in message[0]
    assert len(message) == 22 and "13 more" in message[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", "holds no records"),
        (json.dumps([row(0)], indent=2), "is one JSON array"),
        (json.dumps(row(0), indent=2), "has objects spread over lines"),
        ("{'source': '0_0.png'}", "is not valid JSON"),
        ('"source"', "is a JSON str"),
        (json.dumps(row(gendre="M")), "did you mean 'gender'?"),
        (json.dumps(row(bmi=22)), "did you mean 'body_mass'?"),
        ('{"source": "0_0.png", "source": "1_0.png"}', "source: stands twice"),
        ("[" * 100_000, "is one JSON array"),
        ('{"a":' * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_no_line_of_a_manifest_is_named(root, text, message):
    assert message in problems(root, text)[0]


def test_a_pair_listed_twice_is_refused_but_a_skull_with_two_faces_is_not(root):
    assert "already on line 1" in problems(root, row(0), row(1), row(0, age=20))[0]
    assert len(read(root, row(0), row(0, target="1_1.png"))) == 2
    alone = row(0, target=None)
    assert "already on line 1" in problems(root, alone, alone, need_target=False)[0]
    assert len(read(root, alone, alone | {"age": 20}, need_target=False)) == 2


@pytest.mark.parametrize(("skulls", "faces"), [("skulls", "Craniofacial"), ("Skulls", "face")])
def test_the_spellings_in_use_are_found(tmp_path, skulls, faces):
    write_pair(tmp_path / "pairedCS", skulls, faces)
    (record,) = read(tmp_path, row())
    assert record.skull_path.parent.name == skulls
    assert record.face_path is not None and record.face_path.parent.name == faces


def test_a_subject_in_two_lists_is_named(root):
    train = read(root, row(subject="a"), row(1, subject="b"))
    valid = [replace(train[0], subject="c"), replace(train[0], subject="b", line=2)]
    check_disjoint({"train": [*train, *train], "valid": valid[:1]})  # one person, several pictures
    with pytest.raises(ManifestError, match="line 2: subject: 'b' is in train as well"):
        check_disjoint({"train": train, "valid": valid})


def write_pair(root: Path, skulls: str, faces: str, i: int = 0) -> None:
    for folder, name in ((skulls, f"{i}_0.png"), (faces, f"{i}_1.png")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_png(root / folder / name, np.zeros((4, 4), np.uint8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
names = st.sampled_from(
    ["source", "target", "gender", "age", "body_mass", "ethnicity", "subject", "landmarks", "extra"]
)


@settings(deadline=None)
@given(st.dictionaries(names | st.text(max_size=6), json_values, max_size=6))
def test_any_object_is_read_or_reported(root, changes):
    messages: list[ManifestProblem] = []
    try:
        assert read(root, json.dumps(row() | changes))[0].skull_path.is_file()
    except ManifestError as error:
        messages = error.problems
    assert all(problem.line == 1 and problem.remedy for problem in messages)
