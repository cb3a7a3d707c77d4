"""Orthographic pictures of triangle meshes by ray casting (Embree, no window system and no OpenGL needed).

Subject coordinates in mm: x to the subject's left (the viewer's right), y up, z forward, towards the camera.
Picture coordinates in px: x right, y down, pixel centres at integers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

RAY_START_MM = 500.0  # rays start this far in front of the origin, well outside any head


@dataclass(frozen=True)
class Camera:
    """A parallel-projection camera that looks along -z at ``(center_x, center_y)``.

    Attributes:
        size: side of the square picture in px.
        half_field: half of the side of the square field of view in mm.
        center_x, center_y: point of the (turned) subject seen in the middle of the picture, in mm.
        yaw: turn of the head about the vertical axis in degrees; positive shows the subject's right side.
        pitch: nod about the ear-to-ear axis in degrees; positive lowers the chin.
        roll: turn in the picture's plane in degrees; positive turns counter-clockwise.
        supersampling: rays per pixel along each axis.
    """

    size: int = 256
    half_field: float = 140.0
    center_x: float = 0.0
    center_y: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
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
        """Return the (3, 3) matrix from subject to camera coordinates; identity at yaw = pitch = roll = 0."""
        yaw, pitch = np.radians([self.yaw, self.pitch])
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        if not self.roll:
            return nod @ turn
        roll = np.radians(self.roll)
        tilt = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        return tilt @ nod @ turn

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return (N, 2) px of (N, 3) mm in subject coordinates; a point outside the field lies outside the picture."""
        turned = np.asarray(points, float) @ self.rotation().T
        x = (turned[:, 0] - self.center_x) / self.mm_per_px + (self.size - 1) / 2
        y = (self.center_y - turned[:, 1]) / self.mm_per_px + (self.size - 1) / 2
        return np.stack([x, y], 1)


@dataclass(frozen=True)
class Material:
    """Phong reflectances under a headlight; their sum is the brightest value, 1 being white."""

    ambient: float = 0.26
    diffuse: float = 0.63
    specular: float = 0.27
    power: float = 14.0


@dataclass(frozen=True)
class Lamp:
    """A far lamp, and how its light falls off.

    Attributes:
        degrees: off the camera.  at: degrees from the picture's right, counter-clockwise: 90 is above.
        falloff: share of the light gained and lost over half of the field, towards the lamp and away from it.
    """

    degrees: float
    at: float
    falloff: float

    def aside(self) -> np.ndarray:
        """Return (3,) float32, the unit direction to the lamp's side in camera coordinates."""
        at = np.radians(self.at)
        return np.array([np.cos(at), np.sin(at), 0], np.float32)

    def direction(self) -> np.ndarray:
        """Return (3,) float32, the unit direction to the lamp in camera coordinates."""
        off = np.radians(self.degrees)
        return (np.sin(off) * self.aside() + np.array([0, 0, np.cos(off)])).astype(np.float32)


# Such that the grey levels within the head are those of a published real pair (5th, 50th, 95th percentile: face 95, 176
# and 246, skull 93, 168 and 245), to within 10 levels over many heads in all surface styles.
SKIN = Material(specular=0.48)
BONE = Material(diffuse=0.65, specular=0.44)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return (V, 3) unit normals, averaged over the triangles around each vertex and weighted with their areas."""
    a = vertices[triangles[:, 0]]
    ab, ac = vertices[triangles[:, 1]] - a, vertices[triangles[:, 2]] - a
    corners = triangles.ravel()
    columns = (np.bincount(corners, np.repeat(part, 3), len(vertices)) for part in np.cross(ab, ac).T)
    total = np.stack([*columns], 1)
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)).astype(vertices.dtype)


@dataclass(frozen=True)
class Surface:
    """What a camera sees of a mesh: a row for each of the M rays that met it.

    Attributes:
        camera: that looked.
        pixel: (M,) which picture element a ray belongs to, row * size + column.
        point: (M, 3) float32 where it met the mesh, mm in subject coordinates.
        normal: (M, 3) float32 unit normal there, in subject coordinates.
        depth: (M,) float32 height towards the camera, mm.
    """

    camera: Camera
    pixel: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    depth: np.ndarray

    def light(
        self, material: Material, normal: np.ndarray | None = None, lamp: Lamp | None = None
    ) -> np.ndarray:
        """Return (M,) Phong brightness in [0, 1] under a headlight, or a lamp; nothing casts a shadow.

        ``normal`` (M, 3), of any length, replaces the mesh's.
        """
        normal = self.normal if normal is None else normal
        towards = self.camera.rotation()[2].astype(np.float32)
        length = np.sqrt(np.einsum("ij,ij->i", normal, normal))
        facing = np.abs(normal @ towards) / np.maximum(length, np.float32(1e-12))
        mirrored = np.clip(2 * facing**2 - 1, 0, 1)  # cosine between the reflected headlight and the view
        if lamp is not None:
            return self._lamplight(material, normal / np.maximum(length, 1e-12)[:, None], facing, lamp)
        light = material.ambient + material.diffuse * facing + material.specular * mirrored**material.power
        return np.clip(light, 0, 1)

    def _lamplight(self, material: Material, normal: np.ndarray, seen: np.ndarray, lamp: Lamp) -> np.ndarray:
        """The same under a lamp. normal: (M, 3) of unit length. seen: (M,) cosine between normal and view."""
        rotation = self.camera.rotation().astype(np.float32)
        normal = normal * np.where(normal @ rotation[2] < 0, -1, 1)[:, None]
        direction = lamp.direction() @ rotation
        facing = np.clip(normal @ direction, 0, 1)
        mirrored = np.clip(2 * facing * seen - direction @ rotation[2], 0, 1)
        light = material.ambient + material.diffuse * facing + material.specular * mirrored**material.power
        nearness = self.point @ (lamp.aside() @ rotation) / np.float32(self.camera.half_field)
        return np.clip(light * (1 + np.float32(lamp.falloff) * nearness), 0, 1)

    def per_pixel(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of (M,) or (M, C) values over each pixel's rays: (size, size) or (size, size, C) float64."""
        n = self.camera.size
        rays = np.maximum(np.bincount(self.pixel, minlength=n * n), 1)
        if values.ndim == 1:
            return (np.bincount(self.pixel, values, n * n) / rays).reshape(n, n)
        columns = [np.bincount(self.pixel, column, n * n) / rays for column in values.T]
        return np.stack(columns, -1).reshape(n, n, -1)

    def coverage(self) -> np.ndarray:
        """Return the (size, size) share of each pixel's rays that met the mesh, in [0, 1]."""
        n = self.camera.size
        return np.bincount(self.pixel, minlength=n * n).reshape(n, n) / self.camera.supersampling**2

    def nearest(self) -> np.ndarray:
        """Return the (size, size) float32 depth of the nearest point in each pixel, ``-inf`` where nothing is."""
        n = self.camera.size
        far = np.full(n * n, -np.inf, np.float32)
        np.maximum.at(far, self.pixel, self.depth)
        return far.reshape(n, n)


