"""``python -m benchmarks.cohort.ct_rewritten SCAN OUT``: one head CT stored in seven ways; how well do the pictures agree?

Writes the copies, what ``data.ct`` makes of each, ``agreement.json`` and ``agreement.png`` below OUT, a new folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import scipy.ndimage as ndimage
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data.ct.__main__ import main as data_ct
from data.ct.reading.read import read_scan
from data.ct.reading.scan import Scan, ScanError
from data.images import write_png

PADDING_HU = -2000  # what stands where the rewritten field goes beyond the scan
SAGITTAL = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])  # columns: i to the back, j down, k to the right
FLIPPED = np.diag([-1.0, -1.0, 1.0])
Ways = dict[str, tuple[tuple[float, float, float] | None, np.ndarray, float]]
WAYS: Ways = {  # file or folder: spacing along i, j, k (None: as it is), directions, gantry tilt in degrees
    "same.nii.gz": (None, np.eye(3), 0.0),
    "dicom_same": (None, np.eye(3), 0.0),
    "spacing_0.8x0.8x2.0.nii.gz": ((0.8, 0.8, 2.0), np.eye(3), 0.0),
    "sagittal_1.0.nrrd": ((1.0, 1.0, 1.0), SAGITTAL, 0.0),
    "flipped_1.2x0.9x1.5.mha": ((1.2, 0.9, 1.5), FLIPPED, 0.0),
    "dicom_tilt_15": ((0.96, 0.96, 1.5), np.eye(3), 15.0),
}


def rewritten(
    scan: Scan, spacing: tuple[float, float, float] | None, axes: np.ndarray, tilt: float
) -> tuple[np.ndarray, np.ndarray]:
    """The scan on another grid that covers it: (K, J, I) int16 HU and the (3, 4) affine from (i, j, k) to LPS mm."""
    if spacing is None:
        return scan.values, scan.affine
    angle = np.radians(tilt)
    nod = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    steps = np.stack([nod @ axes[:, 0], nod @ axes[:, 1], axes[:, 2]], 1) * np.array(spacing)
    last = np.array(scan.values.shape[::-1]) - 1
    corners = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), -1).reshape(-1, 3)
    middle = scan.affine[:, :3] @ (last / 2)
    reach = np.ceil(np.abs((corners @ scan.affine[:, :3].T - middle) @ np.linalg.inv(steps).T).max(0))
    origin = middle + scan.affine[:, 3] - steps @ reach
    inverse = np.linalg.inv(scan.affine[:, :3])
    values = ndimage.affine_transform(
        scan.values.transpose(2, 1, 0).astype(np.float32),
        inverse @ steps,
        inverse @ (origin - scan.affine[:, 3]),
        tuple((2 * reach + 1).astype(int)),
        order=1,
        cval=PADDING_HU,
    )
    return np.rint(values).astype(np.int16).transpose(2, 1, 0), np.hstack([steps, origin[:, None]])


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:, 3].tolist())
    image.SetDirection((affine[:, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def write_series(folder: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """A CT series, one file a slice, stored as scanners do: unsigned, 1024 above HU."""
    folder.mkdir()
    series = generate_uid()
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    for k, part in enumerate(values):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = "CT", series, 1, k + 1
        data.ImagePositionPatient = [f"{v:.6f}" for v in affine[:, 3] + k * affine[:, 2]]
        data.ImageOrientationPatient = [f"{v:.8f}" for v in (affine[:, :2] / spacing[:2]).T.ravel()]
        data.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        data.Rows, data.Columns = part.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
        data.PixelData = (part.astype(np.int32) + 1024).clip(0, 65535).astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"{k:04d}.dcm", data, enforce_file_format=True)


def agreement(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Of two pictures (H, W) uint8: intersection over union of what is drawn, mean grey difference within both."""
    both, either = (one > 0) & (other > 0), (one > 0) | (other > 0)
    difference = np.abs(one.astype(int) - other)[both].mean()
    return {"overlap": round(float(both.sum() / either.sum()), 4), "grey": round(float(difference), 2)}


def compare(path: Path, out: Path) -> dict[str, Any]:
    """Raises: ScanError for a scan that cannot be read; ValueError where one of its copies was refused."""
    from PIL import Image

    scan = read_scan(path)
    out.mkdir(parents=True)
    copies = {"original": path}
    for name, (spacing, axes, tilt) in WAYS.items():
        copies[name] = out / name
        values, affine = rewritten(scan, spacing, axes, tilt)
        (write_series if name.startswith("dicom") else write_volume)(out / name, values, affine)
    result: dict[str, Any] = {}
    shown: list[np.ndarray] = []
    for name, copy in copies.items():
        made = out / "drawn" / name
        if data_ct([str(copy), str(made), "meshes=false"]) != 0:
            raise ValueError(f"{name}: was refused")
        pair = [np.asarray(Image.open(made / f"{kind}.png")) for kind in ("skull", "face")]
        shown.append(np.vstack(pair))
        report = json.loads((made / "report.json").read_text(encoding="utf-8"))
        first = np.vsplit(shown[0], 2)
        result[name] = {
            "skull": agreement(first[0], pair[0]),
            "face": agreement(first[1], pair[1]),
            "flags": {f["name"]: f["value"] for f in report["findings"] if f["severity"] == "flag"},
            "pose": report["pose"]["yaw_pitch_roll_deg"],
        }
    (out / "agreement.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_png(out / "agreement.png", np.hstack(shown))
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cohort.ct_rewritten", description=__doc__)
    parser.add_argument("scan", type=Path, metavar="SCAN")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    try:
        if args.out.exists():
            raise ValueError(f"{args.out} exists: choose a new folder")
        result = compare(args.scan, args.out)
    except (ScanError, ValueError, OSError) as error:
        print(f"benchmarks.cohort.ct_rewritten: {error}", file=sys.stderr)
        return 2
    for name, row in result.items():
        parts = [f"{k} overlap {row[k]['overlap']:.3f} grey {row[k]['grey']:.1f}" for k in ("skull", "face")]
        print(f"{name:28} {', '.join(parts)}, flags {' '.join(row['flags']) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
