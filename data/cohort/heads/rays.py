"""Ray and nearest-point queries on a triangle mesh, for finding sites on bone and skin."""

from __future__ import annotations

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from scipy.spatial import cKDTree

from data.render import vertex_normals

REACH_MM = 500.0


class Surface:
    """``vertices`` (V, 3) mm, ``triangles`` (T, 3) facing outwards."""

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray) -> None:
        self.vertices = np.ascontiguousarray(vertices, np.float32)
        self.triangles = np.ascontiguousarray(triangles, np.int32)
        self.normals = vertex_normals(vertices, triangles)
        self._tree = cKDTree(vertices)
        self._scene = rtcore_scene.EmbreeScene()
        self._mesh = TriangleMesh(self._scene, self.vertices, self.triangles)

    def first_hits(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(N, 3) where rays first meet the surface; NaN where they do not."""
        origins = np.ascontiguousarray(origins, np.float32)
        directions = np.ascontiguousarray(np.broadcast_to(directions, origins.shape), np.float32)
        hits = self._scene.run(origins, directions, output=True)
        points = np.full(origins.shape, np.nan)
        met = hits["primID"] >= 0
        points[met] = origins[met] + hits["tfar"][met, None] * directions[met]
        return points

    def exits(self, origins: np.ndarray, directions: np.ndarray, most: int = 4) -> np.ndarray:
        """(N, 3) where rays from inside first come out, passing folds that they enter; NaN where they do not."""
        origins = np.ascontiguousarray(origins, np.float32)
        directions = np.ascontiguousarray(directions, np.float32)
        points = np.full(origins.shape, np.nan)
        start = origins.copy()
        waiting = np.arange(len(origins))
        for _ in range(most):
            hits = self._scene.run(start[waiting], directions[waiting], output=True)
            met = hits["primID"] >= 0
            waiting, prim, far = waiting[met], hits["primID"][met], hits["tfar"][met]
            place = start[waiting] + far[:, None] * directions[waiting]
            a, b, c = (self.vertices[self.triangles[prim, k]] for k in range(3))
            out = (np.cross(b - a, c - a) * directions[waiting]).sum(1) > 0
            points[waiting[out]] = place[out]
            start[waiting] = place + 0.05 * directions[waiting]
            waiting = waiting[~out]
            if len(waiting) == 0:
                break
        return points

    def last_hits(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(N, 3) where rays from inside leave the surface for good: seen from REACH_MM away, backwards."""
        far = origins + REACH_MM * directions
        return self.first_hits(far, -directions)

    def seen_from(self, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The outermost surface point met when coming from far away along ``direction`` through ``point``.

        Raises: ValueError when nothing is met.
        """
        way = np.asarray(direction, float)
        met = self.first_hits((np.asarray(point, float) - REACH_MM * way)[None], way)[0]
        if np.isnan(met).any():
            raise ValueError(f"no surface along {direction} through {np.round(point, 1)}")
        return met

    def normal_at(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) unit normals of the nearest vertices."""
        return self.normals[self._tree.query(points)[1]]
