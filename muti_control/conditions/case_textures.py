"""Texture exemplars of the cases of a sampling run: one that the user picks, or the manifest's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import NUM_FEATURES, Texture
from data.cases import Case
from data.files import picture_sha256
from muti_control.conditions.pair_textures import exemplar_features

PATCH_SEED = 0  # of the choice of patches


@dataclass(frozen=True)
class CaseTextures:
    """Exemplars of cases: one picture for all, or each case's own, which some lack.

    features: (NUM_FEATURES,) by picture.
    """

    features: Mapping[Path, Tensor]
    for_all: Path | None = None

    def path(self, case: Case) -> Path | None:
        """Return a case's exemplar."""
        return self.for_all if self.for_all is not None else case.texture_path

    def of(self, cases: Sequence[Case]) -> Texture:
        """Return the condition of a batch, on the CPU."""
        paths = [self.path(case) for case in cases]
        rows = [torch.zeros(NUM_FEATURES) if path is None else self.features[path] for path in paths]
        return Texture(torch.stack(rows), torch.tensor([path is not None for path in paths]))

    def describe(self, case: Case) -> dict[str, Any] | None:
        """Return the exemplar of a case, for its record."""
        path = self.path(case)
        if path is None:
            return None
        return {"file": path.name, "sha256": _sha256(path), "patch_seed": PATCH_SEED}


_sha256 = cache(picture_sha256)  # an exemplar may serve every face of a run


def choose_textures(
    choice: str, cases: Sequence[Case], model: ControlledLatentDiffusion
) -> tuple[CaseTextures | None, str | None]:
    """Return the exemplars that ``texture=choice`` asks for: auto (the manifest's), none, or a picture of a face.

    Returns:
        The exemplars, or None; and a note for the user, or None.

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
    for_all = None if choice == "auto" else Path(choice)
    paths = [case.texture_path if for_all is None else for_all for case in cases]
    features = {
        path: exemplar_features(path, model.cfg.image_size, branch, PATCH_SEED)
        for path in dict.fromkeys(paths)
        if path is not None
    }
    textures = CaseTextures(features, for_all)
    lacking = paths.count(None)
    if not lacking:
        return textures, None
    note = "the look of the skin is left to chance; texture=FACE.png gives an exemplar"
    if lacking == len(cases):
        return None, note
    return textures, f"{lacking} of {len(cases)} skulls have no 'texture' in the manifest: {note}"
