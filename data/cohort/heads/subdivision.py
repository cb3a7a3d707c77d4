"""Catmull-Clark subdivision of quad meshes as a sparse matrix.

The faces of all subjects share one topology, so the refinement rule is computed once and every subject is
refined by one product ``S @ vertices``.

Source: Catmull and Clark, "Recursively generated B-spline surfaces on arbitrary topological meshes", 1978.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse


def catmull_clark(quads: np.ndarray, num_vertices: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Take one Catmull-Clark step.

    Refined vertices come in this order: the ``num_vertices`` old ones (moved), one per edge (edges in the order in
    which they are first met while walking the faces), one per face. Landmark ids rely on this order.

    Args:
        quads: (F, 4) vertex indices; the mesh may be open (its border is refined as a B-spline curve).
        num_vertices: V.

    Returns:
        matrix: (V + E + F, V), to be multiplied from the left with (V, 3) positions.
        refined: (4 F, 4), four quads per old quad, in the order of the old quads and of their corners.
    """
    corners = quads.ravel()  # corner j of face f stands at 4 f + j
    sides = np.sort(
        np.stack([corners, np.roll(quads, -1, axis=1).ravel()], 1), 1
    )  # from corner j to corner j + 1
    _, first, inverse = np.unique(sides @ [num_vertices, 1], return_index=True, return_inverse=True)
    edge = np.argsort(np.argsort(first))[inverse]  # of each corner's side
    ends = sides[np.sort(first)]
    face = np.repeat(np.arange(len(quads)), 4)  # of each corner
    num_edges, num_faces = len(ends), len(quads)

    face_points = sparse.csr_matrix((np.full(len(corners), 0.25), (face, corners)), (num_faces, num_vertices))
    border = np.bincount(edge, minlength=num_edges) == 1
    middles = sparse.csr_matrix(
        (np.where(border, 0.5, 0.25).repeat(2), (np.arange(num_edges).repeat(2), ends.ravel())),
        (num_edges, num_vertices),
    )
    beside = sparse.csr_matrix((np.where(border[edge], 0, 0.25), (edge, face)), (num_edges, num_faces))
    edge_points = middles + beside @ face_points

    # Old vertices: (Q + 2 R + (n - 3) v) / n inside, (6 v + its two neighbours) / 8 on the border.
    n = np.maximum(np.bincount(corners, minlength=num_vertices), 1).astype(float)
    border_degree = np.bincount(ends[border].ravel(), minlength=num_vertices)  # 2 unless two borders touch
    inside = (np.bincount(corners, minlength=num_vertices) > 0) & (border_degree == 0)
    keep = np.select([inside, border_degree > 0], [(n - 3) / n + 1 / n, 0.75], 1.0)
    start, end = np.vstack([ends, ends[:, ::-1]]).T
    share = 0.25 / np.maximum(border_degree, 1)
    weight = np.select([inside[start], np.tile(border, 2)], [1 / n[start] ** 2, share[start]], 0.0)
    neighbours = sparse.csr_matrix((weight, (start, end)), (num_vertices, num_vertices))
    around = np.where(inside, 1 / n**2, 0.0)[corners]
    faces_around = sparse.csr_matrix((around, (corners, face)), (num_vertices, num_faces))
    old_points = sparse.diags(keep) + neighbours + faces_around @ face_points

    face_ids, edge_ids = num_vertices + num_edges + face, num_vertices + edge
    preceding = np.roll(edge_ids.reshape(-1, 4), 1, axis=1).ravel()
    refined = np.stack([corners, edge_ids, face_ids, preceding], axis=1)
    return sparse.vstack([old_points, edge_points, face_points]).tocsr(), refined
