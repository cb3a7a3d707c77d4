"""The doctor for data sets: every planted flaw is found under its name, and nothing in a clean set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.check.__main__ import check_data, examine_data, main, write_report
from data.check.config import CheckConfig
from data.check.dataset import DataSet, find_lists, read_lists
from data.check.flaws import Flaw
from data.check.measure import lossiness, measure
from data.check.report import choose, table
from tests.heads import SIDE, Heads

SHIPPED = Path(__file__).resolve().parent.parent / "data"
COUNT = 180
Picture = np.ndarray


def examine(root: Path, tmp_path: Path, **settings: str | int) -> list[Flaw]:
    config = CheckConfig(out=str(tmp_path / "report"), num_workers=1, **settings)
    return check_data([root], config, progress=False)


def told(findings: list[Flaw]) -> set[tuple[str, str]]:
    """(check, file or list) of each finding."""
    return {(one.check, one.file or one.list_name) for one in findings}


# ---------------------------------------------------------------- a clean set
def test_nothing_is_found_in_the_shipped_pairs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(SHIPPED), f"out={tmp_path}", "num_workers=1"]) == 0
    output = capsys.readouterr().out
    assert "nothing found" in output and "40 lines (train 16, valid 8, test 16)" in output
    assert "too few" in output  # to tell a mismatch, and it says so
    assert json.loads((tmp_path / "findings.json").read_text())["findings"] == []
    assert not (tmp_path / "sheet.png").exists()


def test_nothing_is_found_in_a_clean_set_with_variants_and_views(tmp_path: Path) -> None:
    heads = Heads(tmp_path, COUNT, seed=1)
    lists = {"train": heads.lines[:140], "valid": heads.lines[140:160], "test": heads.lines[160:]}
    variants = []
    for k in range(160, 164):  # one skull, several faces
        face = np.asarray(Image.open(heads.path("craniofacial", k)))
        for age in (22, 72):
            name = f"h{k:03d}_age{age}.png"
            other = (face * (0.97 if age == 72 else 0.95)).astype(np.uint8)
            Image.fromarray(other).save(heads.path("craniofacial", k).with_name(name))
            variants.append(heads.lines[k] | {"target": name, "age": age})
    heads.save(**lists, variants=variants, test_views=lists["test"])
    assert examine(tmp_path, tmp_path) == []


# ---------------------------------------------------------------- planted flaws
class Spoilt:
    """A data set with flaws, and what should be found: (check, file) of each."""

    def __init__(self, root: Path) -> None:
        self.heads = Heads(root, COUNT)
        self.expected: set[tuple[str, str]] = set()
        self._next = 0

    def take(self) -> int:
        """The number of a subject of train that nothing was done to."""
        self._next += 1
        return self._next

    def expect(self, check: str, k: int | str) -> None:
        self.expected.add((check, k if isinstance(k, str) else f"h{k:03d}.png"))

    def alter(
        self, check: str, folder: str, change: Callable[[Image.Image], Image.Image], k: int | None = None
    ) -> int:
        k = self.take() if k is None else k
        path = self.heads.path(folder, k)
        change(Image.open(path).convert("L")).save(path, "PNG")
        self.expect(check, k)
        return k

    def field(self, check: str, **changes: object) -> None:
        k = self.take()
        self.heads.lines[k] |= changes
        self.expect(check, k)


def moved(dx: float, dy: float, scale: float = 1.0) -> Callable[[Image.Image], Image.Image]:
    """Moves a picture by (dx, dy) px and scales it about its middle."""
    middle = SIDE / 2
    place = (1 / scale, 0, middle - (middle + dx) / scale, 0, 1 / scale, middle - (middle + dy) / scale)
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, place, Image.Resampling.BICUBIC)


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("L")

    return change


def with_text(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text((4, 4), "R 12", fill=255)
    return image


def spoil_files(s: Spoilt) -> None:
    k = s.take()
    s.heads.path("skull", k).write_bytes(s.heads.path("skull", k).read_bytes()[:700])
    s.expect("unreadable", k)
    s.alter("blank", "craniofacial", lambda image: image.point(lambda v: 0))
    s.alter("size", "skull", lambda image: image.resize((200, 128)))
    s.alter(
        "colour",
        "craniofacial",
        lambda image: Image.merge("RGB", [image, image.point(lambda v: v * 0.8), image]),
    )
    k = s.take()
    Image.open(s.heads.path("craniofacial", k)).save(s.heads.path("craniofacial", k), "JPEG", quality=95)
    s.expect("lossy", k)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(s.heads.path("skull", 0).with_name("forgotten.png"))
    s.expect("unreferenced", "skull/forgotten.png")


def spoil_looks(s: Spoilt) -> None:
    s.alter("inverted", "skull", lambda image: image.point(lambda v: 255 - v))
    s.alter("grey_levels", "craniofacial", lambda image: image.point(lambda v: v * 0.6))
    s.alter("grey_levels", "skull", lambda image: image.point(lambda v: min(255, v * 1.6)))
    k = s.alter("framing", "skull", moved(0, 0, 0.6))
    s.alter("framing", "craniofacial", moved(0, 0, 0.6), k)
    s.alter("rotated", "craniofacial", lambda image: image.rotate(180))
    s.alter("rotated", "skull", lambda image: image.rotate(90))
    s.alter("beside_head", "craniofacial", with_text)
    k = s.alter("cut_off", "skull", moved(0, -22))
    s.alter("cut_off", "craniofacial", moved(0, -22), k)
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).resize((SIDE, SIDE))
    s.alter(
        "odd_one",
        "craniofacial",
        lambda image: Image.composite(noise, image, image.point(lambda v: 255 * (v > 0))),
    )


def spoil_pairs(s: Spoilt) -> None:
    for folder, change in (("skull", moved(0, 0, 1.35)), ("craniofacial", moved(5, 0))):
        k = s.alter("bone_outside", folder, change)
        s.expect("misaligned", k)
    s.alter("misaligned", "craniofacial", moved(0, -4))
    k = s.take()
    one, other = s.heads.path("skull", k), s.heads.path("craniofacial", k)
    pictures = one.read_bytes(), other.read_bytes()
    other.write_bytes(pictures[0])
    one.write_bytes(pictures[1])
    s.expect("swapped", k)
    k = s.take()
    s.heads.path("skull", k).write_bytes(s.heads.path("craniofacial", COUNT - 1).read_bytes())
    s.expect("wrong_kind", k)
    k = s.take()
    s.heads.path("craniofacial", k).write_bytes(s.heads.path("skull", k).read_bytes())
    s.expect("same_picture", k)
    uneven = np.abs(s.heads.bones[:, [5, 10]]).sum(1) + np.abs(s.heads.bones[:, 6] - s.heads.bones[:, 7])
    k = 60 + int(uneven[60:99].argmax())
    s.alter("mirrored", "skull", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), k)


def spoil_people(s: Spoilt) -> list[dict[str, object] | str]:
    """Flaws in what is said; returns the lines of the valid list."""
    lines = s.heads.lines
    s.field("biometrics", age=430)
    s.field("biometrics", gender="X")
    s.field("biometrics", body_mass=7)
    s.field("biometrics", age=None)
    s.field("missing_file", landmarks="landmarks/nobody.json")
    s.field("incomplete_pair", target="")
    s.expect("unreferenced", f"craniofacial/h{s._next:03d}.png")
    valid = [dict(line) for line in lines[140:160]]
    valid[0]["subject"] = lines[130]["subject"]
    s.expect("subject_in_two_lists", 140)
    valid[1]["subject"] = "H-131"
    s.expect("subject_in_two_lists", 141)
    s.heads.path("skull", 142).write_bytes(s.heads.path("skull", 132).read_bytes())
    s.expect("subject_in_two_lists", 142)
    jpeg(80)(Image.open(s.heads.path("skull", 133))).save(s.heads.path("skull", 143))
    s.expect("subject_in_two_lists", 143)
    lines[100]["subject"] = lines[101]["subject"]
    lines[100]["gender"], lines[101]["gender"] = "M", "F"
    s.expect("contradiction", 101)
    s.heads.path("craniofacial", 103).write_bytes(s.heads.path("craniofacial", 102).read_bytes())
    s.expect("shared_picture", 103)
    brighter = Image.open(s.heads.path("craniofacial", 104)).point(lambda v: min(255, v * 1.05))
    brighter.save(s.heads.path("craniofacial", 105))
    s.expect("near_duplicate", 105)
    lines[107]["subject"] = lines[106]["subject"]
    for folder in ("skull", "craniofacial"):
        s.heads.path(folder, 107).write_bytes(s.heads.path(folder, 106).read_bytes())
    lines[107] |= {name: lines[106][name] for name in ("gender", "age", "body_mass")}
    s.expect("duplicate_pair", 107)
    s.heads.landmarks(110).write_text('{"points": [[1, 2]')
    s.expect("landmarks_unreadable", "h110.json")
    points = np.array(json.loads(s.heads.landmarks(111).read_text())["points"])
    s.heads.landmarks(111).write_text(json.dumps({"points": (points / SIDE).tolist()}))
    s.expect("landmarks_off_face", "h111.json")
    flipped = np.array(json.loads(s.heads.landmarks(112).read_text())["points"]) * (-1, 1) + (SIDE - 1, 0)
    s.heads.landmarks(112).write_text(json.dumps({"points": flipped.tolist()}))
    s.expect("landmarks_flipped", "h112.json")
    s.expect("listed_twice", 113)
    s.expect("bad_line", "train")
    return [*valid]


@dataclass
class Examined:
    spoilt: Spoilt
    data: DataSet
    findings: list[Flaw]
    report: Path


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    root = tmp_path_factory.mktemp("spoilt")
    s = Spoilt(root)
    spoil_files(s)
    spoil_looks(s)
    spoil_pairs(s)
    valid = spoil_people(s)
    train = [*s.heads.lines[:140], s.heads.lines[113], '{"source": "h001.png", ']
    s.heads.save(train=train, valid=valid, test=s.heads.lines[160:])
    config = CheckConfig()
    data = read_lists(find_lists([root]), config)
    measure(data, 1, progress=False)
    findings = examine_data(data, config)
    report = root / "report"
    report.mkdir()
    write_report(report, findings, {"lists": {}}, config)
    return Examined(s, data, findings, report)


def test_every_planted_flaw_is_found_by_name_and_nothing_else(examined: Examined) -> None:
    expected = examined.spoilt.expected
    assert expected - told(examined.findings) == set(), "not found"
    assert told(examined.findings) - expected == set(), "found where nothing was planted"
    assert len({check for check, _ in expected}) >= 28


def test_the_report_says_it_all(examined: Examined) -> None:
    findings = examined.findings
    with (examined.report / "findings.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == len(findings) and all(row["what_to_do"] and row["seen"] for row in listed)
    content = json.loads((examined.report / "findings.json").read_text(encoding="utf-8"))
    assert [row["check"] for row in content["findings"]] == [one.check for one in findings]
    sheet = Image.open(examined.report / "sheet.png")
    assert sheet.width > 1000 and sheet.height > 2000
    chosen = {one.check for one in choose(findings, 40)}
    assert chosen >= {one.check for one in findings if one.skull or one.face}, "every kind is shown"
    text = table(findings)
    assert all(one.check in text for one in findings)
    assert max(map(len, text.splitlines())) <= 120
    assert text.index("unreadable") < text.index("unreferenced"), "errors come first"


def test_more_tolerance_finds_less_and_ignored_checks_are_left_out(examined: Examined) -> None:
    lax = told(examine_data(examined.data, CheckConfig(tolerance=8)))
    assert {check for check, _ in told(examined.findings) - lax} >= {"framing", "grey_levels", "misaligned"}
    fewer = examine_data(examined.data, CheckConfig(ignore="unreferenced,lossy"))
    assert {one.check for one in examined.findings} - {one.check for one in fewer} == {
        "unreferenced",
        "lossy",
    }


def test_traces_of_jpeg_are_seen_in_a_png(tmp_path: Path) -> None:
    """Of the smooth half; the blocks drown in the grain of the others, and those must not be taken for JPEG either."""
    paths = sorted((SHIPPED / "pairedCS/craniofacial").glob("*.png"))
    pictures = [Image.open(path).convert("L") for path in paths]
    assert max(lossiness(np.asarray(picture) / np.float32(255)) for picture in pictures[::4]) < 1.4
    smooth = sorted(pictures, key=grain)[:6]
    assert min(lossiness(np.asarray(jpeg(75)(picture)) / np.float32(255)) for picture in smooth) > 2.2


def grain(picture: Image.Image) -> float:
    """Mean absolute second difference on the skin, grey levels."""
    grey = np.asarray(picture, np.float32)
    return float(np.abs(np.diff(grey, 2, axis=0))[grey[1:-1] > 20].mean())


def test_exchanged_people_are_a_mismatch(tmp_path: Path) -> None:
    heads = Heads(tmp_path, COUNT, seed=2)
    inside = np.abs(heads.bones)[:, [0, 1, 3, 5]].max(1)  # what the outline shows
    alike = np.argsort(inside)[:24]
    apart = heads.bones[:, [2, 4, 6, 7, 9, 10]]
    one, other = max(
        combinations(alike.tolist(), 2), key=lambda pair: np.abs(apart[pair[0]] - apart[pair[1]]).sum()
    )
    first, second = heads.path("craniofacial", one), heads.path("craniofacial", other)
    first.rename(tmp_path / "kept.png")
    second.rename(first)
    (tmp_path / "kept.png").rename(second)
    found = examine(heads.save(train=heads.lines), tmp_path)
    assert told(found) == {("mismatch", first.name), ("mismatch", second.name)}
    owner = {first.name: other, second.name: one}
    assert all(f"skull of h{owner[finding.file]:03d} " in finding.detail for finding in found)


def test_folders_exchanged_as_a_whole(tmp_path: Path) -> None:
    heads = Heads(tmp_path, 24)
    folder = tmp_path / "pairedCS"
    (folder / "skull").rename(folder / "kept")
    (folder / "craniofacial").rename(folder / "skull")
    (folder / "kept").rename(folder / "craniofacial")
    found = examine(heads.save(train=heads.lines), tmp_path)
    assert [(one.check, one.where) for one in found] == [("swapped", "the whole data set")]
