"""The scanned cranium in the reference head, with a mandible of our own: fields on one grid, then one surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.ndimage as ndimage
import scipy.sparse as sparse
from scipy.interpolate import RBFInterpolator
from skimage import measure

from data.render import Camera, Scene, vertex_normals
from data.templates.implicit import Grid, Solid
from data.templates.mandible import OCCLUSAL_Y, add_chin, plate_field, upper_place
from data.templates.registration import register, smooth_map
from data.templates.scan import Scan, Volume, prepare, read_scan

LOW_MM, HIGH_MM, STEP_MM = (-86.0, -112.0, -62.0), (86.0, 98.0, 96.0), 1.1
COARSE_MM = 4.5  # the map between scan and head is smooth: evaluated on a coarse grid
SMOOTH_ABOVE_MM = 13.0
SMALLEST_PART = 1200
JAW_BELOW_MM = -18.0  # top of the condyles
LEAST_DEPTH_MM = 2.0
RAMUS_ENDS_MM, ROOTS_END_MM = -60.0, -84.0
THIN_BONE_HU = 110.0  # walls of the orbits, too thin for the scan: a lower level keeps more of them
BONE_HU, RAMUS_HU, TOOTH_HU = 210.0, 260.0, 900.0
HU_PER_MM = 300.0  # brings Hounsfield units to about mm


def scan_mesh(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Surface of cranium and rami in the scan's own frame."""
    parts, count = [], 0
    for volume, level in ((scan.cranium, BONE_HU), (scan.ramus, RAMUS_HU)):
        padded = np.pad(ndimage.gaussian_filter(volume.values, 0.5), 1, constant_values=-1000)
        vertices, triangles, _, _ = measure.marching_cubes(padded, level, gradient_direction="ascent")
        parts.append(((vertices - 1) * volume.step + volume.low, triangles + count))
        count += len(vertices)
    return np.vstack([v for v, _ in parts]), np.vstack([t for _, t in parts])


