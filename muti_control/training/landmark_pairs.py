"""Pictures with landmarks and biometrics, held in memory as they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from data.images import read_image, to_uint8
from data.landmarks import LandmarksError, landmark_fractions
from data.manifest import Record
from muti_control.conditions.altered import alteration_of, moved_points, on_tensor
from muti_control.networks.pipnet.network import encode
from muti_control.training.seeded_batches import generator
from settings.messages import ConfigError


class Item(TypedDict):
    """picture (1 or 3, H, W) uint8; points (N, 2), fractions; attributes (A,), A = 0 without biometrics; index."""

    picture: Tensor
    points: Tensor
    attributes: Tensor
    index: int


class LandmarkDataset(Dataset[Item]):
    """Face pictures, or the skulls that belong to them, with the landmarks of the face.

    Pictures are read once and stay in memory, 8-bit, grey ones with one channel (64 KiB at 256 px).

    Args:
        records: of ``read_manifest``, each with a face and landmarks.
        role: "face" reads landmarks off the face, "skull" the face's off the skull.
        size: side of the pictures in px.
        ethnicities: words that ``attributes.encode`` may meet; None: no biometrics.
        augment, seed: alter the pictures at this strength, anew in each pass (``EndlessBatches.count_passes``).

    Raises:
        LandmarksError: landmarks that are missing, broken or of different number.
        ValueError: an ethnicity that is not among ``ethnicities``.
    """

    def __init__(
        self,
        records: Sequence[Record],
        role: str,
        size: int,
        ethnicities: Sequence[str] | None = None,
        augment: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.records = list(records)
        self.role, self.size = role, size
        self.augment, self.seed = augment, seed
        found = [landmark_fractions(record) for record in self.records]
        for record, (points, _) in zip(self.records, found, strict=True):
            if len(points) != len(found[0][0]):
                raise LandmarksError(
                    f"{record.landmarks_path}: {len(points)} points, but {len(found[0][0])} in line "
                    f"{self.records[0].line}; all pictures of a set need the same"
                )
        self.points = torch.from_numpy(np.stack([points for points, _ in found]))  # (M, N, 2)
        self.visible = torch.from_numpy(np.stack([visible for _, visible in found]))  # (M, N)
        people = [record.biometrics for record in self.records]
        self.attributes = (
            encode(people, ethnicities) if ethnicities is not None else torch.zeros(len(people), 0)
        )
        self._pictures: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Item:
        """Raises: ImageError where the picture cannot be read."""
        epoch, index = divmod(number, len(self))
        picture, points = self.picture(index), self.points[index]
        if self.augment:
            alteration = alteration_of(self.records[index].source, epoch, self.seed, self.augment)
            picture = (on_tensor(alteration.skull, picture / 255) * 255).round().to(torch.uint8)
            points = moved_points(points, torch.from_numpy(alteration.points(self.size)))
        return Item(picture=picture, points=points, attributes=self.attributes[index], index=index)

    def picture(self, index: int) -> Tensor:
        """(1 or 3, H, W) uint8."""
        if index not in self._pictures:
            record = self.records[index]
            path = record.skull_path if self.role == "skull" else record.face_path
            assert path is not None
            pixels = to_uint8(read_image(path, self.size)[0])  # (H, W, 3)
            grey = bool((pixels == pixels[..., :1]).all())
            planes = np.ascontiguousarray((pixels[..., :1] if grey else pixels).transpose(2, 0, 1))
            self._pictures[index] = torch.from_numpy(planes)
        return self._pictures[index]


def collate(items: Sequence[Item]) -> dict[str, Tensor]:
    """Return a batch; grey and coloured pictures may be mixed."""
    channels = max(len(item["picture"]) for item in items)
    return default_collate([{**item, "picture": item["picture"].expand(channels, -1, -1)} for item in items])


def fold_of(records: Sequence[Record], folds: int, seed: int) -> list[int]:
    """Which of ``folds`` parts each record is in: all of a subject in one, parts of equal numbers of subjects.

    Raises:
        ConfigError: more folds than subjects, or fewer than two.
    """
    subjects = sorted({record.subject for record in records})
    if not 2 <= folds <= len(subjects):
        raise ConfigError(f"folds: got {folds}, expected 2 to {len(subjects)}, the number of subjects")
    order = torch.randperm(len(subjects), generator=generator(seed, 0, folds, "folds")).tolist()
    part = {subject: place % folds for subject, place in zip(subjects, order, strict=True)}
    return [part[record.subject] for record in records]
