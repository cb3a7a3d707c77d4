"""Ray queries on a triangle mesh, for finding sites on bone and skin."""

from __future__ import annotations

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

REACH_MM = 500.0  # farther than any head


class RayMesh:
    """A triangle mesh in Embree.

    Args:
        vertices: (V, 3) mm.
        triangles: (T, 3) facing outwards.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray) -> None:
        self._scene = rtcore_scene.EmbreeScene()
        self._mesh = TriangleMesh(
            self._scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(triangles, np.int32)
        )

    def first_hits(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return (N, 3) points where rays first meet the surface; NaN where they do not."""
        origins = np.ascontiguousarray(origins, np.float32)
        directions = np.ascontiguousarray(np.broadcast_to(directions, origins.shape), np.float32)
        hits = self._scene.run(origins, directions, output=True)
        points = np.full(origins.shape, np.nan)
        met = hits["primID"] >= 0
        points[met] = origins[met] + hits["tfar"][met, None] * directions[met]
        return points

    def outermost(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return (N, 3) points of the surface that lie farthest along ``directions`` from ``points``."""
        return self.first_hits(points + REACH_MM * directions, -directions)
