"""What is wrong with a scan: every property measured, beside its limit, so that a bad one is marked or refused."""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndimage
from scipy.spatial import cKDTree

from data.ct.anatomy import STEP_MM, Looker
from data.ct.pose import Pose
from data.ct.reading.scan import Finding, Scan, Severity
from data.ct.reference import Reference
from data.ct.surfaces import Mesh
from data.ct.volume import HeadVolume

SPACING_FLAG_MM, SPACING_REFUSE_MM = 2.6, 5.5  # between slices, or between pixels
TILT_NOTE_DEG, TILT_FLAG_DEG = 0.5, 32.0
# of skin at the border of the field, cm2: flagged, refused. The neck is cut in every scan.
CUT_LIMITS = {
    "top": (1.0, 60.0),
    "front": (1.0, 15.0),
    "left": (3.0, 40.0),
    "right": (3.0, 40.0),
    "back": (3.0, 1e9),
}
MANDIBLE_SHARE, VAULT_SHARE = 0.6, 0.7  # of the reference's points that have bone near
NEAR_MM = {"mandible": 10.0, "vault": 12.0}
VAULT_ABOVE_MM = 40.0  # above the orbits
DEFECT_DEEP_MM, DEFECT_CM2 = 7.0, 3.0
DEFECT_VIEWS = ((0.0, 0.0), (45.0, 0.0), (90.0, 0.0), (135.0, 0.0), (0.0, 45.0), (45.0, 45.0), (0.0, 80.0))
METAL_HU, METAL_NOTE_ML, METAL_FLAG_ML = 3000, 0.05, 0.5
FIT_FLAG_MM, SYMMETRY_FLAG_MM = 4.0, 2.8
TURN_FLAG_DEG = 40.0
SCALE_FLAG = (0.85, 1.15)
FRAME_MM = 5.0


def inspect(
    scan: Scan, head: HeadVolume, bone: Mesh, looker: Looker, pose: Pose, ref: Reference
) -> list[Finding]:
    """All findings of a scan. ``bone`` and ``looker``: in the cohort's frame; ``head``: as the patient lay."""
    findings = [*scan.findings, *sampling(scan), *field_cut(head, pose), *missing_parts(bone, pose, ref)]
    findings += [*defect(looker, pose), *metal(scan), *_pose_findings(pose, ref)]
    order = {"refuse": 0, "flag": 1, "note": 2}
    return sorted(findings, key=lambda f: order[f.severity])


def sampling(scan: Scan) -> list[Finding]:
    """Distance of slices and pixels, and the gantry's tilt."""
    findings = []
    step = float(scan.spacing.max())
    if step > SPACING_FLAG_MM:
        severity: Severity = "refuse" if step > SPACING_REFUSE_MM else "flag"
        text = f"voxels lie up to {step:.2f} mm apart: thin bone and fine form are lost"
        findings.append(Finding("spacing", severity, step, SPACING_FLAG_MM, "mm", text))
    thickness = scan.facts.get("slice_thickness_mm")
    if thickness and thickness > SPACING_FLAG_MM:
        text = f"slices are {thickness:.2f} mm thick"
        findings.append(Finding("slice_thickness", "flag", thickness, SPACING_FLAG_MM, "mm", text))
    tilt = gantry_tilt(scan)
    if tilt > TILT_NOTE_DEG:
        severity = "flag" if tilt > TILT_FLAG_DEG else "note"
        text = f"the gantry was tilted by {tilt:.1f} degrees; the shear was taken out"
        findings.append(Finding("gantry_tilt", severity, tilt, TILT_NOTE_DEG, "degrees", text))
    return findings


def gantry_tilt(scan: Scan) -> float:
    """Degrees between the slices' normal and the direction in which they are stacked."""
    i, j, k = (scan.affine[:, n] / np.linalg.norm(scan.affine[:, n]) for n in range(3))
    return float(np.degrees(np.arccos(np.clip(abs(np.cross(i, j) @ k), 0, 1))))


def cut_areas(head: HeadVolume, pose: Pose) -> dict[str, float]:
    """cm2 of the head that lies at the border of what was measured, by the side of the head it is on."""
    names = (("right", "left"), ("bottom", "top"), ("back", "front"))
    areas = dict.fromkeys([name for pair in names for name in pair], 0.0)
    volume = head.volume
    inside = np.pad(head.head, 1)
    measured = np.pad(volume.field, 1)
    for axis in range(3):
        for sign in (-1, 1):
            beyond = np.roll(~measured, -sign, axis)
            count = int((inside & beyond).sum())
            if not count:
                continue
            direction = sign * pose.rotation[:, axis]
            k = int(np.argmax(np.abs(direction)))
            areas[names[k][int(direction[k] > 0)]] += count * volume.step**2 / 100
    return areas


def field_cut(head: HeadVolume, pose: Pose) -> list[Finding]:
    findings = []
    for side, area in cut_areas(head, pose).items():
        if side not in CUT_LIMITS or area <= CUT_LIMITS[side][0]:
            continue
        severity: Severity = "refuse" if area > CUT_LIMITS[side][1] else "flag"
        name = "vault_cut" if side == "top" else f"field_cut_{side}"
        text = (
            f"the head is cut off at the {side}: {area:.1f} cm2 of it lie at the border of the field of view"
        )
        findings.append(Finding(name, severity, area, CUT_LIMITS[side][0], "cm2", text))
    return findings


def mandible_share(bone: Mesh, pose: Pose, ref: Reference) -> float:
    """Of the reference's mandible, fitted to the head: the share that has bone of the scan near it."""
    return _share(bone, pose.fitted[ref.mandible], NEAR_MM["mandible"])


