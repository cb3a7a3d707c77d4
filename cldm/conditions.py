"""The conditions of a batch together: what each adds to the control network, and to which samples it adds nothing.

A condition that a sample lacks contributes exactly nothing to it; a sample that lacks all of them gets the base
model's noise. So one model serves the skull alone, skull and landmarks, landmarks and text, or the text alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cldm.branches import NAMES, Landmarks
from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import Texture


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch beside its prompts.

    skulls: (B, 3, H, W) in [0, 1], or None where no sample has one.
    skull_present: (B,) bool; None: all that ``skulls`` has.
    landmarks, texture: None where no sample has any.
    """

    skulls: Tensor | None = None
    skull_present: Tensor | None = None
    landmarks: Landmarks | None = None
    texture: Texture | None = None

    def __post_init__(self) -> None:
        present = self.skull_present
        if present is not None and (self.skulls is None or present.shape != self.skulls.shape[:1]):
            got = "no skulls" if self.skulls is None else f"{len(self.skulls)} skulls"
            raise ValueError(
                f"skull_present: got {tuple(present.shape)} for {got}, expected one for each skull"
            )

    def where(self, mask: Tensor) -> Conditions:
        """Return the conditions without those of the samples for which ``mask`` (B,) is False."""
        skull_present, landmarks, texture = self.skull_present, self.landmarks, self.texture
        if self.skulls is not None:
            skull_present = mask if skull_present is None else skull_present & mask
        if landmarks is not None:
            landmarks = replace(landmarks, present=landmarks.present & mask)
        if texture is not None:
            texture = replace(texture, present=texture.present & mask)
        return Conditions(self.skulls, skull_present, landmarks, texture)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of samples of each condition, by its name."""
        numbers = {
            "skulls": None if self.skulls is None else len(self.skulls),
            "landmarks": None if self.landmarks is None else len(self.landmarks.present),
            "textures": None if self.texture is None else len(self.texture.present),
        }
        return {name: number for name, number in numbers.items() if number is not None}


@dataclass(frozen=True)
class Acting:
    """The inputs of a network's control copy.

    hint: (B, model_channels, h, w) after its first block.
    texture: (B, 4 model_channels) on its time embedding, or None.
    active: (B,) bool, samples that have a condition; None: all.
    """

    hint: Tensor
    texture: Tensor | None = None
    active: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """Conditions after their encoders, which do not depend on t, each apart; None: in no sample.

    nothing: zeros (B, model_channels, h, w), the hint where there is none. skull, landmarks: of its shape;
    texture: (B, 4 model_channels); present: (B,) bool by name; without "skull" every sample has one.
    """

    nothing: Tensor
    skull: Tensor | None
    landmarks: Tensor | None
    texture: Tensor | None
    present: dict[str, Tensor]

    def doubled(self, dropped: Collection[str] = ()) -> Encoded:
        """Return both halves of a classifier-free guided batch; the first is without the conditions ``dropped``."""
        parts, present = {}, {}
        for name in NAMES:
            part: Tensor | None = getattr(self, name)
            parts[name] = part
            if part is None:
                continue
            own = self.present.get(name)
            if own is None:
                own = torch.ones(len(part), dtype=torch.bool, device=part.device)
            first = name not in dropped
            parts[name] = torch.cat([part if first else torch.zeros_like(part), part])
            if name in self.present or not first:
                present[name] = torch.cat([own & first, own])
        return Encoded(torch.cat([self.nothing, self.nothing]), **parts, present=present)

    def without(self, dropped: Collection[str]) -> Encoded:
        """Return the conditions of every sample without those ``dropped``."""
        parts = {name: getattr(self, name) for name in NAMES if name not in dropped}
        present = {name: own for name, own in self.present.items() if name not in dropped}
        return Encoded(self.nothing, **dict.fromkeys(NAMES) | parts, present=present)

    def scaled(self, landmarks: float, texture: float) -> Encoded:
        """Return the conditions with a factor on each branch's addend; 0 removes the branch."""
        return replace(
            self,
            landmarks=None if self.landmarks is None or landmarks == 0 else landmarks * self.landmarks,
            texture=None if self.texture is None or texture == 0 else texture * self.texture,
        )

    def acting(self, with_landmarks: bool = True, with_texture: bool = True) -> Acting | None:
        """Return the control copy's inputs from all conditions that are on; None: none is, and the base model draws."""
        landmarks = self.landmarks if with_landmarks else None
        texture = self.texture if with_texture else None
        parts = [part for part in (self.skull, landmarks) if part is not None]
        if not parts and texture is None:
            return None
        hint = parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) if parts else self.nothing
        acting = {"skull": self.skull, "landmarks": landmarks, "texture": texture}
        active = None
        if self.skull is None or "skull" in self.present:
            present = [self.present[name] for name, part in acting.items() if part is not None]
            active = torch.stack(present).any(0)
        return Acting(hint, texture, active)


def encode(
    model: ControlledLatentDiffusion, conditions: Conditions, num: int, height: int, width: int
) -> Encoded:
    """Encode the conditions of ``num`` pictures of height x width px.

    Raises:
        ValueError: a condition that the model has no branch for.
    """
    present = {}
    skull = landmarks = texture = None
    if conditions.skulls is not None:
        skull = model.encode_hint(conditions.skulls.to(model.device))
        if conditions.skull_present is not None:
            present["skull"] = conditions.skull_present.to(model.device)
            skull = torch.where(present["skull"][:, None, None, None], skull, torch.zeros_like(skull))
    if conditions.landmarks is not None:
        points = conditions.landmarks.to(model.device)
        present["landmarks"] = points.present
        landmarks = model.encode_landmarks(points, height, width)
    if conditions.texture is not None:
        exemplars = conditions.texture.to(model.device)
        present["texture"] = exemplars.present
        texture = model.encode_texture(exemplars)
    return Encoded(model.no_hint(num, height, width), skull, landmarks, texture, present)
