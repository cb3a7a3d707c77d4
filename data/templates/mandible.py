"""A mandible for the scanned cranium, whose own ends at the rami: our own model, in the reference head's frame (mm).

Body and lower ramus are a plate that follows a path from the chin to the angle of the jaw; the skin moved inwards by
the tissue depth says where the path and its borders lie. Condyle and coronoid process come from the scan, the lower
teeth are the scan's upper ones turned upside down and narrowed to the widths of lower teeth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial import cKDTree

from data.templates.implicit import Capsule, Ellipsoid, Solid

SIDES = (-1, 1)
# Left half, from the chin backwards: x, z of the plate's middle; lower and upper border (y); half thickness; how far
# (mm) the upper border lies outside the lower one (towards the cheek), negative: inside.
PLATE = (
    (0.0, 72.4, -103.0, -81.0, 6.2, 9.5),
    (8.0, 71.2, -104.0, -81.0, 5.9, 8.5),
    (16.0, 65.6, -103.8, -80.5, 5.3, 4.5),
    (24.0, 56.8, -101.3, -80.0, 5.2, -0.5),
    (31.0, 47.5, -97.0, -78.5, 5.5, -4.5),
    (37.0, 38.5, -92.0, -66.0, 4.6, -2.5),
    (42.7, 29.5, -87.0, -53.0, 3.5, -0.5),
    (46.3, 22.0, -81.0, -48.0, 2.9, 0.0),
    (49.0, 15.5, -71.0, -47.0, 2.6, 0.0),
)
UPPER_WIDTHS = (
    8.5,
    6.6,
    7.6,
    7.0,
    6.8,
    10.2,
    9.8,
    8.6,
)  # mesio-distal, mm, from the midline backwards: usual means
LOWER_WIDTHS = (5.3, 5.9, 6.8, 7.0, 7.1, 11.2, 10.6, 10.0)
# The edges of the upper teeth lie in a plane that rises backwards: y = OCCLUSAL_Y + OCCLUSAL_RISE * (84 - z).
OCCLUSAL_Y, OCCLUSAL_RISE, GAP_MM = -73.0, 0.045, 0.5
LOWER_SETBACK_MM = 4.0
UPPER_ARCH = (  # x, z of the middle of the upper crowns, left half
    (0.0, 84.5), (4.5, 84.2), (10.5, 81.3), (15.5, 76.0), (19.5, 69.5), (22.5, 62.5), (25.5, 54.5), (27.5, 45.5),
    (28.5, 37.0),
)  # fmt: skip


@dataclass(frozen=True)
class Arch:
    """A plane curve (x, z) through given points, sampled densely from one end to the other, both halves."""

    points: np.ndarray
    normals: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of_half(cls, half: np.ndarray) -> Arch:
        whole = np.vstack([half[:0:-1] * [-1, 1], half])
        knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(whole, axis=0), axis=1))])
        knots -= knots[len(half) - 1]
        lengths = np.linspace(knots[0], knots[-1], 1600)
        spline = PchipInterpolator(knots, whole)
        points, ways = spline(lengths), spline.derivative()(lengths)
        normals = np.stack([-ways[:, 1], ways[:, 0]], 1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return cls(points, normals, lengths)

    def locate(self, xz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) -> arc length from the middle (left positive), and how far outside the curve (cheek side +), mm."""
        nearest = cKDTree(self.points).query(xz)[1]
        outside = ((xz - self.points[nearest]) * self.normals[nearest]).sum(1)
        return self.lengths[nearest], outside

    def place(self, length: np.ndarray, outside: np.ndarray) -> np.ndarray:
        at = np.stack([np.interp(length, self.lengths, self.points[:, k]) for k in range(2)], 1)
        normal = np.stack([np.interp(length, self.lengths, self.normals[:, k]) for k in range(2)], 1)
        return at + outside[:, None] * normal


