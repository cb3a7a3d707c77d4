"""A head stored in many ways gives the same pictures in the cohort's frame; bad scans are flagged."""

from __future__ import annotations

import csv
import json
import plistlib
import stat
import subprocess
import sys
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from data.biometrics import Biometrics
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.subject import draw_subject
from data.cohort.heads.template import HeadTemplate
from data.ct.__main__ import main
from data.ct.config import CtConfig
from data.ct.drawing import Drawing, draw_scan
from data.ct.findings import RULES, ScanError, judge
from data.ct.people import PeopleError, make_salt, read_people, read_salt, study_code
from data.ct.pose import POINT_NAMES, find_pose, manual_rotation, turn
from data.ct.quality import _metal
from data.ct.reading import decoding
from data.ct.reading.geometry import Slice, stack
from data.ct.reading.read import read_scan
from data.ct.reading.scan import Scan
from data.ct.reference import made_from, make_reference, reference
from data.ct.surfaces import Mesh
from data.ct.volume import FROM_LPS, find_head, resample
from data.manifest import read_manifest
from data.paired import PairedDataset
from tests.phantom import SECRET, TO_LPS, sample, save, slice_dataset, write_dicom, write_image, write_nifti

QUICK = CtConfig(step=2.0, meshes=False)
FINE = (2.5, 2.5, 2.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Drawing:
    """The head as it is stored most simply."""
    return drawn(tmp_path_factory.mktemp("plain"), *sample(FINE))


def drawn(folder: Path, values: np.ndarray, affine: np.ndarray, config: CtConfig = QUICK) -> Drawing:
    return draw_scan(write_image(folder / "head.nrrd", values, affine), config)


def head_of(folder: Path, values: np.ndarray, affine: np.ndarray, step: float) -> np.ndarray:
    """The voxels of the head."""
    return find_head(resample(read_scan(write_image(folder / "head.nrrd", values, affine)), step)).head


def check_alike(
    one: Drawing, other: Drawing, least: float = 0.975, skull: float = 12, face: float = 9
) -> None:
    """Check the intersection over union of the drawn px, and the mean difference in grey levels within both."""
    for a, b, most in ((one.skull, other.skull, skull), (one.face, other.face, face)):
        assert a is not None and b is not None
        both = (a > 0) & (b > 0)
        assert (
            both.sum() / ((a > 0) | (b > 0)).sum() > least and np.abs(a.astype(int) - b)[both].mean() < most
        )


def flags(case: Drawing) -> set[str]:
    return {f.name for f in case.findings if f.severity != "note"}


def test_a_good_scan_lands_in_the_cohorts_frame_unflagged(plain):
    assert plain.status == "ok", plain.findings
    ref, frame = reference(), plain.facts["frame"]
    # Orbits of the procedural skull, which this head has, lie up to 5.5 mm wider apart than the cohort's mean.
    assert np.abs(np.array(frame["orbits_mm"])[:, :2] - ref.orbits[:2, :2]).max() < 7
    assert abs(frame["chin_y_mm"] - ref.chin_y) < 8  # this subject's own chin; the mean's is the reference's
    assert plain.facts["pose"]["method"] == "frankfurt"
    assert np.abs(plain.facts["pose"]["yaw_pitch_roll_deg"]).max() < 3  # it was made in the cohort's frame


SAGITTAL = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])  # i to the back, j down, k to the right


@pytest.mark.parametrize(
    ("name", "spacing", "changes"),
    [
        ("spacing.nii.gz", (2.0, 2.4, 2.55), {}),
        ("axes.mha", FINE, {"axes": SAGITTAL}),
        ("dicom_tilted", (2.2, 2.2, 2.5), {"tilt": 15.0}),
        ("sform.nii", (2.2, 2.2, 2.5), {"tilt": -12.0}),
    ],
)
def test_other_spacings_axes_formats_and_tilts_give_the_same_pictures(
    plain, tmp_path, name, spacing, changes
):
    write = {"dicom_tilted": write_dicom, "sform.nii": write_nifti}.get(name, write_image)
    case = draw_scan(write(tmp_path / name, *sample(spacing, **changes)), QUICK)
    check_alike(plain, case)
    assert not flags(case)
    if write is write_nifti:
        assert next(f.value for f in case.findings if f.name == "gantry_tilt") == pytest.approx(12, abs=0.1)
    if write is write_dicom:
        assert case.facts["scan"]["gantry_tilt_deg"] == pytest.approx(15, abs=0.1)


