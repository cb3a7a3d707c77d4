"""The shipped head template and the linear maps that follow from it.

``HeadTemplate`` turns target weights into base vertices, refines them, and fits the template skulls under the reference
head. A fitted skull is carried to a subject by ``carrier @ control_vertices_of_the_bony_face``: the solution of a
polyharmonic (kernel r) interpolation with an affine part and a little smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sparse
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from data.cohort.heads.detail import Groove, find_grooves, local_shapes
from data.cohort.heads.outline import NUM_CONTOUR, contour_chains
from data.cohort.heads.proportions import corner_norms, reshape_vault, skin_sizes
from data.cohort.heads.skulls import SkullTemplate, read_template
from data.cohort.heads.sliders import EXPRESSION, LIFE_STAGES, RACES, SEXES, macro_targets
from data.cohort.heads.subdivision import catmull_clark
from data.cohort.heads.tissue import SitesOnSkull, find_sites

TEMPLATE_FILE = "head.npz"
QUANTUM_MM = 0.01  # step of the stored target displacements and skull positions
CARRIER_SMOOTHING = 6.0
NASION, MENTON = 51, 16  # landmark numbers
VAULT_ABOVE_MM = 25.0  # base vertices above this height carry no soft-tissue change


@dataclass(frozen=True)
class FittedSkull:
    """A template skull under the reference head.

    Attributes:
        carrier: (S, C) float32, moves the skull's vertices with the control vertices of a bony face.
        grooves, metopic: the sutures, and the one that few people keep.
        local_shapes: (L, S, 3) small shapes that the face does not show.
        sites: where tissue depths are set and measured.
    """

    template: SkullTemplate
    carrier: np.ndarray
    grooves: list[Groove]
    metopic: Groove
    local_shapes: np.ndarray
    sites: SitesOnSkull


@dataclass(frozen=True, eq=False)
class HeadTemplate:
    """Attributes are the arrays of ``head.npz``; lengths are in mm in the template frame.

    base_vertices (V, 3); base_quads (F, 4); is_eye (F,); targets: sparse (3 V, T); target_names: T names;
    control_ids (C,) into base vertices; shown_quads (16 F,) bool: refined quads that are drawn (the mouth bag is
    not); landmark_ids (106,) into refined vertices.
    """

    base_vertices: np.ndarray
    base_quads: np.ndarray
    is_eye: np.ndarray
    targets: sparse.csr_matrix
    target_names: tuple[str, ...]
    control_ids: np.ndarray
    shown_quads: np.ndarray
    landmark_ids: np.ndarray

    @classmethod
    @cache
    def load(cls) -> HeadTemplate:
        """Return the template that ships. Raises: FileNotFoundError with the remedy when it is absent."""
        stored = read_template(TEMPLATE_FILE)
        vertices = stored["base_vertices"].astype(float)
        quads = stored["base_quads"].astype(np.int64)
        names = tuple(str(name) for name in stored["target_names"])
        starts = stored["target_starts"].astype(np.int64)
        steps = stored["target_row_steps"].astype(np.int64)
        rows = np.concatenate([np.cumsum(steps[a:b]) for a, b in pairwise(starts)])
        values = stored["target_values"].astype(float) * QUANTUM_MM
        targets = sparse.csc_matrix((values, rows, starts), (3 * len(vertices), len(names)))
        return cls(
            base_vertices=vertices,
            base_quads=quads,
            is_eye=np.unpackbits(stored["is_eye"], count=len(quads)).astype(bool),
            targets=targets.tocsr(),
            target_names=names,
            control_ids=stored["control_ids"].astype(np.int64),
            shown_quads=np.unpackbits(stored["shown_quads"], count=16 * len(quads)).astype(bool),
            landmark_ids=stored["landmark_ids"].astype(np.int64),
        )

    def weights(
        self, femininity: float, age: float, race: np.ndarray, local: Mapping[str, float]
    ) -> np.ndarray:
        """Return (T,) target weights, with eyes and lips closed.

        Args:
            femininity: 0 male .. 1 female.
            age: life-stage parameter: 1/3 child, 2/3 young adult, 1 old.
            race: (3,) shares of african, asian, caucasian, summing to 1.
            local: slider targets and their weights.
        """
        position = float(np.clip(age * 3 - 1, 0, 2))
        stage_shares = dict(zip(LIFE_STAGES, np.maximum(0, 1 - np.abs(position - np.arange(3))), strict=True))
        sex_shares = {"male": 1 - femininity, "female": femininity}
        race_shares: dict[str | None, float] = {None: 1.0, **dict(zip(RACES, race.tolist(), strict=True))}
        macro = {
            name: stage_shares[stage] * sex_shares[sex] * race_shares[of_race]
            for name, (of_race, sex, stage) in macro_targets().items()
        }
        shares = {**local, **macro, **EXPRESSION}
        return np.array([shares.get(name, 0.0) for name in self.target_names])

    def shape(self, weights: np.ndarray) -> np.ndarray:
        """Return (V, 3) base vertices in mm for (T,) weights, not yet aligned nor reshaped."""
        return self.base_vertices + (self.targets @ weights).reshape(-1, 3)

    @cached_property
    def reference(self) -> np.ndarray:
        """Return (V, 3) the lean, androgynous young adult that the template skulls belong to, eyes closed."""
        return self.shape(self.weights(0.5, 2 / 3, np.array([0.0, 1.0, 0.0]), {}))

    @cached_property
    def vault_ids(self) -> np.ndarray:
        return np.flatnonzero(self.reference[:, 1] > VAULT_ABOVE_MM)

    @cached_property
    def _refinement(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        once, quads = catmull_clark(self.base_quads, len(self.base_vertices))
        twice, quads = catmull_clark(quads, once.shape[0])
        return (twice @ once).tocsr(), quads

    def refine(self, base: np.ndarray) -> np.ndarray:
        """Return (W, 3) vertices: (V, 3) base vertices after two subdivision steps."""
        return self._refinement[0] @ base

    @cached_property
    def face_triangles(self) -> np.ndarray:
        """Return (N, 3) triangles of the refined face that are drawn."""
        return triangulate(self._refinement[1][self.shown_quads])

    def aligned(self, base: np.ndarray) -> np.ndarray:
        """Return base vertices without the shift of the whole head, up to 140 mm, that age and sex targets add."""
        controls = self.control_ids
        return base + (self.reference[controls].mean(0) - base[controls].mean(0))

    def proportions(self, femininity: float, race: np.ndarray) -> np.ndarray:
        """Return (4,) factors (see ``scaled``) that bring heads of this sex and ancestry to their mean sizes."""
        sexes = np.array([1 - femininity, femininity])
        return np.einsum("rsk,r,s->k", self._corner_factors, race, sexes)

    @cached_property
    def _corner_factors(self) -> np.ndarray:
        """Return (3, 2, 4) factors of the six corner heads."""
        factors = np.empty((len(RACES), len(SEXES), 4))
        nasion, menton = (self._refinement[0][[self.landmark_ids[k]]] for k in (NASION, MENTON))
        for i, race in enumerate(RACES):
            for j in range(len(SEXES)):
                base = self.aligned(self.shape(self.weights(float(j), 2 / 3, np.eye(3)[i], {})))
                base = reshape_vault(base)
                skin = self.refine(base)[self.skin_ids]
                factors[i, j] = corner_norms(race)[j] / skin_sizes(skin, nasion @ base, menton @ base)
        return factors

    @cached_property
    def skin_ids(self) -> np.ndarray:
        """Return the refined vertices of the skin, without the eyes."""
        return np.unique(self._refinement[1][~np.repeat(self.is_eye, 16)])

    @cached_property
    def skin_triangles(self) -> np.ndarray:
        """Return (N, 3) triangles of the refined skin with the mouth bag, without the eyes."""
        return triangulate(self._refinement[1][~np.repeat(self.is_eye, 16)])

    @cache  # noqa: B019 (a template lives as long as its process)
    def skull(self, kind: str) -> FittedSkull:
        """Return a skull, a key of ``SKULL_FILES``, under the reference head."""
        skull = SkullTemplate.load(kind)
        base = reshape_vault(self.reference)
        grooves, metopic = find_grooves(skull)
        return FittedSkull(
            template=skull,
            carrier=carrier_matrix(base[self.control_ids], skull.vertices),
            grooves=grooves,
            metopic=metopic,
            local_shapes=local_shapes(skull.vertices),
            sites=find_sites(
                skull, base, self.refine(base), self.skin_ids, self.skin_triangles, self._refinement[0]
            ),
        )

    @cached_property
    def contour_chains(self) -> np.ndarray:
        """Return (33, N) refined vertices across the outline of the face."""
        skin = self.refine(reshape_vault(self.reference))
        return contour_chains(skin, self.skin_ids, self.skin_triangles, self.landmark_ids[:NUM_CONTOUR])

    @cached_property
    def mirrored_control_ids(self) -> np.ndarray:
        """Return (C,) base vertices that stand where the mirrored control vertices would."""
        reference = self.reference
        return cKDTree(reference).query(reference[self.control_ids] * [-1, 1, 1])[1]


def triangulate(quads: np.ndarray) -> np.ndarray:
    """Return (2 F, 3) triangles of (F, 4) quads."""
    return np.vstack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def carrier_matrix(controls: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a (P, C) float32 matrix that maps moved control points (C, 3) to moved ``points`` (P, 3).

    Kernel -r in 3-D with an affine part: ``[[-R + CARRIER_SMOOTHING I, A], [A^T, 0]]`` is solved for unit data.
    """
    count = len(controls)
    affine = np.hstack([np.ones((count, 1)), controls])
    kernel = CARRIER_SMOOTHING * np.eye(count) - cdist(controls, controls)
    system = np.block([[kernel, affine], [affine.T, np.zeros((4, 4))]])
    solved = np.linalg.inv(system)[:, :count]
    rows = []
    for part in np.array_split(points, max(1, len(points) // 4096)):  # keeps the temporaries small
        terms = np.hstack([-cdist(part, controls), np.ones((len(part), 1)), part])
        rows.append((terms @ solved).astype(np.float32))
    return np.vstack(rows)
