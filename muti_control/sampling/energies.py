"""Energies of decoded faces, one value for each face, and the gradient of their weighted sum, which SPGD descends.

Values: landmarks, mean squared distance in units of (1 % of the picture's side)^2; containment, share of the bone
that lies on background, softly counted; realism, the discriminator's LSGAN loss, 1 a scale where it is sure of a
fake; texture, mean squared difference of the logarithms of what each band of detail holds; match, 1 less
the cosine of face and skull in the matching network.

Weights do not depend on these units: the gradient of each energy with respect to the picture is divided, sample by
sample, by the root mean square that its norm has had in the run so far. So weight 1 on two energies makes both pull
alike, with any network behind them, and only the ratio of the weights counts; spgd.scale says how far a face moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cldm.branches import Landmarks
from cldm.spgd import RunningNorm, norm, per_sample
from cldm.texture import TextureError
from muti_control.networks.match import MatchNet
from muti_control.networks.patchgan import PatchGan, judged, lsgan_generator
from muti_control.networks.pipnet.reader import LandmarkReader

BONE = 0.06  # brightness in [0, 1] from which a pixel of a skull picture is bone, its background being black
SURFACE = 0.1  # brightness below which a face begins to count as background
DETAIL_SIDES = (3, 5, 9)  # px: the windows whose means part the bands of detail
LEAST_SURFACE = 0.01  # of an exemplar, as a share of the picture
LEAST_DETAIL = 0.005  # of its strongest band; rounding leaves 0.0023, faces of 512 px have 0.023 or more


class Energy(Protocol):
    """An energy of the faces of a batch, whose conditions it holds."""

    def __call__(self, faces: Tensor, rows: slice) -> Tensor:
        """Return the energies (n,) float32 of faces (n, 3, H, W) about [-1, 1], float32, ``rows`` of the batch."""


class LandmarkEnergy:
    """Distance of the landmarks that a network reads off the face from their targets.

    Args:
        reader: of faces. targets: of the batch; each point counts by its confidence.
    """

    def __init__(self, reader: LandmarkReader, targets: Landmarks) -> None:
        self._reader, device = reader, reader.reverse.device
        self._points = targets.points.to(device)  # (B, N, 2)
        self._weights = targets.confidence.to(device) * targets.present.to(device)[:, None]  # (B, N)

    def __call__(self, faces: Tensor, rows: slice) -> Tensor:
        side = self._reader.net.cfg.image_size
        pictures = faces / 2 + 0.5
        if pictures.shape[-1] != side:
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        points, _ = self._reader.soft(pictures)  # (n, N, 2)
        squares = (100 * (points - self._points[rows])).square().sum(2)
        weights = self._weights[rows]
        return (squares * weights).sum(1) / weights.sum(1).clamp(min=1e-6)


class ContainmentEnergy:
    """Bone outside the face: where the skull picture shows bone, the face must not be background.

    Args:
        skulls: (B, 3, H, W) in [0, 1], on black.
    """

    def __init__(self, skulls: Tensor) -> None:
        self._bone = (skulls.mean(1, keepdim=True) > BONE).float()  # (B, 1, H, W)

    def __call__(self, faces: Tensor, rows: slice) -> Tensor:
        bone = self._bone[rows].to(faces)
        brightness = F.avg_pool2d(faces.mean(1, keepdim=True) / 2 + 0.5, 3, 1, 1, count_include_pad=False)
        lacking = ((SURFACE - brightness).clamp(min=0) / SURFACE).square()
        return (lacking * bone).flatten(1).sum(1) / bone.flatten(1).sum(1).clamp(min=1)


class RealismEnergy:
    """The LSGAN loss of a discriminator that sees the face with its skull.

    Args:
        skulls: (B, 3, H, W) in [0, 1].
    """

    def __init__(self, net: PatchGan, skulls: Tensor) -> None:
        self._net, self._skulls = net, skulls

    def __call__(self, faces: Tensor, rows: slice) -> Tensor:
        return lsgan_generator(self._net(judged(self._skulls[rows].to(faces), faces)))


class TextureEnergy:
    """Difference in detail from an exemplar, band by band, wherever on the surface the detail lies.

    Args:
        exemplars: (B, 3, H, W) in [0, 1], of the faces' size.
    """

    def __init__(self, exemplars: Tensor) -> None:
        self._target = detail(exemplars * 2 - 1)  # (B, F)

    def __call__(self, faces: Tensor, rows: slice) -> Tensor:
        return (detail(faces) - self._target[rows].to(faces)).square().mean(1)


class MatchEnergy:
    """How badly a face matches its skull: 1 less the cosine of their vectors.

    Args:
        skulls: (B, 3, H, W) in [0, 1]. sex: (B,) of ``muti_control.networks.match.sexes``.
    """

    def __init__(self, net: MatchNet, skulls: Tensor, sex: Tensor) -> None:
        self._net = net
        with torch.inference_mode(False), torch.no_grad():
            self._vectors = net.skull(skulls.float(), sex.to(skulls.device))  # (B, V)

    def __call__(self, faces: Tensor, rows: slice) -> Tensor:
        return 1 - (self._net.face(faces / 2 + 0.5) * self._vectors[rows]).sum(1)


def check_exemplar(picture: Tensor) -> None:
    """Refuse a picture (3, H, W) in [0, 1] that shows no surface to imitate.

    Raises:
        TextureError: the picture is nearly black, or without detail.
    """
    face = picture[None] * 2 - 1
    share = float(_surface(face.mean(1, keepdim=True)).mean())
    if share < LEAST_SURFACE:
        raise TextureError(
            f"{100 * share:.1f} % of the picture is surface, expected a face on black that fills "
            f"{100 * LEAST_SURFACE:g} % or more of it"
        )
    if float(detail(face).exp().max()) < LEAST_DETAIL:
        raise TextureError("the surface is without any detail, expected the picture of a face")


def _surface(grey: Tensor) -> Tensor:
    """Return 1 where every window of ``detail`` lies within the surface, else 0; grey: (B, 1, H, W) in [-1, 1]."""
    side = DETAIL_SIDES[-1]
    surface = (grey.detach() > 2 * SURFACE - 1).float()
    return 1 - F.max_pool2d(1 - surface, side, 1, side // 2)


def detail(faces: Tensor) -> Tensor:
    """Return the logarithm of each band's strength in faces (B, 3, H, W) in [-1, 1]: (B, bands) float32.

    A band is the difference between a window's mean and the next smaller one's; its strength is the root mean square
    over the surface.
    """
    grey = faces.float().mean(1, keepdim=True)
    inside = _surface(grey)
    area = inside.flatten(1).sum(1).clamp(min=1)
    bands, last = [], grey
    for side in DETAIL_SIDES:
        mean = F.avg_pool2d(grey, side, 1, side // 2, count_include_pad=False)
        power = ((last - mean).square() * inside).flatten(1).sum(1) / area
        bands.append((power + 1e-6).log() / 2)
        last = mean
    return torch.stack(bands, 1)


class DecodedEnergies:
    """The energies of latents' pictures, and the gradient of their weighted sum: an ``EnergyGradient``.

    Runs chunk by chunk, forwards and backwards at once: the decoder's activations of one chunk are all that is held.
    The decoder computes in its own precision; pictures, energies and gradients are float32.

    Args:
        decode: latents (n, z, h, w) -> pictures (n, 3, H, W) about [-1, 1], with gradient.
        terms: weight and energy by name. at_once: faces decoded together.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        terms: Mapping[str, tuple[float, Energy]],
        at_once: int,
    ) -> None:
        self._decode, self._terms, self._at_once = decode, terms, at_once
        self._typical = {name: RunningNorm() for name in terms}

    def __call__(self, x_0: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """Return energies by name, (B,) each, and the gradient (B, z, h, w), of latents x_0 (B, z, h, w) float32."""
        values: dict[str, list[Tensor]] = {name: [] for name in self._terms}
        gradients = []
        for first in range(0, len(x_0), self._at_once):
            rows = slice(first, min(first + self._at_once, len(x_0)))
            with torch.enable_grad():
                z = x_0[rows].detach().requires_grad_()
                faces = self._decode(z)
                pictures = faces.detach().float().requires_grad_()
                pull = torch.zeros_like(pictures)
                for name, (weight, energy) in self._terms.items():
                    result = energy(pictures, rows)
                    (g,) = torch.autograd.grad(result.sum(), pictures)
                    values[name].append(result.detach())
                    typical = self._typical[name](norm(g), rows, len(x_0))
                    pull += g * per_sample(weight / typical, g)
                (g_z,) = torch.autograd.grad(faces, z, pull.to(faces))
            gradients.append(g_z.float())
        return {name: torch.cat(parts) for name, parts in values.items()}, torch.cat(gradients)
