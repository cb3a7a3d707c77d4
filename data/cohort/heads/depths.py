"""Where the sites of ``data.cohort.heads.tissue`` lie on a template skull and on the skin over it, and measuring there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from data.cohort.heads import tissue
from data.cohort.heads.rays import Surface
from data.cohort.heads.skulls import SPINE, SkullTemplate


@dataclass(frozen=True)
class SitesOnSkull:
    """Of each site: ``skull_ids`` (K,) into the skull's vertices, ``skin_rows`` (K, V) that give the skin's point from
    base vertices, ``spread`` (V, K) that spreads values at the sites over the base vertices."""

    skull_ids: np.ndarray
    skin_rows: sparse.csr_matrix
    spread: np.ndarray

    def depths(self, places: np.ndarray, base: np.ndarray) -> np.ndarray:
        """(K,) mm between places on the bone (K, 3) and the skin of base vertices (V, 3), in the sites' directions."""
        return ((self.skin_rows @ base - places) * tissue.ways()).sum(1)

    def corrected(self, base: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Base vertices (V, 3) with the skin ``change`` (K,) mm farther out at the sites."""
        return base + self.spread @ (change[:, None] * tissue.ways())


def bone_places(skull: SkullTemplate) -> np.ndarray:
    """(K, 3) the sites on the outside of the bone. Raises: ValueError naming a site with no bone."""
    bone = skull.triangles[(skull.part[skull.triangles] != SPINE).all(1)]
    surface = Surface(skull.vertices, bone)
    places = []
    for site, s in tissue.both_sides():
        a, b = site.place
        through, look = {
            "front": (np.array([s * a, b, 0.0]), np.array([0, 0, -1.0])),
            "side": (np.array([0, a, b]), np.array([-s, 0, 0.0])),
            "below": (np.array([a, 0, b]), np.array([0, 1.0, 0])),
        }[site.seen]
        try:
            places.append(surface.seen_from(through, look))
        except ValueError as error:
            raise ValueError(f"{site.name}: {error}") from error
    return np.array(places)


def find_sites(
    skull: SkullTemplate,
    base: np.ndarray,
    skin: np.ndarray,
    skin_ids: np.ndarray,
    skin_triangles: np.ndarray,
    refinement: sparse.csr_matrix,
) -> SitesOnSkull:
    """Sites of a template skull under the reference head: ``base`` (V, 3), refined to ``skin`` (W, 3)."""
    bone = skull.part != SPINE
    ids = np.flatnonzero(bone)[tissue.nearest(skull.vertices[bone], bone_places(skull))]
    start, ways = skull.vertices[ids], tissue.ways()
    met = Surface(skin, skin_triangles).last_hits(start, ways)
    rows = skin_ids[tissue.nearest(skin[skin_ids], met)]
    spread = tissue.kernel(base, refinement[rows] @ base)
    front = 1 / (1 + np.exp(-(base[:, 2] + 25) / 8))  # the back of the head and the neck keep their shape
    return SitesOnSkull(ids, refinement[rows], spread * front[:, None])


def calibrated(skull: np.ndarray, sites: SitesOnSkull, base: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(S, 3) a template skull moved so that the reference head has the table's mean depths over it."""
    gap = sites.depths(places, base) - (tissue.table("M", 40, 22.5) + tissue.table("F", 40, 22.5)) / 2
    return skull + tissue.kernel(skull, places) @ (gap[:, None] * tissue.ways())
