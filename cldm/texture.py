"""The look of a surface without its shape: orderless statistics of small patches, and the branch that reads them.

A patch of 16 px is a few millimetres of skin. It shows grain, reconstruction kernel, slice steps, noise and gloss, and
too little of a face to recognise it. The slow shading (a plane) of every patch is removed, then each filter of a fixed
bank measures its energy. The features are the mean and the standard deviation over the patches. Every filter is even or
odd along x and along y, so a mirrored patch has the same energy, and an average over patches ignores their order: the
place of a patch is lost by construction, not by training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldm.convolutions import SILU_GAIN
from ldm.attention import zero_module
from ldm.config import TextureConfig

LAGS = (1, 2, 3, 4, 6, 8)  # px between the two pixels of a difference
NUM_FILTERS = 2 * (len(LAGS) + 1) + 1  # along x and along y; and one along both
NUM_FEATURES = 2 * NUM_FILTERS
SKIN_LEVEL = 8 / 255  # darker is background
INSIDE = 4  # px between a patch and the next that is background
_FLOOR = 1e-6  # added to energies; the rounding to 256 levels leaves more
# Log energies and their spread over patches are brought to about mean 0 and variance 1 over the synthetic cohort.
_CENTRE, _SCALE = -6.0, 0.8
_SPREAD_CENTRE, _SPREAD_SCALE = 0.85, 0.3


@dataclass(frozen=True)
class Texture:
    """Surfaces for the faces of a batch.

    features: (B, NUM_FEATURES) float32, of :func:`texture_features`.
    present: (B,) bool; False for a sample without an exemplar, whose features have no effect.
    """

    features: Tensor
    present: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.present.shape != self.features.shape[:1]:
            raise ValueError(
                f"texture: got features {tuple(self.features.shape)}, present {tuple(self.present.shape)}; "
                f"expected (B, {NUM_FEATURES}), (B,)"
            )

    def to(self, device: torch.device) -> Texture:
        """Return the same on ``device``."""
        return Texture(self.features.to(device), self.present.to(device))

    def rolled(self) -> Texture:
        """Return a control in which every sample has its neighbour's exemplar."""
        return Texture(self.features.roll(1, dims=0), self.present.roll(1, dims=0))


class TextureError(ValueError):
    """A picture that cannot be an exemplar; the message says why."""


def skin_patches(picture: Tensor, cfg: TextureConfig, seed: int = 0) -> Tensor:
    """Return patches of an exemplar, (num_patches, patch_size, patch_size) float32 in [0, 1].

    Drawn without replacement from all places where a patch and a margin lie on skin, in the order of a generator
    seeded with ``seed``: a pure function of picture and seed. Where there are fewer places, they come again in turn.

    Args:
        picture: (3, H, W) in [0, 1] on black; colour is averaged away.

    Raises:
        TextureError: no such place.
    """
    grey = picture.float().mean(0).cpu()  # (H, W)
    size, window = cfg.patch_size, cfg.patch_size + 2 * INSIDE
    if min(grey.shape) < window:
        raise TextureError(
            f"the picture has {grey.shape[1]} x {grey.shape[0]} px, expected {window} or more a side"
        )
    outside = (grey <= SKIN_LEVEL).float()[None, None]
    for side in ((window, 1), (1, window)):
        outside = F.max_pool2d(outside, side, 1)
    outside = outside[0, 0]  # (H - window + 1, W - window + 1), 0 where all is skin
    ys, xs = torch.nonzero(outside == 0, as_tuple=True)
    if len(ys) == 0:
        raise TextureError(
            f"no patch of {size} px lies within what is drawn; expected a face on black that fills a part of it"
        )
    order = torch.randperm(len(ys), generator=torch.Generator().manual_seed(seed))[: cfg.num_patches]
    chosen = order[torch.arange(cfg.num_patches) % len(order)]
    places = grey.unfold(0, size, 1).unfold(1, size, 1)  # (H - size + 1, W - size + 1, size, size)
    return places[ys[chosen] + INSIDE, xs[chosen] + INSIDE].contiguous()


def texture_features(patches: Tensor) -> Tensor:
    """Return features (..., NUM_FEATURES) float32 of patches (..., K, P, P) in [0, 1]. Carries gradient.

    The same, to rounding, for the patches in any order and each mirrored or not.
    """
    energies = _log_energies(_without_plane(patches.float()))  # (..., K, NUM_FILTERS)
    mean = (energies.mean(-2) - _CENTRE) / _SCALE
    spread = (energies.var(-2, unbiased=False) + 1e-6).sqrt()
    return torch.cat([mean, (spread - _SPREAD_CENTRE) / _SPREAD_SCALE], dim=-1)


def _without_plane(patches: Tensor) -> Tensor:
    """Patches less their least-squares plane: the shading of the shape below."""
    size = patches.shape[-1]
    along = torch.linspace(-1, 1, size, device=patches.device)
    power = along.square().sum()
    mean = patches.mean((-2, -1), keepdim=True)
    slope_y = (patches.mean(-1) @ along / power)[..., None, None]
    slope_x = (patches.mean(-2) @ along / power)[..., None, None]
    return patches - mean - slope_y * along[:, None] - slope_x * along


def _log_energies(x: Tensor) -> Tensor:
    """(..., P, P) -> (..., NUM_FILTERS): log mean square of first differences at every lag and of second ones."""
    differences = []
    for y in (x, x.transpose(-1, -2)):
        differences += [y[..., lag:] - y[..., :-lag] for lag in LAGS]
        differences.append(y[..., 2:] - 2 * y[..., 1:-1] + y[..., :-2])
    differences.append(x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1])
    return torch.stack([(f.square().mean((-2, -1)) + _FLOOR).log() for f in differences], dim=-1)


class TextureBranch(nn.Module):
    """Texture features -> addend to the control copy's time embedding; zero for samples without an exemplar."""

    def __init__(self, cfg: TextureConfig, out_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a in (NUM_FEATURES, cfg.width):
            linear = nn.Linear(a, cfg.width)
            nn.init.normal_(linear.weight, std=SILU_GAIN / a**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.SiLU()]
        self.encoder = nn.Sequential(*layers, zero_module(nn.Linear(cfg.width, out_features)))

    def forward(self, texture: Texture) -> Tensor:
        """Return the addend, (B, out_features).

        Raises:
            ValueError: another number of features than :func:`texture_features` gives.
        """
        if texture.features.shape[1] != NUM_FEATURES:
            raise ValueError(
                f"texture: got {texture.features.shape[1]} features, but this model was made for {NUM_FEATURES}"
            )
        present = texture.present[:, None]
        features = torch.where(present, texture.features, torch.zeros_like(texture.features))
        added = self.encoder(features.to(next(self.encoder.parameters()).dtype))
        return torch.where(present, added, torch.zeros_like(added))
