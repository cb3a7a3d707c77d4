"""sample.py for one case: a scan as skull, a grid of attributes, and a run that is drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sample
from data.biometrics import Attributes, Biometrics
from data.ct.as_skull import is_scan
from data.ct.config import CtConfig
from data.ct.drawing import Drawing, draw_scan
from muti_control.sampling import config
from muti_control.sampling.grid import grid_people, grid_tiles
from muti_control.sampling.reconstructor import Reconstructor
from tests.phantom import SECRET, write_dicom, write_image
from tests.phantom import sample as phantom

Run = Callable[..., int]


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """sample.py with the tiny model, in a folder with a skull.png."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (64, 64)).astype(np.uint8)).save("skull.png")
    return lambda *words: sample.main([f"weights={weights}", "device=cpu", "precision=fp32", *words])


def record_of(folder: str) -> dict:
    return json.loads(Path(folder, "record.json").read_text())


def test_a_scan_is_drawn_as_data_ct_does_and_names_nobody(
    run: Run,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "CtConfig", SimpleNamespace(of=partial(CtConfig.of, step=2.5)))
    drawings: dict[str, Drawing] = {}

    def once(path: Path, cfg: CtConfig) -> Drawing:  # one drawing takes seconds
        key = cfg.model_dump_json()
        if key not in drawings:
            drawings[key] = draw_scan(path, cfg)
        return drawings[key]

    monkeypatch.setattr("data.ct.drawing.draw_scan", once)
    scan = write_dicom(tmp_path / SECRET, *phantom((5.0, 5.0, 5.0)))
    assert run(f"skull={tmp_path / SECRET}", "num_samples=2", "sex=F", "age=40", "body_mass=4") == 0
    out = capsys.readouterr().out
    expected = once(scan if scan.is_dir() else tmp_path / SECRET, CtConfig(step=2.5, size=64, meshes=False))
    np.testing.assert_array_equal(np.asarray(Image.open("results/scan/scan.png")), expected.skull)
    np.testing.assert_array_equal(np.asarray(Image.open("results/scan/scan_skin.png")), expected.face)
    record = record_of("results/scan")
    (case,) = record["cases"]
    assert case["mm_per_px"] == 280 / 64 and case["scan"]["status"] == expected.status
    assert [one["name"] for one in case["scan"]["findings"]] == [one.name for one in expected.findings]
    assert all(one.text in out for one in expected.findings)
    assert len(case["scan"]["sha256"]) == 64
    same = Reconstructor.load(weights, "cpu", "fp32").reconstruct(
        tmp_path / SECRET, Attributes("F", 40, None, 4), num_samples=2
    )
    same.save("saved")
    assert record_of("saved")["cases"] == record["cases"] and all(
        one.text in "".join(same.warnings) for one in expected.findings
    )
    for file in (*Path("results/scan").iterdir(), *Path("saved").iterdir()):
        assert not any(part in file.read_bytes() for part in (b"Musterfrau", b"Erika")), file.name
    assert "Musterfrau" not in out
    assert sample.main(["repeat=results/scan/record.json"]) == 0  # of the pictures that lie beside the record
    assert record_of("results/scan-repeat")["cases"][0]["mm_per_px"] == 280 / 64


def test_a_scan_is_told_from_pictures_and_a_bad_one_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, affine = phantom((10.0, 10.0, 10.0))
    (tmp_path / "dicom/series").mkdir(parents=True)
    write_dicom(tmp_path / "dicom/series", values, affine)
    for file in (tmp_path / "dicom/series").rglob("*.dcm"):
        file.rename(file.with_suffix(""))
    assert is_scan(tmp_path / "dicom") and is_scan(write_image(tmp_path / "v.nii.gz", values, affine))
    (tmp_path / "bare").write_bytes(b"\x02\0\0\0UL\x04\0" + bytes(200))  # without preamble
    (tmp_path / "s.tar.xz").write_bytes(b"x")
    assert is_scan(tmp_path / "bare") and is_scan(tmp_path / "s.tar.xz")
    (tmp_path / "pictures").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "pictures/a.png")
    assert (
        not is_scan(tmp_path / "pictures")
        and not is_scan(tmp_path / "skull.png")
        and not is_scan(tmp_path / "no")
    )
    (tmp_path / "dicom/series").rename(tmp_path / "pictures/series")  # a disk without a DICOMDIR
    assert not is_scan(tmp_path / "pictures")
    assert run(f"skull={tmp_path}/pictures", "num_samples=1", "out=drawn") == 0
    assert "its pictures are drawn; the scan that lies there too is not" in capsys.readouterr().out
    (tmp_path / "broken.nii").write_bytes(b"no volume")
    assert run("skull=broken.nii") == 2
    assert capsys.readouterr().err.startswith("sample.py: skull: ") and not Path("results").exists()


