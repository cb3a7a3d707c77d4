"""DICOM as it is found in practice: the same head, whatever the headers, the files and their folders look like."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from data.ct.findings import ScanError
from data.ct.reading import archives
from data.ct.reading.read import read_scan
from data.ct.reading.scan import Scan
from tests.phantom import SECRET, sample, save, slice_dataset, write_dicom

VALUES, AFFINE = sample((6.0, 6.0, 7.0))
SERIES = generate_uid()
COUNT = len(VALUES)


def one_slice(k: int, **changes: Any) -> Dataset:
    return slice_dataset(VALUES, AFFINE, k, **({"series": SERIES} | changes))


def write(
    folder: Path,
    change: Callable[[int], dict[str, Any]] = lambda k: {},
    name: str = "IM",
    values: np.ndarray = VALUES,
    affine: np.ndarray = AFFINE,
) -> Path:
    """Write the head's series; ``change`` returns the elements that differ in slice k."""
    folder.mkdir(exist_ok=True)
    for k in range(len(values)):
        changes = {"series": SERIES} | change(k)
        save(slice_dataset(values, affine, k, **changes), folder / f"{name}{k:04d}")
    return folder


def without_preambles(folder: Path) -> Path:
    """Take preamble, magic and the group of the file from all files."""
    for path in folder.iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[144 + int.from_bytes(whole[140:144], "little") :])
    return folder


def check(scan: Scan, *names: str, values: np.ndarray = VALUES) -> None:
    """Check that the whole head was read, in its place, with these findings and no others."""
    assert np.array_equal(scan.values, values)
    assert np.abs(scan.affine - AFFINE).max() < 0.01
    assert sorted(f.name for f in scan.findings) == sorted(names), scan.findings
    assert SECRET not in str((scan.findings, scan.facts))


def severities(scan: Scan) -> dict[str, str]:
    return {f.name: f.severity for f in scan.findings}


# ---------------------------------------------------------------- headers
@pytest.mark.parametrize("most", [2e-3, 9e-4, 9e-5, 9e-6, 9e-7])
def test_headers_that_differ_in_their_last_digits_are_one_series(tmp_path, most):
    rng = np.random.default_rng(0)

    def change(k: int) -> dict[str, Any]:
        axes = np.array([1.0, 0, 0, 0, 1, 0]) + rng.uniform(-most, most, 6)
        spacing = 6.0 + rng.uniform(-most, most)
        position = AFFINE[:, 3] + k * AFFINE[:, 2] + rng.uniform(-0.004, 0.004, 3)
        return {
            "ImageOrientationPatient": [f"{v:.7f}" for v in axes],
            "PixelSpacing": [f"{spacing:.7f}"] * 2,
            "ImagePositionPatient": [f"{v:.4f}" for v in position],
        }

    check(read_scan(write(tmp_path, change)))


@pytest.mark.parametrize("name", ["AAA", "ZZZ"])
@pytest.mark.parametrize("own_series", [True, False])
def test_a_scout_without_its_type_is_no_slice_whatever_its_name(tmp_path, name, own_series):
    folder = write(tmp_path / "s")
    scouts = {
        "front": {"ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"], "Rows": 20, "Columns": 51},
        "level": {"ImagePositionPatient": ["-300", "200", "100"]},
        "far": {"ImagePositionPatient": [*map(str, AFFINE[:2, 3]), "900"]},
    }
    series = generate_uid() if own_series else SERIES
    for kind, changes in scouts.items():
        scout = slice_dataset(VALUES, AFFINE, 0, series, SeriesNumber=1 if own_series else 3, **changes)
        if kind == "front":
            scout.PixelData = scout.PixelData[: 2 * 20 * 51]
        save(scout, folder / f"{name}{kind}")
        finding = "several_series" if own_series else "mixed_series"
        check(scan := read_scan(folder), finding)
        assert severities(scan)[finding] == ("note" if own_series or kind == "front" else "flag")


