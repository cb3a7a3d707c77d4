"""One subject's skull and face pictures, landmarks and manifest line, as a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.cohort.anatomy import Head, build_head
from data.cohort.config import CohortConfig
from data.cohort.subject import Subject, draw_subject
from data.cohort.template import HeadTemplate
from data.render import BONE, SKIN, Camera, Scene

BORDER_PX = 4  # nothing of a subject comes closer to the border, at 256 px
FACE_BELOW_SKULL_MM = 22.0  # the face is cut this far below the lowest point of the mandible
VISIBLE_WITHIN_MM = 1.5
MAX_ATTEMPTS = 20


class FramingError(RuntimeError):
    """The camera cannot hold the heads."""


@dataclass(frozen=True)
class Pair:
    """``skull``, ``face``: (size, size) uint8. ``landmarks``: (106, 2) px; ``visible``: (106,) bool."""

    subject: Subject
    skull: np.ndarray
    face: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray

    @property
    def file_name(self) -> str:
        return f"{self.subject.name}.png"

    def manifest_line(self) -> dict[str, Any]:
        s = self.subject
        return {
            "source": self.file_name,
            "target": self.file_name,
            "body_mass": str(s.body_mass),
            "gender": s.sex,
            "age": int(s.age),
            "ethnicity": s.ethnicity,
            "subject": s.name,
            "landmarks": f"landmarks/{s.name}.json",
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


def picture_of(template: HeadTemplate, subject: Subject, head: Head, camera: Camera) -> Pair:
    """Draw both surfaces of a head and find where its landmarks are seen."""
    floor = head.chin_y - FACE_BELOW_SKULL_MM
    face = Scene(head.face, template.face_triangles, camera, floor=floor)
    skull = Scene(head.skull, head.skull_triangles, camera)
    unhidden = face.depth_at(head.landmarks) < VISIBLE_WITHIN_MM
    return Pair(
        subject=subject,
        skull=skull.render(BONE).grey,
        face=face.render(SKIN).grey,
        landmarks=camera.project(head.landmarks),
        visible=unhidden & (head.landmarks[:, 1] >= floor),
    )


def fits(pair: Pair, camera: Camera) -> bool:
    """Whether skull, face and landmarks all keep BORDER_PX (scaled with the picture's size) from the border."""
    margin = BORDER_PX * camera.size / 256
    low, high = pair.landmarks.min(), pair.landmarks.max()
    inside = low >= margin and high <= camera.size - 1 - margin
    return bool(inside and border_distance(pair.skull) >= margin and border_distance(pair.face) >= margin)


def make_pair(template: HeadTemplate, config: CohortConfig, index: int) -> Pair:
    """Pair ``index`` of a cohort. A head that comes too close to the border is drawn anew, with the next stream.

    Raises:
        FramingError: MAX_ATTEMPTS heads in a row did not fit: the camera's field is too small or off centre.
    """
    camera = camera_of(config)
    for attempt in range(MAX_ATTEMPTS):
        subject = draw_subject(config.seed, index, attempt)
        pair = picture_of(template, subject, build_head(template, subject), camera)
        if fits(pair, camera):
            return pair
    raise FramingError(
        f"subject {index}: {MAX_ATTEMPTS} heads in a row came within {BORDER_PX} px of the border; use a larger "
        f"half_field than {config.half_field} mm or another center_y than {config.center_y} mm"
    )
