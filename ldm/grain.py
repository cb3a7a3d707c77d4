"""Grain of a decoded picture, drawn from noise.

An autoencoder trained on the error by pixels removes grain, but its latent still holds the amount. So the decoder's
picture stays the mean, and the final picture is the mean plus white noise through a few small learned filters. The
strength of each filter depends on the place (the decoder's last features) and on the whole picture (:func:`summary`).
An exemplar may replace the whole picture: numbers that describe the style of its surface and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAGS = ((1, 0), (0, 1), (2, 0), (0, 2), (3, 0), (0, 3), (5, 0), (0, 5))  # px, (across, down)
LATENT_LAGS = LAGS[:4]  # cells
ENERGY_FLOOR = 1e-4  # of a squared difference; the rounding of bf16 adds less
LATENT_FLOOR = 1e-5
FACE, BAND = -0.9, 4  # brighter pixels are face, without this many px beside darker ones
BLACK, RAMP = -0.95, 0.1  # no grain up to this grey, and all of it from RAMP above: black stays black
SIDE = 5  # px of a filter
MARGIN = SIDE // 2  # noise is wider than the picture by this on every side
LIMIT = 4.0  # deviations beyond which a summary counts as this far off
_LOCAL, _HIDDEN = 24, 48  # widths


def grain_noise(keys: Sequence[int | str], height: int, width: int) -> Tensor:
    """Return white noise (B, 1, height + 2 MARGIN, width + 2 MARGIN), float32 on the CPU, from each sample's key alone.

    keys: a sample's seed, or another name of it. The streams differ from those of generators seeded with the same
    numbers, so that they neither shift nor repeat those.
    """
    noises = []
    for key in keys:
        digest = hashlib.blake2b(f"grain/{key}".encode(), digest_size=8).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        noises.append(torch.randn(1, height + 2 * MARGIN, width + 2 * MARGIN, generator=own))
    return torch.stack(noises)


def grey_of(pictures: Tensor) -> Tensor:
    """Return the mean over colours, (B, 1, H, W) float32, of pictures (B, C, H, W)."""
    return pictures.float().mean(1, keepdim=True)


def inside(grey: Tensor) -> Tensor:
    """Return a mask (B, 1, H, W) of the inside of a face, without its outline; grey: (B, 1, H, W) in [-1, 1]."""
    face = (grey > FACE).float()
    return _or_all(-F.max_pool2d(-face, 2 * BAND + 1, 1, BAND))


def log_energies(grey: Tensor, where: Tensor) -> Tensor:
    """Return the mean log squared difference of neighbours ``LAGS`` apart, (B, 8); where: mask (B, 1, H, W)."""
    energies = []
    for lag in LAGS:
        first, second = _neighbours(grey, lag)
        weight = torch.mul(*_neighbours(where, lag))
        values = ((first - second).square() + ENERGY_FLOOR).log()
        energies.append(_mean(values, weight))
    return torch.cat(energies, dim=1)


def num_summary(z_channels: int) -> int:
    """Return the length of a :func:`summary`."""
    return len(LAGS) + 1 + z_channels * (1 + len(LATENT_LAGS))


def summary(pictures: Tensor, z: Tensor) -> Tensor:
    """Return what whole pictures say of their grain, (B, :func:`num_summary`) float32.

    Inside the face: the :func:`log_energies` and the mean of the decoded picture, the mean of the latent and the log
    energies of its differences.

    pictures: decoded, (B, C, H, W) in about [-1, 1]. z: the latents they are decoded from, (B, z, h, w).
    """
    grey, z = grey_of(pictures), z.float()
    where = inside(grey)
    cells = _or_all((F.adaptive_avg_pool2d(where, (z.shape[2], z.shape[3])) > 0.99).float())  # (B, 1, h, w)
    numbers = [log_energies(grey, where), _mean(grey, where), _mean(z, cells)]
    for lag in LATENT_LAGS:
        first, second = _neighbours(z, lag)
        energy = _mean((first - second).square(), torch.mul(*_neighbours(cells, lag)))
        numbers.append((energy + LATENT_FLOOR).log())
    return torch.cat(numbers, dim=1)


def _or_all(mask: Tensor) -> Tensor:
    """The mask (B, 1, H, W), with everything in it for a sample of which it has nothing."""
    return torch.where(mask.amax((1, 2, 3), keepdim=True) > 0, mask, torch.ones_like(mask))


def _neighbours(x: Tensor, lag: tuple[int, int]) -> tuple[Tensor, Tensor]:
    across, down = lag
    height, width = x.shape[2:]
    return x[..., down:, across:], x[..., : height - down, : width - across]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Over places: (B, C, H, W) -> (B, C)."""
    return (values * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1)