class Scene:
    """A mesh and a camera, to draw a picture or to measure depth at points.

    Args:
        vertices: (V, 3) mm, subject coordinates.
        triangles: (T, 3) vertex indices, counter-clockwise seen from outside.
        camera: where to look from.
        floor: surface below this height (mm, subject coordinates) is not drawn; None draws all.
    """

    def __init__(
        self, vertices: np.ndarray, triangles: np.ndarray, camera: Camera, floor: float | None = None
    ) -> None:
        self.camera = camera
        self.floor = floor
        self._vertices = np.ascontiguousarray(vertices, np.float32)
        self._triangles = np.ascontiguousarray(triangles, np.int32)
        self._normals = vertex_normals(self._vertices, self._triangles)
        self._scene = rtcore_scene.EmbreeScene()
        self._mesh = TriangleMesh(self._scene, self._vertices, self._triangles)

    def seen_by(self, camera: Camera) -> Scene:
        """Return the same mesh before another camera, without building it again."""
        other = copy.copy(self)
        other.camera = camera
        return other

    def _cast(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cast rays through (N, 2) mm of the camera's plane.

        Returns:
            Indices of rays that hit, (M, 3) corners, (M, 3) weights, (M, 3) points in subject coordinates, (M,) depth
            towards the camera.
        """
        right, up, towards = self.camera.rotation().astype(np.float32)
        flat = np.asarray(xy, np.float32)
        origins = flat[:, :1] * right + flat[:, 1:] * up + np.float32(RAY_START_MM) * towards
        directions = np.broadcast_to(-towards, origins.shape).copy()
        hits = self._scene.run(origins, directions, output=True)
        index = np.flatnonzero(hits["primID"] >= 0)
        along = hits["tfar"][index]
        points = origins[index] - along[:, None] * towards
        if self.floor is not None:
            above = points[:, 1] >= self.floor
            index, along, points = index[above], along[above], points[above]
        u, v = hits["u"][index], hits["v"][index]
        corners = self._triangles[hits["primID"][index]]
        return index, corners, np.stack([1 - u - v, u, v], 1), points, np.float32(RAY_START_MM) - along

    def depth_at(self, points: np.ndarray) -> np.ndarray:
        """Return how far the nearest surface stands in front of points: (N,) mm for (N, 3) mm, subject coordinates.

        It is about 0 for a visible surface point, positive for a hidden one, ``-inf`` where the ray meets nothing.
        """
        turned = np.asarray(points, float) @ self.camera.rotation().T
        result = np.full(len(turned), -np.inf)
        index, *_, depth = self._cast(turned[:, :2])
        result[index] = depth - turned[index, 2]
        return result

    def trace(self) -> Surface:
        """Cast the rays of a whole picture."""
        camera = self.camera
        n, k = camera.size, camera.supersampling
        along = (np.arange(n * k) - (n * k - 1) / 2) * (camera.mm_per_px / k)
        columns, rows = camera.center_x + along, camera.center_y - along
        flat = self._vertices @ camera.rotation()[:2].T.astype(np.float32)
        low, high = flat.min(0), flat.max(0)
        in_x = np.flatnonzero((columns >= low[0]) & (columns <= high[0]))
        in_y = np.flatnonzero((rows >= low[1]) & (rows <= high[1]))
        grid_x, grid_y = (grid.ravel() for grid in np.meshgrid(in_x, in_y))
        index, corners, weights, points, depth = self._cast(np.stack([columns[grid_x], rows[grid_y]], 1))
        normal = np.einsum("ijk,ij->ik", self._normals[corners], weights)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        pixel = (grid_y[index] // k) * n + grid_x[index] // k
        return Surface(camera, pixel, points, normal, depth)

    def render(self, material: Material) -> np.ndarray:
        """Draw the smooth-shaded picture under a headlight, (size, size) uint8, background 0."""
        surface = self.trace()
        grey = surface.per_pixel(surface.light(material)) * surface.coverage()
        return np.rint(grey * 255).astype(np.uint8)
