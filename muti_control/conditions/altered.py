"""Skull pictures altered as users' pictures are, while training: place, light, surface, grey levels and files.

The model's faces are registered to the skull picture that it sees. So what moves a skull moves the face and the
landmarks with it; light, surface and grey levels are the skull's alone. ``prepare=auto`` undoes large moves before a
face is drawn; training covers what it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.images import to_uint8
from data.partial import DRAWN

Floats = NDArray[np.float32]

SHARE = 0.5  # of the altered pictures that each kind alters
UNALTERED = 0.2  # of the training pictures
MM_PER_PX = 280 / 256  # of a picture of 256 px
AMBIENT = 0.35  # of the light that comes from everywhere
_OUTLINE, _DETAIL = 9.0, 3.0  # px at 256: how smooth the two heights are that normals are taken from
_DETAIL_PX = 14.0  # px of height between black and white bone: dark is deep

# Kind -> the least and the greatest amount at strength 1. A skull is moved along both axes (px at 256), turned
# (degrees), scaled (powers of e), lit by a lamp so many degrees off the camera, darkened along so many tenths of its
# side, regraded (powers of 2, of the gamma), brightened (powers of e), sliced (mm; 0 is not at all), blurred (px at
# 256), given noise (shares of white) and stored as JPEG (100 less its quality).
MOST: Mapping[str, tuple[float, float]] = {
    "right": (-12, 12),
    "down": (-12, 12),
    "turn": (-6, 6),
    "scale": (-0.08, 0.08),
    "lamp": (0, 50),
    "falloff": (0, 5),
    "gamma": (-0.5, 0.5),
    "brightness": (-0.2, 0.2),
    "slices": (0, 5),
    "blur": (0, 1.5),
    "noise": (0, 0.05),
    "jpeg": (0, 60),
}
_MOVES = ("right", "down", "turn", "scale")


@dataclass(frozen=True)
class Alteration:
    """What is done to one picture: amounts by the kinds of ``MOST``, where the lamp stands (radians), a seed."""

    amounts: Mapping[str, float]
    lamp_at: float = 0.0
    seed: int = 0

    def affine(self, size: int) -> NDArray[np.float64]:
        """Return (2, 3), from px of the picture before to px of the picture after; pixel centres at integers."""
        right, down, turn, scale = (self.amounts.get(kind, 0.0) for kind in _MOVES)
        middle = (size - 1) / 2
        matrix = cv2.getRotationMatrix2D((middle, middle), turn, float(np.exp(scale))).astype(np.float64)
        matrix[:, 2] += np.array([right, down]) * size / 256
        return matrix

    @property
    def moves(self) -> bool:
        """Whether face and landmarks move too."""
        return any(self.amounts.get(kind, 0.0) for kind in _MOVES)

    def moved(self, picture: Floats) -> Floats:
        """Return a picture (H, H, C), its black background 0, moved: a skull, or the face that belongs to it."""
        if not self.moves:
            return picture
        size = picture.shape[0]
        result = cv2.warpAffine(picture, self.affine(size), (size, size), flags=cv2.INTER_CUBIC)
        return np.clip(result, 0, 1).reshape(picture.shape).astype(np.float32, copy=False)

    def points(self, size: int) -> Floats:
        """Return (2, 3) float32: takes landmarks, fractions of the picture, where ``moved`` takes what they mark."""
        matrix = self.affine(size)
        # fractions are (px + 0.5) / size
        shift = (matrix[:, 2] + matrix[:, :2] @ np.full(2, -0.5) + 0.5) / size
        return np.column_stack([matrix[:, :2], shift]).astype(np.float32)

    def skull(self, picture: Floats) -> Floats:
        """Return a skull picture (H, H, 1 or 3) float32 in [0, 1], altered; black stays black but for JPEG."""
        rng, result = np.random.default_rng(self.seed), picture
        for kind, change in _CHANGES.items():
            if kind == "blur":
                result = self.moved(result)
            if amount := self.amounts.get(kind, 0.0):
                result = change(result, amount, self.lamp_at, rng)
        return result if result is picture else np.clip(result, 0, 1).astype(np.float32)


def draw_alteration(rng: np.random.Generator, strength: float = 1.0, share: float = SHARE) -> Alteration:
    """Return a random alteration; each kind acts with probability ``share``, its range is ``strength`` times MOST's."""
    chosen, places = rng.random((2, len(MOST)))
    amounts = {
        kind: float(strength * (low + (high - low) * place))
        for (kind, (low, high)), choice, place in zip(MOST.items(), chosen, places, strict=True)
        if choice < share
    }
    return Alteration(amounts, float(rng.uniform(0, 2 * np.pi)), int(rng.integers(2**31)))


