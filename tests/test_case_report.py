"""The report of a case: what it says, that page and PDF are made of the same, and that nothing private is in it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sample
from data.sheet import NOTICE
from ldm.checkpoint import sha256
from muti_control.case.contents import Heading, Pictures, Points, Section, Table, contents
from muti_control.case.log import append, read_log
from muti_control.case.pages import html_page, pdf_pages
from muti_control.case.report import main, write_zip
from muti_control.case.verify import verify
from muti_control.record import FORMAT, LOCAL, read_record, write_record

FACES = ["s_0.png", "s_1.png", "s_2.png"]
FIGURE = {"value": 0.123, "low": 0.1, "high": 0.15, "n": 500}


def made_up_record(root: Path) -> dict[str, Any]:
    """A record as sample.py makes it, of one skull with a missing jaw and three faces."""
    age = {"value": None, "source": "assumed", "range": [35, 50]}
    sex = {"value": "female", "source": "stated"}
    faces = [
        {"file": file, "seed": 5 + k, "attributes": {"sex": sex, "age": {**age, "value": 40.0 + k}}}
        for k, file in enumerate(FACES)
    ]
    finding = {
        "name": "no_mandible",
        "severity": "warning",
        "value": 0.2,
        "limit": 0.1,
        "text": "no lower jaw",
    }
    case = {
        "name": "s",
        "skull": {"path": str(root / "in" / "s.png"), "sha256": "ab" * 32, "size": 1234},
        "note": "letterboxed from 60 x 90 px",
        "attributes": {"sex": sex, "age": age},
        "check": {"level": "warning", "findings": [finding], "prepared": ["turned by 9 degrees"]}
        | {"findings_before": [finding | {"text": "turned"}]},
        "landmarks": {"source": "given", "file": "mine.json", "sha256": "cd" * 32},
        "outputs": {"mean": "s_mean.png"},
        "faces": faces,
    }
    environment = {"iccr_diff": "9.8", "git": "f00", "python": "3", "torch": "2", "libraries": {"numpy": "2"}}
    environment |= {"system": "Linux", "device": "cpu", "device_name": "x", "precision": "fp32", "threads": 1}
    return {
        "check": {"level": "warning", "findings": [finding]},
        "format": FORMAT,
        "finished": True,
        "date": "2026-01-02T03:04:05+00:00",
        "weights": {"file": "w.safetensors", "sha256": "ef" * 32, "step": "7"},
        "sampling": {"steps": 3, "eta": 1.0},
        "config": {"skull": str(root / "in" / "s.png"), "examiner": "Dr. <b>Ünal</b> 李 محمد"},
        "environment": environment,
        "cases": [case],
        "files": [*FACES, "s_mean.png", "record.json"],
    }


def make(folder: Path, **changes: Any) -> Path:
    """A case folder with its record and log."""
    folder.mkdir(parents=True)
    for k, name in enumerate([*FACES, "s_mean.png"]):
        Image.new("L", (48, 32 + 16 * k), 40 * k).save(folder / name)
    write_record(folder, made_up_record(folder.parent) | changes)
    append(folder, "faces drawn", wrote=[*FACES, "s_mean.png", "record.json"])
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case folder with its report and zip."""
    folder = make(tmp_path_factory.mktemp("cases") / "c")
    assert main([str(folder), "case_number=7/2026", "zip=true"]) == 0
    return folder


def words(sections: list[Section]) -> str:
    """All text of sections."""
    parts = []
    for section in sections:
        parts.append(section.title)
        for block in section.blocks:
            if isinstance(block, str):
                parts.append(block)
            elif isinstance(block, Points):
                parts += block.lines
            elif isinstance(block, Table):
                parts += [" | ".join(row) for row in [block.head, *block.rows]]
            else:
                parts += [caption for _, caption in block.files]
    return "\n".join(parts)


def text_of(folder: Path, heading: Heading | None = None, **changes: Any) -> str:
    record = read_record(folder, local_paths=False) | changes
    return words([*contents(folder, record, verify(folder), heading or Heading()).sections])


def test_the_report_says_where_each_thing_comes_from(written: Path) -> None:
    text = text_of(written, Heading("7/2026", "A. B.", "found 1998"))
    assert "Case number | 7/2026" in text and "found 1998" in text and "2026-01-02 03:04:05 UTC" in text
    assert f"Skull | s.png\n1,234 bytes | {'ab' * 16}\n{'ab' * 16}" in text
    assert "Landmarks, given | mine.json" in text and "SHA-256 " + "ef" * 32 in text
    assert "Sex | female | stated" in text
    assert (
        "Age | stated: 35 to 50 years; drawn: 40 years, 41 years, 42 years | range stated, value assumed"
        in text
    )
    assert "s_1.png\nseed 6\nassumed: age 41 years" in text and "Seeds | 5, 6, 7" in text
    assert "YELLOW" in text and "no mandible | no lower jaw" in text
    assert "letterboxed from 60 x 90 px; turned by 9 degrees." in text and "was prepared: turned." in text
    assert "iccr-diff 9.8, revision f00" in text
    assert "Mouth, chin" in text and "Forehead" not in text and "Soft tissue is invented always" in text
    entry = read_log(written).entries[0]
    assert f"head={entry['hash']}" in text and all(f["sha256"] in text for f in entry["files"].values())
    assert "no portrait" in text and NOTICE in text and "all was as logged" in text


