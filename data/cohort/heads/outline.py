"""The 33 contour landmarks on the outline in the picture, whatever the cheeks and the chin are like.

A fixed vertex would vanish behind a full cheek or slide down a double chin. Each contour point therefore has a chain of
vertices across the outline and takes the one that lies on it.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from data.cohort.heads.rays import RayMesh

NUM_CONTOUR = 33
CHIN = range(9, 24)  # contour points of the lower border; the others are at the sides
STEP_MM, CHAIN_LENGTH = 1.5, 15
FAR_MM = 400.0  # from where rays are sent
MOUTH = np.array([0.0, -66.0])
TURNED_AWAY = 0.42  # the chin ends where, coming down, the cosine between surface and viewer falls below this
MENTON, BELOW_MENTON_MM = 16, 3.0  # no contour point lies further below the chin's middle


def contour_chains(
    skin: np.ndarray, skin_ids: np.ndarray, triangles: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """Return (33, CHAIN_LENGTH) refined vertices: each chain runs from the face to near the template's point.

    Args:
        skin: (W, 3) refined reference head.
        skin_ids: vertices of its skin.
        triangles: (N, 3) of its skin.
        ids: (33,) the template's points.
    """
    surface = RayMesh(skin, triangles)
    tree = cKDTree(skin[skin_ids])
    chains = np.empty((NUM_CONTOUR, CHAIN_LENGTH), np.int64)
    steps = STEP_MM * np.arange(CHAIN_LENGTH - 1, 0, -1)[:, None]
    for k, point in enumerate(skin[ids]):
        if k in CHIN:
            inward = MOUTH - point[:2]
            start = point + steps * [*(inward / np.linalg.norm(inward)), 0]
            start[:, 2] = FAR_MM
            towards = np.array([0, 0, -1.0])
        else:
            side = np.sign(point[0])
            start = point + steps * [0, 0, 1] - [0, 0, 3]
            start[:, 0] = side * FAR_MM
            towards = np.array([-side, 0, 0])
        met = surface.first_hits(start, towards)
        met = np.where(np.isnan(met), point, met)
        chains[k] = [*skin_ids[tree.query(met)[1]], ids[k]]
    return chains


def outline_points(face: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """Return (33, 3) mm: the points of the chains on the outline of a face (W, 3), as seen from the front."""
    chain = face[chains]  # (33, CHAIN_LENGTH, 3)
    step = np.diff(chain, axis=1)
    facing = np.linalg.norm(step[..., :2], axis=2) / np.maximum(np.linalg.norm(step, axis=2), 1e-9)
    away = facing < TURNED_AWAY
    skipped = CHAIN_LENGTH // 3
    away[:, :skipped] = False
    # Under a double chin the skin may never turn that far away: the chin then ends where it turns away the most.
    first = np.where(away.any(1), away.argmax(1), skipped + facing[:, skipped:].argmin(1))
    lowest = chain[MENTON, first[MENTON], 1] - BELOW_MENTON_MM  # further down is the neck
    neck = chain[..., 1] < lowest
    first = np.where(neck.any(1), np.minimum(first, neck.argmax(1) - 1), first)
    widest = np.abs(chain[..., 0]).argmax(1)
    chosen = np.where(np.isin(np.arange(NUM_CONTOUR), CHIN), first, widest)
    return chain[np.arange(NUM_CONTOUR), chosen]
