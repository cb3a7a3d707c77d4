"""Turns a skull into the cohort's frame, whatever way the patient lay. Lengths are never changed.

The cohort's mean skull is fitted from many directions. Then the skull's own symmetry corrects left and right, its own
Frankfurt plane the nod, and its own orbits the height.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from data.ct.anatomy import Looker, Orbits, find_orbits, find_porions
from data.ct.findings import ScanError
from data.ct.reference import Reference, reference
from data.ct.surfaces import Mesh
from data.ct.volume import FROM_LPS
from settings.parsing import read_json

AROUND = (
    *((float(yaw), 0.0) for yaw in range(0, 360, 45)),
    *((0.0, 50.0), (180.0, 50.0), (0.0, 89.0), (0.0, -50.0), (180.0, -50.0)),
)
OUTER_STEP_MM = 3.0
NORMAL_MM = 18.0  # a turn of the normal by one radian counts like this distance
KEPT_SHARE = 0.72  # of the reference's points: the mandible may be missing
HEAD_MIDDLE = np.array([0.0, 10.0, 0.0])  # of the cohort's frame: about the middle of a skull's bounding box
SCALES = (0.8, 1.25)  # of the reference, along each axis, to fit a head; beyond, it is none
WORST_FIT_MM = 5.0
MIRRORED_SHARE = 0.75  # of the skull's points: a defect has no mirror image
SCALE_PRIOR = 30.0  # mm2 a point: how strongly a scale is held at 1
LARGEST_MEND_DEG = 10.0  # between the fit and the Frankfurt plane; beyond, the pits are no ear canals
STEADY_DEG = 2.0  # lean of the Frankfurt plane once it was levelled; beyond, another pit was measured
LARGEST_OFFSET_MM = 40.0  # of the orbits' height from the reference's
POINT_NAMES = ("orbitale_left", "orbitale_right", "porion_left", "porion_right")


@dataclass(frozen=True)
class Pose:
    """``rotation @ p + shift`` takes a point of the upright volume to the cohort's frame.

    Attributes:
        method: "frankfurt" (the fit, nodded to the skull's own Frankfurt plane), "fit" (its ear canals were not found),
            "angles" or "points".
        residual: mm, of the reference skull fitted to the scan; nan where it was not fitted.
        scales: (3,) by which the reference had to be widened, heightened, deepened.
        symmetry: mm, mean distance of the skull from its mirror image, without the most different quarter.
        tilt: degrees between the Frankfurt plane and the fit, or the pose that was given; nan where unknown.
        orbits: in the cohort's frame.
        fitted: (N, 3) the reference skull's points where the scan's bone should be, in the cohort's frame.
    """

    rotation: np.ndarray
    shift: np.ndarray
    method: str
    residual: float
    scales: np.ndarray
    symmetry: float
    tilt: float
    orbits: Orbits
    fitted: np.ndarray

    def angles(self) -> tuple[float, float, float]:
        """Return yaw, pitch and roll in degrees, see ``turn``."""
        yaw, pitch, roll = Rotation.from_matrix(self.rotation).as_euler("yxz", degrees=True).tolist()
        return yaw, pitch, roll

    @property
    def turned(self) -> float:
        """Return the degrees between the head and the scan's axes."""
        return float(np.degrees(Rotation.from_matrix(self.rotation).magnitude()))

    def record(self) -> dict[str, Any]:
        """Return what the report says of the pose."""
        lengths = {"fit_residual_mm": self.residual, "symmetry_mm": self.symmetry}
        return {
            "method": self.method,
            "yaw_pitch_roll_deg": [round(angle, 2) for angle in self.angles()],
            "frankfurt_tilt_taken_out_deg": round(self.tilt, 3) if self.method == "frankfurt" else None,
            **{name: round(value, 3) if np.isfinite(value) else None for name, value in lengths.items()},
            "size_beside_cohort": self.scales.round(3).tolist(),
        }


def turn(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Return the (3, 3) rotation about the vertical, then the ear-to-ear, then the forward axis, in degrees.

    Positive yaw turns to the subject's left, positive pitch lowers the chin, positive roll is anticlockwise seen from
    the front.
    """
    return Rotation.from_euler("yxz", [yaw, pitch, roll], degrees=True).as_matrix()


def find_pose(bone: Mesh, how: str = "auto") -> Pose:
    """Return the pose of a skull.

    Args:
        bone: in the upright volume's coordinates.
        how: "auto"; "yaw,pitch,roll" in degrees; or a JSON file with the LPS mm of POINT_NAMES.

    Raises:
        ScanError: no skull, or no orbits, where they should be.
    """
    ref = reference()
    middle = (bone.vertices.min(0) + bone.vertices.max(0)).astype(float) / 2
    centered = bone.moved(np.eye(3), -middle)
    points, normals = Looker(centered).outer_points(AROUND, OUTER_STEP_MM)
    residual, symmetry, scales, fitted = float("nan"), float("nan"), np.ones(3), ref.points
    if how == "auto":
        method = "fit"
        rotation, shift, scales, residual = _fit(points, normals, ref)
        fitted = (ref.points * scales - shift) @ rotation  # on the scan, as it lies
        rotation, shift, symmetry = _mirror(points, normals, rotation, shift)
    else:
        rotation, method = manual_rotation(how)
        shift = _center(points, normals, rotation, ref)
    looker = Looker(bone.moved(rotation, shift - rotation @ middle))
    orbits = _place_orbits(looker, ref)
    porions = find_porions(looker, orbits)
    tilt = float("nan") if porions is None else frankfurt_tilt(orbits, porions)
    if method == "fit" and abs(tilt) <= LARGEST_MEND_DEG:
        nod = turn(0.0, tilt, 0.0)
        looker = Looker(bone.moved(nod @ rotation, nod @ shift - nod @ rotation @ middle))
        nodded = _place_orbits(looker, ref)
        porions = find_porions(looker, nodded)
        if porions is not None and abs(frankfurt_tilt(nodded, porions)) <= STEADY_DEG:
            rotation, shift, orbits, method = nod @ rotation, nod @ shift, nodded, "frankfurt"
    move = np.zeros(3)
    if method in ("angles", "points"):
        move[0] = -orbits.points[:2, 0].mean()
    move[1] = ref.orbit_height - orbits.height
    move[2] = ref.orbits[2:, 2].mean() - orbits.points[2:, 2].mean()
    if how == "auto":
        fitted = fitted @ rotation.T + shift + move
    return Pose(
        rotation=rotation,
        shift=shift - rotation @ middle + move,
        method=method,
        residual=residual,
        scales=scales,
        symmetry=symmetry,
        tilt=tilt,
        orbits=Orbits(orbits.points + move),
        fitted=fitted,
    )


def frankfurt_tilt(orbits: Orbits, porions: np.ndarray) -> float:
    """Return the degrees by which the chin must go down to level the plane through orbitale and porion."""
    up, forward = (orbits.points[2:].sum(0) - porions.sum(0))[1:] / 2
    return float(np.degrees(np.arctan2(up, forward)))


def _place_orbits(looker: Looker, ref: Reference) -> Orbits:
    for offset in (0.0, 12.0, -12.0, 24.0, -24.0):
        orbits = find_orbits(looker, ref.orbit_height + offset)
        if orbits is not None and abs(orbits.height - ref.orbit_height) < LARGEST_OFFSET_MM:
            return orbits
    raise ScanError(
        "no two orbits were found in it: the face is not in the field of view, or the pose is wrong (then give it: "
        "pose=yaw,pitch,roll)"
    )


def manual_rotation(how: str) -> tuple[np.ndarray, str]:
    """Return the rotation and the method of "yaw,pitch,roll" or a JSON file of landmarks. Raises: ScanError."""
    try:
        angles = [float(part) for part in how.split(",")]
    except ValueError:
        angles = []
    if len(angles) == 3 and np.isfinite(angles).all():
        return turn(*angles), "angles"
    path = Path(how)
    if not path.is_file():
        raise ScanError("pose: expected auto, yaw,pitch,roll in degrees, or a JSON file of landmarks")
    try:
        stored = read_json(path)
        points = np.array([stored[name] for name in POINT_NAMES], float)
    except (OSError, ValueError, TypeError, KeyError):
        points = np.zeros(0)
    if points.shape != (4, 3) or not np.isfinite(points).all():
        raise ScanError(f"pose: expected a JSON object with {', '.join(POINT_NAMES)}, each [x, y, z] LPS mm")
    points = points @ FROM_LPS.T  # of their Frankfurt plane
    across = points[0] - points[1] + points[2] - points[3]
    forward = points[:2].mean(0) - points[2:].mean(0)
    if np.linalg.norm(across) < 20 or np.linalg.norm(forward) < 20:
        raise ScanError("pose: its landmarks lie too close together")
    return _axes(across, forward), "points"


def _axes(across: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Return the rotation that brings ``across`` to the x axis and ``forward`` as near as it goes to the z axis."""
    x = across / np.linalg.norm(across)
    z = forward - (forward @ x) * x
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def _fit(
    points: np.ndarray, normals: np.ndarray, ref: Reference
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Fit the reference to the scan by trimmed iterative closest points, from many starts, coarse to fine.

    Return rotation and shift from the scan to the cohort's frame, the reference's scales and the residual in mm.
    """
    rng = np.random.default_rng(0)
    coarse = _Target(points, normals, rng.permutation(len(points))[:8000])
    whole = _Target(points, normals)
    fits = sorted((_coarse(coarse, ref, start) for start in _starts()), key=lambda fit: fit[3])
    fits = sorted((_refine(whole, ref, fit, 600, 12) for fit in fits[:6]), key=lambda fit: fit[3])
    rotation, shift, scales, residual = _refine(whole, ref, fits[0], len(ref.points), 20)
    if residual > WORST_FIT_MM:
        raise ScanError(
            f"no skull was found in it: the best fit of the reference skull is {residual:.1f} mm off, the limit is "
            f"{WORST_FIT_MM:g} mm; if there is one, give its pose (pose=yaw,pitch,roll)"
        )
    return rotation.T, -rotation.T @ shift, scales, residual


def _starts() -> list[np.ndarray]:
    """Return the head as the header has it, a little turned, and in every other upright or lying position."""
    near = [(0, 0, 0), (35, 0, 0), (-35, 0, 0), (0, 28, 0), (0, -28, 0), (0, 0, 28), (0, 0, -28)]
    starts = [turn(*angles) for angles in near]
    others = np.rint(Rotation.create_group("O").as_matrix())  # all 24 that bring axes to axes
    return [*starts, *others[(others != np.eye(3)).any((1, 2))]]


class _Target:
    """Points of the scan, found by place and direction."""

    def __init__(self, points: np.ndarray, normals: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self.points = points if chosen is None else points[chosen]
        self.normals = normals if chosen is None else normals[chosen]
        self._tree = cKDTree(np.hstack([self.points, NORMAL_MM * self.normals]))

    def partners(
        self, points: np.ndarray, normals: np.ndarray, share: float = KEPT_SHARE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the best ``share`` of (N, 3) points, and of their partners in the scan."""
        distance, index = self._tree.query(np.hstack([points, NORMAL_MM * normals]))
        count = round(share * len(points))
        near = np.argpartition(distance, count)[:count]
        return near, index[near]


Fit = tuple[np.ndarray, np.ndarray, np.ndarray, float]  # rotation, shift, scales, residual: R (s * q) + t


def _coarse(target: _Target, ref: Reference, rotation: np.ndarray, count: int = 250, rounds: int = 10) -> Fit:
    """Fit point to point, without scales, which converges from far. The residual is the trimmed mean distance."""
    points, normals = ref.points[:count], ref.normals[:count]
    shift = -rotation @ HEAD_MIDDLE
    residual = np.inf
    for _ in range(rounds):
        placed = points @ rotation.T + shift
        near, index = target.partners(placed, normals @ rotation.T)
        partners = target.points[index]
        rotation, shift = _rigid(points[near], partners)
        residual = float(np.linalg.norm(placed[near] - partners, axis=1).mean())
    return rotation, shift, np.ones(3), residual


def _refine(target: _Target, ref: Reference, start: Fit, count: int, rounds: int) -> Fit:
    """Fit point to plane, with a scale along each axis of the head, which converges quickly once it is near."""
    points, normals = ref.points[:count], ref.normals[:count]
    rotation, shift, scales, residual = start
    for _ in range(rounds):
        placed = (points * scales) @ rotation.T + shift
        near, index = target.partners(placed, normals @ rotation.T)
        here = placed[near]
        gap = target.points[index] - here
        direction = target.normals[index]
        residual = float(np.linalg.norm(gap, axis=1).mean())
        widths = (direction @ rotation) * points[near]  # how the gap changes with each scale
        spin, move, wider = _plane_step(here, gap, direction, widths, scales - 1)
        rotation, shift = spin @ rotation, spin @ shift + move
        scales = np.clip(scales + wider, *SCALES)
    return rotation, shift, scales, residual


def _plane_step(
    here: np.ndarray, gap: np.ndarray, direction: np.ndarray, widths: np.ndarray, stretch: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take one Gauss-Newton step of point-to-plane fitting; return a rotation, a shift and the change of the scales.

    Args:
        here, gap, direction: (N, 3) points, the way to their partners, the partners' normals.
        widths: (N, K) how the gap changes with each of K scales.
        stretch: (K,) the scales less 1.

    Source: Chen and Medioni (1992).
    """
    design = np.hstack([np.cross(here, direction), direction, widths])
    prior = np.zeros(design.shape[1])
    prior[6:] = SCALE_PRIOR * len(here)
    target = design.T @ (gap * direction).sum(1)
    target[6:] -= prior[6:] * stretch
    step = np.linalg.solve(design.T @ design + np.diag(prior), target)
    return _spin(step[:3]), step[3:6], step[6:]


def _spin(vector: np.ndarray) -> np.ndarray:
    """Return the rotation about a (3,) axis times angle (radians). Source: Rodrigues' formula."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _rigid(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation and shift that bring (N, 3) to (N, 3) with the least squares. Source: Kabsch (1976)."""
    a, b = source.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((source - a).T @ (target - b))
    sign = np.sign(np.linalg.det(vt.T @ u.T))
    rotation = vt.T @ np.diag([1, 1, sign]) @ u.T
    return rotation, b - rotation @ a


def _mirror(
    points: np.ndarray, normals: np.ndarray, rotation: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the pose with the skull's own plane of symmetry at x = 0, and the mm to its mirror image."""
    posed, turned = points @ rotation.T + shift, normals @ rotation.T
    above = posed[:, 1] > -45  # a mandible may stand askew
    posed, turned = posed[above], turned[above]
    rng = np.random.default_rng(1)
    target = _Target(posed, turned)
    chosen = rng.permutation(len(posed))[:6000]
    flip = np.array([-1.0, 1, 1])
    source, directions = posed[chosen] * flip, turned[chosen] * flip
    r, t = np.eye(3), np.zeros(3)
    gap = np.zeros((1, 3))
    for _ in range(12):
        placed = source @ r.T + t
        near, index = target.partners(placed, directions @ r.T, MIRRORED_SHARE)
        gap = target.points[index] - placed[near]
        no_scales = np.zeros((len(near), 0))
        spin, move, _ = _plane_step(placed[near], gap, target.normals[index], no_scales, np.zeros(0))
        r, t = spin @ r, spin @ t + move
    # p -> r (flip p) + t is a reflection; its plane's normal is the eigenvector to the eigenvalue -1.
    reflection = r * flip
    values, vectors = np.linalg.eigh((reflection + reflection.T) / 2)
    normal = vectors[:, int(np.argmin(values))]
    normal = normal * np.sign(normal[0])
    offset = float(normal @ t) / 2
    mend = _axes(normal, np.array([0, 0, 1.0]))  # yaw and roll, no pitch
    return mend @ rotation, mend @ shift - [offset, 0, 0], float(np.linalg.norm(gap, axis=1).mean())


def _center(points: np.ndarray, normals: np.ndarray, rotation: np.ndarray, ref: Reference) -> np.ndarray:
    """Return the shift for a given rotation: the reference is moved, not turned, onto the scan."""
    posed, turned = points @ rotation.T, normals @ rotation.T
    target = _Target(posed, turned, np.random.default_rng(0).permutation(len(posed))[:8000])
    shift = -HEAD_MIDDLE
    for _ in range(30):
        near, index = target.partners(ref.points + shift, ref.normals)
        shift = (target.points[index] - ref.points[near]).mean(0)
    return -shift
