"""One scan, from its file to two pictures, two meshes and a record of what was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from data.ct.anatomy import Looker, lowest_chin
from data.ct.config import CtConfig
from data.ct.findings import Finding, judge, naming_flags
from data.ct.pose import Pose, find_pose
from data.ct.quality import cut_areas, inspect
from data.ct.reading.read import read_scan
from data.ct.reference import reference
from data.ct.surfaces import Mesh, bone_surface, skin_surface, write_ply
from data.ct.volume import HeadVolume, find_head, resample
from data.files import write_text
from data.images import write_png
from data.render import BONE, SKIN, Camera, Scene

FILES = ("skull.png", "face.png", "skull.ply", "face.ply", "report.json")  # of one scan
PICTURE_BYTES, MESH_BYTES = 1 << 20, 20 << 20  # of one scan, its meshes at a step of 1 mm
FACE_BELOW_CHIN_MM = 22.0  # as in the cohort
JAW_MM = (20.0, 40.0)  # the lowest skin of the face: behind its foremost point, to each side of the midline


@dataclass(frozen=True)
class Drawing:
    """A scan that was drawn, or a refused one: then the pictures are None and a finding has severity "refuse".

    Attributes:
        findings: of the quality report.
        facts: how the scan was stored and posed; nothing in it identifies anyone.
        skull, face: (size, size) uint8.
        bone, skin: in the cohort's frame, mm; None without ``meshes``.
    """

    findings: list[Finding]
    facts: dict[str, Any] = field(default_factory=dict)
    skull: np.ndarray | None = None
    face: np.ndarray | None = None
    bone: Mesh | None = None
    skin: Mesh | None = None

    @property
    def status(self) -> str:
        """Return "ok", "flagged" or "refused"."""
        severities = {finding.severity for finding in self.findings}
        return "refused" if "refuse" in severities else "flagged" if "flag" in severities else "ok"

    def record(self) -> dict[str, Any]:
        return {"status": self.status, "findings": [f.record() for f in self.findings], **self.facts}

    def write(self, paths: Mapping[str, Path], **more: Any) -> None:
        """Write what was drawn, each file whole or not at all; the report comes last: it marks a finished scan.

        Args:
            paths: by the names of ``FILES``.
            more: further entries of the report.
        """
        flags = ",".join(f.name for f in self.findings if f.severity == "flag")
        for name, picture in (("skull.png", self.skull), ("face.png", self.face)):
            if picture is not None:
                write_png(paths[name], picture, {"status": self.status, "flags": flags})
        for name, mesh in (("skull.ply", self.bone), ("face.ply", self.skin)):
            if mesh is not None:
                write_ply(paths[name], mesh)
        write_text(paths["report.json"], json.dumps({**more, **self.record()}, indent=1) + "\n")


def draw_scan(path: Path, config: CtConfig) -> Drawing:
    """Read, clean, pose, inspect and draw one scan.

    Raises:
        ScanError: it could not even be read, or holds no head; other bad scans come back refused.
    """
    ref = reference()
    scan = read_scan(path, config.series, int(config.max_gib * 2**30), config.offset, config.rescale)
    with naming_flags(scan.findings):
        head = find_head(resample(scan, config.step))
        bone, skin = bone_surface(head, config.bone_hu), skin_surface(head)
        pose = find_pose(bone, config.pose)
    bone, skin = (_without_lid(mesh, head).moved(pose.rotation, pose.shift) for mesh in (bone, skin))
    findings = inspect(scan, head, bone, Looker(bone), pose, ref)
    has_chin = all(finding.name != "mandible_missing" for finding in findings)
    chin_y = lowest_chin(bone, float(ref.orbits[2, 2])) if has_chin else None
    facts = {
        "settings": config.identity(),
        "scan": {**scan.facts, "spacing_mm": scan.spacing.round(4).tolist()},
        "pose": pose.record(),
        "frame": {
            "orbits_mm": pose.orbits.points[:2].round(2).tolist(),
            "cohort_orbits_mm": ref.orbits[:2].round(2).tolist(),
            "chin_y_mm": None if chin_y is None else round(chin_y, 2),
            "cohort_chin_y_mm": round(ref.chin_y, 2),
        },
        "cut_cm2": {side: round(area, 2) for side, area in cut_areas(head, pose).items()},
    }
    if any(finding.severity == "refuse" for finding in findings):
        return Drawing(findings, facts)
    below_chin = (ref.chin_y if chin_y is None else chin_y) - FACE_BELOW_CHIN_MM
    floor = max(below_chin, _field_floor(skin, head, pose))
    camera = Camera(size=config.size, half_field=config.half_field, center_y=config.center_y)
    skull, face = (
        Scene(mesh.vertices, mesh.triangles, camera, floor=floor).render(material)
        for mesh, material in ((bone, BONE), (skin, SKIN))
    )
    return Drawing(findings, facts, skull, face, *((bone, skin) if config.meshes else ()))


def bytes_of(config: CtConfig) -> int:
    """Return how much room the files of one scan may take."""
    return PICTURE_BYTES + (round(MESH_BYTES / config.step**2) if config.meshes else 0)


def refused(reason: str) -> Drawing:
    """Return the result of a scan that could not be read."""
    return Drawing(judge("unreadable", 1, reason=reason))


def _without_lid(mesh: Mesh, head: HeadVolume) -> Mesh:
    """Return a mesh without the flat faces where the head was cut by the border of the field."""
    at_border = _at_border(mesh, head)
    return mesh.keep(~at_border[mesh.triangles].all(1)) if at_border.any() else mesh


def _field_floor(skin: Mesh, head: HeadVolume, pose: Pose) -> float:
    """Return the height (mm, cohort's frame) of the field's lower border under the face; -inf if it lies lower.

    What lies below would show the inside.
    """
    unmoved = skin.moved(pose.rotation.T, -pose.rotation.T @ pose.shift)
    edge = skin.vertices[_at_border(unmoved, head) & (skin.vertices[:, 1] < 0)]
    foremost = edge[:, 2].max(initial=0)
    front = edge[(edge[:, 2] > foremost - JAW_MM[0]) & (np.abs(edge[:, 0]) < JAW_MM[1])]
    return float(np.median(front[:, 1])) + 1.0 if len(front) else -np.inf


def _at_border(mesh: Mesh, head: HeadVolume) -> np.ndarray:
    """Return (V,) bool: vertices of an unmoved mesh that lie where the field of view ends, on no real surface."""
    volume = head.volume
    last = np.array(volume.field.shape) - 1
    near = np.rint((mesh.vertices - volume.low) / volume.step).astype(int)
    result = ((near < 1) | (near > last - 1)).any(1)
    for axis, sign in product(range(3), (-1, 1)):
        x, y, z = np.clip(near + sign * np.eye(3, dtype=int)[axis], 0, last).T
        result |= ~volume.field[x, y, z]
    return result
