"""Damaged scans: each is refused in one sentence or flagged; none ends in a traceback or fills the memory."""

from __future__ import annotations

import gzip
import plistlib
import re
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from data.ct.__main__ import main
from data.ct.findings import ScanError
from data.ct.reading.read import read_scan
from tests.phantom import SECRET, sample, save, slice_dataset, write_image

MAX_BYTES = 64 << 20
MESSAGE_CHARACTERS = 900
Volume = tuple[np.ndarray, np.ndarray]
Files = Iterator[tuple[str, Path]]  # what is wrong, and where
Change = Callable[[int], dict[str, Any]]  # elements that differ in a slice


@pytest.fixture(scope="module")
def small() -> Volume:
    """The head, coarse in the plane: for reading alone it need not be fine."""
    return sample((5.0, 5.0, 5.0))


def truncated_files(small: Volume, folder: Path) -> Files:
    """Volume files cut short, in the header and in the voxels."""
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
        path = write_image(folder / f"whole{ending}", *small)
        if ending == ".mha":  # an uncompressed file may be cut anywhere and still be decoded
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=False)
        whole = path.read_bytes()
        for share in (0.0002, 0.001, 0.01, 0.1, 0.4, 0.8, 0.98):
            path = folder / f"cut{share}{ending}"
            path.write_bytes(whole[: max(1, int(share * len(whole)))])
            yield f"{ending} cut to {share}", path


def broken_nifti(small: Volume, folder: Path) -> Files:
    """Header fields of NIfTI-1: offset, format, values. Source: nifti.nimh.nih.gov, nifti1.h."""
    whole = write_image(folder / "base.nii", *small).read_bytes()
    edits: list[tuple[int, str, tuple[Any, ...]]] = [
        (0, "<i", (0, 347, 10**9)),  # size of the header
        (40, "<h", (0, -1, 2, 99)),  # number of dimensions
        (42, "<h", (0, -5, 1, 32767)),  # voxels along i
        (46, "<h", (3,)),  # along k
        (70, "<h", (0, 1, 128, 1792, 9999)),  # type of a voxel
        (76 + 4, "<f", (0.0, float("nan"), float("inf"), 1e-6, 1e4)),  # spacing
        (108, "<f", (1e9, 3e7)),  # where the voxels begin
        (112, "<f", (1e20, 1e-9)),  # slope
        (116, "<f", (1e9, 5000.0)),  # intercept
        (344, "4s", (b"xxxx",)),  # magic
    ]
    for offset, form, values in edits:
        for n, value in enumerate(values):
            damaged = bytearray(whole)
            struct.pack_into(form, damaged, offset, value)
            path = folder / f"edit{offset}_{n}.nii"
            path.write_bytes(damaged)
            yield f"nifti byte {offset} = {value}", path


def broken_text_headers(small: Volume, folder: Path) -> Files:
    """NRRD and MetaImage headers are text; a line that starts as given is replaced."""
    long = "y" * 5000
    edits = {
        ".nrrd": (
            "dimension: 9", "dimension: x", "sizes: 0 0 0", "sizes: 99999 99999 99999", "sizes: -1 4 4", "type: block",
            "space directions: (0,0,0) (0,0,0) (0,0,0)", "space directions: (nan,0,0) (0,5,0) (0,0,5)",
            "encoding: raw", "encoding: bzip9", "NRRX0004", "encoding: gzip\ndata file: bomb.gz",
            *(f"{key}: {long}" for key in ("type", "encoding", "endian", "sizes", "space directions",
                                           "dimension", "space origin")),
        ),
        ".mha": (
            "NDims = 0", "NDims = 77", "DimSize = 0 0 0", "DimSize = 90000 90000 90000", "DimSize = -4 4 4",
            "ElementType = MET_NONE", "ElementType = MET_WHAT", "ElementSpacing = 1e9 1e9 1e9",
            "CompressedData = False", "ElementDataFile = gone.raw", "ElementDataFile = bomb.gz",
        ),
    }  # fmt: skip
    (folder / "bomb.gz").write_bytes(gzip.compress(bytes(300 << 20), 1))
    for ending, lines in edits.items():
        whole = write_image(folder / f"head{ending}", *small).read_bytes()
        for n, line in enumerate(lines):
            first = max(0, whole.find(re.split("[:=]", line)[0].encode()))
            path = folder / f"text{n}{ending}"
            path.write_bytes(whole[:first] + line.encode() + whole[whole.index(b"\n", first) :])
            yield f"{ending} {line[:40]}", path


def no_images(small: Volume, folder: Path) -> Files:
    """Files and folders that hold no scan, and volumes that are no CT."""
    contents = {"empty": b"", "noise": np.random.default_rng(0).bytes(3000), "text": b"no scan\n" * 50}
    for ending, kind in product((".nii", ".nii.gz", ".nrrd", ".mha", ".inv3"), contents):
        path = folder / f"{kind}{ending}"
        path.write_bytes(contents[kind])
        yield path.name, path
    header = bytearray(write_image(folder / "h.nii", *small).read_bytes()[:352])
    struct.pack_into("<4h", header, 40, 3, 30000, 30000, 30000)
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(1 << 20)))
    yield "header of 54 TB", folder / "bomb.nii.gz"
    values, affine = small
    volumes = [np.abs(values) % 900, values + 1024, np.minimum(values, 40), values[:9]]
    for name, changed in zip(("mr", "raw", "soft", "thin"), volumes, strict=True):
        yield f"volume {name}", write_image(folder / f"{name}.mha", changed.astype(np.int16), affine)
    (folder / "letters" / SECRET).mkdir(parents=True)
    (folder / "letters" / SECRET / f"{SECRET}.txt").write_text("dear colleague")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    yield from ((name, folder / name) for name in ("letters", "picture.png", "gone"))


