"""Grain: what an autoencoder cannot carry through its latent grain for grain, drawn anew with noise of a seed.

An error by pixels is smallest where grain is wiped out, but the latent still tells how much of it there was. So the
decoder's picture stays the mean, and the picture that is shown is the mean plus white noise through a few small learned
filters, each as strong as the place (the decoder's last features) and the whole picture (:func:`summary`) call for. In
place of the whole picture an exemplar may say how the surface shall look: numbers that tell of its style and of nothing
else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAGS = ((1, 0), (0, 1), (2, 0), (0, 2), (3, 0), (0, 3), (5, 0), (0, 5))  # px, (across, down)
LATENT_LAGS = LAGS[:4]  # cells
ENERGY_FLOOR = 1e-4  # of a squared difference: what the rounding of bf16 adds is below it
LATENT_FLOOR = 1e-5
FACE, BAND = -0.9, 4  # what is brighter is face, but for this many px beside what is not
BLACK, RAMP = -0.95, 0.1  # no grain up to this grey, and all of it from RAMP above: black stays black
SIDE = 5  # px of a filter
MARGIN = SIDE // 2  # noise is wider than the picture by this on every side
LIMIT = 4.0  # deviations beyond which a summary counts as this far off
_LOCAL, _HIDDEN = 24, 48  # widths


def grain_noise(keys: Sequence[int | str], height: int, width: int) -> Tensor:
    """White noise (B, 1, height + 2 MARGIN, width + 2 MARGIN), float32 on the CPU: each sample's follows from its key.

    keys: a sample's seed, or another name of it. The streams are other ones than those of generators that are
    seeded with the same numbers, so nothing that is drawn from these is shifted or repeated.
    """
    drawn = []
    for key in keys:
        digest = hashlib.blake2b(f"grain/{key}".encode(), digest_size=8).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn.append(torch.randn(1, height + 2 * MARGIN, width + 2 * MARGIN, generator=own))
    return torch.stack(drawn)


def grey_of(pictures: Tensor) -> Tensor:
    """Pictures (B, C, H, W) -> their mean over colours, (B, 1, H, W) float32."""
    return pictures.float().mean(1, keepdim=True)


def inside(grey: Tensor) -> Tensor:
    """Where a face is, and not its outline: (B, 1, H, W) of 0 and 1, of grey (B, 1, H, W) in [-1, 1] on black."""
    face = (grey > FACE).float()
    return _or_all(-F.max_pool2d(-face, 2 * BAND + 1, 1, BAND))


def log_energies(grey: Tensor, where: Tensor) -> Tensor:
    """Mean log squared difference of neighbours ``LAGS`` apart, (B, 8), over the places ``where`` (B, 1, H, W) is 1."""
    found = []
    for lag in LAGS:
        first, second = _neighbours(grey, lag)
        weight = torch.mul(*_neighbours(where, lag))
        values = ((first - second).square() + ENERGY_FLOOR).log()
        found.append(_mean(values, weight))
    return torch.cat(found, dim=1)


def num_summary(z_channels: int) -> int:
    """How many numbers :func:`summary` gives of a picture."""
    return len(LAGS) + 1 + z_channels * (1 + len(LATENT_LAGS))


def summary(pictures: Tensor, z: Tensor) -> Tensor:
    """What whole pictures tell of their grain, (B, :func:`num_summary`) float32.

    Inside the face: the :func:`log_energies` and the mean of the decoded picture, the mean of the latent and the log
    energies of its differences.

    pictures: decoded, (B, C, H, W) in about [-1, 1]. z: the latents they are decoded from, (B, z, h, w).
    """
    grey, z = grey_of(pictures), z.float()
    where = inside(grey)
    cells = _or_all((F.adaptive_avg_pool2d(where, (z.shape[2], z.shape[3])) > 0.99).float())  # (B, 1, h, w)
    found = [log_energies(grey, where), _mean(grey, where), _mean(z, cells)]
    for lag in LATENT_LAGS:
        first, second = _neighbours(z, lag)
        energy = _mean((first - second).square(), torch.mul(*_neighbours(cells, lag)))
        found.append((energy + LATENT_FLOOR).log())
    return torch.cat(found, dim=1)


def _or_all(mask: Tensor) -> Tensor:
    """Of a sample of which nothing is in the mask (B, 1, H, W), everything."""
    return torch.where(mask.amax((1, 2, 3), keepdim=True) > 0, mask, torch.ones_like(mask))


def _neighbours(x: Tensor, lag: tuple[int, int]) -> tuple[Tensor, Tensor]:
    across, down = lag
    height, width = x.shape[2:]
    return x[..., down:, across:], x[..., : height - down, : width - across]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Over places: (B, C, H, W) -> (B, C)."""
    return (values * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1)


