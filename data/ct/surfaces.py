"""Surfaces of equal HU as triangle meshes (VTK, none of whose parts that draw is loaded), and PLY files of them."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndimage
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData, vtkPolyData
from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D, vtkWindowedSincPolyDataFilter

from data.ct.reading.scan import OUTSIDE_HU, ScanError
from data.ct.volume import SKIN_HU, HeadVolume

BONE_HU = 220.0
METAL_CLIP_HU = 1500  # denser than bone: its streaks and spikes are levelled before the surface is sought
SMOOTHING_ROUNDS = 15
BONE_PASS_BAND, SKIN_PASS_BAND = 0.12, 0.06  # of the windowed-sinc filter; smaller is smoother
SMALLEST_PART = 0.01  # parts of a surface with a smaller share of its area are left out


@dataclass(frozen=True)
class Mesh:
    """``vertices`` (V, 3) float32 mm; ``triangles`` (T, 3) int32, counter-clockwise seen from outside."""

    vertices: np.ndarray
    triangles: np.ndarray

    def moved(self, rotation: np.ndarray, shift: np.ndarray) -> Mesh:
        """At ``rotation @ p + shift``."""
        placed = self.vertices.astype(float) @ rotation.T + shift
        return Mesh(placed.astype(np.float32), self.triangles)

    def keep(self, chosen: np.ndarray) -> Mesh:
        """(T,) bool -> the mesh of these triangles alone."""
        used, triangles = np.unique(self.triangles[chosen], return_inverse=True)
        return Mesh(self.vertices[used], triangles.reshape(-1, 3).astype(np.int32))

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) which connected part each triangle belongs to, and (P,) areas of the parts in mm2."""
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
    """Raises: ScanError where there is no bone."""
    hu = np.where(head.head, np.minimum(head.volume.hu, METAL_CLIP_HU), OUTSIDE_HU)
    smooth = ndimage.gaussian_filter(hu, 0.5 / head.volume.step, output=np.float32, truncate=3)
    mesh = _isosurface(smooth, level, head, BONE_PASS_BAND)
    part, area = mesh.parts()
    return mesh.keep((area >= SMALLEST_PART * area.max())[part])


def skin_surface(head: HeadVolume) -> Mesh:
    """The outer surface alone. Raises: ScanError where there is none."""
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
    return _mesh(smooth.GetOutput())


def _mesh(found: vtkPolyData) -> Mesh:
    if found.GetNumberOfCells() < 1000:
        raise ScanError("no surface of the size of a head in it")
    vertices = vtk_to_numpy(found.GetPoints().GetData()).astype(np.float32)
    triangles = vtk_to_numpy(found.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int32)
    return Mesh(vertices, triangles)


def write_ply(path: Path, mesh: Mesh) -> None:
    """Binary PLY, whole or not at all."""
    faces = np.empty(len(mesh.triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.triangles
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment mm, x to the left, y up, z forward\n"
        f"element vertex {len(mesh.vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(header.encode("ascii"))
            file.write(mesh.vertices.astype("<f4").tobytes())
            file.write(faces.tobytes())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