def test_a_spacing_that_changes_from_base_to_vertex_is_interpolated(plain, tmp_path):
    values, affine = sample((2.5, 2.5, 1.25))
    middle, series = len(values) // 4 * 2, generate_uid()
    for k in (*range(0, middle, 2), *range(middle, len(values), 4)):
        save(slice_dataset(values, affine, k, series), tmp_path / f"{k}")
    case = draw_scan(tmp_path, QUICK)
    check_alike(plain, case)
    found = {f.name: f for f in case.findings}
    assert flags(case) == {"spacing"} and found["spacing"].value == pytest.approx(5)
    assert "2.50 to 5.00 mm" in found["uneven_slices"].text
    assert case.facts["scan"]["spacing_mm"][2] == pytest.approx(2.5, abs=0.02)


def test_a_turned_head_is_turned_back(plain, tmp_path):
    case = drawn(tmp_path, *sample(FINE, turned=turn(14, -9, 6)))
    check_alike(plain, case, 0.96, 14, 14)
    back, forth = (turn(*c.facts["pose"]["yaw_pitch_roll_deg"]) for c in (case, plain))
    left = back @ turn(14, -9, 6) @ forth.T  # turned by the scanner, turned back by the pose: nothing is left
    assert np.degrees(np.arccos(np.clip((np.trace(left) - 1) / 2, -1, 1))) < 2.5


def test_a_cut_off_mandible_and_a_hole_are_flagged(tmp_path):
    values, affine = sample(FINE, keep=(0.32, 1.0))
    index = np.moveaxis(np.indices(values.shape)[::-1], 0, -1)  # (K, J, I, 3): i, j, k
    places = (index @ affine[:, :3].T + affine[:, 3]) @ FROM_LPS.T  # x left, y up, z forward
    hole = (np.hypot(places[..., 0] - 35, places[..., 1] - 50) < 17) & (places[..., 2] > 0)
    case = drawn(tmp_path, np.where(hole, np.minimum(values, 40), values), affine)
    assert flags(case) == {"mandible_missing", "bone_defect"}
    defect = next(f for f in case.findings if f.name == "bone_defect")
    assert "left forehead" in defect.text and 4 < defect.value < 16
    assert case.facts["frame"]["chin_y_mm"] is None


def with_streaks(values: np.ndarray, affine: np.ndarray, reach: float, limit: int) -> np.ndarray:
    """Return a volume with a ball of metal at a molar and rays in its slices, cut off at ``limit`` HU."""
    rng = np.random.default_rng(0)
    index = np.moveaxis(np.indices(values.shape)[::-1], 0, -1)
    x, y, z = np.moveaxis((index @ affine[:, :3].T + affine[:, 3]) @ FROM_LPS.T - (26, -68, 62), -1, 0)
    distance, angle = np.hypot(x, z), np.arctan2(z, x)
    result = values.astype(float)
    for k in np.flatnonzero(np.abs(y[:, 0, 0]) < 4):
        for n, ray in enumerate(rng.uniform(-np.pi, np.pi, 14)):
            across = np.abs((angle[k] - ray + np.pi) % (2 * np.pi) - np.pi) * distance[k]
            result[k] += (-1) ** n * 1500 * np.exp(-((across / 1.5) ** 2) - distance[k] / reach)
    result[np.hypot(distance, y) < 3.5] = 9000
    return np.clip(np.rint(result), -1024, limit).astype(np.int16)


