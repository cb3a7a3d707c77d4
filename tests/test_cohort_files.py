"""A cohort on disk: what is in it, what belongs together, and that nothing stops it from becoming what it should be."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pairs
from PIL import Image

from data.biometrics import age_level
from data.cohort.__main__ import main
from data.cohort.config import CohortConfig
from data.cohort.excerpt import excerpt
from data.cohort.heads.subject import body_mass_level, draw_subject, subject_name
from data.cohort.lists import Exemplars, split_of_subjects, varied_subjects, wanted_names
from data.cohort.protocols import draw_face_style
from data.cohort.sheet import main as sheet_main
from data.cohort.variants import BMI_OF_LEVEL, variants_of
from data.manifest import Record, read_manifest

ROOT = Path(__file__).resolve().parent.parent
PAIRS = ["num_subjects=3", "seed=6", "size=128", "valid_subjects=1", "test_subjects=1"]
EXTRAS = [
    "views=1",
    "variants=1",
    "variant_ages=[72]",
    "variant_masses=[2]",
    "variant_styles=1",
    "ceiling=true",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort that two processes made in one go."""
    out = tmp_path_factory.mktemp("cohorts") / "whole"
    assert main([str(out), *PAIRS, *EXTRAS, "shards=true", "num_workers=2"]) == 0
    return out


def listed(cohort: Path, name: str) -> list[Record]:
    return read_manifest(cohort / f"split_data/{name}.json")


def marks(record: Record) -> np.ndarray:
    assert record.landmarks_path is not None
    return np.array(json.loads(record.landmarks_path.read_text())["points"])


