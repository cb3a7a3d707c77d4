"""One subject's skull and face pictures, landmarks and record, as a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.cohort.config import CohortConfig
from data.cohort.heads.anatomy import Head, build_head
from data.cohort.heads.subject import Subject, draw_subject
from data.cohort.heads.template import HeadTemplate
from data.cohort.protocols import ScanStyle, draw_face_style, draw_skull_style
from data.render import BONE, SKIN, Camera, Scene
from data.style import SurfaceStyle, draw_styled

BORDER_PX = 4  # nothing of a subject comes closer to the border, at 256 px
FACE_BELOW_SKULL_MM = 22.0  # the face is cut this far below the lowest point of the mandible
VISIBLE_WITHIN_MM = 1.5
MAX_ATTEMPTS = 20
MOST_OUTSIDE = 0.0005  # of the bone: about 0.1 % of its frontal pixels
PLAIN = ScanStyle(0, SurfaceStyle(), 0)


class FramingError(RuntimeError):
    """The camera cannot hold the heads."""


@dataclass(frozen=True)
class Pair:
    """One skull and face of a subject, seen by one camera.

    Attributes:
        subject: as the face shows it.
        folder, label: where the face stands below the faces' folder ("" or "variants"), and what its name has beyond
            the subject's ("", "_v1", "_age72").
        skull, face: (size, size) uint8; ``skull`` is None where the subject's frontal skull belongs to it.
        landmarks: (106, 2) px.  visible: (106,) bool.
        face_style, skull_style: how the surfaces were scanned.
        camera: yaw and pitch are its.
        changed: what differs from the subject itself: of "age", "body_mass", "style", "soft".
    """

    subject: Subject
    skull: np.ndarray | None
    face: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray
    face_style: ScanStyle
    skull_style: ScanStyle
    camera: Camera
    folder: str = ""
    label: str = ""
    changed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique in the cohort."""
        return self.subject.name + self.label

    @property
    def stem(self) -> str:
        """Of the face and landmark files below their folders, with ``/``."""
        name = (
            self.subject.name if self.folder.startswith("ceiling") else self.name
        )  # as the true face, to be laid beside it
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def source(self) -> str:
        """Of the skull picture below the skulls' folder."""
        return f"{self.subject.name if self.skull is None else self.stem}.png"

    def manifest_line(self) -> dict[str, Any]:
        """What a manifest says of it, less the texture exemplar, which depends on who else is in the cohort."""
        s = self.subject
        line = {
            "source": self.source,
            "target": f"{self.stem}.png",
            "body_mass": str(s.body_mass),
            "gender": s.sex,
            "age": round(s.age),
            "ethnicity": s.ethnicity,
            "subject": s.name,
            "landmarks": f"landmarks/{self.stem}.json",
            "style": self.face_style.name,
        }
        if self.folder:
            line["changed"] = list(self.changed)
        return line

    def record(self) -> dict[str, Any]:
        """Everything known of the picture, for the cohort's own files."""
        return {
            **self.manifest_line(),
            "bmi": self.subject.bmi,
            "bone_age": self.subject.bone_age,
            "skull_kind": self.subject.skull.kind,
            "teeth": int((~self.subject.skull.lost).sum()),
            "yaw": round(self.camera.yaw, 2),
            "pitch": round(self.camera.pitch, 2),
            "face_scan": self.face_style.record(),
            "skull_scan": self.skull_style.record(),
        }

    def landmark_record(self) -> dict[str, Any]:
        return {"points": np.round(self.landmarks, 2).tolist(), "visible": self.visible.tolist()}


def camera_of(config: CohortConfig) -> Camera:
    return Camera(
        size=config.size,
        half_field=config.half_field,
        center_y=config.center_y,
        yaw=config.yaw,
        pitch=config.pitch,
    )


def border_distance(picture: np.ndarray) -> int:
    """Empty px between the drawn part of a picture and its nearest border; the whole size if nothing is drawn."""
    drawn = picture > 0
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    if len(rows) == 0:
        return min(picture.shape)
    height, width = picture.shape
    return int(min(rows[0], height - 1 - rows[-1], columns[0], width - 1 - columns[-1]))


