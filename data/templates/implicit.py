"""Solids as sampled distance fields: negative inside, in mm, joined and cut with rounded seams.

A shape is evaluated only in a box around itself; the rest of the volume is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

FAR_MM = 1e3


def smooth_min(a: np.ndarray, b: np.ndarray, rounding: float) -> np.ndarray:
    """Minimum with a fillet of about ``rounding`` mm. Source: Quilez, "Smooth minimum" (the quadratic one)."""
    share = np.clip(0.5 + 0.5 * (b - a) / rounding, 0, 1)
    return b * (1 - share) + a * share - rounding * share * (1 - share)


def smooth_max(a: np.ndarray, b: np.ndarray, rounding: float) -> np.ndarray:
    return -smooth_min(-a, -b, rounding)


class Shape(Protocol):
    def bounds(self) -> tuple[np.ndarray, np.ndarray]: ...

    def distance(self, points: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Ellipsoid:
    """Super-ellipsoid; ``power`` 2 is an ellipsoid, larger is boxier. ``tilt`` turns it in the frontal plane (deg)."""

    center: np.ndarray
    radii: tuple[float, float, float]
    power: float = 2.0
    tilt: float = 0.0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        reach = np.array([max(self.radii[:2]), max(self.radii[:2]), self.radii[2]])
        return self.center - reach, self.center + reach

    def distance(self, points: np.ndarray) -> np.ndarray:
        offset = points - self.center.astype(np.float32)
        cos, sin = np.cos(np.radians(self.tilt)), np.sin(np.radians(self.tilt))
        turned = np.empty_like(offset)
        turned[..., 0] = offset[..., 0] * cos + offset[..., 1] * sin
        turned[..., 1] = offset[..., 1] * cos - offset[..., 0] * sin
        turned[..., 2] = offset[..., 2]
        norm = (np.abs(turned / np.array(self.radii, np.float32)) ** self.power).sum(-1) ** (1 / self.power)
        return (norm - 1) * min(self.radii)


@dataclass(frozen=True)
class Capsule:
    """Rod from ``start`` to ``end``; ``squeeze`` > 1 along an axis makes it thinner there (a plate)."""

    start: np.ndarray
    end: np.ndarray
    start_radius: float
    end_radius: float
    squeeze: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        reach = max(self.start_radius, self.end_radius) / np.array(self.squeeze)
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach

    def distance(self, points: np.ndarray) -> np.ndarray:
        axis = (self.end - self.start).astype(np.float32)
        offset = points - self.start.astype(np.float32)
        along = np.clip(offset @ axis / float(axis @ axis), 0, 1)
        radial = (offset - along[..., None] * axis) * np.array(self.squeeze, np.float32)
        radius = self.start_radius + (self.end_radius - self.start_radius) * along
        return np.linalg.norm(radial, axis=-1) - radius


@dataclass
class Grid:
    """Regular sampling points; ``low`` and ``high`` corners in mm."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    step: float
    axes: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.axes = [
            np.arange(a, b + self.step / 2, self.step, dtype=np.float32)
            for a, b in zip(self.low, self.high, strict=True)
        ]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    def points(self, box: tuple[slice, ...] = (slice(None),) * 3) -> np.ndarray:
        """(..., 3) sampling points inside an index box."""
        parts = [axis[part] for axis, part in zip(self.axes, box, strict=True)]
        return np.stack(np.meshgrid(*parts, indexing="ij"), -1)

    def box(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
        return tuple(
            slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b)))
            for axis, a, b in zip(self.axes, low, high, strict=True)
        )


class Solid:
    """A distance field on a grid. Methods change it in place and return it, so that they chain."""

    def __init__(self, grid: Grid, values: np.ndarray | None = None) -> None:
        self.grid = grid
        self.values = np.full(grid.shape, FAR_MM, np.float32) if values is None else values.astype(np.float32)

    def _local(self, shape: Shape, rounding: float) -> tuple[tuple[slice, ...], np.ndarray]:
        low, high = shape.bounds()
        margin = 2 * rounding + 4
        box = self.grid.box(low - margin, high + margin)
        return box, shape.distance(self.grid.points(box))

    def add(self, shape: Shape, rounding: float = 2.0) -> Solid:
        box, distance = self._local(shape, rounding)
        self.values[box] = smooth_min(self.values[box], distance, rounding)
        return self

    def cut(self, shape: Shape, rounding: float = 2.0) -> Solid:
        box, distance = self._local(shape, rounding)
        self.values[box] = smooth_max(self.values[box], -distance, rounding)
        return self

    def join(self, other: Solid, rounding: float = 2.0) -> Solid:
        self.values = smooth_min(self.values, other.values, rounding)
        return self

    def keep_within(self, field_values: np.ndarray, rounding: float = 2.0) -> Solid:
        """Intersection with another field of the grid's shape (or one that broadcasts to it)."""
        self.values = smooth_max(self.values, field_values.astype(np.float32), rounding)
        return self
