"""The skull and face pictures, landmarks and record of a head, as a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.cohort import wide
from data.cohort.config import CohortConfig
from data.cohort.heads.anatomy import Head, build_head
from data.cohort.heads.subject import Subject, draw_subject
from data.cohort.heads.template import HeadTemplate
from data.cohort.protocols import ScanStyle, draw_face_style, draw_skull_style
from data.render import BONE, SKIN, Camera, Scene
from data.style import draw_styled

BORDER_PX = 4  # nothing of a subject comes closer to the border, at 256 px
VISIBLE_WITHIN_MM = 1.5
MAX_ATTEMPTS = 20
MOST_OUTSIDE = 0.0005  # of the bone: about 0.1 % of its frontal pixels


class FramingError(ValueError):
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
        """Return a name that is unique in the cohort."""
        return self.subject.name + self.label

    @property
    def stem(self) -> str:
        """Return the path of the face and landmark files below their folders, without an ending."""
        if not self.folder:
            return self.name
        # An expected face is named as the true one, to be laid beside it.
        return f"{self.folder}/{self.subject.name if self.folder.startswith('ceiling') else self.name}"

    @property
    def source(self) -> str:
        """Return the path of the skull picture below the skulls' folder."""
        return f"{self.subject.name if self.skull is None else self.stem}.png"

    def record(self) -> dict[str, Any]:
        """Return what the cohort stores of the picture; ``data.cohort.lists`` takes manifest lines from it."""
        s = self.subject
        return {
            "source": self.source,
            "target": f"{self.stem}.png",
            "body_mass": str(s.body_mass),
            "gender": s.sex,
            "age": round(s.age),
            "ethnicity": s.ethnicity,
            "subject": s.name,
            "landmarks": f"landmarks/{self.stem}.json",
            "style": self.face_style.name,
            **({"changed": list(self.changed)} if self.folder else {}),
            "bmi": s.bmi,
            "bone_age": s.bone_age,
            "skull_kind": s.skull.kind,
            "teeth": int((~s.skull.lost).sum()),
            "yaw": round(self.camera.yaw, 2),
            "pitch": round(self.camera.pitch, 2),
            **({"roll": round(self.camera.roll, 2)} if self.camera.roll else {}),
            "face_scan": self.face_style.record(),
            "skull_scan": self.skull_style.record(),
        }

    def landmark_record(self) -> dict[str, Any]:
        return {"points": np.round(self.landmarks, 2).tolist(), "visible": self.visible.tolist()}


def camera_of(config: CohortConfig) -> Camera:
    """Return the camera of a cohort's frontal pairs."""
    return Camera(config.size, config.half_field, 0.0, config.center_y, config.yaw, config.pitch)


def draw_subject_of(config: CohortConfig, index: int, attempt: int = 0) -> Subject:
    """Return subject ``index`` of a cohort, in its format."""
    subject = draw_subject(config.seed, index, attempt)
    return wide.widened(subject, config.seed, index, attempt) if config.wide else subject


@dataclass(frozen=True)
class HeadScenes:
    """A head to draw again and again: other cameras and styles cost little."""

    subject: Subject
    head: Head
    face: Scene
    skull: Scene | None = None

    @classmethod
    def of(
        cls, template: HeadTemplate, subject: Subject, head: Head, camera: Camera, with_skull: bool = True
    ) -> HeadScenes:
        face = Scene(head.face, template.face_triangles, camera, floor=head.chin_y - subject.neck_mm)
        skull = Scene(head.skull, head.skull_triangles, camera) if with_skull else None
        return cls(subject, head, face, skull)

    def pair(
        self, camera: Camera, face_style: ScanStyle, skull_style: ScanStyle, with_skull: bool = True
    ) -> Pair:
        """Draw the surfaces as ``camera`` sees them, and find which landmarks are visible."""
        face = self.face.seen_by(camera)
        skull = None
        if self.skull is not None and with_skull:
            surface = self.skull.seen_by(camera).trace()
            skull = draw_styled(surface, BONE, skull_style.surface, skull_style.seed, skull_style.lamp)
        marks = self.head.landmarks
        assert face.floor is not None
        return Pair(
            subject=self.subject,
            skull=skull,
            face=draw_styled(face.trace(), SKIN, face_style.surface, face_style.seed),
            landmarks=camera.project(marks),
            visible=(face.depth_at(marks) < VISIBLE_WITHIN_MM) & (marks[:, 1] >= face.floor),
            face_style=face_style,
            skull_style=skull_style,
            camera=camera,
        )

    def share_outside(self) -> float:
        """Return the share of the skull's drawn points that stand before the skin, of every fifth of them."""
        points = self.head.skull[np.unique(self.head.skull_triangles)[::5]]
        return float((self.face.depth_at(points) < 0).mean())


def border_distance(picture: np.ndarray) -> int:
    """Return the empty px between the drawn part and its nearest border; the whole size if nothing is drawn."""
    places = np.argwhere(picture > 0)
    last = np.array(picture.shape) - 1
    return int(np.minimum(places, last - places).min(initial=min(picture.shape)))


def fits(pair: Pair, camera: Camera, margin_px: float = BORDER_PX) -> bool:
    """Return whether skull, face and landmarks keep ``margin_px`` (at 256 px) from the border."""
    margin = margin_px * camera.size / 256
    marks_fit = pair.landmarks.min() >= margin and pair.landmarks.max() <= camera.size - 1 - margin
    pictures = [picture for picture in (pair.skull, pair.face) if picture is not None]
    return bool(marks_fit and all(border_distance(picture) >= margin for picture in pictures))


def draw_subject_pair(template: HeadTemplate, config: CohortConfig, index: int) -> tuple[HeadScenes, Pair]:
    """Draw the pair of subject ``index`` of a cohort.

    A head that comes too close to the border, or whose bone shows through the skin, is replaced by the next stream's.

    Raises:
        FramingError: MAX_ATTEMPTS heads in a row did not fit: the camera's field is too small or off centre.
    """
    camera = camera_of(config)
    styles = draw_face_style(config.seed, index), draw_skull_style(config.seed, index)
    if config.wide:
        camera, styles = (
            wide.posed(camera, config.seed, index),
            (styles[0], wide.skull_style(config.seed, index)),
        )
    for attempt in range(MAX_ATTEMPTS):
        subject = draw_subject_of(config, index, attempt)
        scenes = HeadScenes.of(template, subject, build_head(template, subject), camera)
        pair = scenes.pair(camera, *styles)
        if fits(pair, camera) and scenes.share_outside() < MOST_OUTSIDE:
            return scenes, pair
    raise FramingError(
        f"subject {index}: {MAX_ATTEMPTS} heads in a row came within {BORDER_PX} px of the border (or their bone "
        f"through the skin); use a larger half_field than {config.half_field} mm or another center_y than "
        f"{config.center_y} mm"
    )
