"""The check of data sets: every planted flaw is reported under its name, and none in a clean set."""

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
from data.images import write_png
from tests.heads import SIDE, Heads

SHIPPED = Path(__file__).resolve().parent.parent / "data"
COUNT = 180
Change = Callable[[Image.Image], Image.Image]


def examine(root: Path, tmp_path: Path, **settings: str | int) -> list[Flaw]:
    config = CheckConfig(out=str(tmp_path / "report"), num_workers=1, **settings)
    return check_data([root], config, progress=False)


def places(flaws: list[Flaw]) -> set[tuple[str, str]]:
    """(check, file or list) of each flaw."""
    return {(one.check, one.file or one.list_name) for one in flaws}


# ---------------------------------------------------------------- a clean set
def test_the_shipped_pairs_have_no_flaws(capsys, tmp_path):
    assert main([str(SHIPPED), f"out={tmp_path}", "num_workers=1"]) == 0
    output = capsys.readouterr().out
    assert "40 lines (train 16, valid 8, test 16)" in output and "too few" in output  # to tell a mismatch
    assert json.loads((tmp_path / "findings.json").read_text())["findings"] == []
    assert not (tmp_path / "sheet.png").exists()


def test_a_clean_set_with_variants_and_views_has_no_flaws(tmp_path):
    heads = Heads(tmp_path, COUNT, seed=1)
    lists = {"train": heads.lines[:140], "valid": heads.lines[140:160], "test": heads.lines[160:]}
    variants = []
    for k in range(160, 164):  # one skull, several faces
        face = np.asarray(Image.open(heads.path("craniofacial", k)))
        for age, factor in ((22, 0.95), (72, 0.97)):
            name = f"h{k:03d}_age{age}.png"
            write_png(heads.path("craniofacial", k).with_name(name), (face * factor).astype(np.uint8))
            variants.append(heads.lines[k] | {"target": name, "age": age})
    heads.save(**lists, variants=variants, test_views=lists["test"])
    assert examine(tmp_path, tmp_path) == []


# ---------------------------------------------------------------- planted flaws
class Spoilt:
    """A data set with flaws, and (check, file) of each that is expected."""

    def __init__(self, root: Path) -> None:
        self.heads = Heads(root, COUNT)
        self.expected: set[tuple[str, str]] = set()
        self._next = 0

    def take(self) -> int:
        """Return the number of a subject of train that nothing was done to."""
        self._next += 1
        return self._next

    def expect(self, check: str, k: int | str) -> None:
        self.expected.add((check, k if isinstance(k, str) else f"h{k:03d}.png"))

    def alter(self, check: str, folders: str, change: Change, k: int | None = None) -> int:
        """Change one subject's pictures in the folders, which are separated by blanks."""
        k = self.take() if k is None else k
        for path in (self.heads.path(folder, k) for folder in folders.split(" ")):
            change(Image.open(path).convert("L")).save(path, "PNG")
        self.expect(check, k)
        return k

    def copy(self, check: str, k: int, folder: str, other: int, other_folder: str = "") -> None:
        """Give a subject the picture of another one."""
        picture = self.heads.path(other_folder or folder, other).read_bytes()
        self.heads.path(folder, k).write_bytes(picture)
        self.expect(check, k)

    def field(self, check: str, **changes: object) -> None:
        k = self.take()
        self.heads.lines[k] |= changes
        self.expect(check, k)


def moved(dx: float, dy: float, scale: float = 1.0) -> Change:
    """Moves a picture by (dx, dy) px and scales it about its middle."""
    middle = SIDE / 2
    place = (1 / scale, 0, middle - (middle + dx) / scale, 0, 1 / scale, middle - (middle + dy) / scale)
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, place, Image.Resampling.BICUBIC)


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("L")

    return change


def with_text(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text((4, 4), "R 12", fill=255)
    return image


def with_noise(image: Image.Image) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 255, (16, 16), np.uint8)).resize(
        (SIDE, SIDE)
    )
    return Image.composite(noise, image, image.point(lambda v: 255 * (v > 0)))