@pytest.mark.parametrize("limit", [1976, 2248, 3071, 20000])
def test_metal_is_flagged_where_its_values_are_cut_off_and_where_it_streaks(limit):
    values, affine = sample(FINE)
    before = {f.name for f in _metal(Scan(values, affine))}
    clean, streaked = (
        _metal(Scan(with_streaks(values, affine, reach, limit), affine)) for reach in (0.001, 40.0)
    )
    assert not before and {f.name: f.severity for f in clean}.keys() <= {"metal", "saturated"}
    found = {f.name: f for f in streaked if f.severity == "flag"}
    assert {"streaks", "saturated"} <= set(found)
    assert str(limit if limit != 20000 else 9000) in found["saturated"].text
    assert 0.1 < found["saturated"].value < 0.5 and 1.5 < found["streaks"].value < 8  # a ball of 0.18 ml
    bone = np.where(values > 800, 1400, values)  # a plateau as dense as bone is none
    assert not _metal(Scan(bone.astype(np.int16), affine))


def test_a_cut_vault_metal_with_streaks_and_thick_slices_are_flagged(tmp_path):
    values, affine = sample((2.5, 2.5, 3.4), keep=(0.0, 0.85))
    case = drawn(tmp_path, with_streaks(values, affine, 40.0, 2248), affine)
    assert flags(case) >= {"vault_cut", "saturated", "streaks", "spacing"}
    assert case.facts["cut_cm2"]["top"] > 1


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_limit_and_a_sentence(name):
    rule = RULES[name]
    limits = [limit for limit in (rule.note, rule.flag, rule.refuse) if limit is not None]
    assert limits == sorted(limits) and limits
    details = dict.fromkeys(("low", "high", "step", "gap", "depth", "chin", "measured"), 1.0)
    details |= dict.fromkeys(
        ("reason", "chosen", "total", "more", "hu", "place", "size", "images", "outcome", "first"), "x"
    )
    worse = limits[-1] - 0.01 if rule.at_least else limits[-1] + 1
    (finding,) = judge(name, worse, **details)
    assert finding.limit == limits[-1] and finding.text and "{" not in finding.text


# ---------------------------------------------------------------- reading
def write_compressed(folder: Path, coding: str) -> np.ndarray:
    values, affine = sample((5.0, 5.0, 5.0))
    for k in range(len(values)):
        data = slice_dataset(values, affine, k, "1.2.3")
        try:
            data.compress(coding)
        except RuntimeError:
            pytest.skip("no encoder for it here; decoding is what is promised")
        folder.mkdir(exist_ok=True)
        save(data, folder / f"{k}")
    return values


