"""The cohort's mean skull and its mean position of orbits and chin, to which a scan's pose is fitted.

``python -m data.ct.reference`` makes ``reference.npz`` from the head and skull templates. Run it again when a template
or the cohort's format changes (a test compares ``made_from``).
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.ct.anatomy import Looker, find_orbits
from data.ct.surfaces import Mesh
from data.files import replacing

PATH = Path(__file__).resolve().parent / "reference.npz"
SUBJECTS, SEED = 48, 0
VIEWS = ((0.0, 0.0), (30.0, 0.0), (-30.0, 0.0), (0.0, 25.0))  # the template skull has no back
VIEW_STEP_MM = 2.0
NUM_POINTS = 3000
FACE_BELOW_MM, FACE_BEFORE_MM = 20.0, 15.0
QUANTUM_MM = 0.01


@dataclass(frozen=True)
class Reference:
    """The cohort's mean skull, mm in the cohort's frame.

    Attributes:
        orbits: (4, 3) mean of ``Orbits.points``.  chin_y: mean height of the menton.
        mouth_y: mean height of the closed mouth's middle, on the face.
        points, normals: (N, 3) on the outside of the cohort's mean skull, as many left as right.
        spread: (2,) standard deviation over subjects of half the distance of the orbits, and of the menton's height.
        made_from: ``made_from()`` when it was made.
    """

    orbits: np.ndarray
    chin_y: float
    mouth_y: float
    points: np.ndarray
    normals: np.ndarray
    spread: np.ndarray
    made_from: str

    @property
    def orbit_height(self) -> float:
        return float(self.orbits[:2, 1].mean())

    @property
    def mandible(self) -> np.ndarray:
        """Return (N,) bool: points of the mandible, clear of the teeth."""
        return self.points[:, 1] < self.mouth_y - 12


@lru_cache(maxsize=1)
def reference() -> Reference:
    """Return the stored reference. Raises: FileNotFoundError with the remedy."""
    if not PATH.is_file():
        raise FileNotFoundError(f"{PATH}: not found; make it with: python -m data.ct.reference")
    with np.load(PATH, allow_pickle=False) as stored:
        return Reference(
            orbits=stored["orbits"],
            chin_y=float(stored["chin_y"]),
            mouth_y=float(stored["mouth_y"]),
            points=stored["points"] * QUANTUM_MM,
            normals=stored["normals"] / 127,
            spread=stored["spread"],
            made_from=str(stored["made_from"]),
        )


def made_from() -> str:
    """Return a digest of what the reference depends on: the templates and the cohort's format."""
    from data.cohort.config import FORMAT_VERSION
    from data.cohort.heads.skulls import SKULL_FILES, TEMPLATES

    digest = hashlib.sha256(f"cohort format {FORMAT_VERSION}".encode())
    for name in ("head.npz", *sorted(SKULL_FILES.values())):
        path = TEMPLATES / name
        digest.update(f"{name}:".encode())
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()[:16]


def make_reference(indices: range = range(SUBJECTS), seed: int = SEED) -> Reference:
    """Return the means over subjects of a cohort, and the mean of their commonest kind of skull.

    Any one skull would do worse: its own shape would turn up as a nod of every scan that is fitted to it.
    """
    from data.cohort.heads.anatomy import build_head
    from data.cohort.heads.skulls import SPINE
    from data.cohort.heads.subject import draw_subject
    from data.cohort.heads.template import HeadTemplate

    template = HeadTemplate.load()
    subjects = [draw_subject(seed, index) for index in indices]
    kind = Counter(subject.skull.kind for subject in subjects).most_common(1)[0][0]
    orbits, chins, mouths, skulls = [], [], [], []
    for subject in subjects:
        head = build_head(template, subject)
        mesh = Mesh(head.skull.astype(np.float32), head.skull_triangles.astype(np.int32))
        sockets = find_orbits(Looker(mesh))
        if sockets is None:
            raise ValueError(f"{subject.name}: no orbits on its skull; find_orbits does not fit the template")
        orbits.append(sockets.points)
        chins.append(head.chin_y)
        mouths.append(float(head.landmarks[84:104, 1].mean()))
        if subject.skull.kind == kind:
            skulls.append(head.skull * [-1, 1, 1] if subject.skull.mirrored else head.skull)
    shape = template.skull(kind).template
    bone = shape.triangles[(shape.part[shape.triangles] != SPINE).all(1)]
    points, normals = _outside(Mesh(np.mean(skulls, 0).astype(np.float32), bone.astype(np.int32)))
    mean = np.mean(orbits, 0)
    widths = [(o[0, 0] - o[1, 0]) / 2 for o in orbits]
    symmetric = (mean + mean[[1, 0, 3, 2]] * [-1, 1, 1]) / 2
    return Reference(
        orbits=symmetric,
        chin_y=float(np.mean(chins)),
        mouth_y=float(np.mean(mouths)),
        points=points,
        normals=normals,
        spread=np.array([np.std(widths), np.std(chins)]),
        made_from=made_from(),
    )


def _outside(mean: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 3) points and normals of a skull and its mirror image by turns, every other pair from the face."""
    points, normals = Looker(mean).outer_points(VIEWS, VIEW_STEP_MM)
    # The smooth vault says little about the pose: every other point is one of the face.
    face = (points[:, 1] < FACE_BELOW_MM) & (points[:, 2] > FACE_BEFORE_MM)
    rng = np.random.default_rng(0)
    parts = [rng.permutation(np.flatnonzero(chosen))[: NUM_POINTS // 2] for chosen in (face, ~face)]
    chosen = np.stack(parts, 1).ravel()
    points, normals = points[chosen], normals[chosen]
    mirrored = np.arange(len(points)) // 2 % 2 == 1
    flip = np.where(mirrored[:, None], [-1.0, 1, 1], 1.0)
    return points * flip, normals * flip


def main() -> int:
    made = make_reference()
    with replacing(PATH) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            orbits=made.orbits.round(3),
            chin_y=round(made.chin_y, 3),
            mouth_y=round(made.mouth_y, 3),
            points=np.rint(made.points / QUANTUM_MM).astype(np.int16),
            normals=np.rint(made.normals * 127).astype(np.int8),
            spread=made.spread.round(3),
            made_from=made.made_from,
        )
    print(f"{PATH.name}: orbits {made.orbits.round(1).tolist()}, chin {made.chin_y:.1f} mm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