def broken_invesalius(small: Volume, folder: Path) -> Files:
    matrix = {"filename": "matrix.dat", "shape": [20, 20, 20], "dtype": "int16"}
    whole = {"matrix": matrix, "spacing": [4.0, 4.0, 4.0]}
    projects: dict[str, Any] = {
        "MR": whole | {"modality": "MRI"},
        "short": whole,
        "no list": b"<plist",
        "huge": whole | {"matrix": matrix | {"shape": [9999] * 3}},
        "zero spacing": whole | {"spacing": [0.0, 1.0, 1.0]},
        "text": whole | {"spacing": "wide"},
        "no matrix": whole | {"matrix": matrix | {"filename": "gone.dat"}},
    }
    for name, content in projects.items():
        project = folder / name
        project.mkdir()
        text = content if isinstance(content, bytes) else plistlib.dumps(content)
        (project / "main.plist").write_bytes(text)
        (project / "matrix.dat").write_bytes(bytes(1000))
        yield f"invesalius {name}", project


def broken_dicom(small: Volume, folder: Path) -> Files:
    """Series with one thing wrong in every slice, or in some."""
    values, affine = small
    series = generate_uid()
    every = list(range(len(values)))

    def write(name: str, chosen: list[int], change: Change = lambda k: {}) -> tuple[str, Path]:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        for k in chosen:
            save(slice_dataset(values, affine, k, series, **change(k)), place / f"{SECRET}{k}")
        return f"dicom {name}", place

    wrong: dict[str, tuple[Any, ...]] = {
        "Modality": ("MR",),
        "ImagePositionPatient": (None, ["0"] * 3),
        "ImageOrientationPatient": (None, ["0"] * 6, ["1", "0", "0"] * 2),
        "PixelSpacing": (None, ["0", "0"], ["-5", "5"]),
        "Rows": (None, 0, 60000),
        "ImageType": (["ORIGINAL", "PRIMARY", "LOCALIZER"],),
        "SamplesPerPixel": (3,),
        "PhotometricInterpretation": ("MONOCHROME1",),
        "BitsAllocated": (12,),
        "RescaleSlope": ("0",),
        "RescaleIntercept": ("0", "9e9"),
        "NumberOfFrames": ("12",),
        "PixelData": (None, b"", values[0].tobytes()[: values[0].nbytes // 2]),
    }
    for key, changed in wrong.items():
        for n, value in enumerate(changed):
            yield write(f"{key} {n}", every, lambda k, key=key, value=value: {key: value})
    yield write("few slices", every[:5])
    yield write("wide gap", every[:20] + every[24:])
    yield write("every other of some", every[:10] + every[10:40:2] + every[40:])
    yield write("missing slice", [k for k in every if k != 25])
    yield write("other sizes", every, lambda k: {"PixelSpacing": ["4", "4"]} if k % 5 == 0 else {})
    yield write("off the line", every, lambda k: {"ImagePositionPatient": [3.0 * (k % 2), 0.0, 5.0 * k]})
    yield write("no tilt in positions", every, lambda k: {"GantryDetectorTilt": "15"})
    name, place = write("duplicates", every)
    for k in every[:7]:
        position = slice_dataset(values, affine, k, series).ImagePositionPatient
        again = slice_dataset(values[::-1], affine, k, series, ImagePositionPatient=position)
        save(again, place / f"again{k}")
    yield name, place
    for share, chosen in ((0.7, [9, 20, 31]), (0.5, every)):
        name, place = write(f"{len(chosen)} cut to {share}", every)
        for k in chosen:
            path = place / f"{SECRET}{k}"
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        yield name, place


@pytest.mark.parametrize(
    "make",
    [truncated_files, broken_nifti, broken_text_headers, no_images, broken_invesalius, broken_dicom],
    ids=lambda make: make.__name__,
)
def test_a_damaged_scan_is_refused_in_a_sentence_or_flagged(make, small, tmp_path, capfd):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for name, path in make(small, tmp_path):
        try:
            scan = read_scan(path, max_bytes=MAX_BYTES)
            if all(f.severity == "note" for f in scan.findings):
                wrong.append(f"{name}: read as if nothing were wrong")
        except ScanError as error:
            text = str(error)
            if any(word in text for word in (SECRET, str(tmp_path), "\n")) or len(text) > MESSAGE_CHARACTERS:
                wrong.append(f"{name}: {text}")
    assert not wrong, "\n".join(wrong)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (1024 if sys.platform != "darwin" else 2**20) < 400  # MiB
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["noise", "ball", "neck"])
def test_what_is_no_head_is_not_drawn(name, tmp_path, capsys):
    values, affine = sample((2.5, 2.5, 2.5), keep=(0.0, 0.42 if name == "neck" else 1.0))
    if name == "noise":
        values = np.random.default_rng(0).integers(-1000, 1000, values.shape)
    elif name == "ball":
        radius = np.linalg.norm(np.indices((100, 100, 100)) - 50, axis=0)
        values = np.select([radius < 28, radius < 32, radius < 36], [40, 1000, 40], -1000)
    path, out = write_image(tmp_path / "scan.mha", values.astype(np.int16), affine), tmp_path / "out"
    assert main([str(path), str(out), "step=2.5", "meshes=false"]) == 2
    assert not (out / "face.png").exists()
    error = capsys.readouterr().err
    assert error.startswith("data.ct: ") and error.count("\n") == 1 and len(error) < MESSAGE_CHARACTERS
