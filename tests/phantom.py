"""A synthetic head CT, and the files it may come in.

Its head stands still while the cohort's change: ``fixtures/phantom.npz`` holds which voxels lie within the skin and
which are bone. They were drawn once, by this file at commit 9da3c14, from subject 1 of cohort seed 3 at format 7, whose
skull is the procedural one; a shell of bone behind and ear canals level with the lower rims of its orbits were added.
"""

from __future__ import annotations

import gzip
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import scipy.ndimage as ndimage
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

PATH = Path(__file__).resolve().parent / "fixtures" / "phantom.npz"
STEP = 2.5
LOW, HIGH = np.array([-105.0, -135.0, -130.0]), np.array([105.0, 125.0, 125.0])
AIR, SOFT, BONE = -1000, 40, 900
TO_LPS = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # from x left, y up, z forward
SECRET = "Dr^Musterfrau^Erika"  # stands in headers and names wherever a patient's name could


@lru_cache(maxsize=1)
def head_volume() -> np.ndarray:
    """(X, Y, Z) int16 HU in the cohort's frame, LOW the middle of the first voxel, STEP mm apart."""
    with np.load(PATH, allow_pickle=False) as stored:
        shape = tuple(stored["shape"].tolist())
        skin, bone = (
            np.unpackbits(stored[name], count=int(np.prod(shape))).reshape(shape) > 0
            for name in ("skin", "bone")
        )
    hu = np.where(bone, BONE, np.where(skin, SOFT, AIR)).astype(np.float32)
    smooth = ndimage.gaussian_filter(hu, 0.5)
    return np.rint(smooth).astype(np.int16)


