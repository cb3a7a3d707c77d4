"""Measures the properties of a scan that ``data.ct.findings`` has limits for."""

from __future__ import annotations

from itertools import product

import numpy as np
import scipy.ndimage as ndimage
from scipy.spatial import cKDTree

from data.ct.anatomy import STEP_MM, Looker
from data.ct.findings import SEVERITIES, Finding, judge
from data.ct.pose import Pose
from data.ct.reading.geometry import gantry_tilt
from data.ct.reading.scan import Scan
from data.ct.reference import Reference
from data.ct.surfaces import BONE_HU, METAL_CLIP_HU, Mesh
from data.ct.volume import SKIN_HU, HeadVolume

NEAR_MM = {"mandible": 10.0, "vault": 12.0}
VAULT_ABOVE_MM = 40.0  # above the orbits
DEFECT_DEEP_MM = 7.0
DEFECT_VIEWS = ((0.0, 0.0), (45.0, 0.0), (90.0, 0.0), (135.0, 0.0), (0.0, 45.0), (45.0, 45.0), (0.0, 80.0))
METAL_HU = 3000
# The largest value is a limit of the scanner where it is so many times as frequent as those so little below it.
PLATEAU_HU, PLATEAU_TIMES = 64, 8
ABOVE_MM, BESIDE_MM = 2.0, 2.5  # around metal and its streaks
SOFT_HU, AIR_HU = 150, -700  # soft tissue and air are darker, even when bone or skin is near


def inspect(
    scan: Scan, head: HeadVolume, bone: Mesh, looker: Looker, pose: Pose, ref: Reference
) -> list[Finding]:
    """Return all findings of a scan, the worst first.

    Args:
        head: as the patient lay.
        bone, looker: in the cohort's frame.
    """
    findings = [*scan.findings, *_sampling(scan), *_field_cut(head, pose), *_missing_parts(bone, pose, ref)]
    findings += [*_defect(looker, pose), *_metal(scan), *_pose_findings(pose, ref)]
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def _sampling(scan: Scan) -> list[Finding]:
    """Judge the distance of slices and pixels, and the gantry's tilt."""
    uneven = any(finding.name == "spacing" for finding in scan.findings)  # where the slices' steps change
    return [
        *(() if uneven else judge("spacing", float(scan.spacing.max()))),
        *judge("slice_thickness", scan.facts.get("slice_thickness_mm", 0.0)),
        *judge("gantry_tilt", gantry_tilt(scan.affine)),
    ]


def cut_areas(head: HeadVolume, pose: Pose) -> dict[str, float]:
    """Return the cm2 of the head at the border of what was measured, by the side of the head."""
    names = (("right", "left"), ("bottom", "top"), ("back", "front"))
    areas = dict.fromkeys([name for pair in names for name in pair], 0.0)
    volume = head.volume
    inside = np.pad(head.head, 1)
    measured = np.pad(volume.field, 1)
    for axis, sign in product(range(3), (-1, 1)):
        beyond = np.roll(~measured, -sign, axis)
        direction = sign * pose.rotation[:, axis]
        k = int(np.argmax(np.abs(direction)))
        areas[names[k][int(direction[k] > 0)]] += int((inside & beyond).sum()) * volume.step**2 / 100
    return areas


def _field_cut(head: HeadVolume, pose: Pose) -> list[Finding]:
    areas = cut_areas(head, pose)
    names = {
        side: "vault_cut" if side == "top" else f"field_cut_{side}" for side in areas if side != "bottom"
    }
    return [finding for side, name in names.items() for finding in judge(name, areas[side])]


def _missing_parts(bone: Mesh, pose: Pose, ref: Reference) -> list[Finding]:
    lowest = float(bone.vertices[bone.vertices[:, 2] > 0, 1].min(initial=np.inf))
    depth, chin = ref.orbit_height - lowest, ref.orbit_height - ref.chin_y
    share = _share(bone, pose.fitted[ref.mandible], NEAR_MM["mandible"])
    vault = pose.fitted[ref.points[:, 1] > ref.orbit_height + VAULT_ABOVE_MM]
    return [
        *judge("mandible_missing", share, depth=depth, chin=chin),
        *judge("vault_missing", _share(bone, vault, NEAR_MM["vault"])),
    ]


def _share(bone: Mesh, points: np.ndarray, within: float) -> float:
    """Return the share of the reference's points that have bone within so many mm."""
    distance, _ = cKDTree(bone.vertices[::7]).query(points)
    return float((distance < within).mean())


def _defect(looker: Looker, pose: Pose) -> list[Finding]:
    """Judge the largest place of the vault where one side has no bone and the other, mirrored, has.

    A hole on the midline, or the same on both sides, is not noticed.
    """
    views = [(sign * yaw, pitch) for yaw, pitch in DEFECT_VIEWS for sign in ((1, -1) if yaw else (1,))]
    holes = [_hole(looker, yaw, pitch, pose.orbits.height) for yaw, pitch in views]
    area, place = max(holes, key=lambda hole: hole[0])
    return judge("bone_defect", area, place=place)


