"""The subdivision matrix against the rules written out by hand."""

from __future__ import annotations

import numpy as np

from data.cohort.heads.subdivision import catmull_clark

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
CUBE_QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    ids = np.arange(n * n).reshape(n, n)
    quads = np.stack([ids[:-1, :-1], ids[1:, :-1], ids[1:, 1:], ids[:-1, 1:]], -1).reshape(-1, 4)
    return np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(float), quads


def test_a_cube_once_subdivided():
    matrix, quads = catmull_clark(CUBE_QUADS, 8)
    refined = matrix @ CUBE
    assert matrix.shape == (8 + 12 + 6, 8) and quads.shape == (24, 4)
    assert np.allclose(refined[:8], CUBE * 5 / 9)  # (Q + 2 R + (n - 3) v) / n with n = 3
    edges = refined[8:20]
    assert np.allclose(np.sort(np.abs(edges), axis=1), [0, 0.75, 0.75])
    assert np.allclose(np.sort(np.abs(refined[20:]), axis=1), [0, 0, 1])


def test_rows_are_averages_and_a_flat_sheet_stays_flat_and_regular():
    vertices, quads = grid(5)
    for _ in range(2):
        matrix, quads = catmull_clark(quads, len(vertices))
        assert np.allclose(matrix.sum(1), 1)
        vertices = matrix @ vertices
    assert np.allclose(vertices[:, 2], 0)
    corners = vertices[quads]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]), axis=1)
    assert areas.min() > 0.01 and vertices.min() > -1e-9 and vertices.max() < 4 + 1e-9


def test_refined_quads_keep_their_turning_sense_and_their_parent():
    vertices, quads = grid(3)
    matrix, refined = catmull_clark(quads, len(vertices))
    points = matrix @ vertices
    a, b, d = (points[refined[:, k]] for k in (0, 1, 3))
    assert (np.cross(b - a, d - a)[:, 2] > 0).all()
    parents = points[refined].mean(1).reshape(-1, 4, 3).mean(1)
    assert np.abs(parents - vertices[quads].mean(1)).max() < 0.2
