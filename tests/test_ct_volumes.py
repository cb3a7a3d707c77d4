"""Volume files as people have them: the right place, side and HU, or one sentence that says what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

import data.ct.batch as batch
import data.files
from data.ct.__main__ import main
from data.ct.config import CtConfig
from data.ct.findings import ScanError
from data.ct.reading.kinds import dicom_start, is_scan_file, suffix_of
from data.ct.reading.read import read_scan
from tests import killing
from tests.phantom import sample, write_image, write_nifti

Volume = tuple[np.ndarray, np.ndarray]
STEPS = "space directions: (5,0,0) (0,5,0) (0,0,5)"


@pytest.fixture(scope="module")
def small() -> Volume:
    return sample((5.0, 5.0, 5.0))


def names(scan) -> dict[str, str]:
    return {finding.name: finding.severity for finding in scan.findings}


def sheared(affine: np.ndarray, degrees: float) -> np.ndarray:
    """The stack leans: its slices stay where they are level, each moved to the back by its height."""
    result = affine.copy()
    result[1, 2] += np.tan(np.radians(degrees)) * affine[2, 2]
    return result


# ---------------------------------------------------------------- where voxels lie
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.nhdr"])
def test_any_orientation_is_read_as_another_reader_reads_it(name, seed, small, tmp_path):
    values, affine = small[0], small[1].copy()
    turn = Rotation.random(random_state=seed).as_matrix() @ np.diag([1, 1, (-1) ** seed])
    affine[:, :3] = turn * [5, 4.5, 5.5]
    stored = values.astype(["i2", "f4", "i4", "f8"][seed])
    scan = read_scan(path := write_image(tmp_path / name, stored, affine))
    image = sitk.ReadImage(str(path))
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    assert np.array_equal(scan.values, values) and not scan.findings
    assert np.abs(scan.affine - np.column_stack([steps, image.GetOrigin()])).max() < 1e-3


@pytest.mark.parametrize(("order", "second"), [("<", False), (">", False), ("<", True), (">", True)])
@pytest.mark.parametrize("degrees", [0.0, 0.6, -15.0, 27.0])
def test_the_shear_of_a_nifti_sform_is_kept(order, second, degrees, small, tmp_path):
    values, affine = small
    tilted = sheared(affine, degrees)
    alone, both, only_q = (
        read_scan(write_nifti(tmp_path / name, values, *forms, order=order, second=second))
        for name, *forms in (("a.nii.gz", tilted), ("b.nii", tilted, affine), ("c.nii", None, affine))
    )
    for scan, expected in ((alone, tilted), (both, tilted), (only_q, affine)):
        assert np.array_equal(scan.values, values) and np.abs(scan.affine - expected).max() < 1e-3
    assert not alone.findings and not only_q.findings
    assert names(both) == ({"forms_differ": "note"} if degrees else {})
    assert not degrees or "the sform was used" in both.findings[0].text


def test_forms_that_mirror_each_other_or_lead_to_a_template_or_are_damaged_are_named(small, tmp_path):
    values, affine = small
    mirrored, flat = affine * [[-1], [1], [1]], affine * [[1], [1], [0]]
    for finding, severity, words, expected, forms, settings in (
        ("forms_differ", "flag", "mirror", mirrored, (mirrored, affine), {}),
        ("forms_differ", "note", "the qform was used", affine, (affine * 1.1, affine), {"codes": (4, 1)}),
        ("form_damaged", "flag", "sform", affine, (flat, affine), {}),
        (None, None, "", affine, (affine * 1000,), {"units": 3}),  # micrometres
    ):
        scan = read_scan(write_nifti(tmp_path / "a.nii", values, *forms, **settings))
        assert names(scan) == ({finding: severity} if finding else {})
        assert np.abs(scan.affine - expected).max() < 1e-3 and all(words in f.text for f in scan.findings)
    for wrong in (flat, flat * 0):
        with pytest.raises(ScanError, match=r"0 mm apart|parallel|spacing"):
            read_scan(write_nifti(tmp_path / "b.nii", values, wrong))


def text_file(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(header.encode("utf-8", "surrogateescape") + data)
    return path


def nrrd(values: np.ndarray, *more: str, space: str = "space: LPS", steps: str = STEPS) -> str:
    sizes = " ".join(map(str, values.shape[::-1]))
    head = f"NRRD0005|type: int16|dimension: 3|{space}|sizes: {sizes}|{steps}|endian: little"
    return "\n".join([*head.split("|"), *more, ""])


def meta(values: np.ndarray, *more: str) -> str:
    sizes = " ".join(map(str, values.shape[::-1]))
    head = f"ObjectType = Image|NDims = 3|DimSize = {sizes}|ElementType = MET_SHORT|ElementSpacing = 5 5 5"
    return "\n".join([*head.split("|"), *more, ""])


def test_a_file_without_sides_says_so(small, tmp_path):
    values, _ = small
    raw = values.tobytes()
    spaces = ("space: left-posterior-superior", "space: RAST", "space dimension: 3", "space: scanner-xyz")
    headers = [nrrd(values, "encoding: raw", "", space=space) for space in spaces]
    headers += [nrrd(values, "encoding: raw", "", space="kinds: domain domain domain", steps="spacings: 5 5 5"),
                meta(values, "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementDataFile = LOCAL"),
                meta(values, "ElementDataFile = LOCAL")]  # fmt: skip
    files = [text_file(tmp_path / f"{n}.{'mha' if n > 4 else 'nrrd'}", header, raw)
             for n, header in enumerate(headers)]  # fmt: skip
    for n, path in enumerate([*files, write_nifti(tmp_path / "d.nii", values)]):
        scan = read_scan(path)
        assert names(scan) == ({} if n in (0, 1, 5) else {"side_not_stored": "note"}), headers[n]
        signs = [-1, -1, 1] if n == 1 else [1, 1, 1]  # RAS
        assert np.array_equal(scan.values, values) and np.allclose(scan.affine[:, :3], 5 * np.diag(signs))


# ---------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("shift", "slope", "inter"),
    [(0, np.nan, 0), (0, np.nan, np.nan), (0, np.inf, 0), (0, 0, -1024), (1024, 0, -1024), (0, 1, np.nan)],
)
def test_a_rescaling_that_is_none_is_left_out_and_named(shift, slope, inter, small, tmp_path):
    values, affine = small
    stored = (values + shift).astype(np.int16)
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored, affine, affine, slope=slope, inter=inter))
    assert np.array_equal(scan.values, values) and names(scan) == {"rescale_unclear": "note"}


def test_stored_scales_are_named_and_undone_by_rescale_auto(small, tmp_path):
    values, affine = small
    stored = {
        "1024": (values + 1024).astype(np.int16),
        "1000": (values + 1000).astype(np.uint16),
        "32768": (values.astype(np.int32) + 32768).astype(np.uint16),
        "eight bits": np.rint((values.clip(-1000, 1500) + 1000) / 2500 * 255).astype(np.uint8),
        "unit": ((values + 1000) / 4000).astype(np.float32),
        "tenths": (10.0 * values).astype(np.float64),
    }
    for name, changed in stored.items():
        path, exact = write_nifti(tmp_path / f"{name}.nii", changed, affine), name.isdigit()
        with pytest.raises(ScanError, match=r"HU = .* x value .*rescale=auto"):
            read_scan(path)
        scan = read_scan(path, rescale="auto")
        assert names(scan) == {"rescaled": "note" if exact else "flag"}, name
        assert np.abs(scan.values.astype(int) - values)[values < 1500].max() <= (0 if exact else 25), name
    assert not read_scan(write_nifti(tmp_path / "a.nii", values, affine), rescale="auto").findings
    with pytest.raises(ScanError, match="nothing in it"):
        read_scan(write_nifti(tmp_path / "b.nii", values * 0, affine), rescale="auto")


# ---------------------------------------------------------------- files
def test_names_and_hidden_files_do_not_matter(small, tmp_path):
    values, affine = small
    packed = write_nifti(tmp_path / "a.nii.gz", values, affine).read_bytes()
    plain = write_nifti(tmp_path / "a.nii", values, affine).read_bytes()
    two = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])
    for n, (name, content) in enumerate(
        [("b.nii", packed), ("b.nii.gz", plain), ("b.Nii", plain), ("b.NII.GZ", packed), ("c.nii.gz", two)]
    ):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / name).write_bytes(content)
        (folder / f"._{name}").write_bytes(b"\0\5\26\7")
        assert np.array_equal(read_scan(folder).values, values), name
        assert np.array_equal(read_scan(folder / name).values, values), name


def test_a_scan_is_known_by_its_name_or_its_first_bytes(tmp_path):
    endings = {
        "A.NII.GZ": ".nii.gz",
        "a.dcm.gz": ".dcm.gz",
        "a.tar.gz": ".tar.gz",
        "a.IMA": ".ima",
        "a.png": "",
    }
    assert {name: suffix_of(Path(name)) for name in endings} == endings
    starts = {"whole": bytes(128) + b"DICM", "bare": b"\x08\0\x05\0CS", "": b"\x89PNG\r\n", "short": b""}
    for name, content in starts.items():
        (tmp_path / f"IM{name}").write_bytes(content)
        assert dicom_start(tmp_path / f"IM{name}") == (name if name != "short" else "")
    os.mkfifo(tmp_path / "pipe")  # which would wait for ever
    assert not is_scan_file(tmp_path / "pipe") and is_scan_file(tmp_path / "IMbare")


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pair_of_nifti_files_is_one_scan_by_either_name(order, second, small, tmp_path):
    values, affine = small
    whole = write_nifti(tmp_path / "a.nii", values, affine, order=order, second=second).read_bytes()
    head, voxels = bytearray(whole[: -values.nbytes]), whole[-values.nbytes :]
    head[5 if second else 345] = ord("i")
    struct.pack_into(order + ("q" if second else "f"), head, 168 if second else 108, 0)
    (tmp_path / "a.nii").write_bytes(head)
    with pytest.raises(ScanError, match="img is not beside it"):
        read_scan(tmp_path / "a.nii")
    for names_of_two in (
        ("a.hdr", "a.img"),
        ("A b.HDR", "A b.IMG"),
        ("a.hdr.gz", "a.img.gz"),
        ("a.hdr", "a.img.gz"),
    ):
        folder = tmp_path / "-".join(names_of_two)
        folder.mkdir()
        for name, content in zip(names_of_two, (head, voxels), strict=True):
            (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
        for path in (folder, *folder.iterdir()):
            scan = read_scan(path)
            assert np.array_equal(scan.values, values) and np.allclose(scan.affine, affine, atol=1e-4), (
                path.name
            )


def test_detached_voxels_are_read(small, tmp_path):
    values, _ = small
    raw, last = values.tobytes(), len(values) - 1
    slices = {f"s{k:03d}.raw": plane.tobytes() for k, plane in enumerate(values)}
    files = {"a.raw": raw, "sub/my scan.raw": raw, "a.z": zlib.compress(raw), "skip.raw": b"x" * 77 + raw,
             "a.gz": b"two\nlines\n" + gzip.compress(b"12345" + raw), **slices}  # fmt: skip
    (tmp_path / "sub").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    listed = "\n".join(slices)
    sizes = " ".join(map(str, values.shape[::-1]))
    four = nrrd(values, "encoding: raw", "data file: a.raw", steps=STEPS.replace("(5", "none (5", 1))
    headers = {
        "a.nhdr": nrrd(values, "encoding: raw", "data file: ./a.raw"),
        "b.nhdr": nrrd(values, "encoding: raw", f"data file: LIST\n{listed}"),
        "c.nhdr": nrrd(values, "encoding: raw", f"datafile: s%03d.raw 0 {last} 1 2"),
        "d.nhdr": nrrd(values, "encoding: gzip", "line skip: 2", "byte skip: 5", "data file: a.gz"),
        "g.nhdr": nrrd(values, "encoding: gzip", "lineskip: 2", "byteskip: 5", "datafile: a.gz"),
        "e.nhdr": nrrd(values, "encoding: raw", "byte skip: -1", "data file: skip.raw", "key:=sizes: 1 1 1"),
        "f.nhdr": four.replace("dimension: 3", "dimension: 4").replace(f"sizes: {sizes}", f"sizes: 1 {sizes}"),
        "a.mhd": meta(values, "ElementDataFile = ./a.raw").rstrip("\n"),
        "b.mhd": meta(values, f"ElementDataFile = LIST\n{listed}"),
        "c.mhd": meta(values, f"ElementDataFile = s%03d.raw 0 {last} 1"),
        "d.mhd": meta(values, "CompressedData = True", "ElementDataFile = a.z"),
        "e.mhd": meta(values, "HeaderSize = -1", "ElementDataFile = .\\skip.raw"),
        "f.mhd": meta(values, "ElementDataFile = sub/my scan.raw"),
        "g.mhd": meta(values, "ElementDataFile = a.raw").replace("NDims = 3", "NDims = 4")
        .replace(f"DimSize = {sizes}", f"DimSize = {sizes} 1").replace("5 5 5", "5 5 5 1"),
    }  # fmt: skip
    for name, header in headers.items():
        scan = read_scan(text_file(tmp_path / name, header))
        assert np.array_equal(scan.values, values) and np.allclose(scan.spacing, 5), name


def test_no_header_reaches_a_file_outside_its_folder(small, tmp_path):
    values, _ = small
    outside, folder = tmp_path / "secret.raw", tmp_path / "scan"
    folder.mkdir()
    outside.write_bytes(values.tobytes())
    (folder / "link.raw").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.raw")
    wrong = [str(outside), "../secret.raw", "./../secret.raw", "..\\secret.raw", "link.raw", "up/secret.raw",
             "pipe.raw", "LIST\n../secret.raw", "../secre%%d.raw 1 1 1", "x\0.raw", ".", "", "a" * 5000,
             "LIST\n" + "x\n" * 60_000, "%d" + " " * 900_000 + "x"]  # fmt: skip
    separators = ["\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028", "\r"]
    for n, name in enumerate([*wrong, *(f"x{mark}data file: ../secret.raw" for mark in separators)]):
        text_file(folder / f"{n}.nhdr", nrrd(values, "encoding: raw", f"data file: {name}"))
        text_file(folder / f"{n}.mhd", meta(values, f"ElementDataFile = {name}"))
        for ending in (".nhdr", ".mhd"):
            with pytest.raises(ScanError):
                read_scan(folder / f"{n}{ending}")
    (folder / "own.raw").write_bytes(values.tobytes())
    hidden = nrrd(values, "encoding: raw", "content: x\x0bdata file: ../secret.raw", "data file: own.raw")
    outside.write_bytes(bytes(len(values.tobytes())))
    assert np.array_equal(read_scan(text_file(folder / "own.nhdr", hidden)).values, values)
    twice = nrrd(values, "encoding: raw", "data file: own.raw", "datafile: ../secret.raw")
    with pytest.raises(ScanError, match="twice"):
        read_scan(text_file(folder / "twice.nhdr", twice))


# ---------------------------------------------------------------- the command
def test_an_output_folder_that_takes_nothing_is_named_before_the_work(tmp_path, small, monkeypatch, capsys):
    path, table = write_image(tmp_path / "p1.nrrd", *small), tmp_path / "people.csv"
    table.write_text("id,sex,age,bmi\np1,F,30,20\n")
    monkeypatch.setattr("data.ct.drawing.draw_scan", None)  # the work itself would fail
    monkeypatch.setattr(batch, "work_off", None)
    (tmp_path / "file").write_text("")
    usage = SimpleNamespace(free=1 << 50)
    monkeypatch.setattr(data.files.shutil, "disk_usage", lambda _: usage)
    for first, *settings in ([path], [tmp_path, f"biometrics={table}", f"private={tmp_path / 'own'}"]):
        for out in (Path("/proc/none/out"), tmp_path / "file" / "out", tmp_path / "out"):
            usage.free = 9 if out.parent == tmp_path else 1 << 50
            assert main([str(first), str(out), *settings]) == 2
            assert ("free" if usage.free == 9 else str(out)) in capsys.readouterr().err
            assert not os.path.exists(out)


def test_a_scan_that_kills_its_process_or_hangs_is_one_refused_row(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_draw", killing.draw)
    monkeypatch.setattr(batch, "LONGEST_S", 0.3)
    patients, table, out = tmp_path / "in", tmp_path / "people.csv", tmp_path / "out"
    patients.mkdir()
    ids = ["a", "killer", "b", "sleeper"]
    for identity in ids:
        (patients / f"{identity}.nii").write_bytes(b"")
    table.write_text("id,sex,age,bmi\n" + "".join(f"{i},F,30,20\n" for i in ids))
    config = CtConfig(biometrics=str(table), num_workers=2)
    for _ in range(2):  # the second run has nothing left to do
        counts = batch.run_batch(patients, out, config, progress=False)
        assert counts == {"ok": 0, "flagged": 0, "refused": 4}
    reasons = [row["refused_because"] for row in json.loads((out / "summary.json").read_text())["scans"]]
    assert sorted(reason == "read" for reason in reasons) == [False, False, True, True]
    assert sum("killed" in reason for reason in reasons) == 2