class Grain(nn.Module):
    """Grain to be added to a decoded picture, the same in all colours. It computes in float32 whatever its weights are.

    Until :meth:`measure` was given what summaries are usual, it adds exactly nothing.

    num_features: channels of the decoder's last features. z_channels: of the latent. num_filters: of the noise.
    num_exemplar: numbers, each of about mean 0 and deviation 1, that tell how an exemplar's surface looks; 0: it
    follows none.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int, z_channels: int, num_filters: int, num_exemplar: int = 0) -> None:
        super().__init__()
        num = num_summary(z_channels)
        with torch.random.fork_rng(devices=[]):  # whatever else is drawn, is drawn as without grain
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
        """Whether it knows what summaries are usual; one that does not adds nothing."""
        return bool(self.deviation.any())

    @torch.no_grad()
    def measure(self, summaries: Tensor) -> None:
        """Take the mean and the deviation of (N, F) summaries as the usual ones.

        A deviation so small that the mean's rounding to bf16 would count beside it is taken as larger.
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
        shown: Tensor | None = None,
    ) -> Tensor:
        """Grain (B, 1, H, W) float32 for pictures, or for windows of them; of mean 0 over noise, whatever the rest is.

        features: (B, C, H, W), the decoder's last, after its norm and SiLU. pictures: (B, 3, H, W) decoded from them.
        summaries: (B, F), of the whole pictures. noise: as :func:`grain_noise` gives it. exemplars: (B, num_exemplar),
        looked at in place of the summaries where ``shown`` (B,) is True; None: nowhere.

        Raises:
            ValueError: exemplars of other numbers than the head takes.
        """
        with torch.autocast(features.device.type, enabled=False):
            usual = (summaries.float() - self.mean.float()) / self.deviation.float().clamp(min=1e-4)
            hidden = F.silu(_linear(self.whole, usual.clamp(-LIMIT, LIMIT)))  # (B, _HIDDEN)
            if exemplars is not None and shown is not None:
                hidden = torch.where(shown[:, None], self._told(exemplars), hidden)
            shift = _linear(self.shift, hidden)
            own, among = shift[..., None, None].split([len(self.filters.weight), _LOCAL], dim=1)
            h = F.silu(_conv(self.local, features.float()) + among)  # (B, _LOCAL, H, W)
            strength = F.softplus(_conv(self.amplitude, h) + own)  # (B, filters, H, W)
            lit = ((grey_of(pictures) - BLACK) / RAMP).clamp(0, 1)  # (B, 1, H, W)
            lit = lit * (self.deviation.amax() > 0)
            return lit * (strength * _conv(self.filters, noise.float())).sum(1, keepdim=True)

    def _told(self, exemplars: Tensor) -> Tensor:
        taken = 0 if self.exemplar is None else self.exemplar.in_features
        if self.exemplar is None or exemplars.shape[1] != taken:
            raise ValueError(f"grain: got exemplars of {exemplars.shape[1]} numbers, the head takes {taken}")
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
    found = []
    for k in range(num):
        bell = (-square / (2 * (0.35, 0.6, 0.9, 1.3)[k % 4] ** 2)).exp()
        bell = bell - bell.mean() if k // 4 % 2 else bell
        found.append(bell / bell.norm())
    return torch.stack(found)[:, None]
