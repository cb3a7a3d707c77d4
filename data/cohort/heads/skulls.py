"""The skulls that a subject may have: one file each under data/templates, all in the reference head's frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from data.render import vertex_normals

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
# The first is GPL-2: see templates/README.md.
SKULL_FILES = {"scan": "skull_ct.npz", "model": "skull_model.npz"}
SKULL_QUANTUM_MM = 0.02
CRANIUM, MANDIBLE, SPINE = 0, 1, 2


def read_template(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file of data/templates. Raises: FileNotFoundError with the remedy."""
    path = TEMPLATES / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: is missing; it ships with the repository: get it back with git checkout -- data/templates"
        )
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


@dataclass(frozen=True, eq=False)
class SkullTemplate:
    """A skull inside the reference head; mm.

    Attributes:
        vertices (S, 3), triangles (T, 3), part (S,): CRANIUM, MANDIBLE or SPINE.
        strength (S,): about the density of the bone just under the surface in Hounsfield units / 8, 255 where thick.
        dental_ids (D,): vertices in the zone of the teeth; of each: dental_jaw (1 upper, 2 lower), dental_along
        (mm from the midline along the arch, left positive), dental_beyond (mm beyond the edge of the socket towards
        the crown's edge, negative in the jaw), dental_weight (0..1, how fully it belongs to the zone).
    """

    vertices: np.ndarray
    triangles: np.ndarray
    part: np.ndarray
    strength: np.ndarray
    dental_ids: np.ndarray
    dental_jaw: np.ndarray
    dental_along: np.ndarray
    dental_beyond: np.ndarray
    dental_weight: np.ndarray

    @cached_property
    def normals(self) -> np.ndarray:
        return vertex_normals(self.vertices, self.triangles)

    @classmethod
    @cache
    def load(cls, kind: str) -> SkullTemplate:
        """Return the skull of a key of ``SKULL_FILES``. Raises: FileNotFoundError with the remedy."""
        stored = read_template(SKULL_FILES[kind])
        steps = stored["vertex_steps"].astype(np.int64)
        triangles = np.cumsum(stored["triangle_steps"].ravel(), dtype=np.int64).reshape(-1, 3)
        dental = stored["dental"].astype(float)
        return cls(
            vertices=np.cumsum(steps, axis=0) * SKULL_QUANTUM_MM,
            triangles=triangles,
            part=stored["part"],
            strength=stored["strength"],
            dental_ids=np.cumsum(stored["dental_id_steps"], dtype=np.int64),
            dental_jaw=stored["dental_jaw"],
            dental_along=dental[0],
            dental_beyond=dental[1],
            dental_weight=dental[2],
        )
