"""The pixels of DICOM images as slices of HU. What compressed ones need is decoded by a process of its own.

Decoders are written in C: a damaged image may end their process, or keep it for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import scipy.ndimage as ndimage
from pydicom.pixels.utils import pixel_array

from data.ct.findings import ScanError
from data.ct.reading.dicom_headers import Header, read_dataset, read_headers
from data.ct.reading.geometry import Slice
from data.ct.reading.scan import UNMEASURED_HU, to_hounsfield

LONGEST_S = 3600.0  # of work on one scan: the largest take minutes
COMMAND = "-m", "data.ct.reading.decoding"
PADDING_ABOVE_HU, METAL_HU = -900, 3000  # darker padding looks like air, brighter like metal


def decode(headers: list[Header], offset: float, halvings: int) -> list[Slice]:
    """Return the slices of all images whose pixels are sound, the sides of each halved so often.

    Raises:
        ScanError: the process that decodes compressed images failed, was killed, or did not end.
    """
    guarded = parent_process() is not None  # as each process of a batch is
    if guarded or not any(h.compressed for h in headers):
        return _slices(headers, offset, halvings)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "slices.npz"
        images = [(str(h.path.absolute()), h.frame) for h in headers]
        request = json.dumps([str(place), images, offset, halvings]).encode()
        command, root = [sys.executable, *COMMAND], Path(__file__).parents[3]
        try:  # what decoders write may quote file names
            subprocess.run(
                command, input=request, cwd=root, timeout=LONGEST_S, capture_output=True, check=True
            )
        except subprocess.SubprocessError as error:
            raise ScanError(
                "the process that decodes its compressed images failed, was killed, or takes more than an hour: "
                "an image is damaged, the series is larger than the memory (a smaller max_gib refuses it), or "
                f"{tempfile.gettempdir()} has no room for its slices"
            ) from error
        with np.load(place) as stored:
            rows = zip(stored["values"], stored["positions"], stored["orders"].tolist(), strict=True)
            return [Slice(values, position, (order[0], order[1])) for values, position, order in rows]


def main() -> None:
    """Do what ``decode`` asks for on standard input: write the slices of some images to an NPZ file."""
    place, images, offset, halvings = json.load(sys.stdin)
    headers, *_ = read_headers(list(dict.fromkeys(Path(path) for path, _ in images)))
    header_of = {(str(h.path), h.frame): h for h in headers}
    slices = _slices([header_of[path, frame] for path, frame in images], offset, halvings)
    values, positions, orders = (
        np.array([getattr(s, f) for s in slices]) for f in ("values", "position", "order")
    )
    np.savez(place, values=values, positions=positions, orders=orders)


def _slices(headers: list[Header], offset: float, halvings: int) -> list[Slice]:
    """Return the decoded images; those whose pixels are damaged are left out."""
    slices = []
    dataset_of = lru_cache(maxsize=1)(read_dataset)  # frames of one file follow each other
    for header in headers:
        try:
            with warnings.catch_warnings(action="ignore"):  # they quote values, names included
                pixels = pixel_array(dataset_of(header.path), index=header.frame)
        except Exception:  # decoders of damaged data raise anything; the caller counts what is lost
            continue
        if pixels.shape == header.shape:
            slices.append(_slice(header, _hounsfield(header, pixels, offset), halvings))
    return slices


def _slice(header: Header, values: np.ndarray, halvings: int) -> Slice:
    """Return one image, its sides halved so often."""
    for _ in range(halvings):
        rows, columns = (n // 2 for n in values.shape)
        blocks = values[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
        values = blocks.mean((1, 3)).round().astype(np.int16)
    middle = (2**halvings - 1) / 2  # of the pixels that were joined
    position = header.position + middle * (header.spacing[::-1] @ header.axes)
    return Slice(values, position, header.order)


def _hounsfield(header: Header, pixels: np.ndarray, offset: float) -> np.ndarray:
    """Return (rows, columns) int16 HU, ``UNMEASURED_HU`` where padding would look like tissue or metal."""
    slope, intercept = header.slope or 1.0, header.intercept or 0.0
    values = to_hounsfield(pixels * np.float32(slope) + np.float32(intercept), offset)
    if header.padding is not None:
        low, high = header.padding
        padded = (pixels >= low) & (pixels <= high) & (values > PADDING_ABOVE_HU)
        if padded.any():  # what looks like tissue may be tissue: it is padding where it reaches the border
            parts, _ = ndimage.label(padded)
            outer = np.unique(np.concatenate([parts[[0, -1]].ravel(), parts[:, [0, -1]].ravel()]))
            values[padded & (np.isin(parts, outer) | (values > METAL_HU))] = UNMEASURED_HU
    return values


if __name__ == "__main__":
    main()
