"""The log of a case folder: what it holds, and that no byte changes without a trace."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muti_control.case.log import append, read_log
from muti_control.case.verify import main, verify
from muti_control.record import LOCAL, LOCK, LOG, RECORD, read_record, write_record


def case_folder(folder: Path) -> Path:
    """A folder with three files, logged in three entries."""
    (folder / "scan").mkdir(parents=True)
    (folder / RECORD).write_text('{"name": "颅"}')
    (folder / LOCAL).write_text("{}")
    append(folder, "drawing begun", {"seed": 3}, [RECORD])
    (folder / "face_0.png").write_bytes(bytes(range(64)))
    (folder / "scan" / "a b.json").write_text("[1, 2]")
    append(folder, "faces drawn", {"examiner": "Ł. Ünal"}, ["face_0.png", "scan/a b.json"])
    append(folder, "report written")
    return folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case_folder(tmp_path_factory.mktemp("case") / "c")


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return case_folder(tmp_path / "c")


def rewrite(folder: Path, change) -> None:
    """Change the list of lines of the log."""
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    (folder / LOG).write_bytes(b"".join(change(lines)))


def test_an_entry_is_bound_to_the_one_before(logged: Path) -> None:
    first, second, third = read_log(logged).entries
    assert [e["action"] for e in (first, second, third)] == ["drawing begun", "faces drawn", "report written"]
    assert (second["before"], third["before"]) == (first["hash"], second["hash"])
    assert (
        set(third["files"]) == {RECORD, "face_0.png", "scan/a b.json"}
        and third["files"]["face_0.png"]["size"] == 64
    )
    assert second["wrote"] == ["face_0.png", "scan/a b.json"] and first["details"] == {"seed": 3}


def test_a_file_name_that_is_no_text_stays_itself_in_the_log(tmp_path: Path) -> None:
    append(tmp_path, "drawing begun", {"skull": "\udcff\N{CJK UNIFIED IDEOGRAPH-9AA8}.png"})
    log = read_log(tmp_path)
    assert (
        log.entries[0]["details"] == {"skull": "\udcff\N{CJK UNIFIED IDEOGRAPH-9AA8}.png"}
        and log.faults == []
    )


def test_verify_lists_every_file_and_the_head(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(logged)]) == 0
    output = capsys.readouterr().out
    log = read_log(logged)
    assert all(file["sha256"] in output and name in output for name, file in log.files.items())
    assert f"head of the log: {log.head}" in output and "all is as logged" in output
    assert main([str(logged), f"head={log.entries[1]['hash'][:16]}"]) == 0
    (logged / LOCK).write_bytes(b"\0")
    assert verify(logged).differences == [f"{LOCK}: changed; it is always empty"]
    (logged / LOCK).write_bytes(b"")
    assert "entries after the one with this hash: 1" in capsys.readouterr().out


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_other_byte_anywhere_is_found(logged: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([RECORD, "face_0.png", "scan/a b.json", LOG, LOG, LOG]))
    content = (logged / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    other = content[place] ^ data.draw(st.integers(1, 255))
    try:
        (logged / name).write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        result = verify(logged)
        assert result.differences and any(name in line for line in result.differences)
    finally:
        (logged / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda lines: lines[1:], "entry 2 (faces drawn), should be entry 1"),
        (lambda lines: [lines[0], lines[2]], "does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1]], "does not follow"),
        (lambda lines: [*lines, lines[2]], "does not follow"),
        (lambda lines: lines[:1], "face_0.png: added since the last entry"),
        (lambda lines: [], "missing or empty"),
        (lambda lines: [*lines[:2], lines[2][:-40]], "torn"),
        (lambda lines: [lines[0], b"{}\n", *lines[1:]], "line 3 is no entry"),
    ],
)
def test_entries_removed_moved_or_added_are_found(case: Path, change, key: str) -> None:
    rewrite(case, change)
    assert any(key in line for line in verify(case).differences)
    assert main([str(case)]) == 1


def test_the_end_of_a_log_is_held_by_its_hash_alone(case: Path) -> None:
    head = read_log(case).head
    rewrite(case, lambda lines: lines[:2])  # the last entry changed no file
    assert verify(case).differences == []
    assert any(str(head) in line for line in verify(case, head).differences)


def test_files_changed_missing_and_added_are_found_with_their_names(case: Path) -> None:
    (case / "face_0.png").write_bytes(b"other")
    (case / "scan" / "a b.json").unlink()
    (case / "new.txt").touch()
    (case / ".face_0.png.0123abcd.tmp").touch()
    (case / LOCAL).write_text('{"stays": "here"}')
    changes = {line.split(": ")[0]: line.split(": ")[1].split()[0] for line in verify(case).differences}
    assert changes == {
        "face_0.png": "changed", "new.txt": "added", "scan/a b.json": "missing", ".face_0.png.0123abcd.tmp": "a"
    }  # fmt: skip


def test_a_later_entry_does_not_hide_a_change_that_it_does_not_account_for(case: Path) -> None:
    (case / "face_0.png").write_bytes(b"other")
    (case / "report.pdf").write_bytes(b"%PDF")
    append(case, "report written", wrote=["report.pdf"])
    assert [line.split(",")[0] for line in verify(case).differences] == [
        "face_0.png: changed before entry 4 (report written)"
    ]


def test_a_torn_line_is_told_and_the_log_goes_on(case: Path) -> None:
    whole = (case / LOG).read_bytes()
    (case / LOG).write_bytes(whole + b'{"action":"fac')
    assert any("torn" in line for line in verify(case).differences)
    append(case, "drawing resumed")
    result = verify(case)
    assert (result.differences, len(result.log.entries)) == (
        [],
        4,
    ) and "line 4 was interrupted" in result.notes[0]
    rewrite(case, lambda lines: [*lines[:3], lines[4]])
    assert any("line 4 is no entry" in line for line in verify(case).differences)


def _append_many(folder: Path) -> None:
    for k in range(10):
        append(folder, f"entry {k}")


def test_two_processes_append_at_once(case: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(case,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert verify(case).differences == [] and len(read_log(case).entries) == 23


def test_wrong_use_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path)], [str(tmp_path / "none")], [str(tmp_path), "head=xyz"]):
        assert main(arguments) == 2
    assert "log.jsonl" in capsys.readouterr().err
    with pytest.raises(ValueError):
        append(tmp_path, "x", {"number": float("nan")})
    assert not (tmp_path / LOG).exists()


def test_a_record_holds_no_path_and_gets_them_back(tmp_path: Path) -> None:
    skull, out = tmp_path / "in" / "a b.png", tmp_path / "o"
    skull.parent.mkdir()
    skull.touch()
    out.mkdir()
    record = {
        "cases": [
            {"skull": {"path": str(skull), "sha256": "0"}, "note": f"{skull}: letterboxed", "prompt": "a/b"}
        ],
        "manifest": None,
        "config": {
            "skull": str(skull),
            "weights": "gone/x.ckpt",
            "landmarks": "auto",
            "case_number": "7/2026",
        },
        "files": ["scan/a.png"],
    }
    write_record(out, record)
    text = (out / RECORD).read_text()
    assert str(tmp_path) not in text and "gone/" not in text
    public = json.loads(text)
    assert public["cases"] == [
        {"skull": {"file": "a b.png", "sha256": "0"}, "note": "a b.png: letterboxed", "prompt": "a/b"}
    ]
    assert public["config"] == record["config"] | {"skull": "a b.png", "weights": "x.ckpt"}
    restored = read_record(out)
    assert (
        restored["config"] == record["config"]
        and restored["cases"][0]["skull"] == record["cases"][0]["skull"]
    )
    (out / LOCAL).write_text('{"cases.7.skull.path": "x"}')
    with pytest.raises(ValueError, match=r"local\.json"):
        read_record(out)
    (out / LOCAL).unlink()
    assert read_record(out) == public