def alteration_of(name: str, epoch: int, seed: int, strength: float) -> Alteration:
    """Return the alteration of a training picture in one pass over the data; it follows from these alone."""
    rng = np.random.default_rng([seed, epoch, *name.encode("utf-8", "surrogateescape")])
    return Alteration({}) if rng.random() < UNALTERED else draw_alteration(rng, strength)


def on_tensor(change: Callable[[Floats], Floats], picture: Tensor) -> Tensor:
    """Return a picture (C, H, W) in [0, 1], changed by a method of an alteration; three equal planes cost one."""
    grey = bool((picture == picture[:1]).all())
    planes = (picture[:1] if grey else picture).permute(1, 2, 0).numpy()
    changed = torch.from_numpy(np.ascontiguousarray(change(planes).transpose(2, 0, 1)))
    return changed.expand_as(picture).contiguous()


def moved_points(points: Tensor, affine: Tensor) -> Tensor:
    """Return points (..., N, 2), fractions, moved by ``Alteration.points`` (..., 2, 3)."""
    return points @ affine[..., :2].mT + affine[..., None, :, 2]


def _sliced(picture: Floats, mm: float, _lamp: float, rng: np.random.Generator) -> Floats:
    """Draw the rows of slices so many mm thick: the mean of each, and half a step from one to the next."""
    size = picture.shape[0]
    rows = mm / MM_PER_PX * size / 256
    if rows <= 1:
        return picture
    first = float(rng.random()) * rows
    edges = np.concatenate([[0], np.arange(first, size, rows), [size]])
    sums = np.concatenate([np.zeros((1, *picture.shape[1:]), np.float32), np.cumsum(picture, 0)])
    at = np.interp(edges, np.arange(size + 1), np.arange(size + 1))
    low = np.minimum(at.astype(int), size - 1)
    whole = sums[low] + (at - low)[:, None, None] * (sums[low + 1] - sums[low])
    means = np.diff(whole, axis=0) / np.maximum(np.diff(edges), 1e-6)[:, None, None]
    place = np.arange(size) + 0.5
    number = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(means) - 1)
    middles = (edges[1:] + edges[:-1]) / 2
    upper = np.clip(np.searchsorted(middles, place) - 1, 0, len(means) - 2)
    share = np.clip((place - middles[upper]) / np.maximum(middles[upper + 1] - middles[upper], 1e-6), 0, 1)
    smooth = means[upper] + share[:, None, None] * (means[upper + 1] - means[upper])
    return (0.5 * (means[number] + smooth)).astype(np.float32)


def _lit(picture: Floats, degrees: float, at: float, _rng: np.random.Generator) -> Floats:
    """Light by a lamp so many degrees off the camera, from the side ``at`` (0 the right, a quarter turn down).

    The normals are those of a height: the inflated outline of the head, and on it the picture itself, dark being deep.
    """
    normal = _normals(picture)
    tilt = np.radians(degrees)
    lamp = np.array([np.sin(tilt) * np.cos(at), np.sin(tilt) * np.sin(at), np.cos(tilt)], np.float32)
    facing = AMBIENT + (1 - AMBIENT) * np.clip(normal @ lamp, 0, None)
    before = AMBIENT + (1 - AMBIENT) * normal[..., 2]
    return picture * np.clip(facing / before, 0.15, 1.8)[..., None].astype(np.float32)