@pytest.mark.parametrize("coding", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_every_coding_holds_the_same_volume(tmp_path, coding):
    values = write_compressed(tmp_path, coding)
    assert np.array_equal(read_scan(tmp_path).values, values)


@pytest.mark.parametrize("what", ["os.kill(os.getpid(), 9)", "time.sleep(60)"])
def test_a_decoder_that_ends_its_process_or_hangs_refuses_the_scan(tmp_path, what, monkeypatch, capfd):
    write_compressed(tmp_path / "in", RLELossless)
    monkeypatch.setattr(decoding, "COMMAND", ("-c", f"import os, time; {what}"))
    monkeypatch.setattr(decoding, "LONGEST_S", 0.5)
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("data.ct: the process that decodes") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_of_several_series_the_finest_head_is_read_or_the_one_of_the_setting(tmp_path):
    coarse, fine = sample((5.0, 5.0, 5.0)), sample((5.0, 5.0, 3.0))
    write_dicom(tmp_path, *coarse, SeriesNumber=2)
    write_dicom(tmp_path, *fine, SeriesNumber=7)
    write_dicom(tmp_path, fine[0][:20], fine[1], SeriesNumber=8)  # too short for a head
    write_dicom(tmp_path, coarse[0][:40], coarse[1], SeriesNumber=9, ImageType=["DERIVED", "", "LOCALIZER"])
    scan = read_scan(tmp_path)
    assert scan.spacing[2] == pytest.approx(3.0) and scan.facts["series_used"] == "7"
    assert len(scan.facts["series_found"]) == 4
    assert read_scan(tmp_path, series="2").spacing[2] == pytest.approx(5.0)
    with pytest.raises(ScanError, match="series=7"):
        read_scan(tmp_path, series="11")


def test_slices_are_sorted_evened_and_counted():
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 1000, (30, 8, 8)).astype(np.int16)
    heights = 2.0 * np.arange(30)

    def stacked(chosen, places=heights, more=()):
        slices = [Slice(volume[k], np.array([0, 0, places[k]]), (1, k)) for k in chosen]
        values, affine, findings = stack([*slices, *more], np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
        return values, affine, [f.name for f in findings]

    values, affine, names = stacked(rng.permutation(30).tolist())
    assert np.array_equal(values, volume) and not names
    assert affine[2, 2] == pytest.approx(2.0)
    values, _, names = stacked([k for k in range(30) if k != 11])
    middle = (volume[10].astype(int) + volume[12]) / 2
    assert names == ["missing_slices"] and len(values) == 30 and np.abs(values[11] - middle).max() <= 1
    assert stacked(range(30), heights + 0.4 * (np.arange(30) % 2))[2] == ["uneven_slices"]
    values, _, names = stacked(range(30), more=[Slice(volume[3], np.array([0, 0, 4.0]), (2, 1))])
    assert names[0] == "duplicated_slices" and np.array_equal(values, volume)
    with pytest.raises(ScanError, match="missing"):
        stacked([*range(12), *range(18, 30)])


def test_a_table_a_tube_and_a_headrest_are_left_out(tmp_path):
    values, affine = sample(FINE)
    bare = head_of(tmp_path, values, affine, 2.0)
    occupied = np.argwhere(values > -300)
    back, left = occupied[:, 1].max(), occupied[:, 2].min()
    values[:, back - 1 : back + 1, :] = 200  # a board that the head rests on
    values[:, : back - 8, left - 6 : left - 5] = 300  # the shell of a headrest
    furnished = head_of(tmp_path, values, affine, 2.0)
    assert (furnished & ~bare).sum() < 0.03 * bare.sum()
    assert (bare & ~furnished).sum() < 0.01 * bare.sum()


def test_the_thin_wall_of_a_sinus_belongs_to_the_head(tmp_path):
    values, affine = sample(FINE)
    bare = head_of(tmp_path, values, affine, 1.0)
    k, i = round(0.66 * len(values)), values.shape[2] // 2  # the middle of the forehead
    for z, x in product(range(k - 8, k + 8), range(i - 10, i + 10)):
        front = int(np.argmax(values[z, :, x] > -300))
        values[z, front + 3 : front + 8, x] = -1000  # a cavity behind a wall of 7.5 mm
    assert (bare & ~head_of(tmp_path, values, affine, 1.0)).sum() < 0.0005 * bare.sum()


def test_an_invesalius_project_is_read(tmp_path):
    values, _ = sample((5.0, 5.0, 5.0))
    # Rows from the back to the front, columns from left to right.
    stored = np.ascontiguousarray(values[:, ::-1, ::-1])
    matrix = {"filename": "matrix.dat", "shape": list(stored.shape), "dtype": "int16"}
    project = tmp_path / "unpacked"
    project.mkdir()
    content = {"matrix": matrix, "modality": "CT", "spacing": [5.0, 5.0, 5.0]}
    (project / "main.plist").write_bytes(plistlib.dumps(content))
    (project / "matrix.dat").write_bytes(stored.tobytes())
    with tarfile.open(tmp_path / "head.inv3", "w:gz") as archive:
        archive.add(project, "dir")
    for path in (project, tmp_path / "head.inv3"):
        scan = read_scan(path)
        assert np.array_equal(scan.values, stored)
        assert np.allclose(np.diag(scan.affine[:, :3]), [-5, -5, 5])
        assert [f.severity for f in scan.findings] == ["note"]


# ---------------------------------------------------------------- pose and reference
def test_the_pose_of_the_setting_is_used(tmp_path):
    assert np.allclose(manual_rotation("10,-5,3")[0], turn(10, -5, 3))
    level = {"orbitale_left": [30, -22, 75], "orbitale_right": [-30, -22, 75], "porion_left": [60, -22, 0],
             "porion_right": [-60, -22, 0]}  # fmt: skip
    head = turn(20, 10, -5)
    points = {name: (TO_LPS @ head.T @ np.array(level[name], float)).tolist() for name in POINT_NAMES}
    (tmp_path / "points.json").write_text(json.dumps(points))
    assert np.allclose(manual_rotation(str(tmp_path / "points.json"))[0], head, atol=1e-6)
    for wrong in ("1,2", "nan,0,0", "nowhere.json"):
        with pytest.raises(ScanError, match="pose"):
            manual_rotation(wrong)
    case = drawn(tmp_path, *sample((4.0, 4.0, 4.0)), QUICK.with_(pose="0,8,0"))
    assert case.facts["pose"]["method"] == "angles"
    assert case.facts["pose"]["yaw_pitch_roll_deg"] == pytest.approx([0, 8, 0], abs=1e-6)


def test_the_reference_belongs_to_the_templates_that_ship():
    stored = reference()
    assert stored.made_from == made_from(), "a template changed since: python -m data.ct.reference"
    now = make_reference(range(4))
    assert np.abs(now.orbits[:2] - stored.orbits[:2]).max() < 4
    assert abs(now.orbits[0, 0] - stored.orbits[0, 0]) < 3 * stored.spread[0] / 2 + 1
    assert abs(now.chin_y - stored.chin_y) < 3 * stored.spread[1] / 2 + 1
    assert np.abs(stored.points[:, 0].mean()) < 1  # as much left as right


def test_the_cohorts_own_skulls_are_left_as_they_stand():
    """They have neither backs nor ear canals: the fit of the mean skull is alone, and must not nod them all one way."""
    nods = []
    for index in range(3):
        head = build_head(HeadTemplate.load(), draw_subject(5, index))
        yaw, pitch, roll = find_pose(Mesh(head.skull.astype(np.float32), head.skull_triangles)).angles()
        assert max(abs(yaw), abs(roll)) < 3
        nods.append(pitch)
    assert np.abs(nods).max() < 6
    assert abs(np.mean(nods)) < 2.5


# ---------------------------------------------------------------- the command
def test_one_scan_by_the_command(tmp_path):
    path, out = write_image(tmp_path / "head.nrrd", *sample((4.0, 4.0, 4.0))), tmp_path / "out"
    assert main([str(path), str(out), "step=2.5"]) in (0, 3)
    names = {p.name for p in out.iterdir()}
    assert names == {"skull.png", "face.png", "skull.ply", "face.ply", "report.json"}
    with Image.open(out / "face.png") as face:
        assert face.size == (256, 256)
    head, _, body = (out / "skull.ply").read_bytes().partition(b"end_header\n")
    vertices = int(head.split(b"element vertex ")[1].split()[0])
    points = np.frombuffer(body, "<f4", 3 * vertices).reshape(-1, 3)
    assert 120 < np.ptp(points[:, 0]) < 180  # true millimetres


def test_no_window_system_is_loaded():
    code = "import sys, data.ct.drawing, data.ct.batch; assert not {'torch', 'vtk'} & set(sys.modules)"
    code += "; assert 'Rendering' not in str([*sys.modules])"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- batches
def test_people_and_their_codes(tmp_path):
    salt = bytes(range(32))
    table = tmp_path / "people.csv"
    table.write_text("ID;Sex;Age;Height;Weight\np1;M;43;180;60\np2;female;95;160;80\n", encoding="utf-8-sig")
    people = read_people(table, salt)
    assert [p.manifest_fields()["body_mass"] for p in people] == ["3", "5"]
    assert people[1].manifest_fields()["age"] == 90
    assert people[0].code == study_code("p1", salt) != study_code("p1", bytes(32))
    texts = ["sep=;\nPatient ID;Gender;Age (years);Body mass;;\n;;;;;\nMu\u0308ller;F;43,5;4,0;;\n",
             "id\tsex\tage\tHeight (cm)\tWeight (kg)\nM\u00fcller\tF\t43,5\t170,5\t62,5\n"]  # fmt: skip
    for text, encoding in product(texts, ("utf-8", "utf-8-sig", "utf-16")):
        table.write_text(text, encoding)
        (person,) = read_people(table, salt)
        assert (person.identity, person.code) == ("M\u00fcller", study_code("Mu\u0308ller", salt))
        assert person.biometrics == Biometrics("female", 43.5, body_mass=4)
    for lines in ("age\np1,M,4", "age,bmi\np1,M,400,20", "age,bmi\np1,M,40,20\np1,M,40,20", "age,bmi\np1,M,40,",
                  "age,height,weight\np1,M,40,1.8,80"):  # fmt: skip
        table.write_text(f"id,sex,{lines}\n")
        with pytest.raises(PeopleError):
            read_people(table, salt)


def test_a_salt_is_for_its_owner_alone(tmp_path):
    salt, path = make_salt(tmp_path / "private"), tmp_path / "private" / "salt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_salt(tmp_path / "private") == salt
    path.chmod(0o644)
    with pytest.raises(PeopleError, match="600"):
        read_salt(tmp_path / "private")


def test_a_batch_is_anonymous_restartable_and_a_data_set(tmp_path, capfd):
    patients, out = tmp_path / "patients", tmp_path / "out"
    ids = [f"{SECRET}{n}" for n in range(3)]
    for identity in ids[::2]:
        (patients / identity).mkdir(parents=True)
    write_image(patients / ids[0] / f"{SECRET}.nrrd", *sample(FINE))
    write_image(patients / f"{ids[1]}.nii.gz", *sample(FINE, keep=(0.32, 1.0)))
    (patients / ids[2] / f"{SECRET}.dcm").write_bytes(b"no scan")
    table = tmp_path / "patients.csv"
    people = "".join(f"{i},F,{30 + n},Asian,{20 + n}\n" for n, i in enumerate(ids))
    table.write_text("id,sex,age,ethnicity,bmi\n" + people)
    command = [str(patients), str(out), f"biometrics={table}", "step=2.5", "num_workers=2"]
    command += ["meshes=false", "pose=0,0,0"]
    assert main(command) == 3
    output = "".join(capfd.readouterr())
    assert "1 ok, 1 flagged, 1 refused" in output

    records = read_manifest(out / "split_data" / "all.json")
    assert len(PairedDataset(records)) == 2
    assert {r.extra["ct"]["status"] for r in records} == {"ok", "flagged"}
    with (out / "summary.csv").open() as file:
        assert sorted(row["status"] for row in csv.DictReader(file)) == ["flagged", "ok", "refused"]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".")]
    assert SECRET not in output + "".join(str(path.relative_to(out)) for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    codes = tmp_path / "out.private" / "codes.csv"
    assert all(identity in codes.read_text() for identity in ids)
    assert stat.S_IMODE(codes.stat().st_mode) == 0o600

    first = records[0].skull_path
    before = {path: path.stat().st_mtime_ns for path in (out / "pairedCS").rglob("*.png")}
    (out / "reports" / f"{records[0].subject}.json").unlink()
    (first.parent / ".half.png.tmp").write_bytes(b"left by a run that was killed")
    assert main(command) == 3
    assert {path.name for path, at in before.items() if path.stat().st_mtime_ns != at} == {first.name}
    assert not (first.parent / ".half.png.tmp").exists()
    assert main([*command, "bone_hu=300"]) == 2
    assert main([*command[:2], f"biometrics={table}", f"private={out / 'inside'}"]) == 2
    table.write_text(table.read_text() + "nobody,M,40,Asian,22\n")
    assert main(command) == 2
    assert "nobody" in capfd.readouterr().err
    for text in (
        table.read_text(),
        "id,sex,age\n",
        "id,sex,age,bmi\nx,M,forty,22\n",
    ):  # leaves no salt either
        table.write_text(text)
        assert main([command[0], str(tmp_path / "new"), f"biometrics={table}"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.private", "patients", "patients.csv"}