@pytest.mark.parametrize(
    ("region", "key"), [("vault", "Forehead"), ("left", "left side"), (None, "no skull")]
)
def test_missing_bone_is_named(written: Path, region: str | None, key: str) -> None:
    case = read_record(written, local_paths=False)["cases"][0] | {
        "check": None,
        "missing_bone": {"region": region},
    }
    case |= {} if region else {"skull": None}
    text = text_of(written, cases=[case])
    assert key in text and "Mouth, chin" not in text and "not checked" in text


def test_error_rates_are_those_of_the_weights_or_none(written: Path) -> None:
    assert "No error rates exist for these weights" in text_of(written)
    best = {"dlib": FIGURE | {"draws": 8, "within": 10}}
    error = {"unit": "% of the eyes' distance", "all": FIGURE | {"value": 3.21, "low": 3, "high": 4}}
    rates = {
        "people": 500,
        "gallery": 40,
        "kind_of_people": "synthetic",
        "rank1": {"dlib": {"all": FIGURE, "female": FIGURE | {"n": 250}}},
        "best_of": best,
    }
    held = {"all": {"value": 0.905, "low": 0.899, "high": 0.911, "n": 500}, "male": {"value": 0.88}}
    calibration = {"error_rates": rates | {"landmark_error": error}, "spread_factor": 2.345}
    calibration["coverage"] = {"held": held, "kind_of_people": "synthetic"}
    text = text_of(written, calibration=calibration)
    assert "Group | People | By a recogniser of faces (dlib) | Error, % of the eyes' distance\nall |" in text
    assert "all | 500 | 12.3 % [10.0 to 15.0] | 3.21 [3.00 to 4.00]" in text and "female | 250 |" in text
    assert "first among 40 faces" in text and "2.3 times" in text
    assert (
        "By a recogniser of faces (dlib), at least one of 8 faces put the true face among the first 10"
        in text
    )
    assert "Of 500 people" in text and "held 90.5 % [89.9 to 91.1]; by sex and age group 88 to 90 %" in text
    assert "The people were synthetic." in text and "No error rates" not in text


def test_page_and_pdf_have_all_pictures_and_ask_for_nothing(written: Path) -> None:
    page, pdf = (written / "report.html").read_text(), (written / "report.pdf").read_bytes()
    sources = re.findall(r'src="([^"]{15})', page)
    assert len(sources) == 4 and all(source == "data:image/png;" for source in sources)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)
    assert NOTICE in page and "&lt;b&gt;Ünal&lt;/b&gt; 李 محمد" in page  # of the settings of the run
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Subtype /Image") == 4
    report = contents(written, read_record(written, local_paths=False), verify(written), Heading())
    assert sum(len(b.files) for s in report.sections for b in s.blocks if isinstance(b, Pictures)) == 4
    assert pdf.count(b"/Type /Page\n") == int(re.search(rb"/Count (\d+)", pdf)[1]) > 1


def test_the_same_folder_gives_the_same_bytes(written: Path) -> None:
    archive = written.with_suffix(".zip").read_bytes()
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    assert main([str(written), "zip=true"]) == 0  # the heading is remembered
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    assert written.with_suffix(".zip").read_bytes() == archive
    result = verify(written)
    assert result.differences == [] and [e["action"] for e in result.log.entries] == [
        "faces drawn",
        "report written",
    ]


def test_nothing_tells_of_the_machine(written: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(written.with_suffix(".zip")) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / "c"
    names = {path.name for path in unpacked.iterdir()}
    assert names == {*FACES, "s_mean.png", "record.json", "report.pdf", "report.html", "log.jsonl"}
    assert verify(unpacked).differences == []
    private = [str(written.parent).encode(), str(Path.home()).encode()]
    assert not [p for p in unpacked.iterdir() if any(text in p.read_bytes() for text in private)]
    assert str(written.parent) in (written / LOCAL).read_text()


def test_a_run_of_before_loses_its_paths_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "old")
    record = made_up_record(tmp_path)
    (folder / "record.json").write_text(json.dumps(record))
    for name in (LOCAL, "log.jsonl"):
        (folder / name).unlink()
    assert main([str(folder), "format=html"]) == 0
    assert str(tmp_path) not in (folder / "record.json").read_text() and not (folder / "report.pdf").exists()
    assert read_record(folder)["config"] == record["config"] and verify(folder).differences == []


def test_a_changed_folder_is_reported_and_not_zipped(written: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "c"
    shutil.copytree(written, folder)
    (folder / "s_1.png").write_bytes((folder / "s_0.png").read_bytes())
    assert "s_1.png: changed" in text_of(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), "zip=true", "notes=other"]) == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert "s_1.png" in capsys.readouterr().err and not (tmp_path / "c.zip").exists()