def in_colour(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", [image, image.point(lambda v: v * 0.8), image])


BOTH = "skull craniofacial"
LOOKS: list[tuple[str, str, Change]] = [
    ("blank", "craniofacial", lambda image: image.point(lambda v: 0)),
    ("size", "skull", lambda image: image.resize((200, 128))),
    ("colour", "craniofacial", in_colour),
    ("inverted", "skull", lambda image: image.point(lambda v: 255 - v)),
    ("grey_levels", "craniofacial", lambda image: image.point(lambda v: v * 0.6)),
    ("grey_levels", "skull", lambda image: image.point(lambda v: min(255, v * 1.6))),
    ("framing", BOTH, moved(0, 0, 0.6)),
    ("rotated", "craniofacial", lambda image: image.rotate(180)),
    ("rotated", "skull", lambda image: image.rotate(90)),
    ("beside_head", "craniofacial", with_text),
    ("cut_off", BOTH, moved(0, -22)),
    ("odd_one", "craniofacial", with_noise),
    ("misaligned", "craniofacial", moved(0, -4)),
]


def spoil_files(s: Spoilt) -> None:
    path = s.heads.path("skull", k := s.take())
    path.write_bytes(path.read_bytes()[:700])
    s.expect("unreadable", k)
    path = s.heads.path("craniofacial", k := s.take())
    Image.open(path).save(path, "JPEG", quality=95)
    s.expect("lossy", k)
    write_png(path.with_name("forgotten.png"), np.zeros((9, 9), np.uint8))
    s.expect("unreferenced", "craniofacial/forgotten.png")
    path.with_name("._forgotten.png").write_bytes(b"\0\5\26\7")  # as macOS leaves it, no flaw


def spoil_pairs(s: Spoilt) -> None:
    for folder, change in (("skull", moved(0, 0, 1.35)), ("craniofacial", moved(5, 0))):
        s.expect("misaligned", s.alter("bone_outside", folder, change))
    one, other = s.heads.path("skull", k := s.take()), s.heads.path("craniofacial", k)
    pictures = one.read_bytes(), other.read_bytes()
    other.write_bytes(pictures[0])
    one.write_bytes(pictures[1])
    s.expect("swapped", k)
    s.copy("wrong_kind", s.take(), "skull", COUNT - 1, "craniofacial")
    s.copy("same_picture", k := s.take(), "craniofacial", k, "skull")
    uneven = np.abs(s.heads.bones[:, [5, 10]]).sum(1) + np.abs(s.heads.bones[:, 6] - s.heads.bones[:, 7])
    k = 60 + int(uneven[60:99].argmax())
    s.alter("mirrored", "skull", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), k)


def spoil_people(s: Spoilt) -> list[dict[str, object] | str]:
    """Put flaws into the attributes; return the lines of the valid list."""
    lines = s.heads.lines
    for wrong in ({"age": 430}, {"gender": "X"}, {"body_mass": 7}, {"age": None}):
        s.field("biometrics", **wrong)
    s.field("missing_file", landmarks="landmarks/nobody.json")
    s.field("incomplete_pair", target="")
    s.expect("unreferenced", f"craniofacial/h{s._next:03d}.png")
    valid = [dict(line) for line in lines[140:160]]
    valid[0]["subject"], valid[1]["subject"] = lines[130]["subject"], "H-131"
    s.expect("subject_in_two_lists", 140)
    s.expect("subject_in_two_lists", 141)
    s.copy("subject_in_two_lists", 142, "skull", 132)
    s.copy("subject_in_two_lists", 143, "skull", 133)
    s.alter("subject_in_two_lists", "skull", jpeg(80), 143)
    lines[100]["subject"] = lines[101]["subject"]
    lines[100]["gender"], lines[101]["gender"] = "M", "F"
    s.expect("contradiction", 101)
    s.copy("shared_picture", 103, "craniofacial", 102)
    s.copy("near_duplicate", 105, "craniofacial", 104)
    s.alter("near_duplicate", "craniofacial", lambda image: image.point(lambda v: min(255, v * 1.05)), 105)
    for folder in BOTH.split(" "):
        s.copy("duplicate_pair", 107, folder, 106)
    lines[107] |= {name: lines[106][name] for name in ("subject", "gender", "age", "body_mass")}
    s.heads.landmarks(110).write_text('{"points": [[1, 2]')
    s.expect("landmarks_unreadable", "h110.json")
    for k, check, factor, shift in (
        (111, "off_face", (1 / SIDE, 1 / SIDE), 0),
        (112, "flipped", (-1, 1), SIDE - 1),
    ):
        points = np.array(json.loads(s.heads.landmarks(k).read_text())["points"]) * factor + (shift, 0)
        s.heads.landmarks(k).write_text(json.dumps({"points": points.tolist()}))
        s.expect(f"landmarks_{check}", f"h{k}.json")
    s.expect("listed_twice", 113)
    s.expect("bad_line", "train")
    return [*valid]


