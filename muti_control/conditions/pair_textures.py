"""Exemplars of the training and validation pairs as a condition: another subject's face of the same style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cldm.texture import NUM_FEATURES, Texture, TextureError, skin_patches, texture_features
from data.images import read_image
from data.manifest import Record
from ldm.config import TextureConfig
from muti_control.conditions.config import TextureConditionConfig

NO_EXEMPLARS = (
    "no training pair has a texture exemplar: the model's texture branch stays as it is; a 'texture' field in the "
    "manifest, the name of another face of the same style, would train it"
)


def exemplar_features(path: Path, size: int, cfg: TextureConfig, seed: int = 0) -> Tensor:
    """Return (NUM_FEATURES,) float32 of a picture, read at size x size px.

    Raises:
        ImageError: it cannot be read. TextureError: it shows no skin. Both name the file.
    """
    picture = torch.from_numpy(read_image(path, size)[0]).permute(2, 0, 1)  # (3, H, W)
    try:
        return texture_features(skin_patches(picture, cfg, seed))
    except TextureError as error:
        raise TextureError(f"{path}: {error}") from error


class PairTextures:
    """The exemplars of a list of pairs, looked up by their place in it; each is read once, when it is needed first.

    Args:
        records: the pairs. size: of the pictures in px. branch: of the model. cfg: how often they are shown.
    """

    def __init__(
        self, records: Sequence[Record], size: int, branch: TextureConfig, cfg: TextureConditionConfig
    ) -> None:
        self.cfg, self._size, self._branch = cfg, size, branch
        self._paths = [record.texture_path for record in records]
        self._features: dict[Path, Tensor] = {}
        self.present = torch.tensor([path is not None for path in self._paths])

    @property
    def any(self) -> bool:
        """Whether any pair has an exemplar."""
        return bool(self.present.any())

    def __str__(self) -> str:
        return f"texture exemplars of {int(self.present.sum())} of {len(self._paths)} pairs"

    def features(self, index: int) -> Tensor:
        """Return the features of one pair's exemplar, (NUM_FEATURES,); zeros where it has none.

        Raises:
            ImageError, TextureError: it cannot be used.
        """
        path = self._paths[index]
        if path is None:
            return torch.zeros(NUM_FEATURES)
        if path not in self._features:
            self._features[path] = exemplar_features(path, self._size, self._branch)
        return self._features[path]

    def for_training(self, index: Tensor, features: Tensor, generator: torch.Generator) -> Texture:
        """Return the exemplars of pairs ``index`` (B,) with ``features`` (B, NUM_FEATURES); some are left out."""
        show = torch.rand(len(index), generator=generator) >= self.cfg.dropout
        return Texture(features, self.present[index.cpu()] & show)

    def for_validation(self, index: Tensor) -> Texture:
        """Return the exemplars of pairs ``index`` (B,)."""
        features = torch.stack([self.features(int(i)) for i in index])
        return Texture(features, self.present[index.cpu()])