@dataclass(frozen=True)
class Sitter:
    """A head that pictures can be taken of, again and again: other cameras and styles cost little."""

    subject: Subject
    head: Head
    face: Scene
    skull: Scene | None = None

    @classmethod
    def of(
        cls, template: HeadTemplate, subject: Subject, head: Head, camera: Camera, with_skull: bool = True
    ) -> Sitter:
        floor = head.chin_y - FACE_BELOW_SKULL_MM
        face = Scene(head.face, template.face_triangles, camera, floor=floor)
        skull = Scene(head.skull, head.skull_triangles, camera) if with_skull else None
        return cls(subject, head, face, skull)

    def pair(
        self, face_style: ScanStyle, skull_style: ScanStyle, camera: Camera, with_skull: bool = True
    ) -> Pair:
        """The surfaces as ``camera`` sees them, and where the landmarks are seen."""
        face = self.face.seen_by(camera)
        skull = self.skull.seen_by(camera).trace() if self.skull is not None and with_skull else None
        marks = self.head.landmarks
        assert face.floor is not None
        return Pair(
            subject=self.subject,
            skull=None if skull is None else draw_styled(skull, BONE, skull_style.surface, skull_style.seed),
            face=draw_styled(face.trace(), SKIN, face_style.surface, face_style.seed),
            landmarks=camera.project(marks),
            visible=(face.depth_at(marks) < VISIBLE_WITHIN_MM) & (marks[:, 1] >= face.floor),
            face_style=face_style,
            skull_style=skull_style,
            camera=camera,
        )


def picture_of(template: HeadTemplate, subject: Subject, head: Head, camera: Camera) -> Pair:
    """Draw both surfaces of a head, without a style, and find where its landmarks are seen."""
    return Sitter.of(template, subject, head, camera).pair(PLAIN, PLAIN, camera)


def fits(pair: Pair, camera: Camera, margin_px: float = BORDER_PX) -> bool:
    """Whether skull, face and landmarks all keep ``margin_px`` (scaled with the picture's size) from the border."""
    margin = margin_px * camera.size / 256
    low, high = pair.landmarks.min(), pair.landmarks.max()
    inside = low >= margin and high <= camera.size - 1 - margin
    pictures = [picture for picture in (pair.skull, pair.face) if picture is not None]
    return bool(inside and all(border_distance(picture) >= margin for picture in pictures))


def share_outside(head: Head, face: Scene) -> float:
    """Share of the skull's drawn points that stand before the skin, of every fifth of them."""
    points = head.skull[np.unique(head.skull_triangles)[::5]]
    return float((face.depth_at(points) < 0).mean())


def seat(template: HeadTemplate, config: CohortConfig, index: int) -> tuple[Sitter, Pair]:
    """Subject ``index`` of a cohort and its pair. A head that comes too close to the border, or whose bone shows
    through the skin, is drawn anew, with the next stream.

    Raises:
        FramingError: MAX_ATTEMPTS heads in a row did not fit: the camera's field is too small or off centre.
    """
    camera = camera_of(config)
    looks = draw_face_style(config.seed, index), draw_skull_style(config.seed, index)
    for attempt in range(MAX_ATTEMPTS):
        subject = draw_subject(config.seed, index, attempt)
        sitter = Sitter.of(template, subject, build_head(template, subject), camera)
        pair = sitter.pair(*looks, camera)
        if fits(pair, camera) and share_outside(sitter.head, sitter.face) < MOST_OUTSIDE:
            return sitter, pair
    raise FramingError(
        f"subject {index}: {MAX_ATTEMPTS} heads in a row came within {BORDER_PX} px of the border (or their bone "
        f"through the skin); use a larger half_field than {config.half_field} mm or another center_y than "
        f"{config.center_y} mm"
    )


def make_pair(template: HeadTemplate, config: CohortConfig, index: int) -> Pair:
    """Pair ``index`` of a cohort. Raises: FramingError, see ``seat``."""
    return seat(template, config, index)[1]