@dataclass
class Examined:
    spoilt: Spoilt
    data: DataSet
    flaws: list[Flaw]
    report: Path


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    root = tmp_path_factory.mktemp("spoilt")
    s = Spoilt(root)
    spoil_files(s)
    for check, folders, change in LOOKS:
        s.alter(check, folders, change)
    spoil_pairs(s)
    valid = spoil_people(s)
    train = [*s.heads.lines[:140], s.heads.lines[113], '{"source": "h001.png", ']
    s.heads.save(train=train, valid=valid, test=s.heads.lines[160:])
    (root / "split_data" / "._train.json").write_bytes(b"\0\5\26\7")
    config = CheckConfig()
    data = read_lists(find_lists([root]), config)
    measure(data, 1, progress=False)
    flaws = examine_data(data, config)
    report = root / "report"
    report.mkdir()
    write_report(report, flaws, {"lists": {}}, config)
    return Examined(s, data, flaws, report)


def test_every_planted_flaw_is_reported_by_name_and_nothing_else(examined):
    expected = examined.spoilt.expected
    assert expected - places(examined.flaws) == set(), "not reported"
    assert places(examined.flaws) - expected == set(), "reported where nothing was planted"
    assert len({check for check, _ in expected}) >= 28


def test_the_report_says_it_all(examined):
    flaws, checks = examined.flaws, [one.check for one in examined.flaws]
    with (examined.report / "findings.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == len(flaws) and all(row["what_to_do"] and row["seen"] for row in listed)
    content = json.loads((examined.report / "findings.json").read_text(encoding="utf-8"))
    assert [row["check"] for row in content["findings"]] == checks
    with Image.open(examined.report / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 2000
    assert {one.check for one in choose(flaws, 40)} >= {one.check for one in flaws if one.skull or one.face}
    text = table(flaws)
    assert all(check in text for check in checks) and max(map(len, text.splitlines())) <= 120
    assert text.index("unreadable") < text.index("unreferenced"), "errors come first"


def test_more_tolerance_reports_less_and_ignored_checks_are_left_out(examined):
    lax = places(examine_data(examined.data, CheckConfig(tolerance=8)))
    assert {check for check, _ in places(examined.flaws) - lax} >= {"framing", "grey_levels", "misaligned"}
    fewer = examine_data(examined.data, CheckConfig(ignore="unreferenced,lossy"))
    ignored = {one.check for one in examined.flaws} - {one.check for one in fewer}
    assert ignored == {"unreferenced", "lossy"}


def test_traces_of_jpeg_are_measured_in_a_png():
    """The blocks drown in the grain of some faces; a smooth one shows them."""
    paths = sorted((SHIPPED / "pairedCS/craniofacial").glob("*.png"))
    pictures = [Image.open(path).convert("L") for path in paths]
    assert max(lossiness(np.asarray(picture) / np.float32(255)) for picture in pictures[::4]) < 1.4
    assert sum(lossiness(np.asarray(jpeg(75)(picture)) / np.float32(255)) > 2.2 for picture in pictures) >= 6


def test_exchanged_people_are_a_mismatch(tmp_path):
    heads = Heads(tmp_path, COUNT, seed=2)
    inside = np.abs(heads.bones)[:, [0, 1, 3, 5]].max(1)  # what the outline shows
    alike = np.argsort(inside)[:24].tolist()
    apart = heads.bones[:, [2, 4, 6, 7, 9, 10]]
    one, other = max(combinations(alike, 2), key=lambda pair: np.abs(apart[pair[0]] - apart[pair[1]]).sum())
    first, second = heads.path("craniofacial", one), heads.path("craniofacial", other)
    exchange(first, second)
    flaws = examine(heads.save(train=heads.lines), tmp_path)
    assert places(flaws) == {("mismatch", first.name), ("mismatch", second.name)}
    owner = {first.name: other, second.name: one}
    assert all(f"skull of h{owner[flaw.file]:03d} " in flaw.detail for flaw in flaws)


def test_folders_exchanged_as_a_whole(tmp_path):
    heads = Heads(tmp_path, 24)
    exchange(tmp_path / "pairedCS/skull", tmp_path / "pairedCS/craniofacial")
    flaws = examine(heads.save(train=heads.lines), tmp_path)
    assert [(one.check, one.where) for one in flaws] == [("swapped", "the whole data set")]


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
