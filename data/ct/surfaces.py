"""Surfaces of equal HU as triangle meshes, by VTK without its drawing modules, and PLY files of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndimage
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D, vtkWindowedSincPolyDataFilter

from data.ct.findings import ScanError
from data.ct.reading.scan import OUTSIDE_HU
from data.ct.volume import SKIN_HU, HeadVolume
from data.files import replacing

BONE_HU = 220.0
METAL_CLIP_HU = 1500  # denser than bone: its streaks and spikes are levelled before the surface is sought
SMOOTHING_ROUNDS = 15
BONE_PASS_BAND, SKIN_PASS_BAND = 0.12, 0.06  # of the windowed-sinc filter; smaller is smoother
LEAST_TRIANGLES = 1000
SMALLEST_PART = 0.01  # parts of a surface with a smaller share of its area are left out


@dataclass(frozen=True)
class Mesh:
    """``vertices`` (V, 3) float32 mm; ``triangles`` (T, 3) int32, counter-clockwise seen from outside."""

    vertices: np.ndarray
    triangles: np.ndarray

    def moved(self, rotation: np.ndarray, shift: np.ndarray) -> Mesh:
        """Return the mesh at ``rotation @ p + shift``."""
        placed = self.vertices.astype(float) @ rotation.T + shift
        return Mesh(placed.astype(np.float32), self.triangles)

    def keep(self, chosen: np.ndarray) -> Mesh:
        """Return the mesh of the (T,) chosen triangles alone."""
        used, triangles = np.unique(self.triangles[chosen], return_inverse=True)
        return Mesh(self.vertices[used], triangles.reshape(-1, 3).astype(np.int32))

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the connected part (T,) that each triangle belongs to, and the areas (P,) of the parts in mm2."""
        first, second = self.triangles[:, :2].T
        third = self.triangles[:, 2]
        rows, columns = np.concatenate([first, second]), np.concatenate([second, third])
        count = len(self.vertices)
        graph = sparse.coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (count, count))
        part = connected_components(graph, directed=False)[1][first]
        corners = self.vertices[self.triangles]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return part, np.bincount(part, np.linalg.norm(across, axis=1) / 2)


def bone_surface(head: HeadVolume, level: float = BONE_HU) -> Mesh:
    """Return the bone's surfaces. Raises: ScanError where there is no bone."""
    hu = np.where(head.head, np.minimum(head.volume.hu, METAL_CLIP_HU), OUTSIDE_HU)
    smooth = ndimage.gaussian_filter(hu, 0.5 / head.volume.step, output=np.float32, truncate=3)
    mesh = _isosurface(smooth, level, head, BONE_PASS_BAND)
    part, area = mesh.parts()
    return mesh.keep((area >= SMALLEST_PART * area.max())[part])


def skin_surface(head: HeadVolume) -> Mesh:
    """Return the skin's outer surface alone. Raises: ScanError where there is none."""
    smooth = ndimage.gaussian_filter(head.skin, 0.8 / head.volume.step, output=np.float32, truncate=3)
    mesh = _isosurface(smooth, SKIN_HU, head, SKIN_PASS_BAND)
    part, area = mesh.parts()
    return mesh.keep(part == int(np.argmax(area)))


def _isosurface(values: np.ndarray, level: float, head: HeadVolume, pass_band: float) -> Mesh:
    volume = head.volume
    values = np.pad(values, 1, constant_values=OUTSIDE_HU)  # a head cut by the field's border gets a lid
    image = vtkImageData()
    image.SetDimensions(*values.shape)
    image.SetSpacing(volume.step, volume.step, volume.step)
    image.SetOrigin(*(volume.low - volume.step))
    flat = np.ascontiguousarray(values.ravel(order="F"))
    image.GetPointData().SetScalars(numpy_to_vtk(flat))
    edges = vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, level)
    edges.ComputeNormalsOff()
    edges.ComputeScalarsOff()
    smooth = vtkWindowedSincPolyDataFilter()
    smooth.SetInputConnection(edges.GetOutputPort())
    smooth.SetNumberOfIterations(SMOOTHING_ROUNDS)
    smooth.SetPassBand(pass_band)
    smooth.NormalizeCoordinatesOn()
    smooth.BoundarySmoothingOff()
    smooth.FeatureEdgeSmoothingOff()
    smooth.Update()
    surface = smooth.GetOutput()
    if surface.GetNumberOfCells() < LEAST_TRIANGLES:
        raise ScanError("no surface of the size of a head in it")
    vertices = vtk_to_numpy(surface.GetPoints().GetData()).astype(np.float32)
    triangles = vtk_to_numpy(surface.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int32)
    return Mesh(vertices, triangles)


def write_ply(path: Path, mesh: Mesh) -> None:
    """Write a binary PLY file, whole or not at all."""
    faces = np.empty(len(mesh.triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.triangles
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment mm, x to the left, y up, z forward\n"
        f"element vertex {len(mesh.vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    with replacing(path) as temporary:
        vertices = mesh.vertices.astype("<f4").tobytes()
        temporary.write_bytes(header.encode("ascii") + vertices + faces.tobytes())
