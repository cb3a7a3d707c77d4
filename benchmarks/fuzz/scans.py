"""Tries of ``data.ct``: NIfTI, NRRD and MetaImage files, and DICOM series."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from benchmarks.fuzz.inputs import Maker, Sound, damaged
from benchmarks.fuzz.sandbox import OUTSIDE, Try


def _volume(rng: random.Random, files: Mapping[str, Any], name: str, expected: Any = "either") -> Try:
    line = [name, "out", "step=2.5", *rng.choice(([], [], ["offset=-1024"], ["max_gib=0.01"]))]
    return Try("volume", "data.ct", line, files, expected, codes=(0, 2, 3), may_write=("out/report.json",))


def nifti(rng: random.Random, sound: Sound) -> Try:
    """A NIfTI file with damaged header or data."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *sound.voxels.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 8, 8, 8, 0, 0, 0, 0)
    struct.pack_into("<f2f", header, 108, 352, 1, 0)
    struct.pack_into("<hh", header, 252, 1, 1)
    struct.pack_into("<12f", header, 280, 8, 0, 0, -80, 0, 8, 0, -80, 0, 0, 8, -80)
    header[344:348] = b"n+1\0"
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


def detached(rng: random.Random, sound: Sound) -> Try:
    """An NRRD or MetaImage header, with lines that are damaged, doubled, long, or lead out of the folder."""
    shape = " ".join(map(str, sound.voxels.shape[::-1]))
    size = sound.voxels.nbytes
    nrrd = rng.random() < 0.5
    if nrrd:
        lines = [
            "NRRD0004", "type: int16", "dimension: 3", "space: left-posterior-superior", f"sizes: {shape}",
            "space directions: (8,0,0) (0,8,0) (0,0,8)", "encoding: raw", "endian: little", "data file: d.raw",
        ]  # fmt: skip
    else:
        lines = [
            "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
            "ElementSpacing = 8 8 8", f"DimSize = {shape}", "ElementType = MET_SHORT", "ElementDataFile = d.raw",
        ]  # fmt: skip
    key = "data file: " if nrrd else "ElementDataFile = "
    expected: Any = "either"
    what = rng.randrange(5)
    if what == 0:
        at = rng.randrange(1, len(lines))
        lines[at] = (
            lines[at].split(" ")[0]
            + " "
            + rng.choice(
                ("x" * rng.choice((1100, 70_000)), "", "nan nan nan", "-1", "9" * 30, "(" * 900, "1 1 1")
            )
        )
    elif what == 1:  # the last line is a path that leads out of the folder
        target = rng.choice((f"../{OUTSIDE}", "PIPE", "LINK", f"./../{OUTSIDE}", f"x/../../{OUTSIDE}"))
        trick = rng.choice(("", "", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"))
        lines[-1] = lines[-1] + trick + key + target if trick else key + target
        expected = "refused"
    elif what == 2:
        lines.insert(
            rng.randrange(1, len(lines)),
            rng.choice(
                (
                    key + f"../{OUTSIDE}",
                    key + "d.raw",
                    lines[rng.randrange(1, len(lines))],
                    "comment: " + "x" * 5000,
                )
            ),
        )
    elif what == 3:
        del lines[rng.randrange(len(lines))]
    files: dict[str, Any] = {"d.raw": sound.voxels.tobytes()[: rng.choice((size, size, size - 5, 0))]}
    files |= {"PIPE": os.mkfifo, "LINK": lambda path: path.symlink_to(path.parent.parent / OUTSIDE)}
    name = "v.nhdr" if nrrd else "v.mhd"
    text = "\n".join(lines).encode("utf-8", "replace") + (b"\n\n" if nrrd else b"\n")
    files[name] = damaged(rng, text) if what == 4 else text
    return _volume(rng, files, name, expected)


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


MAKERS: tuple[Maker, ...] = (nifti, detached, dicom)
