"""Upper cervical vertebrae under a skull: our own simple model, in the reference head's frame (mm)."""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndimage
from skimage import measure

from data.templates.implicit import Capsule, Ellipsoid, Grid, Solid

SIDES = (-1, 1)
STEP_MM = 1.3
TOP_Y, HEIGHT_MM, NUM_VERTEBRAE = -62.0, 16.0, 5
TOP_Z, LEAN_PER_VERTEBRA = -9.0, 2.0  # the column leans forward downwards


def build_spine() -> tuple[np.ndarray, np.ndarray]:
    """Vertices (mm) and outward triangles of C2 to C6: bodies, pillars, transverse processes."""
    grid = Grid((-40, -146, -40), (40, -44, 26), STEP_MM)
    spine = Solid(grid)
    for k in range(NUM_VERTEBRAE):
        y, z = TOP_Y - HEIGHT_MM * k, TOP_Z + LEAN_PER_VERTEBRA * k
        width = 8.6 + 0.7 * k
        vertebra = Solid(grid)
        vertebra.add(Ellipsoid(np.array([0, y, z]), (width, 6.6, 8.0), 3.2), 1)
        vertebra.cut(Ellipsoid(np.array([0, y, z + 9.5]), (width * 0.8, 4.0, 3.0)), 2)  # waist of the body
        for s in SIDES:
            vertebra.add(Ellipsoid(np.array([s * 17.5, y + 1, z - 9]), (6.0, 6.4, 5.5), 2.6), 2)
            vertebra.add(
                Capsule(np.array([s * 8, y + 0.5, z - 3]), np.array([s * 17, y + 1, z - 8]), 3.4, 3.0), 2
            )
            vertebra.add(
                Capsule(np.array([s * 9, y + 1.5, z + 2]), np.array([s * 24, y - 3, z - 2]), 2.6, 2.9), 2
            )
        spine.join(vertebra, 0.6)
    tooth = Capsule(np.array([0, TOP_Y + 6, TOP_Z]), np.array([0, TOP_Y + 15, TOP_Z]), 5.0, 4.0)
    spine.add(tooth, 2)
    field = ndimage.gaussian_filter(spine.values, 0.6)
    vertices, triangles, _, _ = measure.marching_cubes(field, 0.0, gradient_direction="descent")
    return vertices * STEP_MM + np.array(grid.low), triangles