class HeadToScan:
    """The map from the reference head to the scan, tabulated."""

    def __init__(self, warp: RBFInterpolator) -> None:
        grid = Grid(
            LOW_MM, (HIGH_MM[0] + COARSE_MM, HIGH_MM[1] + COARSE_MM, HIGH_MM[2] + COARSE_MM), COARSE_MM
        )
        points = grid.points()
        flat = points.reshape(-1, 3)
        moved = np.vstack([warp(part) for part in np.array_split(flat, len(flat) // 5000 + 1)])
        self._table = [
            ndimage.spline_filter((moved[:, k] - flat[:, k]).reshape(points.shape[:-1]), 3) for k in range(3)
        ]
        self._low = np.array(LOW_MM)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        index = np.moveaxis((points - self._low) / COARSE_MM, -1, 0)
        moved = [
            ndimage.map_coordinates(t, index, order=3, prefilter=False, mode="nearest") for t in self._table
        ]
        return points + np.stack(moved, -1)


def in_mm(volume: Volume, places: np.ndarray, level: float) -> np.ndarray:
    """Field in the head's frame: about mm, negative in what is denser than ``level``."""
    return np.clip((level - volume.at(places)) / HU_PER_MM, -4, 4).astype(np.float32)


def build_ct_skull(
    scan_folder: Path, skin_vertices: np.ndarray, skin_triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Skull in the reference head whose closed skin is given.

    Returns:
        vertices (S, 3) mm, triangles (T, 3) facing outwards, of_jaw (S,) bool, strength (S,) uint8: density just
        under the surface, Hounsfield units / 8 (255 in the mandible, which is ours).
    """
    scan = prepare(read_scan(scan_folder))
    on_scan, on_head = register(*scan_mesh(scan), skin_vertices, skin_triangles)
    to_scan = HeadToScan(smooth_map(on_head, on_scan, smoothing=0.5))
    grid = Grid(LOW_MM, HIGH_MM, STEP_MM)
    cranium, jaw = fields(scan, to_scan, grid)
    vertices, triangles = surface(np.minimum(cranium, jaw), grid)
    places = np.moveaxis((vertices - np.array(grid.low)) / grid.step, -1, 0)
    of_jaw = (ndimage.map_coordinates(cranium - jaw, places, order=1) > 0) & (vertices[:, 1] < JAW_BELOW_MM)
    strength = np.where(of_jaw, 255, density_below(scan, to_scan, vertices, triangles) / 8)
    vertices = keep_under_skin(vertices, Scene(skin_vertices, skin_triangles, Camera()))
    return vertices, triangles, of_jaw, np.clip(strength, 0, 255).astype(np.uint8)


def density_below(scan: Scan, to_scan: HeadToScan, vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(S,) the greatest density (Hounsfield units) within the first 4 mm under each vertex."""
    normals = vertex_normals(vertices, triangles)
    below = [scan.cranium.at(to_scan(vertices - depth * normals)) for depth in (0.5, 1.2, 2.0, 3.0, 4.0)]
    return np.max(below, axis=0)


def fields(scan: Scan, to_scan: HeadToScan, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Fields of the cranium and of the mandible on the grid, about mm, negative in bone."""
    points = grid.points()
    places = to_scan(points)
    x, y, z = (axis.astype(float) for axis in grid.axes)
    near = np.exp(
        -(((np.abs(x) - 20) / 14)[:, None, None] ** 4) - ((y + 2) / 18)[:, None] ** 4 - ((z - 48) / 26) ** 4
    )
    cranium = in_mm(scan.cranium, places, BONE_HU) - ((BONE_HU - THIN_BONE_HU) / HU_PER_MM * near).astype(
        np.float32
    )
    low = grid.box(np.array([-70, -112, 5.0]), np.array([70, -5, 96.0]))
    jaw = Solid(grid)
    jaw.values[low] = plate_field(points[low])
    add_chin(jaw)
    ramus = in_mm(scan.ramus, places, RAMUS_HU)
    ramus += 0.5 * np.maximum(0, RAMUS_ENDS_MM - grid.axes[1])[None, :, None]  # tapers into the plate
    jaw.join(Solid(grid, ramus), 5.0)
    teeth_box = grid.box(np.array([-40, -92, 30.0]), np.array([40, OCCLUSAL_Y + 3, 92.0]))
    crowns = np.full(grid.shape, 4.0, np.float32)
    crowns[teeth_box] = in_mm(scan.cranium, to_scan(upper_place(points[teeth_box])), TOOTH_HU)
    crowns += 0.4 * np.maximum(0, ROOTS_END_MM - grid.axes[1])[None, :, None]
    jaw.join(Solid(grid, crowns), 0.8)
    return cranium, jaw.values


def keep_under_skin(vertices: np.ndarray, skin: Scene) -> np.ndarray:
    """Bone of the middle face that comes nearer to the skin than LEAST_DEPTH_MM is pressed back, smoothly."""
    depth = skin.depth_at(vertices)
    x, y, z = vertices.T
    face = np.exp(-((x / 45) ** 6) - ((y + 18) / 32) ** 6) * (z > 45) * np.isfinite(depth) * (depth < 30)
    allowed = LEAST_DEPTH_MM + np.logaddexp(0, np.where(face > 0, depth, 9.0) - LEAST_DEPTH_MM)
    return np.stack([x, y, z - face * np.maximum(0, allowed - depth)], 1)


def surface(field: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    fine, coarse = (
        ndimage.gaussian_filter(field, np.array(mm) / grid.step)
        for mm in ((0.42, 0.55, 0.42), (0.8, 1.8, 0.8))
    )
    share = (
        1 / (1 + np.exp(-(grid.axes[1] - SMOOTH_ABOVE_MM) / 4))[None, :, None]
    )  # the vault shows the scan's slices
    smoothed = fine * (1 - share) + coarse * share
    vertices, triangles, _, _ = measure.marching_cubes(smoothed, 0.0, gradient_direction="descent")
    return without_scraps(vertices * grid.step + np.array(grid.low), triangles)


def without_scraps(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loose parts of fewer than SMALLEST_PART vertices are dropped."""
    edges = np.vstack([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(edges), bool), edges.T), (len(vertices), len(vertices)))
    _, label = sparse.csgraph.connected_components(graph, directed=False)
    kept = np.bincount(label)[label] >= SMALLEST_PART
    number = np.cumsum(kept) - 1
    return vertices[kept], number[triangles[kept[triangles].all(1)]]
