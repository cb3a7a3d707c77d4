"""The skulls that a subject may have: one file each under data/templates, all in the reference head's frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.render import vertex_normals

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
SKULL_FILES = {
    "scan": "skull_ct.npz",
    "model": "skull_model.npz",
}  # skull_ct.npz is GPL-2: see templates/README.md
SKULL_QUANTUM_MM = 0.02
CRANIUM, MANDIBLE, SPINE = 0, 1, 2


@dataclass(frozen=True)
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
    def load(cls, kind: str) -> SkullTemplate:
        """Raises: FileNotFoundError with the remedy when the file is absent."""
        path = TEMPLATES / SKULL_FILES[kind]
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: skull template not found; it ships with the repository (git checkout -- data/templates), or "
                "build it: see data/templates/README.md"
            )
        with np.load(path, allow_pickle=False) as stored:
            return cls.from_arrays(dict(stored))

    @classmethod
    def from_arrays(cls, stored: Mapping[str, np.ndarray]) -> SkullTemplate:
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


def stored_arrays(skull: SkullTemplate) -> dict[str, np.ndarray]:
    """What ``SkullTemplate.from_arrays`` reads, quantised and as steps, which pack well."""
    positions = np.rint(skull.vertices / SKULL_QUANTUM_MM).astype(np.int64)
    return {
        "vertex_steps": np.diff(positions, axis=0, prepend=0).astype(np.int16),
        "triangle_steps": np.diff(skull.triangles.ravel(), prepend=0).astype(np.int32).reshape(-1, 3),
        "part": skull.part.astype(np.uint8),
        "strength": skull.strength.astype(np.uint8),
        "dental_id_steps": np.diff(skull.dental_ids, prepend=0).astype(np.int32),
        "dental_jaw": skull.dental_jaw.astype(np.uint8),
        "dental": np.stack([skull.dental_along, skull.dental_beyond, skull.dental_weight]).astype(np.float16),
    }
