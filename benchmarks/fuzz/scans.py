"""Tries of ``data.ct``: NIfTI, NRRD and MetaImage files, and DICOM series."""

from __future__ import annotations

import gzip
import io
import math
import os
import random
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from benchmarks.fuzz.inputs import Maker, Sound, damaged, nifti_header
from benchmarks.fuzz.sandbox import OUTSIDE, Expectation, Try


def _volume(rng: random.Random, files: Mapping[str, Any], name: str, expected: Any = "either") -> Try:
    line = [name, "out", "step=2.5", *rng.choice(([], [], ["offset=-1024"], ["max_gib=0.01"]))]
    return Try("volume", "data.ct", line, files, expected, codes=(0, 2, 3), may_write=("out/report.json",))


def nifti(rng: random.Random, sound: Sound) -> Try:
    """A NIfTI file with damaged header or data."""
    header = nifti_header(sound.voxels.shape, 8)
    for _ in range(rng.randrange(3)):
        at = rng.choice(
            (0, 40, 42, 44, 46, 48, 50, 70, 72, 80, 84, 88, 108, 112, 116, 252, 254, 256, 280, 296, 312)
        )
        struct.pack_into(
            "<f" if at > 76 and at not in (252, 254) else "<h",
            header,
            at,
            rng.choice((0, -1, 2, 30000, 16, 1)),
        )
        if rng.random() < 0.3:
            struct.pack_into("<f", header, at, rng.choice((float("nan"), float("inf"), 1e38)))
    content = bytes(header) + bytes(4) + sound.voxels.tobytes()
    if rng.random() < 0.4:
        content = damaged(rng, content, 352)
    name = rng.choice(("v.nii", "v.nii.gz", "v.Nii", "\udcff.nii"))
    if name.endswith("gz") or rng.random() < 0.2:
        content = gzip.compress(content)
        content = damaged(rng, content, len(content)) if rng.random() < 0.3 else content
    if rng.random() < 0.03:
        content = gzip.compress(bytes(300 << 20), 1)
    return _volume(rng, {name: content}, name)


def _header(nrrd: bool, sound: Sound) -> tuple[list[str], str]:
    """Return the lines of an NRRD or MetaImage header, and what stands before the name of the data file."""
    shape = " ".join(map(str, sound.voxels.shape[::-1]))
    if nrrd:
        return [
            "NRRD0004", "type: int16", "dimension: 3", "space: left-posterior-superior", f"sizes: {shape}",
            "space directions: (8,0,0) (0,8,0) (0,0,8)", "encoding: raw", "endian: little",
        ], "data file: "  # fmt: skip
    return [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "ElementSpacing = 8 8 8", f"DimSize = {shape}", "ElementType = MET_SHORT",
    ], "ElementDataFile = "  # fmt: skip


def detached(rng: random.Random, sound: Sound) -> Try:
    """An NRRD or MetaImage header, with lines that are damaged, doubled, long, or lead out of the folder."""
    nrrd = rng.random() < 0.5
    size, lines, key = sound.voxels.nbytes, *_header(nrrd, sound)
    lines.append(key + "d.raw")
    expected: Any = "either"
    what = rng.randrange(5)
    if what == 0:
        at = rng.randrange(1, len(lines))
        values = (
            "x" * rng.choice((1100, 70_000)),
            "",
            "nan nan nan",
            "-1",
            "9" * 30,
            "(" * 900,
            "1 1 1",
            "domain " * 400,
        )
        lines[at] = f"{lines[at].split(' ')[0]} {rng.choice(values)}"
    elif what == 1:  # the last line is a path that leads out of the folder
        target = rng.choice((f"../{OUTSIDE}", "PIPE", "LINK", f"./../{OUTSIDE}", f"x/../../{OUTSIDE}"))
        trick = rng.choice(("", "\x0b", "\x0c", "\x1c", "\u2028", "\r"))
        if (
            trick and rng.random() < 0.7
        ):  # the sound path stands in a comment, for those who split at "\n" alone
            hidden = [("# " if nrrd else "Comment = ") + trick + lines[-1], key + target]
            lines[-1:] = rng.sample(hidden, 2)
        else:
            lines[-1] = lines[-1] + trick + key + target if trick else key + target
        expected = "refused"
    elif what == 2:
        long = "x" * rng.choice((1000, 5000, 70_000))
        more = (
            key + f"../{OUTSIDE}",
            key + "d.raw",
            rng.choice(lines),
            f"comment: {long}",
            f"# {long}",
            f"{long}: 1",
            f"{long}:=1",
            f"{long} = 1",
            f"content: {long}",
            "kinds: " + "domain " * 400,
        )
        lines.insert(rng.randrange(1, len(lines)), rng.choice(more))
    elif what == 3:
        del lines[rng.randrange(len(lines))]
    files: dict[str, Any] = {"d.raw": sound.voxels.tobytes()[: rng.choice((size, size, size - 5, 0))]}
    files |= {"PIPE": os.mkfifo, "LINK": lambda path: path.symlink_to(path.parent.parent / OUTSIDE)}
    name = "v.nhdr" if nrrd else "v.mhd"
    text = "\n".join(lines).encode("utf-8", "replace") + (b"\n\n" if nrrd else b"\n")
    files[name] = damaged(rng, text) if what == 4 else text
    return _volume(rng, files, name, expected)