class Grain(nn.Module):
    """Grain for a decoded picture, the same in all colours. It computes in float32, whatever the dtype of its weights.

    Before :meth:`measure` has set the usual summaries, it adds exactly nothing.

    num_features: channels of the decoder's last features. z_channels: of the latent. num_filters: of the noise.
    num_exemplar: numbers, each of about mean 0 and deviation 1, that describe an exemplar's surface; 0: none.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int, z_channels: int, num_filters: int, num_exemplar: int = 0) -> None:
        super().__init__()
        num = num_summary(z_channels)
        with torch.random.fork_rng(devices=[]):  # all other draws are those of a model without grain
            self.filters = nn.Conv2d(1, num_filters, SIDE, bias=False)
            self.local = nn.Conv2d(num_features, _LOCAL, 3, padding=1)
            self.amplitude = nn.Conv2d(_LOCAL, num_filters, 1)
            self.whole = nn.Linear(num, _HIDDEN)
            self.shift = nn.Linear(_HIDDEN, num_filters + _LOCAL)
            self.exemplar = nn.Linear(num_exemplar, _HIDDEN) if num_exemplar else None
        self.register_buffer("mean", torch.zeros(num))
        self.register_buffer("deviation", torch.zeros(num))
        for layer, bias in ((self.amplitude, -4.0), (self.shift, 0.0)):  # softplus(-4): 0.018
            assert layer.bias is not None
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)
        with torch.no_grad():
            self.filters.weight.copy_(_first_filters(num_filters))

    @property
    def measured(self) -> bool:
        """Whether :meth:`measure` has set the usual summaries."""
        return bool(self.deviation.any())

    @torch.no_grad()
    def measure(self, summaries: Tensor) -> None:
        """Set the mean and the deviation of (N, F) summaries as the usual ones.

        The deviation is at least 2 % of the mean, so that the mean's rounding to bf16 does not count beside it.
        """
        mean = summaries.float().mean(0)
        self.mean.copy_(mean)
        spread = summaries.float().std(0, correction=0)
        self.deviation.copy_(spread.clamp(min=0.01).maximum(0.02 * mean.abs()))

    def forward(
        self,
        features: Tensor,
        pictures: Tensor,
        summaries: Tensor,
        noise: Tensor,
        exemplars: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return grain (B, 1, H, W) float32 for pictures, or for windows of them. Its mean over noise is 0.

        features: (B, C, H, W), the decoder's last, after its norm and SiLU. pictures: (B, 3, H, W) decoded from them.
        summaries: (B, F), of the whole pictures. noise: as :func:`grain_noise` gives it. exemplars: (B, num_exemplar),
        in place of the summaries where ``present`` (B,) is True; None: nowhere.

        Raises:
            ValueError: exemplars of other numbers than the head takes.
        """
        with torch.autocast(features.device.type, enabled=False):
            usual = (summaries.float() - self.mean.float()) / self.deviation.float().clamp(min=1e-4)
            hidden = F.silu(_linear(self.whole, usual.clamp(-LIMIT, LIMIT)))  # (B, _HIDDEN)
            if exemplars is not None and present is not None:
                hidden = torch.where(present[:, None], self._read(exemplars), hidden)
            shift = _linear(self.shift, hidden)
            own, among = shift[..., None, None].split([len(self.filters.weight), _LOCAL], dim=1)
            h = F.silu(_conv(self.local, features.float()) + among)  # (B, _LOCAL, H, W)
            strength = F.softplus(_conv(self.amplitude, h) + own)  # (B, filters, H, W)
            lit = ((grey_of(pictures) - BLACK) / RAMP).clamp(0, 1)  # (B, 1, H, W)
            lit = lit * (self.deviation.amax() > 0)
            return lit * (strength * _conv(self.filters, noise.float())).sum(1, keepdim=True)

    def _read(self, exemplars: Tensor) -> Tensor:
        expected = 0 if self.exemplar is None else self.exemplar.in_features
        if self.exemplar is None or exemplars.shape[1] != expected:
            raise ValueError(
                f"grain: got exemplars of {exemplars.shape[1]} numbers, the head takes {expected}"
            )
        return F.silu(_linear(self.exemplar, exemplars.float().clamp(-LIMIT, LIMIT)))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.conv2d(x, layer.weight.float(), bias, padding=int(layer.padding[0]))


def _first_filters(num: int) -> Tensor:
    """Gaussians of four widths, plain and less their mean in turns of four: (num, 1, SIDE, SIDE) of norm 1."""
    x = torch.arange(float(SIDE)) - MARGIN
    square = x[:, None] ** 2 + x**2
    filters = []
    for k in range(num):
        bell = (-square / (2 * (0.35, 0.6, 0.9, 1.3)[k % 4] ** 2)).exp()
        bell = bell - bell.mean() if k // 4 % 2 else bell
        filters.append(bell / bell.norm())
    return torch.stack(filters)[:, None]