def missing_parts(bone: Mesh, pose: Pose, ref: Reference) -> list[Finding]:
    findings = []
    share = mandible_share(bone, pose, ref)
    if share < MANDIBLE_SHARE:
        lowest = float(bone.vertices[bone.vertices[:, 2] > 0, 1].min())
        text = (
            f"the mandible is missing or cut off: {share:.0%} of its surface found, the bone in front ends "
            f"{ref.orbit_height - lowest:.0f} mm below the eyes (cohort's chin: {ref.orbit_height - ref.chin_y:.0f} mm)"
        )
        findings.append(Finding("mandible_missing", "flag", share, MANDIBLE_SHARE, "share", text))
    share = _share(bone, pose.fitted[ref.points[:, 1] > ref.orbit_height + VAULT_ABOVE_MM], NEAR_MM["vault"])
    if share < VAULT_SHARE:
        text = f"the vault is missing or cut off: {share:.0%} of its surface found"
        findings.append(Finding("vault_missing", "flag", share, VAULT_SHARE, "share", text))
    return findings


def _share(bone: Mesh, wanted: np.ndarray, within: float) -> float:
    distance, _ = cKDTree(bone.vertices[::7]).query(wanted)
    return float((distance < within).mean())


def defect(looker: Looker, pose: Pose) -> list[Finding]:
    """The largest place of the vault where one side has no bone and the other, mirrored, has.

    A hole on the midline, or the same on both sides, is not noticed.
    """
    worst, where = 0.0, ""
    for yaw, pitch in DEFECT_VIEWS:
        for sign in (1, -1) if yaw else (1,):
            area, side = _hole(looker, sign * yaw, pitch, pose.orbits.height)
            if area > worst:
                worst, where = area, side
    if worst < DEFECT_CM2:
        return []
    text = f"bone defect of about {worst:.1f} cm2 on the {where} (beside its mirror image)"
    return [Finding("bone_defect", "flag", worst, DEFECT_CM2, "cm2", text)]


def _hole(looker: Looker, yaw: float, pitch: float, orbit_height: float) -> tuple[float, str]:
    """cm2 of the largest hole seen from a direction, and which side of the head it is on."""
    seen = looker.look(yaw, pitch)
    own = seen.nearest()
    mirrored = looker.look(-yaw, pitch).nearest()[:, ::-1]
    right, up, towards = seen.camera.rotation()
    middle = (own.shape[0] - 1) / 2
    along = (np.arange(own.shape[0]) - middle) * STEP_MM
    whole = np.isfinite(mirrored)
    depth = np.where(whole, mirrored, 0)
    height = along[None] * right[1] - along[:, None] * up[1] + depth * towards[1]
    steep = np.hypot(*np.gradient(ndimage.gaussian_filter(depth, 1))) > 1.6 * STEP_MM
    judged = ndimage.binary_erosion(whole, iterations=8) & ~steep & (height > orbit_height + 14)
    hole = ndimage.binary_opening(judged & (depth - own > DEFECT_DEEP_MM), iterations=2)
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


def metal(scan: Scan) -> list[Finding]:
    count = int((scan.values >= METAL_HU).sum())
    millilitres = count * abs(float(np.linalg.det(scan.affine[:, :3]))) / 1000
    if millilitres < METAL_NOTE_ML:
        return []
    severity: Severity = "flag" if millilitres > METAL_FLAG_ML else "note"
    text = f"{millilitres:.2f} ml are denser than {METAL_HU} HU (metal): surfaces near it may show streaks"
    return [Finding("metal", severity, millilitres, METAL_FLAG_ML, "ml", text)]


def _pose_findings(pose: Pose, ref: Reference) -> list[Finding]:
    findings = []
    if pose.residual > FIT_FLAG_MM:
        text = f"the reference skull fits to {pose.residual:.1f} mm only: look at the pose"
        findings.append(Finding("fit", "flag", pose.residual, FIT_FLAG_MM, "mm", text))
    if pose.symmetry > SYMMETRY_FLAG_MM:
        text = f"the skull is {pose.symmetry:.1f} mm off its mirror image: an asymmetric or damaged skull, or motion"
        findings.append(Finding("asymmetry", "flag", pose.symmetry, SYMMETRY_FLAG_MM, "mm", text))
    if pose.method == "fit":
        text = "the ear canals were not found: the head is levelled by the fit of the reference skull alone"
        findings.append(Finding("frankfurt_by_fit", "note", 0, 2, "ear canals", text))
    if pose.turned > TURN_FLAG_DEG:
        text = (
            f"the head lies {pose.turned:.0f} degrees off the axes in the header: is its orientation right?"
        )
        findings.append(Finding("orientation", "flag", pose.turned, TURN_FLAG_DEG, "degrees", text))
    if np.isfinite(pose.residual) and not (
        SCALE_FLAG[0] <= pose.scales.min() and pose.scales.max() <= SCALE_FLAG[1]
    ):
        size = " x ".join(f"{s:.2f}" for s in pose.scales)
        text = f"{size} the size of the cohort's skull: a child, or a wrong spacing in the header"
        findings.append(Finding("size", "flag", float(np.abs(pose.scales - 1).max()), 0.15, "share", text))
    off = float(np.linalg.norm(pose.orbits.points()[:2, :2] - ref.orbits[:2, :2], axis=1).max())
    if off > FRAME_MM:
        text = (
            f"an orbit lies {off:.1f} mm from the cohort's mean: closer together or farther apart than most"
        )
        findings.append(Finding("orbits_off_frame", "note", off, FRAME_MM, "mm", text))
    return findings
