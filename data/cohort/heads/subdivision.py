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
    num_faces = len(quads)
    corners = quads.ravel()  # corner j of face f stands at 4 f + j
    following = np.roll(quads, -1, axis=1).ravel()
    low, high = np.minimum(corners, following), np.maximum(corners, following)
    _, first, inverse = np.unique(
        low.astype(np.int64) * num_vertices + high, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    edge_of_corner = rank[inverse]  # the edge from corner j to corner j + 1
    ends = np.stack([low, high], 1)[first[order]]
    num_edges = len(ends)
    face_of_corner = np.repeat(np.arange(num_faces), 4)
    ones = np.ones(len(corners))

    face_points = sparse.csr_matrix((ones / 4, (face_of_corner, corners)), (num_faces, num_vertices))
    border = np.bincount(edge_of_corner, minlength=num_edges) == 1

    end_weight = np.where(border, 0.5, 0.25)
    edge_ids = np.arange(num_edges)
    edge_points = sparse.csr_matrix(
        (np.tile(end_weight, 2), (np.tile(edge_ids, 2), ends.T.ravel())), (num_edges, num_vertices)
    )
    inner_corner = ~border[edge_of_corner]
    beside = sparse.csr_matrix(
        (0.25 * ones[inner_corner], (edge_of_corner[inner_corner], face_of_corner[inner_corner])),
        (num_edges, num_faces),
    )
    edge_points = edge_points + beside @ face_points

    old_points = _move_old_vertices(corners, face_of_corner, ends, border, num_vertices, face_points)

    preceding_edge = np.roll(edge_of_corner.reshape(-1, 4), 1, axis=1).ravel()
    refined = np.stack(
        [
            corners,
            num_vertices + edge_of_corner,
            num_vertices + num_edges + face_of_corner,
            num_vertices + preceding_edge,
        ],
        axis=1,
    )
    return sparse.vstack([old_points, edge_points, face_points]).tocsr(), refined


def _move_old_vertices(
    corners: np.ndarray,
    face_of_corner: np.ndarray,
    ends: np.ndarray,
    border: np.ndarray,
    num_vertices: int,
    face_points: sparse.csr_matrix,
) -> sparse.csr_matrix:
    """Rows for the old vertices: (Q + 2 R + (n - 3) v) / n inside, (6 v + its two neighbours) / 8 on the border."""
    shape = (num_vertices, num_vertices)
    valence = np.bincount(corners, minlength=num_vertices)
    on_border = np.zeros(num_vertices, bool)
    on_border[ends[border].ravel()] = True
    inside = (valence > 0) & ~on_border
    n = np.maximum(valence, 1).astype(float)

    border_degree = np.bincount(ends[border].ravel(), minlength=num_vertices)  # 2 unless two borders touch

    keep = np.where(inside, (n - 3) / n + 1 / n, np.where(on_border, 0.75, 1.0))
    both = np.vstack([ends, ends[:, ::-1]])
    is_border = np.tile(border, 2)
    to_inside = inside[both[:, 0]]
    share = 0.25 / np.maximum(border_degree, 1)
    weight = np.where(to_inside, 1 / n[both[:, 0]] ** 2, np.where(is_border, share[both[:, 0]], 0.0))
    neighbours = sparse.csr_matrix((weight, (both[:, 0], both[:, 1])), shape)
    chosen = inside[corners]
    around = sparse.csr_matrix(
        (1 / n[corners[chosen]] ** 2, (corners[chosen], face_of_corner[chosen])),
        (num_vertices, face_points.shape[0]),
    )
    return (sparse.diags(keep) + neighbours + around @ face_points).tocsr()
