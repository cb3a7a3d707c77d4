"""Skull and face pictures as a torch dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from data.biometrics import prompt
from data.images import read_image, to_uint8
from data.manifest import Record


class PairItem(TypedDict):
    """One item of the data set: skull (3, H, W) float32 in [0, 1], face (3, H, W) float32 in [-1, 1], prompt, index."""

    skull: torch.Tensor
    face: torch.Tensor
    prompt: str
    index: int


CACHE_BYTES = 2**30  # of pictures, in each process that reads them


class PairedDataset(Dataset[PairItem]):
    """The pairs of a manifest. Pictures stay in memory, 8-bit, after the first reading, up to ``CACHE_BYTES``.

    A grey pair of 256 px takes 128 KiB (a colour pair three times that) in every loader worker that reads it. Pictures
    beyond the limit are read from the disk every time.

    Args:
        records: of ``read_manifest``; each with a face.
        size: side of the pictures in px.

    Raises:
        ValueError: no records, or one without a face.
    """

    def __init__(self, records: Sequence[Record], size: int = 256) -> None:
        if not records:
            raise ValueError("PairedDataset: got no records, expected at least one")
        faceless = [record for record in records if record.face_path is None]
        if faceless:
            first = faceless[0]
            raise ValueError(
                f"PairedDataset: {len(faceless)} of {len(records)} records have no face "
                f"(the first: {first.source}, line {first.line}); give each a 'target'"
            )
        self.records = list(records)
        self.size = size
        self._pictures: dict[Path, np.ndarray] = {}
        self._cached = 0  # bytes of them

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> PairItem:
        """Raises: ImageError where the picture cannot be read."""
        return PairItem(
            skull=self.skull(index), face=self.face(index), prompt=self.prompt(index), index=index
        )

    def face(self, index: int) -> torch.Tensor:
        """Return the face picture alone, (3, H, W) float32 in [-1, 1]."""
        face_path = self.records[index].face_path
        assert face_path is not None
        return self._picture(face_path) * 2 - 1

    def skull(self, index: int) -> torch.Tensor:
        """Return the skull picture alone, (3, H, W) float32 in [0, 1]; training takes the face from latents."""
        return self._picture(self.records[index].skull_path)

    def prompt(self, index: int) -> str:
        """Return the standard prompt of one record."""
        return prompt(self.records[index].biometrics)

    def _picture(self, path: Path) -> torch.Tensor:
        pixels = self._pictures.get(path)
        if pixels is None:
            picture, _ = read_image(path, self.size)  # (H, W, 3)
            pixels = to_uint8(picture)
            grey = bool((pixels == pixels[..., :1]).all())
            pixels = np.ascontiguousarray(pixels[..., :1] if grey else pixels)
            if self._cached + pixels.nbytes <= CACHE_BYTES:
                self._pictures[path] = pixels
                self._cached += pixels.nbytes
        plane = torch.from_numpy(pixels).permute(2, 0, 1)  # (1 or 3, H, W)
        return plane.expand(3, -1, -1).to(torch.float32).div(255).contiguous()  # (3, H, W)
