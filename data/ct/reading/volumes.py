"""Volumes kept in one file (NIfTI, NRRD, MetaImage, raw or gzip) and InVesalius projects."""

from __future__ import annotations

import plistlib
from pathlib import Path, PurePosixPath

import numpy as np

from data.ct.findings import ScanError
from data.ct.reading.archives import unpacked
from data.ct.reading.geometry import affine_of, check_size
from data.ct.reading.headers import read_layout, read_voxels, side_not_stored
from data.ct.reading.kinds import VOLUMES, is_packed, suffix_of
from data.ct.reading.scan import Scan, hounsfield

# Rows of an InVesalius project run from the back of the head to the front, columns from its left to its right.
_INVESALIUS_AXES = np.diag([-1.0, -1.0, 1.0])
LONGEST_LIST = 1 << 20  # bytes of a property list


def read_volume(path: Path, max_bytes: int, offset: float, rescale: str = "header") -> Scan:
    """Return the volume of one file with one of the endings in ``VOLUMES``. Raises: ScanError, see ``read_scan``."""
    kind = VOLUMES[suffix_of(path)]
    if path.stat().st_size == 0:
        raise ScanError(f"the {kind} file is empty (0 bytes): copy or export it again")
    if kind == "InVesalius":
        if not is_packed(path):
            raise ScanError("the .inv3 file is no InVesalius project (a tar archive), or a damaged one")
        with unpacked(path, max_bytes) as folder:
            lists = [*folder.rglob("main.plist"), folder / "main.plist"]
            return read_invesalius(lists[0].parent, max_bytes, offset, rescale)
    layout = read_layout(path, kind, max_bytes)
    values, findings = hounsfield(read_voxels(layout), layout.slope, layout.intercepts, offset, rescale)
    facts = {"format": kind, "stored_size": list(layout.shape)}
    return Scan(values, layout.affine, facts, [*layout.findings, *findings])


def read_invesalius(folder: Path, max_bytes: int, offset: float, rescale: str) -> Scan:
    """Return the voxels of a project: ``main.plist`` and ``matrix.dat``; slices from the feet up.

    Raises: ScanError, see ``read_scan``.

    Source: github.com/invesalius/invesalius3, invesalius/project.py (names of the fields).
    """
    try:
        with (folder / "main.plist").open("rb") as file:
            main = plistlib.loads(file.read(LONGEST_LIST))
        matrix, spacing = main["matrix"], [float(s) for s in main["spacing"]]
        name, shape = PurePosixPath(matrix["filename"]).name, [int(n) for n in matrix["shape"]]
        dtype, modality = str(matrix["dtype"]), str(main.get("modality", "CT"))
    except Exception as error:  # a property list may hold anything at all
        raise ScanError("the InVesalius project's main.plist is missing or damaged") from error
    if modality != "CT":
        raise ScanError(f"its modality is {modality[:8]!r}, expected CT")
    if dtype not in ("int16", "uint16", "uint8"):
        raise ScanError(f"the InVesalius project's voxels are {dtype[:12]!r}, expected int16")
    voxel_bytes = np.dtype(dtype).itemsize
    check_size(shape[::-1], spacing, voxel_bytes, max_bytes)
    expected = int(np.prod(shape)) * voxel_bytes
    if not (folder / name).is_file():
        raise ScanError(f"the InVesalius project has no {name}")
    with (folder / name).open("rb") as file:
        raw = file.read(expected)
    if len(raw) < expected:
        raise ScanError(f"the InVesalius project's voxels are cut short: {len(raw)} bytes of {expected}")
    stored = np.frombuffer(raw, dtype).reshape(shape)
    values, findings = hounsfield(stored, offset=offset, rescale=rescale)
    affine = affine_of(_INVESALIUS_AXES, spacing, (0.0, 0.0, 0.0))
    facts = {"format": "InVesalius", "stored_size": shape[::-1]}
    return Scan(values, affine, facts, [*side_not_stored("an InVesalius project", "left"), *findings])
