"""Two hundred damaged scans: each is refused in a sentence or flagged, none ends in a traceback or fills the memory."""

from __future__ import annotations

import gzip
import plistlib
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from data.ct.__main__ import main
from data.ct.reading.read import read_scan
from data.ct.findings import ScanError
from tests.phantom import SECRET, sample, save, slice_dataset, write_image

MAX_BYTES = 64 << 20
MESSAGE_CHARACTERS = 900
Maker = Callable[[Path], Path]


@pytest.fixture(scope="module")
def small() -> tuple[np.ndarray, np.ndarray]:
    """The head, coarse in the plane: what only has to be read need not be fine."""
    return sample((5.0, 5.0, 5.0))


def truncated_files(small, folder: Path) -> Iterator[tuple[str, Path]]:
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
        whole = write_image(folder / f"whole{ending}", *small).read_bytes()
        if ending == ".mha":  # without compression a file may be cut anywhere and still be decoded
            import SimpleITK as sitk

            image = sitk.ReadImage(str(folder / "whole.mha"))
            sitk.WriteImage(image, str(folder / "plain.mha"), useCompression=False)
            whole = (folder / "plain.mha").read_bytes()
        for n, share in enumerate(
            (0, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
        ):
            path = folder / f"cut{n}{ending}"
            path.write_bytes(whole[: int(share * len(whole))])
            yield f"{ending} cut to {share:.4f}", path


def broken_nifti(small, folder: Path) -> Iterator[tuple[str, Path]]:
    """Header fields of NIfTI-1 (offset, format, value). Source: nifti.nimh.nih.gov, nifti1.h."""
    whole = bytearray(write_image(folder / "base.nii", *small).read_bytes())
    edits = [("size", 0, "<i", v) for v in (0, -1, 347, 10**9)]
    edits += [("dim0", 40, "<h", v) for v in (0, -1, 1, 2, 8, 99)]
    edits += [(f"dim{n}", 40 + 2 * n, "<h", v) for n in (1, 2, 3) for v in (0, -5, 1, 3, 32767)]
    edits += [("datatype", 70, "<h", v) for v in (0, 1, 32, 128, 1792, 9999)]
    edits += [
        (f"pixdim{n}", 76 + 4 * n, "<f", v)
        for n in (1, 2, 3)
        for v in (0.0, float("nan"), float("inf"), 1e-6, 1e4)
    ]
    edits += [("vox_offset", 108, "<f", v) for v in (1e9, 3e7)]
    edits += [("slope", 112, "<f", v) for v in (1e20, 1e-9, float("nan"))]
    edits += [("intercept", 116, "<f", v) for v in (1e9, 5000.0)]
    edits += [("magic", 344, "4s", b"xxxx")]
    for n, (name, offset, form, value) in enumerate(edits):
        damaged = bytearray(whole)
        struct.pack_into(form, damaged, offset, value)
        path = folder / f"edit{n}.nii"
        path.write_bytes(damaged)
        yield f"nifti {name}={value}", path


def broken_text_headers(small, folder: Path) -> Iterator[tuple[str, Path]]:
    """NRRD and MetaImage headers are text: lines changed or left out."""
    edits = {
        ".nrrd": [
            (b"dimension: 3", b"dimension: 9"),
            (b"dimension: 3", b"dimension: x"),
            (b"sizes:", b"sizes: 0 0 0 #"),
            (b"sizes:", b"sizes: 99999 99999 99999 #"),
            (b"sizes:", b"sizes: -1 4 4 #"),
            (b"type:", b"type: block #"),
            (b"space directions:", b"space directions: (0,0,0) (0,0,0) (0,0,0) #"),
            (b"encoding: gzip", b"encoding: raw"),
            (b"encoding: gzip", b"encoding: bzip9"),
            (b"NRRD0004", b"NRRX0004"),
            (b"space directions:", b"space directions: (nan,0,0) (0,5,0) (0,0,5) #"),
        ],
        ".mha": [
            (b"NDims = 3", b"NDims = 0"),
            (b"NDims = 3", b"NDims = 77"),
            (b"DimSize =", b"DimSize = 0 0 0 #"),
            (b"DimSize =", b"DimSize = 90000 90000 90000"),
            (b"DimSize =", b"DimSize = -4 4 4"),
            (b"ElementType = MET_SHORT", b"ElementType = MET_NONE"),
            (b"ElementType = MET_SHORT", b"ElementType = MET_WHAT"),
            (b"ElementSpacing =", b"ElementSpacing = 1e9 1e9 1e9"),
            (b"CompressedData = True", b"CompressedData = False"),
            (b"ElementDataFile = LOCAL", b"ElementDataFile = gone.raw"),
        ],
    }
    for ending, changes in edits.items():
        whole = write_image(folder / f"head{ending}", *small).read_bytes()
        for n, (old, new) in enumerate(changes):
            assert old in whole, (ending, old)
            first = whole.index(old)
            last = whole.index(b"\n", first) if new.count(b" ") and old[-1:] in b":=" else first + len(old)
            path = folder / f"text{n}{ending}"
            path.write_bytes(whole[:first] + new + whole[last:])
            yield f"{ending} {new.decode()}", path


def no_images(small, folder: Path) -> Iterator[tuple[str, Path]]:
    """Files and folders that hold no scan, and volumes that are no CT."""
    rng = np.random.default_rng(0)
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".nhdr", ".inv3"):
        for kind, content in (("empty", b""), ("noise", rng.bytes(3000)), ("text", b"no scan\n" * 50)):
            path = folder / f"{kind}{ending}"
            path.write_bytes(content)
            yield f"{kind} {ending}", path
    bomb = folder / "bomb.nii.gz"
    header = bytearray(write_image(folder / "h.nii", *small).read_bytes()[:352])
    struct.pack_into("<4h", header, 40, 3, 30000, 30000, 30000)
    bomb.write_bytes(gzip.compress(bytes(header) + bytes(1 << 20)))
    yield "header of 54 TB", bomb
    values, affine = small
    volumes = {
        "mr": np.abs(values) % 900,
        "zero": values * 0,
        "raw": values + 1024,
        "bright": values * 0 + 3000,
        "soft": np.minimum(values, 40),
        "thin": values[:9],
    }
    for name, changed in volumes.items():
        yield f"volume {name}", write_image(folder / f"{name}.mha", changed.astype(np.int16), affine)
    (folder / "nothing").mkdir()
    yield "empty folder", folder / "nothing"
    (folder / "letters" / SECRET).mkdir(parents=True)
    (folder / "letters" / SECRET / f"{SECRET}.txt").write_text("dear colleague")
    yield "folder of letters", folder / "letters"
    yield "no such path", folder / "gone"
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    yield "a picture", folder / "picture.png"
    for name, main_plist in (
        ("no matrix", {}),
        ("MR", {"modality": "MRI"}),
        ("short", {}),
        ("no list", None),
        ("huge", {"shape": [9999] * 3}),
        ("zero spacing", {"spacing": [0.0, 1.0, 1.0]}),
        ("text", {"spacing": "wide"}),
    ):
        project = folder / f"inv_{name.replace(' ', '_')}"
        project.mkdir()
        shape = (main_plist or {}).get("shape", [20, 20, 20])
        fields = {
            "matrix": {"filename": "matrix.dat", "shape": shape, "dtype": "int16"},
            "spacing": [4.0, 4.0, 4.0],
        }
        fields |= {key: value for key, value in (main_plist or {}).items() if key != "shape"}
        (project / "main.plist").write_bytes(b"<plist" if main_plist is None else plistlib.dumps(fields))
        if name != "no matrix":
            (project / "matrix.dat").write_bytes(bytes(1000))
        yield f"invesalius {name}", project