def sample(
    spacing: tuple[float, float, float],
    axes: np.ndarray | None = None,
    tilt: float = 0.0,
    turned: np.ndarray | None = None,
    keep: tuple[float, float] = (0.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """The head as a scanner would have stored it.

    Args:
        spacing: along i, j, k.
        axes: (3, 3) columns: directions of i, j, k in LPS; identity is the usual axial scan.
        tilt: of the gantry in degrees: slices stand askew to the direction in which they are stacked.
        turned: (3, 3) rotation of the head in the scanner.
        keep: from which to which share of the height is scanned.

    Returns (K, J, I) int16 and the (3, 4) affine from index to LPS mm.
    """
    hu = head_volume()
    axes = np.eye(3) if axes is None else axes
    if tilt:
        angle = np.radians(tilt)
        nod = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        axes = np.stack([nod @ axes[:, 0], nod @ axes[:, 1], axes[:, 2]], 1)
    steps = axes * np.array(spacing)
    middle = TO_LPS @ ((LOW + HIGH) / 2)
    extent = np.abs(TO_LPS @ (HIGH - LOW))
    reach = np.abs(np.linalg.inv(steps)) @ extent / 2
    first, last = -np.ceil(reach), np.ceil(reach)
    height = last[2] - first[2]
    first[2], last[2] = np.ceil(first[2] + keep[0] * height), np.floor(first[2] + keep[1] * height)
    size = (last - first).astype(int) + 1
    origin = middle + steps @ first
    to_head = TO_LPS.T if turned is None else turned.T @ TO_LPS.T
    center = (LOW + HIGH) / 2
    matrix = to_head @ steps / STEP
    offset = (center - LOW + to_head @ (origin - middle)) / STEP
    values = ndimage.affine_transform(
        hu.astype(np.float32), matrix, offset, tuple(size), order=1, mode="constant", cval=AIR
    )
    return np.rint(values).astype(np.int16).transpose(2, 1, 0), np.hstack([steps, origin[:, None]])


def write_image(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """NIfTI, NRRD or MetaImage, by the file's ending."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:, 3].tolist())
    image.SetDirection((affine[:, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def write_nifti(
    path: Path,
    values: np.ndarray,
    sform: np.ndarray | None = None,
    qform: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    order: str = "<",
    second: bool = False,
    **fields: float,
) -> Path:
    """NIfTI-1, or -2, with either, both or no form, (3, 4) from index to LPS mm; a name that ends in gz is packed.

    Args:
        codes: of sform and qform, where there is one.
        fields: slope, inter, units; spacing where there is no form.

    Source: nifti.nimh.nih.gov, nifti1.h and nifti2.h.
    """
    forms = [None if form is None else np.diag([-1, -1, 1]) @ form for form in (sform, qform)]
    steps = next(
        (form[:, :3] for form in forms[::-1] if form is not None), fields.get("spacing", 5.0) * np.eye(3)
    )
    spacing = np.linalg.norm(steps, axis=0)
    handed = -1.0 if np.linalg.det(steps) < 0 else 1.0
    turn = (
        Rotation.from_matrix(steps / spacing * [1, 1, handed]).as_quat()
        if forms[1] is not None
        else np.eye(4)[3]
    )
    turn *= -1 if turn[3] < 0 else 1
    offset = np.zeros(3) if forms[1] is None else forms[1][:, 3]
    rows = np.zeros((3, 4)) if forms[0] is None else forms[0]
    datatype = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "u2": 512}[values.dtype.str[1:]]
    head, real = bytearray(544 if second else 352), "d" if second else "f"

    def put(form: str, first: int, of_second: int, *numbers: float) -> None:
        struct.pack_into(order + form, head, of_second if second else first, *numbers)

    put("i", 0, 0, 540 if second else 348)
    put("8q" if second else "8h", 40, 16, 3, *values.shape[::-1], 1, 1, 1, 1)
    put("2h", 70, 12, datatype, 8 * values.itemsize)
    put(f"8{real}", 76, 104, handed, *spacing, 0, 0, 0, 0)
    put("q2d" if second else "3f", 108, 168, len(head), fields.get("slope", 1.0), fields.get("inter", 0.0))
    used = [code if form is not None else 0 for code, form in zip(codes, forms, strict=True)]
    put("2i" if second else "2h", 252, 344, used[1], used[0])
    put(f"6{real}", 256, 352, *turn[:3], *offset)
    put(f"12{real}", 280, 400, *rows.ravel())
    put("i" if second else "B", 123, 500, int(fields.get("units", 2)))
    magic, place = (b"n+2\0\r\n\032\n", 4) if second else (b"n+1\0", 344)
    head[place : place + len(magic)] = magic
    content = bytes(head) + values.astype(values.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.name.lower().endswith("gz") else content)
    return path


def slice_dataset(values: np.ndarray, affine: np.ndarray, k: int, series: str, **changes: Any) -> FileDataset:
    """Slice k of a volume as a CT image object, a name in it; ``changes`` set or (None) delete elements."""
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = SECRET, SECRET, "19400101"
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "CT", series, 3
    data.SeriesDescription, data.ImageType = SECRET, ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.StudyInstanceUID = generate_uid(entropy_srcs=[series])
    data.InstanceNumber = k + 1
    data.ImagePositionPatient = [f"{v:.6f}" for v in affine[:, 3] + k * affine[:, 2]]
    data.ImageOrientationPatient = [f"{v:.8f}" for v in (affine[:, :2] / spacing[:2]).T.ravel()]
    data.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
    data.SliceThickness = f"{spacing[2]:.4f}"
    data.Rows, data.Columns = values.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.PixelData = (values[k].astype(np.int32) + 1024).clip(0, 65535).astype("<u2").tobytes()
    for key, value in changes.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)
    return data


def write_dicom(
    folder: Path, values: np.ndarray, affine: np.ndarray, series: str = "", **changes: Any
) -> Path:
    """A series of single slices, in nested folders and in no order."""
    series = series or generate_uid()
    for k in range(len(values)):
        place = folder / SECRET / f"part{k % 3}"
        place.mkdir(parents=True, exist_ok=True)
        save(
            slice_dataset(values, affine, k, series, **changes),
            place / f"{SECRET}{(k * 37) % len(values):04d}_{series[-4:]}",
        )
    return folder


def save(data: Dataset, path: Path) -> None:
    pydicom.dcmwrite(path, data, enforce_file_format=True)
