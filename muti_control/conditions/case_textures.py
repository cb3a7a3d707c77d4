"""Where the texture of a reconstruction comes from: an exemplar that the user picks, the manifest's, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import NUM_FEATURES, Texture
from data.cases import Case
from data.files import picture_sha256
from ldm.config import TextureConfig
from muti_control.conditions.pair_textures import exemplar_features

PATCH_SEED = 0  # of the choice of patches


@dataclass(frozen=True)
class CaseTextures:
    """Exemplars of cases: one picture for all, or each case's own, of which some may have none.

    branch: of the model. size: px at which an exemplar is seen, the model's.
    """

    branch: TextureConfig
    size: int
    for_all: Path | None = None
    _features: dict[Path, Tensor] = field(default_factory=dict)
    _hashes: dict[Path, str] = field(default_factory=dict)

    def path(self, case: Case) -> Path | None:
        """A case's exemplar."""
        return self.for_all if self.for_all is not None else case.texture_path

    def features(self, case: Case) -> Tensor | None:
        """(NUM_FEATURES,), or None without an exemplar. Raises: ImageError, TextureError: it cannot be used."""
        path = self.path(case)
        return None if path is None else self._read(path)

    def _read(self, path: Path) -> Tensor:
        if path not in self._features:
            self._features[path] = exemplar_features(path, self.size, self.branch, PATCH_SEED)
        return self._features[path]

    def check(self, cases: Sequence[Case]) -> int:
        """Read all exemplars; returns how many cases have none. Raises: ImageError, TextureError."""
        if self.for_all is not None:
            self._read(self.for_all)
        return sum(self.features(case) is None for case in cases)

    def of(self, cases: Sequence[Case]) -> Texture:
        """Of a batch; on the CPU."""
        found = [self.features(case) for case in cases]
        rows = [torch.zeros(NUM_FEATURES) if row is None else row for row in found]
        return Texture(torch.stack(rows), torch.tensor([row is not None for row in found]))

    def describe(self, case: Case) -> dict[str, Any] | None:
        """For a case's record."""
        path = self.path(case)
        if path is None:
            return None
        if path not in self._hashes:
            self._hashes[path] = picture_sha256(path)
        return {"file": path.name, "sha256": self._hashes[path], "patch_seed": PATCH_SEED}


def choose_textures(
    choice: str, cases: Sequence[Case], model: ControlledLatentDiffusion
) -> tuple[CaseTextures | None, str | None]:
    """What ``texture=choice`` asks for: auto (the manifest's exemplars), none, or a picture of a face.

    Returns:
        The exemplars, None for none; and what the user should know of it, None for nothing.

    Raises:
        ValueError: an exemplar for a model without a branch, or one that cannot be used.
    """
    branch = model.cfg.control.texture
    if choice == "none" or (choice == "auto" and not model.has_trained("texture")):
        return None, None
    if branch is None or not model.has_trained("texture"):
        raise ValueError(
            f"texture={choice}: these weights have no trained texture branch; add one (python "
            "tool_add_control.py IN OUT) and train it, or leave texture out"
        )
    textures = CaseTextures(branch, model.cfg.image_size, None if choice == "auto" else Path(choice))
    lacking = textures.check(cases)
    if not lacking:
        return textures, None
    remark = "the look of the skin is left to chance; texture=FACE.png gives an exemplar"
    if lacking == len(cases):
        return None, remark
    return textures, f"{lacking} of {len(cases)} skulls have no 'texture' in the manifest: {remark}"