def broken_dicom(small, folder: Path) -> Iterator[tuple[str, Path]]:
    """Series with one thing wrong in every slice, or in some."""
    values, affine = small
    series = generate_uid()
    wrong = {
        "MR": {"Modality": "MR"},
        "no position": {"ImagePositionPatient": None},
        "no axes": {"ImageOrientationPatient": None},
        "no spacing": {"PixelSpacing": None},
        "zero spacing": {"PixelSpacing": ["0", "0"]},
        "no rows": {"Rows": None},
        "negative spacing": {"PixelSpacing": ["-5", "5"]},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "zero axes": {"ImageOrientationPatient": ["0"] * 6},
        "same axes": {"ImageOrientationPatient": ["1", "0", "0"] * 2},
        "sagittal": {"ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"]},
        "one place": {"ImagePositionPatient": ["0"] * 3},
        "colour": {"SamplesPerPixel": 3},
        "inverted": {"PhotometricInterpretation": "MONOCHROME1"},
        "no pixels": {"PixelData": None},
        "odd bits": {"BitsAllocated": 12},
        "no bits": {"BitsAllocated": None},
        "huge rows": {"Rows": 60000},
        "more rows": {"Rows": 90},
        "zero rows": {"Rows": 0},
        "zero slope": {"RescaleSlope": "0"},
        "no rescale": {"RescaleIntercept": "0"},
        "wild intercept": {"RescaleIntercept": "9e9"},
        "frames": {"NumberOfFrames": "12"},
        "no modality": {"Modality": None},
        "half pixels": {"PixelData": values[0].tobytes()[: values[0].nbytes // 2]},
        "empty pixels": {"PixelData": b""},
    }
    slices = [slice_dataset(values, affine, k, series) for k in range(len(values))]

    def write(name: str, chosen: list[int], change: Callable[[int], dict] = lambda k: {}) -> tuple[str, Path]:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        for k in chosen:
            one = slice_dataset(values, affine, k, series, **change(k))
            save(one, place / f"{SECRET}{k}")
        return f"dicom {name}", place

    every = list(range(len(values)))
    for name, changes in wrong.items():
        yield write(name, every, lambda k, changes=changes: changes)
    yield write("few slices", every[:5])
    yield write("wide gap", every[:20] + every[24:])
    yield write("every other of some", every[:10] + every[10:40:2] + every[40:])
    yield write("missing slices", [k for k in every if k != 25])
    yield write("other sizes", every, lambda k: {"PixelSpacing": ["4", "4"]} if k % 5 == 0 else {})
    yield write(
        "off the line",
        every,
        lambda k: {"ImagePositionPatient": [str(3.0 * (k % 2) ** 1), "0", str(5.0 * k)]},
    )
    yield write("no tilt in positions", every, lambda k: {"GantryDetectorTilt": "15"})
    _, place = write("duplicates", every)
    for k in every[:7]:
        save(slice_dataset(values[::-1], affine, k, series), place / f"again{k}")
        one = slice_dataset(values[::-1], affine, k, series)
        one.ImagePositionPatient = slices[k].ImagePositionPatient
        save(one, place / f"again{k}")
    yield "dicom duplicates", place
    _, place = write("some cut short", every)
    for k in (9, 20, 31):
        path = place / f"{SECRET}{k}"
        path.write_bytes(path.read_bytes()[:-600])
    yield "dicom some cut short", place
    for share in (0.1, 0.3, 0.5, 0.9):
        _, place = write(f"all cut to {share}", every)
        for path in place.iterdir():
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        yield f"dicom all cut to {share}", place
    _, place = write("two patients", every[:3])
    for k in every:
        save(slice_dataset(values, affine, k, series, Modality="MR"), place / f"mr{k}")
    yield "dicom mostly MR in one series", place


def outcome(path: Path) -> str:
    """ "error: ..." or "findings: ..."; anything but a ScanError comes through, and fails the test."""
    try:
        scan = read_scan(path, max_bytes=MAX_BYTES)
    except ScanError as error:
        return f"error: {error}"
    return "findings: " + " ".join(f.name for f in scan.findings if f.severity != "note")


def test_two_hundred_damaged_scans_are_told_in_a_sentence(small, tmp_path, capfd):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen, wrong = 0, []
    for make in (truncated_files, broken_nifti, broken_text_headers, no_images, broken_dicom):
        folder = tmp_path / make.__name__
        folder.mkdir()
        for name, path in make(small, folder):
            seen += 1
            told = outcome(path)
            if told == "findings: ":
                wrong.append(f"{name}: read as if nothing were wrong")
            elif (
                SECRET in told
                or str(tmp_path) in told
                or not 20 < len(told) < MESSAGE_CHARACTERS
                or "\n" in told
            ):
                wrong.append(f"{name}: {told}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
        1024 if sys.platform != "darwin" else 2**20
    )
    assert not wrong, "\n".join(wrong)
    assert seen >= 200
    assert grown < 400, f"{grown:.0f} MiB"
    assert SECRET not in "".join(capfd.readouterr())


def volumes_without_a_head(folder: Path) -> Iterator[Path]:
    """Readable, but nothing that could be drawn as a person."""
    rng = np.random.default_rng(0)
    values, affine = sample((2.5, 2.5, 2.5))
    yield write_image(folder / "noise.mha", rng.integers(-1000, 1000, values.shape).astype(np.int16), affine)
    ball = np.hypot(np.hypot(*np.mgrid[-50:50, -50:50, -50:50][:2]), np.mgrid[-50:50, -50:50, -50:50][2])
    shell = np.where(ball < 28, 40, np.where(ball < 32, 1000, np.where(ball < 36, 40, -1000))).astype(
        np.int16
    )
    yield write_image(folder / "ball.mha", shell, affine)
    yield write_image(folder / "neck.mha", *sample((2.5, 2.5, 2.5), keep=(0.0, 0.42)))


def test_what_is_no_head_is_not_drawn(tmp_path, capsys):
    for path in volumes_without_a_head(tmp_path):
        out = tmp_path / f"of_{path.stem}"
        assert main([str(path), str(out), "step=2.5", "meshes=false"]) == 2, path.stem
        assert not (out / "face.png").exists()
        told = capsys.readouterr().err
        assert told.startswith("data.ct: ") and told.count("\n") == 1 and len(told) < MESSAGE_CHARACTERS