def _hole(looker: Looker, yaw: float, pitch: float, orbit_height: float) -> tuple[float, str]:
    """Return the cm2 of the largest hole seen from a direction, and where on the head it is."""
    view = looker.look(yaw, pitch)
    own = view.nearest()
    mirrored = looker.look(-yaw, pitch).nearest()[:, ::-1]
    right, up, towards = view.camera.rotation()
    middle = (own.shape[0] - 1) / 2
    along = (np.arange(own.shape[0]) - middle) * STEP_MM
    whole = np.isfinite(mirrored)
    depth = np.where(whole, mirrored, 0)
    height = along[None] * right[1] - along[:, None] * up[1] + depth * towards[1]
    steep = np.hypot(*np.gradient(ndimage.gaussian_filter(depth, 1))) > 1.6 * STEP_MM
    vault = ndimage.binary_erosion(whole, iterations=8) & ~steep & (height > orbit_height + 14)
    hole = ndimage.binary_opening(vault & (depth - own > DEFECT_DEEP_MM), iterations=2)
    labels, count = ndimage.label(hole)
    if not count:
        return 0.0, ""
    areas = np.bincount(labels.ravel())[1:]
    rows, columns = np.nonzero(labels == 1 + int(np.argmax(areas)))
    x, y = along[columns], -along[rows]
    place = x.mean() * right + y.mean() * up + depth[rows, columns].mean() * towards
    side = "left" if place[0] > 0 else "right"
    region = "forehead" if place[2] > 35 else "back of the head" if place[2] < -60 else "side of the vault"
    return float(areas.max()) * STEP_MM**2 / 100, f"{side} {region}"


def _metal(scan: Scan) -> list[Finding]:
    """Judge metal, also where the scanner cuts its values off, and its streaks."""
    voxel = abs(float(np.linalg.det(scan.affine[:, :3]))) / 1000  # ml
    highest = int(scan.values.max())
    at = int((scan.values == highest).sum())
    below = int((scan.values >= highest - PLATEAU_HU).sum()) - at
    saturated = highest > METAL_CLIP_HU and at >= PLATEAU_TIMES * max(1, below / PLATEAU_HU)
    level = min(METAL_HU, highest) if saturated else METAL_HU
    metal = scan.values >= level
    return [
        *judge("metal", int(metal.sum()) * voxel, hu=level),
        *(judge("saturated", at * voxel, hu=highest) if saturated else ()),
        *judge("streaks", _streaks(scan, metal) * voxel),
    ]


def _streaks(scan: Scan, metal: np.ndarray) -> int:
    """Return how many voxels are bone, or stand in air, in level slices with metal alone.

    Streaks lie in the plane of the scanner's turn, anatomy goes on in the slices above and below. What does not is
    counted in as many slices above and below too; the smaller number is taken off.
    """
    axis = int(np.argmax(np.abs(scan.affine[2, :3]) / scan.spacing))
    values, metal = (np.moveaxis(v, 2 - axis, 0) for v in (scan.values, metal))
    around = 2 * max(1, round(BESIDE_MM / float(np.delete(scan.spacing, axis).min()))) + 1
    band = ndimage.binary_dilation(metal.any((1, 2)), iterations=max(1, round(ABOVE_MM / scan.spacing[axis])))
    streaks = 0
    for (slices,) in ndimage.find_objects(ndimage.label(band)[0]):
        height = slices.stop - slices.start + 1
        own, *others = (
            _only_between(values, slices.start + n, slices.stop + n, around) for n in (0, -height, height)
        )
        streaks += max(0, own - min(others))
    return streaks


def _only_between(values: np.ndarray, first: int, end: int, around: int) -> int:
    """Return how many voxels of slices ``first`` to ``end - 1`` are bone or skin and neither neighbouring slice is."""
    if first < 1 or end >= len(values):
        return 0
    ends = ndimage.maximum_filter(np.maximum(values[first - 1], values[end]), around)
    slices = values[first:end]
    bone, skin = slices > BONE_HU, slices > SKIN_HU
    return int((bone & (ends < SOFT_HU)).sum()) + int((skin & ~bone & (ends < AIR_HU)).sum())


def _pose_findings(pose: Pose, ref: Reference) -> list[Finding]:
    """Judge the pose; what is unknown (nan) passes no limit."""
    off = np.linalg.norm(pose.orbits.points[:2, :2] - ref.orbits[:2, :2], axis=1).max()
    stretch = float(np.abs(pose.scales - 1).max())
    return [
        *judge("fit", pose.residual),
        *judge("asymmetry", pose.symmetry),
        *(judge("frankfurt_by_fit", 0) if pose.method == "fit" else ()),
        *judge("orientation", pose.turned),
        *judge("size", stretch, size=" x ".join(f"{s:.2f}" for s in pose.scales)),
        *judge("orbits_off_frame", float(off)),
    ]
