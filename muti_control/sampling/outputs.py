"""What the faces of one skull show together: their mean, their spread in grey levels and landmarks, and the overlay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from data.cases import Case, read_skull
from data.images import picture_size, to_uint8, write_png
from data.landmarks import pixels_of
from data.sheet import NOTICE, Look, wrapped, write_lines
from muti_control.case.calibration import Calibration, landmark_spread
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.job import Job
from muti_control.sampling.record import read_face

PANEL = 512  # px of each picture's side
SCALE_WIDTH = 150  # px, of the grey levels' scale with its numbers
AT_ONCE = 8  # faces that are in memory together
FULL = 40  # grey levels, the end of the scale: all cases have the same colours
LOOK = Look(line=46, font=36, gap=12)  # can be read where the picture is 390 px wide
ELLIPSE, OUTLINE = (255, 90, 60), (90, 200, 255)
BONE = 0.12  # brightness from which a pixel of a skull or a face is not background


@dataclass(frozen=True)
class Together:
    """Several faces of one skull.

    mean: (H, W, 3) uint8. spread: (H, W) float32, standard deviation in grey levels of 255. points: (n, N, 2), the
    landmarks read off each face, px of the faces; None where no network reads them.
    """

    num: int
    mean: NDArray[np.uint8]
    spread: NDArray[np.float32]
    points: NDArray[np.float32] | None

    @classmethod
    def of(cls, faces: Iterable[NDArray[np.uint8]], reader: LandmarkReader | None) -> Together:
        """Put (H, W, 3) faces together, two at least, some of them in memory at a time."""
        num, points = 0, []
        total: NDArray[np.float64] = np.zeros(())
        squares: NDArray[np.float64] = np.zeros(())
        faces = iter(faces)
        while some := list(islice(faces, AT_ONCE)):
            batch = np.stack(some)  # (b, H, W, 3)
            total = total + batch.sum(0, dtype=np.float64)
            grey = batch.mean(3)
            squares = squares + (grey * grey).sum(0)
            num += len(batch)
            if reader is not None:
                points.append(read_points(batch, reader))
        mean = total / num  # (H, W, 3)
        variance = (squares - num * mean.mean(2) ** 2) / (num - 1)
        spread = np.sqrt(variance.clip(min=0)).astype(np.float32)
        return cls(num, to_uint8(mean / 255), spread, np.concatenate(points) if points else None)


@torch.no_grad()
def read_points(faces: NDArray[np.uint8], reader: LandmarkReader) -> NDArray[np.float32]:
    """Return the landmarks of faces (n, H, W, 3), (n, N, 2) px of these pictures."""
    side = reader.net.cfg.image_size
    pictures = torch.from_numpy(faces).permute(0, 3, 1, 2).to(reader.reverse.device).float() / 255
    if pictures.shape[-1] != side:
        pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    points, _ = reader(pictures)
    return np.stack([pixels_of(own, faces.shape[2:0:-1]) for own in points.float().cpu().numpy()])


def write_outputs(job: Job, case: Case) -> None:
    """Write mean, spread and overlay of the faces of a case, which are read from the run's folder."""
    names, size = job.outputs_of(case), job.model.cfg.image_size
    if "mean" not in names:
        return
    together = Together.of((read_face(job, own, k) for own, k, _ in job.draws_of(case)), job.face_reader)
    pictures = {"mean": together.mean}
    pictures["spread"] = spread_picture(together, case.name, job.calibration, mm_of_face(case, size))
    if "overlay" in names:
        pictures["overlay"] = overlay_picture(to_uint8(read_skull(case, size)), together, case.name)
    for name, picture in pictures.items():
        write_png(job.folder.path / names[name], picture, {"Comment": NOTICE})


def mm_of_face(case: Case, size: int) -> float | None:
    """Return mm per px of a case's faces of ``size`` px, which show what its skull's picture shows; None: unknown."""
    if case.mm_per_px is None or case.skull_path is None:
        return None
    return case.mm_per_px * max(picture_size(case.source)) / size


