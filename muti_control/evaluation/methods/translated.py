"""Faces of a Pix2Pix: one pass from the skull and the attributes of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.biometrics import Biometrics
from data.cases import Case, read_skull
from data.images import to_uint8, write_png
from ldm.checkpoint import sha256
from muti_control.networks.pix2pix import Generator, encode
from muti_control.sampling.draw import ReconstructionError

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Translator:
    """A trained generator."""

    path: Path
    sha256: str
    net: Generator

    @classmethod
    def look(cls, path: Path) -> Translator:
        """Read a generator once, so that nothing fails half-way. Raises: CheckpointError."""
        net, _ = Generator.load(path)  # a file that is missing or no generator has its message
        return cls(path, sha256(path), net)

    def check(self, people: Iterable[Biometrics]) -> None:
        """Raise ValueError if the training had nobody of a person's ethnicity."""
        try:
            encode(list(people), self.net.cfg.ethnicities or ())
        except ValueError as error:
            raise ValueError(f"pix2pix={self.path}: {error}, or leave pix2pix out") from error

    @torch.no_grad()
    def draw(
        self, faces: Sequence[tuple[Case, Path]], batch_size: int, device: torch.device, advance: Advance
    ) -> None:
        """Write the faces that are missing. faces: (case, picture to write) each. advance: called for every face.

        Raises: ImageError, OSError, ReconstructionError (a face with NaN or infinity).
        """
        todo = [(case, target) for case, target in faces if not target.is_file()]
        advance(len(faces) - len(todo))
        net, size = self.net.to(device), self.net.cfg.image_size
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            pictures = np.stack([read_skull(case, size) for case, _ in part])  # (B, H, W, 3) in [0, 1]
            skulls = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device)
            people = encode(
                [case.biometrics for case, _ in part if case.biometrics], net.cfg.ethnicities or ()
            ).to(device)
            drawn = (net(skulls, people).clamp(-1, 1) + 1) / 2  # (B, 3, H, W)
            if not bool(drawn.isfinite().all()):
                raise ReconstructionError(
                    f"pix2pix={self.path} gave values that are no numbers; check the weights, or leave pix2pix out"
                )
            for (_, target), face in zip(part, drawn.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_png(target, to_uint8(face))
            advance(len(part))