def test_files_without_preamble_modality_or_numbers_are_read(tmp_path):
    check(read_scan(without_preambles(write(tmp_path / "bare"))))
    check(read_scan(write(tmp_path / "no", lambda k: {"Modality": None, "InstanceNumber": None})))
    check(read_scan(write(tmp_path / "empty", lambda k: {"Modality": "", "InstanceNumber": 1})))
    inverted = read_scan(write(tmp_path / "1", lambda k: {"PhotometricInterpretation": "MONOCHROME1"}))
    check(inverted, "inverted_display")
    assert severities(inverted) == {"inverted_display": "flag"}


def test_a_series_number_or_the_geometry_joins_images_with_a_series_each(tmp_path):
    scan = read_scan(write(tmp_path / "one", lambda k: {"series": generate_uid()}))
    check(scan, "joined_series")
    assert scan.findings[0].value == COUNT and scan.findings[0].severity == "note"
    without_number = write(tmp_path / "two", lambda k: {"series": generate_uid(), "SeriesNumber": None})
    check(read_scan(without_number), "joined_series")
    halves = [{"series": f"1.2.{half}", "SeriesNumber": half} for half in range(2)]
    for share in (0.5, 1):  # base and vault of the skull, less and more than 100 mm each
        part = AFFINE @ np.diag([1, 1, share, 1])
        folder = write(
            tmp_path / "half", lambda k: halves[2 * k // COUNT] | {"StudyInstanceUID": "1.2"}, affine=part
        )
        scan = read_scan(folder)
        assert np.array_equal(scan.values, VALUES) and "joined_series" in severities(scan)
        assert np.allclose(scan.affine, part, atol=0.01)
    assert len(read_scan(folder, series="0").values) == (COUNT + 1) // 2  # one part alone, where it is wanted
    for number, values in (
        (3, VALUES),
        (4, np.maximum(VALUES, -500)),
    ):  # two reconstructions, by their number alone
        series = [{"series": generate_uid(), "SeriesNumber": number} for _ in range(COUNT)]
        folder = write(tmp_path / "three", series.__getitem__, f"{number}_", values)
    check(read_scan(folder), "joined_series", "several_series")


@pytest.mark.parametrize(
    ("stored", "padding"),
    [
        ({"PixelRepresentation": 0}, {"PixelPaddingValue": 63536}),
        ({"PixelRepresentation": 0}, {"PixelPaddingValue": 63000, "PixelPaddingRangeLimit": 64000}),
        ({"PixelRepresentation": 0}, {"PixelPaddingValue": 1024}),  # looks like water
        ({"PixelRepresentation": 1}, {"PixelPaddingValue": -2000}),
    ],
)
def test_padding_is_not_measured_however_it_is_written(tmp_path, stored, padding):
    rows, columns = np.indices(VALUES.shape[1:])
    middle = (np.array(rows.shape) - 1) / 2
    outside = np.hypot(rows - middle[0], columns - middle[1]) > middle.max()
    value = 63536 if len(padding) > 1 else padding["PixelPaddingValue"] % 65536

    def change(k: int) -> dict[str, Any]:
        pixels = (VALUES[k].astype(np.int32) + 1024).astype(np.uint16)
        pixels[outside] = value
        return stored | padding | {"PixelData": pixels.tobytes()}

    scan = read_scan(write(tmp_path, change))
    assert (scan.values[:, outside] < -1500).all()
    water = VALUES[:, ~outside] == 0
    assert np.array_equal(scan.values[:, ~outside][~water], VALUES[:, ~outside][~water])
    assert (scan.values[:, ~outside] == -4096).sum() < 50  # what touches the padding alone


@pytest.mark.parametrize("changes", [{"RescaleSlope": ""}, {"RescaleSlope": "0"}, {"RescaleIntercept": ""}])
def test_an_unusable_rescaling_is_flagged(tmp_path, changes):
    def change(k: int) -> dict[str, Any]:
        if "RescaleIntercept" not in changes:
            return changes
        return changes | {"PixelRepresentation": 1, "PixelData": VALUES[k].astype("<i2").tobytes()}

    scan = read_scan(write(tmp_path, change))
    check(scan, "rescale_missing")
    assert scan.findings[0].severity == "flag" and scan.findings[0].value == COUNT


@pytest.mark.parametrize(
    "axes", [[[0, 0, -1.0], [1, 0, 0], [0, -1, 0]], [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]]
)
def test_sagittal_and_coronal_series_are_read_and_axial_ones_preferred(tmp_path, axes):
    values, affine = sample((6.0, 6.0, 6.5), axes=np.array(axes))
    scan = read_scan(write_dicom(tmp_path, values, affine, SeriesNumber=9))
    assert np.array_equal(scan.values, values) and np.abs(scan.affine - affine).max() < 0.01
    assert not scan.findings
    write_dicom(tmp_path, VALUES, AFFINE)
    check(read_scan(tmp_path), "several_series")


# ---------------------------------------------------------------- people
@pytest.mark.parametrize(
    ("key", "own_series"),
    [*product(("PatientID", "PatientName", "PatientBirthDate"), (True, False)), ("StudyInstanceUID", True)],
)
def test_two_people_or_examinations_in_a_folder_are_flagged(tmp_path, key, own_series):
    folder = write(tmp_path / "s")
    other = {key: "19500101", "series": "1.2" if own_series else SERIES}
    scan = read_scan(write(folder, lambda k: other, "other"))
    name = "several_studies" if key == "StudyInstanceUID" else "several_people"
    assert np.array_equal(scan.values, VALUES) and severities(scan)[name] == "flag"
    assert SECRET not in str((scan.findings, scan.facts))


@pytest.mark.parametrize("length", [COUNT // 2, 9, 1])
def test_a_number_that_changes_within_a_series_is_named_and_leaves_the_head_whole(tmp_path, length):
    scan = read_scan(write(tmp_path / "s", lambda k: {"PatientID": str(k // length)}))
    check(scan, "several_people")
    assert scan.findings[0].severity == "flag" and "drawn as one head" in scan.findings[0].text
    apart = write(tmp_path / "no", lambda k: {"PatientID": str(k // length), "series": ""})
    if length >= 16:  # a part of the head, without a statement that all images are one series
        assert severities(read_scan(apart))["several_people"] == "flag"
    else:
        with pytest.raises(ScanError, match="people"):
            read_scan(apart)


def test_one_name_written_in_two_ways_is_one_person(tmp_path):
    names = ("Doe^Jane", "DOE^JANE^^^", "")
    check(read_scan(write(tmp_path, lambda k: {"PatientName": names[k % 2]})))


# ---------------------------------------------------------------- files
def enhanced(order: list[int], **changes: Any) -> Dataset:
    """Return the head as one multi-frame object; frames in this order, each with a slope of its own."""
    data = one_slice(0)
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
                "SliceThickness", "InstanceNumber", "ImageType"):  # fmt: skip
        delattr(data, key)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    frames, pixels = [], []
    for k in order:
        place = [f"{v:.5f}" for v in AFFINE[:, 3] + k * AFFINE[:, 2]]
        frames += item(
            PlanePositionSequence=item(ImagePositionPatient=place),
            PixelValueTransformationSequence=item(RescaleSlope="1", RescaleIntercept=str(-1024 - k)),
            FrameContentSequence=item(FrameAcquisitionNumber=1, InStackPositionNumber=k + 1),
        )
        pixels.append((VALUES[k].astype(np.int32) + 1024 + k).astype("<u2").tobytes())
    data.SharedFunctionalGroupsSequence = item(
        PixelMeasuresSequence=item(PixelSpacing=["6", "6"], SliceThickness="7"),
        PlaneOrientationSequence=item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"]),
    )
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    several = {"NumberOfFrames": len(order), "PixelData": b"".join(pixels)}
    for key, value in (several | changes).items():
        setattr(data, key, value)
    return data


def item(**elements: Any) -> Sequence:
    """Return a sequence of one dataset with these elements."""
    one = Dataset()
    for key, value in elements.items():
        setattr(one, key, value)
    return Sequence([one])


def test_a_multi_frame_file_is_a_series(tmp_path):
    order = np.random.default_rng(0).permutation(COUNT).tolist()
    save(enhanced(order), tmp_path / "head.dcm")
    check(read_scan(tmp_path / "head.dcm"))
    check(read_scan(tmp_path))
    with gzip.open(tmp_path / "head.dcm.gz", "wb") as file:
        file.write((tmp_path / "head.dcm").read_bytes())
    check(read_scan(tmp_path / "head.dcm.gz"))
    save(one_slice(0, NumberOfFrames=2), tmp_path / "old.dcm")
    with pytest.raises(ScanError, match="without a place for each"):
        read_scan(tmp_path / "old.dcm")
    save(enhanced(order, NumberOfFrames=COUNT - 3, PixelData=bytes(100)), tmp_path / "head.dcm")
    with pytest.raises(ScanError, match=f"0 of its {COUNT} images"):
        read_scan(tmp_path / "head.dcm")


def test_one_slice_by_its_name_gives_its_series_or_says_what_to_give(tmp_path):
    folder = write(tmp_path / "s")
    write_dicom(folder, VALUES[:, ::2, ::2], AFFINE @ np.diag([2, 2, 1, 1]))  # below: not read
    check(read_scan(folder / "IM0007"), "one_slice_named")
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "IM0007", tmp_path / "alone")
    with pytest.raises(ScanError, match="one image"):
        read_scan(tmp_path / "alone" / "IM0007")


def test_what_lies_beside_the_series_changes_nothing(tmp_path):
    folder = write(tmp_path)
    for name in ("._IM0", ".DS_Store", "DICOMDIR", "Thumbs.db", "read me.txt", "__MACOSX/IM1", ".x/IM2"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x08\0\x05\0CS\x04\0 ?" + bytes(range(256)))
    no_place = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    for k in range(3):  # captures of a screen
        save(one_slice(k, series="1.2.3", **no_place), folder / f"dose{k}")
    check(read_scan(folder))


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.xz", "tar.bz2", "gz"])
def test_a_packed_series_is_read(tmp_path, ending):
    folder = write(tmp_path / "s")
    path = tmp_path / f"head.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.iterdir():
                archive.write(file, f"{SECRET}/deep/{file.name}")
                archive.writestr(f"__MACOSX/{SECRET}/._{file.name}", b"\0\5\x16\7")
    elif ending.startswith("tar"):
        with tarfile.open(path, "w:" + ending[4:]) as archive:
            archive.add(folder, SECRET)
    else:  # each slice on its own
        path = tmp_path / "each"
        path.mkdir()
        for file in folder.iterdir():
            (path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
    check(read_scan(path))


def test_an_archive_writes_nothing_outside_and_not_without_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(archives, "SMALL_BYTES", 1 << 20)
    for n, name in enumerate(("../out", "/out", "a/../../out", "..\\out")):
        with zipfile.ZipFile(tmp_path / f"{n}.zip", "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(ScanError, match="leave its folder"):
            read_scan(tmp_path / f"{n}.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(8 << 20))
    with pytest.raises(ScanError, match="more than a scan"):
        read_scan(tmp_path / "bomb.zip")
    whole = (tmp_path / "bomb.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    for name in ("cut.zip", "link.tar"):
        with pytest.raises(ScanError):
            read_scan(tmp_path / name)
    assert not list((tmp_path / "temporary").iterdir()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("bare", [False, True])
def test_a_damaged_header_is_flagged_and_a_report_beside_the_images_is_not(tmp_path, bare):
    folder = write(tmp_path / "s")
    report = one_slice(
        0, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", **dict.fromkeys(("Rows", "Columns", "PixelData"))
    )
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    save(report, folder / "AAA")
    assert not read_scan(without_preambles(folder) if bare else folder).findings
    for k, cut in ((0, 500), (COUNT - 1, 300)):
        path = folder / f"IM{k:04d}"
        path.write_bytes(path.read_bytes()[:cut])
    scan = read_scan(folder)
    assert np.array_equal(scan.values, VALUES[1:-1]) and scan.facts["other_files"] == 3
    (finding,) = scan.findings
    assert (finding.name, finding.severity, finding.value) == ("damaged_headers", "flag", 2)
    assert f"number 2 of {COUNT + 1} files" in finding.text and SECRET not in finding.text
    for path in folder.glob("IM*"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ScanError, match=f"{COUNT} DICOM files were left out"):
        read_scan(folder)
