"""One scan, from its file to two pictures, two meshes and a record of what was done."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.ct.anatomy import Looker, lowest_chin
from data.ct.config import CtConfig
from data.ct.pose import Pose, find_pose
from data.ct.quality import MANDIBLE_SHARE, cut_areas, inspect, mandible_share
from data.ct.reading.read import read_scan
from data.ct.reading.scan import Finding, ScanError
from data.ct.reference import reference
from data.ct.surfaces import Mesh, bone_surface, skin_surface, write_ply
from data.ct.volume import HeadVolume, find_head, resample
from data.images import write_png
from data.render import BONE, SKIN, Camera, Scene

FACE_BELOW_CHIN_MM = 22.0  # as in the cohort


@dataclass(frozen=True)
class Case:
    """A scan that was drawn, or a refused one: then the pictures are None and a finding has severity "refuse".

    Attributes:
        skull, face: (size, size) uint8.  bone, skin: in the cohort's frame, mm.
        findings: of the quality report.
        facts: how the scan was stored and posed; nothing in it identifies anyone.
    """

    skull: np.ndarray | None
    face: np.ndarray | None
    bone: Mesh | None
    skin: Mesh | None
    findings: list[Finding]
    facts: dict[str, Any]

    @property
    def status(self) -> str:
        """ "ok", "flagged" or "refused"."""
        worst = {finding.severity for finding in self.findings}
        return "refused" if "refuse" in worst else "flagged" if "flag" in worst else "ok"

    def record(self) -> dict[str, Any]:
        return {"status": self.status, "findings": [f.record() for f in self.findings], **self.facts}


def make_case(path: Path, config: CtConfig) -> Case:
    """Read, clean, pose, inspect and draw one scan.

    Raises:
        ScanError: it could not even be read, or holds no head; other bad scans come back refused.
    """
    ref = reference()
    scan = read_scan(path, config.series, int(config.max_gib * 2**30), config.offset)
    head = find_head(resample(scan, config.step))
    bone, skin = bone_surface(head, config.bone_hu), skin_surface(head)
    pose = find_pose(bone, config.pose)
    bone, skin = (_without_lid(mesh, head).moved(pose.rotation, pose.shift) for mesh in (bone, skin))
    findings = inspect(scan, head, bone, Looker(bone), pose, ref)
    has_chin = mandible_share(bone, pose, ref) >= MANDIBLE_SHARE
    chin_y = lowest_chin(bone, float(ref.orbits[2, 2])) if has_chin else None
    facts = {
        "settings": config.identity(),
        "scan": {**scan.facts, "spacing_mm": scan.spacing.round(4).tolist()},
        "pose": _pose_record(pose),
        "frame": {
            "orbits_mm": pose.orbits.points()[:2].round(2).tolist(),
            "cohort_orbits_mm": ref.orbits[:2].round(2).tolist(),
            "chin_y_mm": None if chin_y is None else round(chin_y, 2),
            "cohort_chin_y_mm": round(ref.chin_y, 2),
        },
        "cut_cm2": {side: round(area, 2) for side, area in cut_areas(head, pose).items()},
    }
    case = Case(None, None, None, None, findings, facts)
    if case.status == "refused":
        return case
    floor = max(
        (ref.chin_y if chin_y is None else chin_y) - FACE_BELOW_CHIN_MM, _field_floor(skin, head, pose)
    )
    camera = Camera(size=config.size, half_field=config.half_field, center_y=config.center_y)
    pictures = [
        Scene(mesh.vertices, mesh.triangles, camera, floor=floor).render(material).grey
        for mesh, material in ((bone, BONE), (skin, SKIN))
    ]
    return Case(pictures[0], pictures[1], bone, skin, findings, facts)


def _pose_record(pose: Pose) -> dict[str, Any]:
    yaw, pitch, roll = pose.angles()

    def rounded(value: float) -> float | None:
        return round(value, 3) if np.isfinite(value) else None

    return {
        "method": pose.method,
        "yaw_pitch_roll_deg": [round(yaw, 2), round(pitch, 2), round(roll, 2)],
        "frankfurt_tilt_taken_out_deg": rounded(pose.tilt) if pose.method == "frankfurt" else None,
        "fit_residual_mm": rounded(pose.residual),
        "symmetry_mm": rounded(pose.symmetry),
        "size_beside_cohort": pose.scales.round(3).tolist(),
    }


def _at_border(mesh: Mesh, head: HeadVolume) -> np.ndarray:
    """(V,) bool: vertices of an unmoved mesh that lie where the field of view ends, on no real surface."""
    volume = head.volume
    shape = np.array(volume.field.shape)
    near = np.rint((mesh.vertices - volume.low) / volume.step).astype(int)
    result = ((near < 1) | (near > shape - 2)).any(1)
    for axis in range(3):
        for sign in (-1, 1):
            beside = near.copy()
            beside[:, axis] += sign
            x, y, z = np.clip(beside, 0, shape - 1).T
            result |= ~volume.field[x, y, z]
    return result


def _without_lid(mesh: Mesh, head: HeadVolume) -> Mesh:
    """Without the flat faces where the head was cut by the border of the field."""
    at_border = _at_border(mesh, head)
    return mesh.keep(~at_border[mesh.triangles].all(1)) if at_border.any() else mesh


def _field_floor(skin: Mesh, head: HeadVolume, pose: Pose) -> float:
    """Height (mm, cohort's frame) of the field's lower border under the face: what lies below would show the inside."""
    back = skin.moved(pose.rotation.T, -pose.rotation.T @ pose.shift)
    low = skin.vertices[_open_edge(skin, back, head)]
    front = low[(low[:, 2] > low[:, 2].max(initial=0) - 20) & (np.abs(low[:, 0]) < 40)] if len(low) else low
    return float(np.median(front[:, 1])) + 1.0 if len(front) else -np.inf


def _open_edge(skin: Mesh, back: Mesh, head: HeadVolume) -> np.ndarray:
    return _at_border(back, head) & (skin.vertices[:, 1] < 0)


@dataclass(frozen=True)
class CaseFiles:
    """Where the files of a case go; no meshes are written where ``bone`` and ``skin`` are None."""

    skull: Path
    face: Path
    bone: Path | None
    skin: Path | None
    report: Path


def write_case(case: Case, files: CaseFiles, **more: Any) -> None:
    """All files of a case, each whole or not at all; the report comes last: it marks a finished case."""
    marks = {"status": case.status, "flags": ",".join(f.name for f in case.findings if f.severity == "flag")}
    for path, picture in ((files.skull, case.skull), (files.face, case.face)):
        if picture is not None:
            write_png(path, picture, marks)
    for target, mesh in ((files.bone, case.bone), (files.skin, case.skin)):
        if target is not None and mesh is not None:
            write_ply(target, mesh)
    write_text(files.report, json.dumps({**more, **case.record()}, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refused(error: ScanError) -> Case:
    """A scan that could not be read, as a case."""
    return Case(None, None, None, None, [Finding("unreadable", "refuse", 1, 0, "", str(error))], {})
