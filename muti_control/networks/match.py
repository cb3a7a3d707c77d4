"""Does a face belong to a skull? Two towers: a skull picture with the sex, and a face picture, each to a unit vector.

The cosine of the two vectors is the score. The towers never see each other's picture, so that the vectors of a
gallery are computed once. No layer mixes the samples of a batch.
Sources: two towers trained by contrast, arXiv 2103.00020; residual blocks, arXiv 1603.05027.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import CheckpointError, read_state_dict
from muti_control.networks.config import MatchConfig
from muti_control.networks.files import load_frozen, save_network, usable_as
from settings.reading import from_json

METADATA = "match"
SEXES = {"female": -1.0, None: 0.0, "male": 1.0}
MOST_SCALE = 100.0  # of the scores in training
_LEAST_CONTRAST = 0.02  # a flat picture stays flat


class _Block(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(self.norm(x))))


class Tower(nn.Module):
    """Pictures (B, 1 or 3, H, W) in [0, 1] -> unit vectors (B, V) float32. Carries gradient."""

    def __init__(self, cfg: MatchConfig, takes_sex: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.size, self.dropout = cfg.image_size, dropout
        a, b, c, d = cfg.widths
        self.conv1 = nn.Conv2d(1, a, 5, 2, 2)
        self.conv2 = nn.Conv2d(a, b, 3, 2, 1)
        self.conv3 = nn.Conv2d(b, c, 3, 2, 1)
        self.blocks3 = nn.Sequential(*(_Block(c) for _ in range(cfg.blocks[0])))
        self.conv4 = nn.Conv2d(c, d, 3, 2, 1)
        self.blocks4 = nn.Sequential(*(_Block(d) for _ in range(cfg.blocks[1])))
        self.reduce = nn.Conv2d(d, cfg.reduced, 1)
        self.hidden = nn.Linear(cfg.reduced * (cfg.image_size // 16) ** 2, cfg.hidden)
        self.sex = nn.Linear(1, cfg.hidden, bias=False) if takes_sex else None
        self.norm = nn.LayerNorm(cfg.hidden)  # without it all vectors fall together in the first steps
        self.out = nn.Linear(cfg.hidden, cfg.vector)

    def forward(self, pictures: Tensor, sex: Tensor | None = None) -> Tensor:
        """sex: (B,) of ``SEXES``, for the skull's tower; None: unknown."""
        grey = pictures.mean(1, keepdim=True)
        if grey.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            grey = F.interpolate(grey, size, mode="bilinear", align_corners=False, antialias=True)
        mean, deviation = grey.mean((2, 3), keepdim=True), grey.std((2, 3), keepdim=True)
        h = (grey - mean) / (deviation + _LEAST_CONTRAST)  # (B, 1, S, S)
        h = F.relu(self.conv2(F.relu(self.conv1(h))))  # (B, b, S/4, S/4)
        h = self.blocks3(self.conv3(h))  # (B, c, S/8, S/8)
        h = self.blocks4(self.conv4(F.relu(h)))  # (B, d, S/16, S/16)
        h = self.reduce(F.relu(h)).flatten(1)
        h = self.hidden(F.dropout(h, self.dropout, self.training))  # (B, hidden)
        if self.sex is not None and sex is not None:
            h = h + self.sex(sex[:, None].to(h))
        return F.normalize(self.out(F.relu(self.norm(h))).float(), dim=1)


class MatchNet(nn.Module):
    """Both towers, and the scale that training gives their cosines."""

    def __init__(self, cfg: MatchConfig, dropout: float = 0.0, scale: float = 10.0) -> None:
        super().__init__()
        self.cfg = cfg
        self.skull = Tower(cfg, takes_sex=True, dropout=dropout)
        self.face = Tower(cfg, takes_sex=False, dropout=dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def logits(self, skulls: Tensor, faces: Tensor) -> Tensor:
        """Return the scaled scores (N, M) of vectors (N, V) and (M, V)."""
        return self.log_scale.clamp(max=math.log(MOST_SCALE)).exp() * skulls @ faces.T

    def save(self, path: Path, dtype: torch.dtype, more: Mapping[str, str]) -> None:
        """Write weights and architecture as one file. Raises: CheckpointError."""
        save_network(path, self, {METADATA: json.dumps(self.cfg.model_dump()), **more}, dtype)


def load_match(path: str | Path, device: str | torch.device = "cpu") -> MatchNet:
    """Load a matching network, frozen, in evaluation mode, fp32.

    Raises:
        CheckpointError: no such file, or none of the match stage.
    """
    state, metadata = read_state_dict(path, mmap=False)
    if METADATA not in metadata:
        raise CheckpointError(
            f"{path} is no matching network; give what `python train.py configs/demo/match.yaml` writes"
        )
    with usable_as("matching network", path):
        cfg = from_json(MatchConfig, metadata[METADATA])
        net = load_frozen(lambda: MatchNet(cfg), state)
    return net.to(device)


def sexes(people: Sequence[str | None]) -> Tensor:
    """Return (B,) what the skull's tower takes of "male", "female" or None."""
    return torch.tensor([SEXES[sex] for sex in people])