def slices(rng: random.Random, sound: Sound) -> Try:
    """A header whose data lie in one file a slice, by a list or by number; a name or the numbers may be wrong."""
    nrrd, last = rng.random() < 0.5, len(sound.voxels) - 1
    lines, key = _header(nrrd, sound)
    files: dict[str, Any] = {f"s{k:02}.raw": plane.tobytes() for k, plane in enumerate(sound.voxels)}
    names, expected = list(files), "either"
    files |= {"PIPE": os.mkfifo, "LINK": lambda path: path.symlink_to(path.parent.parent / OUTSIDE)}
    if rng.random() < 0.6:
        what = rng.randrange(3)
        if what == 0:
            names[rng.randrange(len(names))] = rng.choice(
                (f"../{OUTSIDE}", "PIPE", "LINK", f"x/../../{OUTSIDE}")
            )
            expected = "refused"
        elif what == 1:
            names[rng.randrange(len(names))] = rng.choice(
                ("", "x" * 1500, "none.raw", "s00.raw\ns01.raw", "\udcff", "v.nhdr")
            )
        lines += [key + "LIST", *names]
    else:
        numbers = rng.choice(
            (f"0 {last} 1", f"0 {last} 1", "0 999999999 1", f"0 {last} 0", f"{last} 0 -1", "-5 12 1", "0 0 1")
        )
        pattern = rng.choice(
            ("s%02d.raw", "s%02d.raw", "s%d.raw", "s%999999999d.raw", "s%n%s.raw", f"../{OUTSIDE}%d")
        )
        lines.append(f"{key}{pattern} {numbers}")
    name = "v.nhdr" if nrrd else "v.mhd"
    return _volume(rng, files | {name: "\n".join(lines) + "\n"}, name, expected)


def batch(rng: random.Random, sound: Sound) -> Try:
    """A batch of two scans, the first of which is damaged, huge, or ends the process that reads it."""
    if rng.random() < 0.5:
        lines, _ = _header(True, sound)
        long = "x" * rng.choice((1100, 5000, 70_000))
        lines.insert(
            rng.randrange(1, len(lines)), rng.choice((f"kinds: {long}", f"{long}:=1", f"space units: {long}"))
        )
        first: dict[str, Any] = {"v.nrrd": "\n".join([*lines, "", ""]).encode() + sound.voxels.tobytes()}
    else:
        first = dict(rng.choice((nifti, detached))(rng, sound).files)
    files = {
        f"patients/{name}": content for name, content in first.items() if "." not in name or name == "d.raw"
    }
    files |= {f"patients/p1.{name.split('.', 1)[1]}": first[name] for name in first if name[0] in "v\udcff"}
    files |= {
        "patients/p2.nii": sound.head,
        "t.csv": "id,sex,age,ethnicity,body_mass\np1,M,40,Asian,4\np2,M,40,Asian,4\n",
    }
    made = ("out/summary.csv", "out/pairedCS/skull/*.png")
    line = ["patients", "out", "biometrics=t.csv", "step=2.5", "num_workers=1"]
    return Try("batch of scans", "data.ct", line, files, codes=(0, 3), made=made, stop=math.inf)


def scan_on_full_disk(rng: random.Random, sound: Sound) -> Try:
    """A sound scan where an earlier result is; no file may grow beyond a limit, as on a full disk."""
    names = ("skull.png", "face.png", "skull.ply", "face.ply", "report.json")
    files = {"v.nii": sound.head} | {f"out/{name}": b"earlier" for name in names if rng.random() < 0.8}
    disk = rng.choice((0, 1, 500, 3000, 10_000, 50_000, 200_000, None))
    expected: Expectation = "accepted" if disk is None else "either"
    return Try(
        "full disk", "data.ct", ["v.nii", "out", "step=2.5"], files, expected, disk=disk, replaced="out/"
    )


def dicom(rng: random.Random, sound: Sound) -> Try:
    """A DICOM series of which files are damaged, or of which one element is wrong."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    wrong = rng.choice((
        None, "Rows", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
        "BitsAllocated", "SeriesInstanceUID", "PixelData", "Modality", "InstanceNumber",
        "PixelRepresentation", "SamplesPerPixel",
    ))  # fmt: skip
    value = rng.choice((None, "", 0, -1, 65535, "x" * 70, "nan", [0, 0], [1e9] * 3, ["a", "b"], b"\x00"))
    files: dict[str, Any] = {}
    uid, damage = generate_uid(entropy_srcs=["series"]), rng.random() < 0.5
    for k, plane in enumerate(sound.voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(k)])
        data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID, data.Modality = (
            CTImageStorage,
            meta.MediaStorageSOPInstanceUID,
            "CT",
        )
        data.SeriesInstanceUID, data.PatientName, data.InstanceNumber = uid, "Secret^Name", k + 1
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing, data.ImagePositionPatient = [8, 8], [0, 0, 8 * k]
        data.ImageOrientationPatient, data.RescaleSlope, data.RescaleIntercept = [1, 0, 0, 0, 1, 0], 1, 0
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelData = (
            1,
            "MONOCHROME2",
            plane.tobytes(),
        )
        try:
            if wrong is not None and (rng.random() < 0.5 or k == 3):
                setattr(data, wrong, value)
            buffer = io.BytesIO()
            data.save_as(buffer, enforce_file_format=True)
        except (ValueError, TypeError, OverflowError, AttributeError, OSError, struct.error):
            continue  # pydicom cannot write this one
        content = buffer.getvalue()
        files[f"d/{k}.dcm"] = damaged(rng, content, 900) if damage and rng.random() < 0.3 else content
    if rng.random() < 0.3:
        files |= {
            "d/._0.dcm": b"\x00\x05\x16\x07",
            "d/.DS_Store": b"x",
            "d/DICOMDIR": b"y",
            "d/notes.txt": b"z",
        }
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(rng.choice((name, "../" + name, "/" + name)), content)
        return _volume(rng, {"d.zip": buffer.getvalue()}, "d.zip")
    return _volume(rng, files or {"d/x.dcm": b""}, "d")


MAKERS: tuple[Maker, ...] = (nifti, detached, slices, dicom, batch, scan_on_full_disk)
