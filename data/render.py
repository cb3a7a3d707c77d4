"""Orthographic pictures of triangle meshes by ray casting (Embree, no window system and no OpenGL needed).

Subject coordinates in mm: x to the subject's left (the viewer's right), y up, z forward, towards the camera.
Picture coordinates in px: x right, y down, pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

RAY_START_MM = 1000.0  # rays start this far in front of the origin, well outside any head


@dataclass(frozen=True)
class Camera:
    """A parallel-projection camera that looks along -z at ``(center_x, center_y)``.

    Attributes:
        size: side of the square picture in px.
        half_field: half of the side of the square field of view in mm.
        center_x, center_y: point of the (turned) subject seen in the middle of the picture, in mm.
        yaw: turn of the head about the vertical axis in degrees; positive shows the subject's right side.
        pitch: nod about the ear-to-ear axis in degrees; positive lowers the chin.
        supersampling: rays per pixel along each axis.
    """

    size: int = 256
    half_field: float = 140.0
    center_x: float = 0.0
    center_y: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    supersampling: int = 2

    def __post_init__(self) -> None:
        if self.size < 8 or self.supersampling < 1:
            raise ValueError(
                f"Camera: size={self.size}, supersampling={self.supersampling}; expected at least 8 px and 1 ray"
            )
        if self.half_field <= 0:
            raise ValueError(f"Camera: half_field={self.half_field}; expected a positive length in mm")

    @property
    def mm_per_px(self) -> float:
        return 2 * self.half_field / self.size

    def rotation(self) -> np.ndarray:
        """(3, 3) matrix that takes subject coordinates to camera coordinates; identity at yaw = pitch = 0."""
        yaw, pitch = np.radians([self.yaw, self.pitch])
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        return nod @ turn

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm in subject coordinates -> (N, 2) px; points outside the field get values outside the picture."""
        turned = np.asarray(points, float) @ self.rotation().T
        x = (turned[:, 0] - self.center_x) / self.mm_per_px + (self.size - 1) / 2
        y = (self.center_y - turned[:, 1]) / self.mm_per_px + (self.size - 1) / 2
        return np.stack([x, y], 1)


@dataclass(frozen=True)
class Material:
    """Phong reflectances under a headlight; their sum is the brightest value, 1 being white."""

    ambient: float = 0.24
    diffuse: float = 0.60
    specular: float = 0.20
    power: float = 14.0


SKIN = Material()
BONE = Material(specular=0.22)


@dataclass(frozen=True)
class Picture:
    """``grey``: (size, size) uint8, background 0. ``depth``: (size, size) float32, z towards the camera in mm of the
    nearest surface within each pixel, ``-inf`` where there is none."""

    grey: np.ndarray
    depth: np.ndarray


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, averaged over the triangles around each vertex and weighted with their areas."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    facet = np.cross(b - a, c - a)
    corners = triangles.ravel()
    spread = np.repeat(facet, 3, axis=0)
    total = np.stack([np.bincount(corners, spread[:, k], minlength=len(vertices)) for k in range(3)], 1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


class Scene:
    """A mesh as one camera sees it: build once, then take its picture or ask for its depth at chosen points.

    Args:
        vertices: (V, 3) mm, subject coordinates.
        triangles: (T, 3) vertex indices.
        camera: where to look from.
        floor: surface below this height (mm, subject coordinates) is not drawn; None draws all.
    """

    def __init__(
        self, vertices: np.ndarray, triangles: np.ndarray, camera: Camera, floor: float | None = None
    ) -> None:
        self.camera = camera
        self.floor = floor
        self._rotation = camera.rotation()
        self._vertices = np.ascontiguousarray(vertices @ self._rotation.T, np.float32)
        self._triangles = np.ascontiguousarray(triangles, np.int32)
        self._normals = vertex_normals(self._vertices, self._triangles)
        self._scene = rtcore_scene.EmbreeScene()
        self._mesh = TriangleMesh(self._scene, self._vertices, self._triangles)

    def _cast(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rays along -z through (N, 2) mm -> indices of rays that hit, (M, 3) corners, (M, 3) weights, (M,) depth."""
        origins = np.empty((len(xy), 3), np.float32)
        origins[:, :2] = xy
        origins[:, 2] = RAY_START_MM
        directions = np.zeros_like(origins)
        directions[:, 2] = -1
        hits = self._scene.run(origins, directions, output=True)
        index = np.flatnonzero(hits["primID"] >= 0)
        u, v = hits["u"][index], hits["v"][index]
        depth = RAY_START_MM - hits["tfar"][index]
        if self.floor is not None:
            points = np.stack([origins[index, 0], origins[index, 1], depth], 1)
            above = points @ self._rotation[:, 1] >= self.floor  # y of R^T p
            index, u, v, depth = index[above], u[above], v[above], depth[above]
        corners = self._triangles[hits["primID"][index]]
        return index, corners, np.stack([1 - u - v, u, v], 1), depth

    def depth_at(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm in subject coordinates -> (N,) how far (mm) the nearest surface stands in front of each point;
        about 0 for a visible surface point, positive for a hidden one, ``-inf`` where the ray meets nothing."""
        turned = np.asarray(points, float) @ self._rotation.T
        result = np.full(len(turned), -np.inf)
        index, _, _, depth = self._cast(turned[:, :2])
        result[index] = depth - turned[index, 2]
        return result

    def render(self, material: Material) -> Picture:
        """Smooth-shaded picture under a headlight."""
        camera = self.camera
        n, k = camera.size, camera.supersampling
        step = camera.mm_per_px / k
        along = (np.arange(n * k) - (n * k - 1) / 2) * step
        columns, rows = camera.center_x + along, camera.center_y - along
        low, high = self._vertices.min(0), self._vertices.max(0)
        in_x = np.flatnonzero((columns >= low[0]) & (columns <= high[0]))
        in_y = np.flatnonzero((rows >= low[1]) & (rows <= high[1]))
        grid_x, grid_y = np.meshgrid(in_x, in_y)
        pixel = (grid_y * n * k + grid_x).ravel()
        index, corners, weights, depth = self._cast(
            np.stack([columns[grid_x].ravel(), rows[grid_y].ravel()], 1)
        )

        normal = (self._normals[corners] * weights[..., None]).sum(1)
        facing = np.abs(normal[:, 2]) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        mirrored = np.clip(
            2 * facing**2 - 1, 0, 1
        )  # cosine between the reflected headlight and the view direction
        light = material.ambient + material.diffuse * facing + material.specular * mirrored**material.power

        canvas = np.zeros(n * n * k * k)
        canvas[pixel[index]] = np.clip(light, 0, 1)
        far = np.full(n * n * k * k, -np.inf, np.float32)
        far[pixel[index]] = depth
        grey = canvas.reshape(n, k, n, k).mean((1, 3))
        nearest = far.reshape(n, k, n, k).max((1, 3))
        return Picture(grey=np.rint(grey * 255).astype(np.uint8), depth=nearest)
