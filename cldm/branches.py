"""Branches of the control network for landmarks and texture: small networks whose last layer starts at zero."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from cldm.convolutions import variance_preserving
from cldm.texture import TextureBranch
from ldm.attention import zero_module
from ldm.checkpoint import check_size
from ldm.config import ControlConfig, LandmarkConfig, ModelConfig
from settings.parsing import parse_json

BRANCHES = "control_model.branches."
NAMES = ("skull", "landmarks", "texture")  # the skull's is the hint encoder that every ControlNet has
UNTRAINED = "untrained_branches"  # metadata entry: JSON list of names; files without it count as trained
# Heatmaps are zero nearly everywhere; this brings the first layer's output to order 1 on the face.
SPARSE_GAIN = 6.0


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of a batch of faces.

    points: (B, N, 2) float32, x and y as fractions of the picture's width and height (its corners are 0, 0 and 1, 1).
    confidence: (B, N) in [0, 1]; 1 for true points.
    present: (B,) bool; False for a sample without landmarks, whose other values have no effect.
    """

    points: Tensor
    confidence: Tensor
    present: Tensor

    def __post_init__(self) -> None:
        b, n = self.confidence.shape[:2] if self.confidence.ndim == 2 else (-1, -1)
        if self.points.shape != (b, n, 2) or self.present.shape != (b,):
            raise ValueError(
                f"landmarks: got points {tuple(self.points.shape)}, confidence {tuple(self.confidence.shape)}, "
                f"present {tuple(self.present.shape)}; expected (B, N, 2), (B, N), (B,)"
            )

    def to(self, device: torch.device) -> Landmarks:
        """Return the same landmarks on ``device``."""
        return Landmarks(self.points.to(device), self.confidence.to(device), self.present.to(device))

    def rolled(self) -> Landmarks:
        """Return a control in which every sample has its neighbour's landmarks."""
        return Landmarks(*(value.roll(1, dims=0) for value in (self.points, self.confidence, self.present)))


def heatmaps(landmarks: Landmarks, height: int, width: int, sigma: float) -> Tensor:
    """Return one Gaussian for each point, with its confidence as the peak: (B, N, height, width) float32.

    sigma: standard deviation in cells of the map. Of a point outside, the inner part of its Gaussian remains.
    """
    points, device = landmarks.points.float(), landmarks.points.device
    # Cell i covers [i, i + 1) / width: its centre is (i + 0.5) / width.
    x = torch.arange(width, device=device) + 0.5 - points[..., :1] * width  # (B, N, W)
    y = torch.arange(height, device=device) + 0.5 - points[..., 1:] * height  # (B, N, H)
    gx, gy = ((-v.square() / (2 * sigma**2)).exp() for v in (x, y))
    return landmarks.confidence.float()[..., None, None] * gy[..., :, None] * gx[..., None, :]


class LandmarkBranch(nn.Module):
    """Landmark heatmaps at latent resolution -> addend to the skull's hint; zero for samples without landmarks."""

    def __init__(self, cfg: LandmarkConfig, out_channels: int) -> None:
        super().__init__()
        self.num_points, self.sigma = cfg.num_points, cfg.sigma
        widths = [cfg.num_points, *cfg.widths]
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise(widths)):
            layers += [variance_preserving(a, b, gain=SPARSE_GAIN if k == 0 else 1.0), nn.SiLU()]
        self.encoder = nn.Sequential(*layers, zero_module(nn.Conv2d(widths[-1], out_channels, 3, padding=1)))

    def forward(self, landmarks: Landmarks, height: int, width: int) -> Tensor:
        """Return the addend (B, out_channels, height, width); height and width are those of the latent.

        Raises:
            ValueError: another number of points than the branch was made for.
        """
        if landmarks.points.shape[1] != self.num_points:
            raise ValueError(
                f"landmarks: got {landmarks.points.shape[1]} points, but this model was made for {self.num_points}"
            )
        maps = heatmaps(landmarks, height, width, self.sigma)
        hint = self.encoder(maps.to(next(self.encoder.parameters()).dtype))
        return torch.where(landmarks.present[:, None, None, None], hint, torch.zeros_like(hint))


def make_branches(control: ControlConfig, model_channels: int) -> nn.ModuleDict:
    """Return the branches of an architecture by name; model_channels: of the UNet."""
    branches = nn.ModuleDict()
    if control.landmarks is not None:
        branches["landmarks"] = LandmarkBranch(control.landmarks, model_channels)
    if control.texture is not None:
        branches["texture"] = TextureBranch(control.texture, 4 * model_channels)
    return branches


def fresh_branches(state: Mapping[str, Tensor], cfg: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return the weights, by checkpoint key, of the branches in ``cfg`` that ``state`` lacks: they add zero yet.

    A checkpoint from before a branch existed loads with these.

    Raises:
        CheckpointError: the architecture asks for branches of a gigabyte or more.
    """
    with torch.device("meta"):
        check_size("control", make_branches(cfg.control, cfg.unet.model_channels).state_dict().values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branches = make_branches(cfg.control, cfg.unet.model_channels)
    return {
        f"{BRANCHES}{name}.{key}": value
        for name, branch in branches.items()
        if not any(key.startswith(f"{BRANCHES}{name}.") for key in state)
        for key, value in branch.state_dict().items()
    }


def branches_among(keys: Iterable[str]) -> frozenset[str]:
    """Return the names of the branches that have weights among the checkpoint keys of a control network."""
    names = {
        key.removeprefix(BRANCHES).split(".")[0] if key.startswith(BRANCHES) else "skull" for key in keys
    }
    return frozenset(names)


def untrained_branches(metadata: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the branches that a checkpoint's metadata lists as never trained.

    Raises:
        ValueError: the entry is not a JSON list of branch names.
    """
    names = parse_json(metadata.get(UNTRAINED, "[]"), f"checkpoint metadata: {UNTRAINED!r}", list[str])
    if not set(names) <= set(NAMES):
        raise ValueError(f"checkpoint metadata: {UNTRAINED!r} is {names!r:.60}, expected names of {NAMES}")
    return frozenset(names)


def untrained_metadata(names: Iterable[str]) -> dict[str, str]:
    """Return the metadata entry that :func:`untrained_branches` reads; none if every branch is trained."""
    return {UNTRAINED: json.dumps(sorted(names))} if names else {}