def spread_picture(
    together: Together, name: str, calibration: Calibration | None = None, mm: float | None = None
) -> NDArray[np.uint8]:
    """Return the spread over the faces with its scale, beside the mean face with an ellipse for each landmark.

    Args:
        calibration: with a factor of the spread, ellipses are 90 % regions; else one standard deviation.
        mm: millimetres per px of the faces.
    """
    colours = _coloured(together.spread / FULL)
    bar = _coloured(np.linspace(1, 0, PANEL)[:, None].repeat(30, 1))
    scale = Image.new("RGB", (SCALE_WIDTH, PANEL), (24,) * 3)
    scale.paste(Image.fromarray(bar), (0, 0))
    for level in range(0, FULL + 1, 10):
        y = round((1 - level / FULL) * (PANEL - 1))
        beyond = "+" if level == FULL < together.spread.max() else ""
        write_lines(
            scale, (40, min(max(y - LOOK.font // 2, 0), PANEL - LOOK.line)), [f"{level}{beyond}"], LOOK
        )
    lines = [
        f"Spread over {together.num} faces of one skull: {together.spread.mean():.1f} grey levels of 255 on average."
    ]
    mean = _enlarged(together.mean)
    factor = None if calibration is None else calibration.spread_factor
    if together.points is None:
        lines.append("No network reads landmarks off these faces: no ellipses.")
    else:
        size, radius = len(together.mean), 1.0 if factor is None else factor
        arrays = None if factor is None or calibration is None else calibration.arrays
        centres, covariances = landmark_spread((together.points + 0.5) / size, arrays)
        axes = radius * size * np.sqrt(np.linalg.eigvalsh(covariances).clip(min=0))  # (N, 2) px
        _draw_ellipses(mean, centres, covariances, radius)
        length = np.sqrt(axes.prod(1))
        sizes = [f"{value:.1f} px" + (f" ({value * mm:.1f} mm)" if mm else "") for value in
                 (np.median(length), length.max())]  # fmt: skip
        meaning = "90 % regions" if factor is not None else "one standard deviation, not calibrated"
        lines.append(f"Ellipses of landmarks: {meaning}. Radius: median {sizes[0]}, largest {sizes[1]}.")
        if mm is None:
            lines.append("The scale in mm is unknown (mm_per_px=...).")
    panels = [("standard deviation, grey levels", np.hstack([_enlarged(colours), np.asarray(scale)])),
              ("mean face, landmarks", mean)]  # fmt: skip
    return _side_by_side(panels, [f"{name}: {lines[0]}", *lines[1:], NOTICE])


def overlay_picture(skull: NDArray[np.uint8], together: Together, name: str) -> NDArray[np.uint8]:
    """Return skull, mean face, their blend, and the outline of the face on the skull, side by side."""
    bone, face = _enlarged(skull), _enlarged(together.mean)
    outlined = bone.copy()
    for picture, colour in ((face, ELLIPSE), (bone, OUTLINE)):
        mask = (picture.max(2) > BONE * 255).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        largest = sorted(contours, key=cv2.contourArea)[-1:]
        cv2.drawContours(outlined, largest, -1, colour, 2, cv2.LINE_AA)
    blend = np.asarray(cv2.addWeighted(bone, 0.5, face, 0.5, 0), np.uint8)
    panels = [("skull", bone), ("mean face", face), ("both", blend), ("outlines", outlined)]
    return _side_by_side(
        panels, [f"{name}: mean of {together.num} faces; outline of face red, of bone blue.", NOTICE]
    )


def _draw_ellipses(
    canvas: NDArray[np.uint8],
    centres: NDArray[np.float64],
    covariances: NDArray[np.float64],
    radius: float,
) -> None:
    """Draw an ellipse of ``radius`` standard deviations for each landmark, fractions of the canvas, in place."""
    side, shift = len(canvas), 4  # OpenCV draws at sixteenths of a px
    for centre, covariance in zip(centres, covariances, strict=True):
        values, vectors = np.linalg.eigh(covariance)
        place = [round(float(value) * 2**shift) for value in centre * side - 0.5]
        axes = [round(float(axis) * 2**shift) for axis in radius * side * np.sqrt(values[::-1].clip(min=0))]
        angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
        cv2.ellipse(canvas, place, axes, angle, 0, 360, ELLIPSE, 2, cv2.LINE_AA, shift)


def _coloured(share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return shares of the scale (H, W) as colours (H, W, 3) RGB."""
    return cv2.cvtColor(cv2.applyColorMap(to_uint8(share), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(
        np.uint8
    )


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.resize(picture, (PANEL, PANEL), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def _side_by_side(panels: list[tuple[str, NDArray[np.uint8]]], lines: list[str]) -> NDArray[np.uint8]:
    """Return titled pictures of one height in a row (four: in two), above lines of text."""
    rows = [panels] if len(panels) < 4 else [panels[:2], panels[2:]]
    width = LOOK.gap + max(sum(picture.shape[1] + LOOK.gap for _, picture in row) for row in rows)
    text = [part for line in lines for part in wrapped(line, LOOK.font, width - 2 * LOOK.gap)]
    row_height = LOOK.line + PANEL + LOOK.gap
    sheet = Image.new(
        "RGB", (width, LOOK.gap + row_height * len(rows) + LOOK.line * len(text) + LOOK.gap), (24,) * 3
    )
    for i, row in enumerate(rows):
        x = LOOK.gap
        for title, picture in row:
            write_lines(sheet, (x, LOOK.gap // 2 + i * row_height), [title], LOOK)
            sheet.paste(Image.fromarray(picture), (x, LOOK.gap // 2 + i * row_height + LOOK.line))
            x += picture.shape[1] + LOOK.gap
    write_lines(sheet, (LOOK.gap, row_height * len(rows) + LOOK.gap // 2), text, LOOK)
    return np.asarray(sheet)