def plate_field(points: np.ndarray) -> np.ndarray:
    """(..., 3) -> signed distance (about, mm, negative inside) of body and lower ramus."""
    plate = np.array(PLATE)
    curve = Arch.of_half(plate[:, :2])
    flat = points.reshape(-1, 3)
    length, outside = curve.locate(flat[:, [0, 2]])
    half_lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(plate[:, :2], axis=0), axis=1))])
    low, high, thickness, lean = (
        PchipInterpolator(half_lengths, plate[:, k])(np.abs(length)) for k in (2, 3, 4, 5)
    )
    height = flat[:, 1]
    up = (height - low) / (high - low)  # 0 at the lower border, 1 at the upper one
    outside = outside - lean * (up - 0.5)
    belly = 1.0 - 0.42 * np.clip(up, 0, 1.3) ** 1.5 - 0.08 * np.exp(-(((up - 0.55) / 0.16) ** 2))
    across = np.abs(outside) / (thickness * belly)
    upright = np.abs(up - 0.5) * 2
    norm = (across**2.4 + upright**3.6) ** (1 / 2.8)
    field = (norm - 1) * np.minimum(thickness, 6.0)
    beyond = np.abs(length) - half_lengths[-1]
    return (
        np.where(
            beyond > -0.05,
            np.maximum(
                field, np.hypot(*(flat[:, [0, 2]] - curve.place(length, np.zeros_like(length))).T) - thickness
            ),
            field,
        )
        .reshape(points.shape[:-1])
        .astype(np.float32)
    )


def add_chin(jaw: Solid) -> Solid:
    """Mental protuberance with its tubercles, and mental foramina."""
    jaw.add(Ellipsoid(np.array([0, -97.5, 71.3]), (8.0, 7.0, 4.6), 2.0), 5)
    for s in SIDES:
        jaw.add(Ellipsoid(np.array([s * 9.5, -100.6, 69.5]), (6.0, 3.2, 4.4), 2.0), 6)
        jaw.cut(Capsule(np.array([s * 30.0, -90.5, 62.5]), np.array([s * 26, -91.5, 57]), 1.5, 1.0), 0.8)
    return jaw


def upper_arch() -> Arch:
    return Arch.of_half(np.array(UPPER_ARCH))


def lower_arch() -> Arch:
    return Arch.of_half(np.array(UPPER_ARCH) - LOWER_SETBACK_MM * np.array(_inward(upper_arch())))


def crown_edge(z: np.ndarray) -> np.ndarray:
    """Height of the edges of the upper teeth at a depth z."""
    return OCCLUSAL_Y + OCCLUSAL_RISE * (84 - z)


def upper_place(points: np.ndarray) -> np.ndarray:
    """(..., 3) places in the lower teeth -> the places of the upper teeth whose likeness they are."""
    upper, lower = upper_arch(), lower_arch()
    flat = points.reshape(-1, 3)
    length, outside = lower.locate(flat[:, [0, 2]])
    bounds_upper = np.concatenate([[0], np.cumsum(UPPER_WIDTHS)])
    bounds_lower = np.concatenate([[0], np.cumsum(LOWER_WIDTHS)])
    # The arches end behind the same tooth: the lower widths are brought to the upper arch's length.
    bounds_lower = bounds_lower * bounds_upper[-1] / bounds_lower[-1] * 0.97
    along = np.sign(length) * np.interp(np.abs(length), bounds_lower, bounds_upper)
    xz = upper.place(along, outside * 1.1)
    edge = crown_edge(flat[:, 2])
    height = edge + (edge - GAP_MM - flat[:, 1])
    return np.stack([xz[:, 0], height, xz[:, 1]], 1).reshape(points.shape)


def _inward(curve: Arch) -> list[np.ndarray]:
    half = np.array(UPPER_ARCH)
    nearest = cKDTree(curve.points).query(half)[1]
    return list(curve.normals[nearest])
