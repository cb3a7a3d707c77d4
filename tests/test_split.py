"""data.split: nobody in two lists, the same split every time, even strata, lines as they were."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.manifest import check_disjoint, read_manifest
from data.split import SplitConfig, SplitError, main, split

Line = dict[str, Any]


def make(root: Path, lines: list[Line], contents: dict[str, bytes] | None = None) -> Path:
    """A manifest whose pictures are there (``contents``: of skulls; by default each its own)."""
    for folder, field in (("skull", "source"), ("craniofacial", "target")):
        (root / "pairedCS" / folder).mkdir(parents=True, exist_ok=True)
        for line in lines:
            content = (contents or {}).get(line[field], line[field].encode()) if folder == "skull" else b""
            (root / "pairedCS" / folder / line[field]).write_bytes(content)
    path = root / "all.json"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def person(k: int, **fields: Any) -> Line:
    line = {"source": f"a{k}.png", "target": f"b{k}.png", "body_mass": 1 + k // 2 % 5, "gender": "MF"[k % 2]}
    return line | {"age": 15 + 11 * k % 70, "subject": f"p{k}"} | fields


def subjects(lists: dict[str, Any]) -> dict[str, set[str]]:
    return {
        name: {line.subject for group in groups for line in group.lines} for name, groups in lists.items()
    }


def test_nobody_is_in_two_lists_and_no_line_is_lost_or_changed(tmp_path: Path) -> None:
    counted = [(k, n) for k in range(60) for n in range(1 + k % 3)]
    lines = [person(k, source=f"a{k}_{n}.png", target=f"b{k}_{n}.png") for k, n in counted]
    lines[3]["extra"] = {"Größe": 1.70}
    path = make(tmp_path, lines)
    before = path.read_text(encoding="utf-8").splitlines()
    before[5] = before[5].replace("{", '{ "mine" :  1.50, ')  # unknown fields and odd spaces are kept
    path.write_text("\ufeff" + "\r\n".join(before) + "\r\n\r\n", encoding="utf-8")
    assert main([str(path), str(tmp_path / "split_data"), "valid=0.1", "test=0.2"]) == 0
    paths = {name: tmp_path / f"split_data/{name}.json" for name in ("train", "valid", "test")}
    written = {name: path.read_text("utf-8").splitlines() for name, path in paths.items()}
    assert sorted(line for lines in written.values() for line in lines) == sorted(before)
    assert all(lines == sorted(lines, key=before.index) for lines in written.values())
    for path in paths.values():  # a reader takes no unknown fields
        path.write_text(path.read_text("utf-8").replace(' "mine" :  1.50,', ""), encoding="utf-8")
    records = {name: read_manifest(path) for name, path in paths.items()}
    check_disjoint(records)
    assert [len({r.subject for r in part}) for part in records.values()] == [42, 6, 12]


def test_the_split_is_the_seed_s_not_the_order_s(tmp_path: Path) -> None:
    lines = [person(k) for k in range(80)]
    first, _ = split(make(tmp_path, lines), SplitConfig(seed=3))
    random.Random(0).shuffle(lines)
    again, _ = split(make(tmp_path, lines), SplitConfig(seed=3))
    other, _ = split(make(tmp_path, lines), SplitConfig(seed=4))
    assert subjects(first) == subjects(again) != subjects(other)


def test_who_must_stay_together_does(tmp_path: Path) -> None:
    lines = [person(k) for k in range(40)]
    lines[1]["subject"], lines[2]["subject"] = "S-007", "s7"
    contents = {"a3.png": b"one skull", "a4.png": b"one skull", "a5.png": b"another", "a6.png": b"another"}
    lines[6]["subject"] = lines[7]["subject"]  # 5 with 6 by their skull, and so with 7
    together = [{"S-007", "s7"}, {"p3", "p4"}, {"p5", "p7"}]
    for seed in range(12):
        lists, _ = split(make(tmp_path, lines, contents), SplitConfig(seed=seed, test=0.3, valid=0.3))
        for group in together:
            assert any(group <= names for names in subjects(lists).values())


def test_files_of_one_number_stay_together_without_subjects(tmp_path: Path) -> None:
    counted = [(k, n) for k in range(20) for n in range(2)]
    lines = [person(k, source=f"{k}_{n}.png", target=f"{k}_{n}f.png", subject=None) for k, n in counted]
    lists, _ = split(make(tmp_path, lines), SplitConfig(test=0.3, valid=0.2))
    numbers = [{name.split("_")[0] for name in names} for names in subjects(lists).values()]
    assert sum(map(len, numbers)) == 20 and len(set().union(*numbers)) == 20


def test_sites_can_be_kept_apart(tmp_path: Path) -> None:
    lines = [person(k, extra={"site": f"site {k % 10}"}) for k in range(60)]
    lists, _ = split(make(tmp_path, lines), SplitConfig(by="extra.site", test=0.2, valid=0.1))
    of_list = [[line for group in groups for line in group.lines] for groups in lists.values()]
    assert [len({line.fields["extra"]["site"] for line in part}) for part in of_list] == [7, 1, 2]
    del lines[4]["extra"]
    with pytest.raises(SplitError, match="line 5"):
        split(make(tmp_path, lines), SplitConfig(by="extra.site"))


def test_strata_are_even(tmp_path: Path) -> None:
    lines = [person(k, gender="M" if k % 4 == 0 else "F", age=70 if k % 10 < 2 else 40) for k in range(400)]
    lists, _ = split(make(tmp_path, lines), SplitConfig(test=0.25, valid=0.1))
    fields = {name: [group.lines[0].fields for group in groups] for name, groups in lists.items()}
    assert [len(part) for part in fields.values()] == [260, 40, 100]
    assert abs(sum(one["age"] == 70 for one in fields["test"]) - 20) <= 2
    shares = [sum(one["gender"] == "M" for one in part) / len(part) for part in fields.values()]
    assert abs(shares[2] - 0.25) <= 0.01 and max(shares) - min(shares) < 0.04


shares_of_all = st.floats(0, 0.45)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(3, 40),
    shares_of_all,
    shares_of_all,
    st.integers(0, 9),
    st.lists(st.integers(0, 39), max_size=20),
)
def test_counts_and_disjointness_for_any_shares(
    tmp_path_factory: pytest.TempPathFactory,
    people: int,
    valid: float,
    test: float,
    seed: int,
    owners: list[int],
) -> None:
    lines = [person(k) for k in range(people)]
    lines += [person(k % people) | {"target": f"more{n}.png"} for n, k in enumerate(owners)]
    path, config = make(tmp_path_factory.mktemp("any"), lines), SplitConfig(valid=valid, test=test, seed=seed)
    shares = {"valid": valid, "test": test}
    least = 2 if people >= 10 else 1
    counts = {name: max(least, round(share * people)) if share else 0 for name, share in shares.items()}
    if sum(counts.values()) >= people:
        with pytest.raises(SplitError, match="leaves nobody"):
            split(path, config)
        return
    lists, _ = split(path, config)
    names = subjects(lists)
    assert sum(map(len, names.values())) == people and len(set().union(*names.values())) == people
    assert {name: len(names[name]) for name in counts} == counts
    assert sum(len(group.lines) for groups in lists.values() for group in groups) == len(lines)


def test_nothing_is_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    path, out = make(tmp_path, [person(k) for k in range(30)]), tmp_path / "split_data"
    assert main([str(path), str(out)]) == 0
    before = contents()
    assert sorted(before) == ["test.json", "train.json", "valid.json"]
    both, own = [str(path), str(out)], [str(out / "train.json")]  # ``own``: into the list's own folder
    for arguments in (both, [*both, "valid=0", "overwrite=true"], [*own, "overwrite=true"]):
        assert main([*arguments, "seed=1"]) == 2 and contents() == before
        assert capsys.readouterr().err.startswith("data.split: ")
    assert main([str(path), str(out), "seed=1", "overwrite=true"]) == 0 and contents() != before