@pytest.mark.parametrize("place", ["report.html", "report.pdf", "log.jsonl", "zip"])
def test_a_disk_that_fills_up_leaves_the_earlier_report(
    place: str, written: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(written, folder)
    write_zip(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    own = Path.write_bytes

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def part(path: Path, content: bytes) -> int:
        if place not in path.name:
            return own(path, content)
        own(path, content[:100])
        return full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", part)
        if place == "log.jsonl":
            patch.setattr(os, "fsync", full)
        if place == "zip":
            patch.setattr(zipfile.ZipFile, "writestr", full)
        assert main([str(folder), "examiner=B. Other", "zip=true"]) == 2
    message = capsys.readouterr().err
    assert "No space left" in message and message.count("\n") == 1 and not verify(folder).differences
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = [path for path in before if place != "zip" or path.suffix == ".zip"]
    assert after.keys() == before.keys() and all(after[path] == before[path] for path in kept)
    assert main([str(folder), "examiner=B. Other"]) == 0
    assert b"B. Other" in (folder / "report.html").read_bytes() and not verify(folder).differences


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"finished": False}, "resume=true"),
        ({"cases": [{}] * 51}, "51 skulls"),
        ({"weights": None}, "its record"),
    ],
)
def test_what_is_no_finished_case_gets_no_report(
    tmp_path: Path, capsys, changes: dict[str, Any], key: str
) -> None:
    folder = make(tmp_path / "c", **changes)
    assert main([str(folder)]) == 2
    assert key in capsys.readouterr().err
    assert not (folder / "report.html").exists() and len(read_log(folder).entries) == 1


def test_a_missing_library_and_a_missing_folder_are_named(tmp_path: Path, capsys, monkeypatch) -> None:
    assert main([str(tmp_path)]) == 2 and "record.json" in capsys.readouterr().err
    monkeypatch.setattr("muti_control.case.pages.find_spec", lambda name: None if name == "fpdf" else name)
    assert main([str(make(tmp_path / "c"))]) == 2
    assert "pip install jinja2 matplotlib fpdf2 uharfbuzz" in capsys.readouterr().err


def test_a_letter_that_the_font_lacks_is_no_box() -> None:
    from muti_control.case.pages import _printable

    assert _printable("Łucja محمد Жук\n李") == "Łucja محمد Жук\n[U+674E]"


def test_long_text_and_tall_pictures_stay_on_their_pages(written: Path, tmp_path: Path) -> None:
    Image.new("L", (50, 400)).save(tmp_path / "tall.png")
    report = contents(written, read_record(written, local_paths=False), verify(written), Heading())
    blocks = ["word " * 300, Table(("a", "b"), [("x" * 300, "y " * 100)] * 9, (1, 2))]
    blocks.append(Pictures([(tmp_path / "tall.png", "tall " * 100)], 1))
    report = type(report)("T", "R" * 200, report.date, [Section("t" * 200, blocks)])
    assert pdf_pages(report).count(b"/Type /Page\n") >= 2 and b"tall" in html_page(report)


def test_a_run_logs_what_it_does_and_writes_its_report(weights: Path, tmp_path: Path, capsys) -> None:
    Image.new("L", (64, 64), 90).save(tmp_path / "a.png")
    run = [f"weights={weights}", f"skull={tmp_path}/a.png", f"out={tmp_path}/o", "num_samples=2"]
    assert sample.main([*run, "report=html", "case_number=12/7"]) == 0
    folder = tmp_path / "o"
    assert f"Report: {folder / 'report.html'}" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert "Case 12/7" in page and "a.png" in page and str(tmp_path) not in page
    begun, drawn, _ = (verified := verify(folder)).log.entries
    assert verified.differences == [] and str(tmp_path) not in (folder / "log.jsonl").read_text()
    assert begun["details"]["seeds"] == [0, 1] and begun["details"]["skulls"][0]["sha256"] == sha256(
        tmp_path / "a.png"
    )
    assert (begun["files"], drawn["action"]) == ({}, "faces drawn") and "a_1.png" in drawn["files"]

    assert sample.main([*run, "num_samples=1", "overwrite=true"]) == 0  # the report of other faces goes
    assert not (folder / "report.html").exists() and verify(folder).differences == []
    (folder / "a_0.png").write_bytes(b"other")  # and what is not the run's doing stays a difference
    assert sample.main([*run, "num_samples=1", "overwrite=true"]) == 0
    assert [line.split(",")[0] for line in verify(folder).differences] == [
        "a_0.png: changed before entry 6 (drawing begun)"
    ]


def test_a_report_that_cannot_be_made_is_refused_before_anything_is_drawn(
    weights: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    for k in range(3):
        Image.new("L", (64, 64), 90).save(tmp_path / f"{k}.png")
    monkeypatch.setattr("muti_control.case.runs.MAX_SKULLS", 2)
    run = [f"weights={weights}", f"skull={tmp_path}", f"out={tmp_path}/o", "num_samples=1", "report=html"]
    assert sample.main(run) == 2 and "report: got 3 skulls" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