def grey(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def test_every_split_lists_its_frontal_pairs_and_beside_them_the_views(cohort: Path) -> None:
    records = {name: listed(cohort, name) for name in ("train", "valid", "test")}
    assert sorted(r.subject for rs in records.values() for r in rs) == [subject_name(k) for k in range(3)]
    for name, frontal in records.items():
        assert all(r.source == r.target == f"{r.subject}.png" and r.extra is None for r in frontal)
        assert all(grey(r.skull_path).shape == grey(r.face_path).shape == (128, 128) for r in frontal)
        both = listed(cohort, f"{name}_views")
        assert both[::2] == [r_ for r_ in both if r_.extra is None] and len(both) == 2 * len(frontal)
        for still, turned in zip(both[::2], both[1::2], strict=True):
            assert (still.subject, still.style) == (turned.subject, turned.style)
            yaw, pitch = (dict(turned.extra or {})[key] for key in ("yaw", "pitch"))
            assert abs(yaw) <= 12 and abs(pitch) <= 8
            shift = (marks(turned) - marks(still)).mean(0)  # the front goes where it turns
            assert np.sign(shift[0]) == np.sign(yaw)


def test_variants_stand_on_the_one_skull_of_their_subject(cohort: Path) -> None:
    own, *others = listed(cohort, "variants")
    assert own.changed == () and own.subject == listed(cohort, "test")[0].subject
    assert {r.source for r in others} == {own.source} and len({r.target for r in others}) == len(others) >= 3
    assert {r.changed for r in others} == {("age",), ("body_mass",), ("style",)}
    for record in others:
        what = record.changed[0]
        a, b = own.biometrics, record.biometrics
        differs = a.age != b.age, a.body_mass != b.body_mass, own.style != record.style
        assert differs == (what == "age", what == "body_mass", what == "style")
        assert (a.sex, a.ethnicity) == (b.sex, b.ethnicity)
        moved = np.abs(marks(record) - marks(own)).max()
        assert moved == 0 if what == "style" else moved > 0.5
        assert not np.array_equal(grey(record.face_path), grey(own.face_path))


def test_expected_faces_are_those_of_the_test_split(cohort: Path) -> None:
    expected, neutral, test = (listed(cohort, name) for name in ("ceiling", "ceiling_neutral", "test"))
    for faces in (expected, neutral):
        assert [(r.source, Path(r.target or "").name) for r in faces] == [(r.source, r.target) for r in test]
    for one, plain, true in zip(expected, neutral, test, strict=True):
        assert one.changed == ("soft",) and one.style == true.style
        assert plain.changed == ("soft", "style") and plain.style == "p00" and plain.texture is None
        assert np.array_equal(marks(one), marks(plain))
        assert np.array_equal(grey(one.face_path) > 0, grey(plain.face_path) > 0)
        assert not np.array_equal(grey(one.face_path), grey(plain.face_path))
        assert age_level(one.biometrics.age) == age_level(true.biometrics.age)
        assert one.biometrics.body_mass == true.biometrics.body_mass
        assert 0.2 < np.abs(marks(one) - marks(true)).mean() < 8


def test_a_texture_exemplar_is_another_subject_in_the_same_style(cohort: Path) -> None:
    config = CohortConfig(num_subjects=600, seed=3)
    exemplars, splits = Exemplars(config), split_of_subjects(config)
    of_train: list[str] = []
    for split, indices in splits.items():
        for index in indices:
            style = draw_face_style(config.seed, index)
            name = exemplars.of(subject_name(index), style.name)
            assert name is not None and name != f"{subject_name(index)}.png"
            other = int(name[1:6])
            assert draw_face_style(config.seed, other).protocol == style.protocol
            assert other in indices or other in splits["train"]
            of_train += [name] if split == "train" else []
    assert len(set(of_train)) == len(of_train)  # all serve alike
    lonely = Exemplars(CohortConfig(num_subjects=8, seed=3))
    assert any(lonely.of(subject_name(k), draw_face_style(3, k).name) is None for k in range(8))
    records = [r for name in ("train", "valid", "test", "variants") for r in listed(cohort, name)]
    assert all(r.texture is None or r.texture != f"{r.subject}.png" for r in records)


def test_a_stopped_run_goes_on_to_the_same_bytes_with_any_number_of_workers(
    cohort: Path, tmp_path: Path
) -> None:
    """What a stopped run of the pairs alone left becomes all of the other cohort, by one process."""
    whole, out = contents(cohort), tmp_path / "cohort"
    shutil.copytree(cohort, out)
    for folder in ("packed", "split_data"):
        shutil.rmtree(out / folder)
    done = out / "subjects/s00000.json"
    for path in set(out.glob("subjects/*.json")) - {done}:
        path.unlink()
    (out / "pairedCS/skull/.s00001.png.0a0b.tmp").write_bytes(b"half")
    before = done.stat().st_mtime_ns
    assert main([str(out), *PAIRS, *EXTRAS, "shards=true", "num_workers=1"]) == 0
    assert contents(out) == whole and done.stat().st_mtime_ns == before
    assert not [name for name in whole if Path(name).name.startswith(".")]


def test_a_finished_cohort_is_left_as_it_is_and_another_is_refused(
    cohort: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = contents(cohort)
    assert main([str(cohort), *PAIRS]) == 0  # nothing to do: no worker is started
    assert "3/3" in capfd.readouterr().err
    assert main([str(cohort), *PAIRS[:1], "seed=7", *PAIRS[2:]]) == 2
    assert "seed is 6" in capfd.readouterr().err
    assert contents(cohort) == whole


def test_two_runs_do_not_work_in_one_folder(cohort: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (cohort / "cohort.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([str(cohort), *PAIRS]) == 2
    assert "another run" in capfd.readouterr().err


@pytest.mark.parametrize("victim", ["run", "worker"])
def test_none_of_run_and_worker_outlives_the_other(victim: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.cohort", str(tmp_path / "cohort"), *PAIRS]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    if not children.exists():
        run.kill()
        pytest.skip("no /proc to find the worker in")
    workers: list[str] = []
    while run.poll() is None and not workers:
        time.sleep(0.02)
        pids = children.read_text().split()
        workers = [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(run.pid if victim == "run" else int(workers[0]), signal.SIGKILL)
    _, error = run.communicate(timeout=60)  # ends when the worker has ended, too
    assert run.returncode == (-signal.SIGKILL if victim == "run" else 2)
    assert victim == "run" or "Traceback" not in error  # a worker without a run may say anything
    assert ("worker process was killed" in error) == (victim == "worker")


def test_an_excerpt_and_a_sheet_are_made_of_it(cohort: Path, tmp_path: Path) -> None:
    assert excerpt(cohort, tmp_path / "few") == {"train": 1, "valid": 1, "test": 1}
    for split in ("train", "valid", "test"):
        assert len(read_manifest(tmp_path / f"few/split_data/{split}.json")) == 1
    for source, name in ((cohort, "variants"), (cohort / "packed", "train")):
        out = tmp_path / f"{name}.png"
        assert sheet_main([str(source), str(out), "num=2", "across=2", f"list={name}.json"]) == 0
        with Image.open(out) as sheet:
            assert sheet.size[0] > 3 * 256 and np.asarray(sheet)[100].std() > 20
    assert sheet_main([str(tmp_path), str(tmp_path / "x.png")]) == 2


def test_an_excerpt_keeps_its_exemplars_among_its_own_faces(tmp_path: Path) -> None:
    whole = write_pairs(tmp_path / "whole", 8, train=64, valid=64, test=64)
    (whole / "cohort.json").write_text("{}")
    for path in (whole / "split_data").iterdir():
        lines = []
        for k, text in enumerate(path.read_text().splitlines()):
            line = json.loads(text) | {"style": f"p{k % 3}", "texture": f"train_{(k + 1) % 64}.png"}
            line |= {"age": 20 + 15 * (k // 2 % 4), "body_mass": 1 + 4 * (k // 8 % 2)}
            lines.append(json.dumps(line))
        path.write_text("\n".join(lines))
    assert excerpt(whole, tmp_path / "few") == {"train": 16, "valid": 8, "test": 16}
    for split in ("train", "valid", "test"):
        for record in read_manifest(tmp_path / f"few/split_data/{split}.json"):
            number = int("".join(filter(str.isdigit, record.texture or "")))
            assert record.texture != record.target and f"p{number % 3}" == record.style


def test_variants_are_of_the_test_split_first_and_to_other_levels_only() -> None:
    config = CohortConfig(num_subjects=60, variants=9, views=2, ceiling=True, seed=4)
    splits = split_of_subjects(config)
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [51, 3, 6]
    assert sorted(index for part in splits.values() for index in part) == list(range(60))
    varied = varied_subjects(config)
    assert varied == [*splits["test"], *splits["valid"]]
    for index, names in wanted_names(config):
        subject, style = draw_subject(4, index), draw_face_style(4, index)
        variants = variants_of(config, subject, style, index)
        counts = Counter(variant.changed for variant in variants)
        assert counts[("age",)] == 3 and counts[("body_mass",)] == 4
        for variant in variants:
            assert (variant.subject.body_mass != subject.body_mass) == (variant.changed == ("body_mass",))
            assert (variant.style.protocol != style.protocol) == (variant.changed == ("style",))
        assert len(set(names)) == len(names) == 3 + 9 * (index in varied) + 2 * (index in splits["test"])
    assert all(body_mass_level(bmi) == level for level, bmi in BMI_OF_LEVEL.items())