def test_a_scan_without_the_extra_says_how_to_install_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v.nii").write_bytes(b"n" * 400)
    monkeypatch.setattr("data.cohort.config.find_spec", lambda name: None if name == "pydicom" else object())
    assert run("skull=v.nii") == 2
    assert "pip install -e '.[cohort,ct]'" in capsys.readouterr().err


def test_a_grid_holds_the_stated_values_in_their_place() -> None:
    person = Biometrics("male", 33.0, "Asian", 4)
    known = Attributes("male", 33.0, None, 4)
    names = ("age", "body_mass")
    people = grid_people(names, person, known, ["African", "Asian"])
    assert [one.age for one in people[0]] == [22, 33, 57, 72]  # 33 in place of 40, of the same level
    assert [row[0].body_mass for row in people] == [1, 3, 4, 5]
    assert {(one.sex, one.ethnicity) for row in people for one in row} == {("male", "Asian")}
    tiles = grid_tiles(names, people, [np.zeros((8, 8), np.uint8)] * 16, known)
    assert [tile.caption for row in tiles for tile in row if tile.framed] == ["age 33, mass 4"]
    assert tiles[3][0].caption == "age 22, mass 5"
    (row,) = grid_people(("ethnicity",), person, Attributes(age="30-40"), ["African", "Asian"])
    assert [one.ethnicity for one in row] == ["African", "Asian"]


def test_a_grid_is_drawn_and_recorded(run: Run) -> None:
    words = ("skull=skull.png", "sex=F", "age=40", "ethnicity=Asian", "body_mass=3", "num_samples=1")
    assert run(*words, "grid=age,body_mass", "out=grid") == 0
    (case,) = record_of("grid")["cases"]
    assert case["outputs"]["grid"] == "skull_grid.png" and "skull_grid.png" in record_of("grid")["files"]
    assert np.asarray(Image.open("grid/skull_grid.png")).shape[1] > 5 * 200  # the skull and four ages
    assert run(*words, "grid=sex", "out=row") == 0
    assert Image.open("row/skull_grid.png").height < 450


def test_a_run_is_drawn_again_byte_for_byte_and_a_change_is_named(
    run: Run, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("skull=skull.png", "sex=M", "age=30-50", "num_samples=1", "seed=5", "out=first") == 0
    assert sample.main(["repeat=first/record.json"]) == 0
    assert "all 1 faces are the same" in capsys.readouterr().out
    assert Path("first/skull_0.png").read_bytes() == Path("first-repeat/skull_0.png").read_bytes()
    Path("first/local.json").unlink()  # on another machine the places are not known
    assert sample.main(["repeat=first"]) == 2
    other = np.asarray(Image.open("skull.png")) // 2
    Image.fromarray(other).save("first/skull.png")
    Path("skull.png").unlink()
    assert sample.main(["repeat=first", f"weights={weights}", "out=changed"]) == 1
    out = capsys.readouterr().out
    assert "1 of 1 faces differ" in out and "differs: cases.skull.skull.sha256" in out
    before = sorted(tmp_path.rglob("*"))
    for words, key in (
        (["repeat=first", "seed=3"], "seed: "),
        (["repeat=nowhere"], "repeat: "),
        (["repeat=first/skull.png"], "repeat: "),
    ):
        if words[0].endswith("png"):
            Path("first/record.json").write_text('{"format": "iccr-diff sample record 1", "finished": false}')
        assert sample.main(words) == 2 and capsys.readouterr().err.startswith(f"sample.py: {key}")
    assert sorted(tmp_path.rglob("*")) == before