def _normals(picture: Floats) -> Floats:
    """Return (H, H, 3) unit normals, x right, y down, z towards the camera."""
    size = picture.shape[0]
    grey = cv2.resize(
        picture.mean(2), (size // 2, size // 2), interpolation=cv2.INTER_AREA
    )  # what is sought is smooth
    px = grey.shape[0] / 256
    bone = (grey > DRAWN).astype(np.uint8)
    filled = cv2.morphologyEx(bone, cv2.MORPH_CLOSE, np.ones((round(15 * px) | 1,) * 2, np.uint8))
    depth = cv2.distanceTransform(filled, cv2.DIST_L2, 5)
    widest = max(float(depth.max()), 1.0)
    inflated = np.sqrt(np.clip(2 * widest * depth - depth**2, 0, None))  # a circle's height over its rim
    inflated = cv2.GaussianBlur(inflated, (0, 0), _OUTLINE * px)
    height = inflated + _DETAIL_PX * px * cv2.GaussianBlur(grey, (0, 0), _DETAIL * px)
    down, right = np.gradient(height)
    normal = cv2.resize(np.stack([-right, -down, np.ones_like(height)], -1), (size, size))
    return (normal / np.linalg.norm(normal, axis=2, keepdims=True)).astype(np.float32)


def _falling(picture: Floats, tenths: float, at: float, _rng: np.random.Generator) -> Floats:
    """Darken away from the lamp's side, by so many tenths from one border of the picture to the other."""
    place = np.linspace(-1, 1, picture.shape[0], dtype=np.float32)
    towards = place[None, :] * np.float32(np.cos(at)) + place[:, None] * np.float32(np.sin(at))
    return picture * (1 + np.float32(tenths / 10) * towards)[..., None]


def _noisy(picture: Floats, level: float, _lamp: float, rng: np.random.Generator) -> Floats:
    """Add noise of this standard deviation where bone is drawn."""
    noise = rng.standard_normal((*picture.shape[:2], 1), np.float32) * np.float32(level)
    return np.where(picture.max(2, keepdims=True) > DRAWN, picture + noise, picture)


def _as_jpeg(picture: Floats, lost: float, _lamp: float, _rng: np.random.Generator) -> Floats:
    """Store as JPEG of quality 100 less ``lost``, and read again."""
    _, stored = cv2.imencode(".jpg", to_uint8(picture), [cv2.IMWRITE_JPEG_QUALITY, round(100 - lost)])
    flags = cv2.IMREAD_GRAYSCALE if picture.shape[2] == 1 else cv2.IMREAD_COLOR
    read = cv2.imdecode(stored, flags)
    assert read is not None, "OpenCV reads what it has just written"
    return (read.reshape(picture.shape) / np.float32(255)).astype(np.float32)


def _regraded(picture: Floats, octaves: float, _lamp: float, _rng: np.random.Generator) -> Floats:
    return np.clip(picture, 0, 1) ** np.float32(2**octaves)


def _brightened(picture: Floats, amount: float, _lamp: float, _rng: np.random.Generator) -> Floats:
    return picture * np.float32(np.exp(amount))


def _blurred(picture: Floats, sigma: float, _lamp: float, _rng: np.random.Generator) -> Floats:
    result = cv2.GaussianBlur(picture, (0, 0), max(sigma * picture.shape[0] / 256, 0.05))
    return result.reshape(picture.shape).astype(np.float32, copy=False)


# In the order of their making: the scan, its rendering, the moves (before "blur"), the picture, its file.
_CHANGES: Mapping[str, Callable[[Floats, float, float, np.random.Generator], Floats]] = {
    "slices": _sliced,
    "lamp": _lit,
    "falloff": _falling,
    "blur": _blurred,
    "gamma": _regraded,
    "brightness": _brightened,
    "noise": _noisy,
    "jpeg": _as_jpeg,
}
