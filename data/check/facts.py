"""What is measured on each picture and each pair; a few kilobytes a pair, whatever the pictures' size."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data.check.silhouette import Silhouette, grow, silhouette
from data.files import PackError, read_bytes
from data.images import ImageError, read_image, to_uint8

SIZE = 256  # px at which everything is measured
THUMB = 64  # px of the small picture that is kept
_GRID_SIDE = 512  # px of the part in which traces of JPEG are looked for
_COSINES = np.cos(np.pi * (2 * np.arange(8) + 1) * np.arange(8)[:, None] / 16).astype(np.float32) / 2
_COSINES[0] /= np.sqrt(2)  # the 8-point discrete cosine transform, orthonormal
_MIN_BLOCKS = 100
_BESIDE = ((4, 4), (3, 5), (2, 3), (6, 5), (5, 2), (3, 6))  # px down and right of JPEG's grid
_FINE = np.add.outer(np.arange(8), np.arange(8)).ravel() >= 6
_WAVES = np.ascontiguousarray(np.kron(_COSINES, _COSINES)[_FINE].T)  # (64, 43)
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class PictureFacts:
    """One picture file. Lengths are fractions of the picture's side, grey levels are in [0, 1].

    Attributes:
        problem: why the file cannot be read; all else is then unset.
        note: what reading it had to change ("letterboxed from ...").
        format, mode, width, height: of the file.
        digest: of the pixels.
        colour: mean difference between the colour channels.
        background, levels, white: grey level of the border; percentiles of the head; share of it that is pure white.
        distinct: number of different grey levels in it.
        lossy: see ``lossiness``.
        area, box, touches: of the head: share of the picture; left, top, right, bottom; share of each side it lies on.
        stray: px of things beside the head.
        thumb: (64, 64) uint8.
    """

    path: Path
    problem: str | None = None
    note: str | None = None
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    digest: bytes = b""
    colour: float = 0.0
    background: float = 0.0
    levels: tuple[float, ...] = ()
    white: float = 0.0
    distinct: int = 0
    lossy: float = 1.0
    area: float = 0.0
    box: tuple[float, ...] = ()
    touches: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    stray: int = 0
    thumb: np.ndarray = field(default_factory=lambda: np.zeros((THUMB, THUMB), np.uint8))

    @property
    def blank(self) -> bool:
        """Nothing in it that could be a head."""
        return self.problem is None and self.area < 0.01


@dataclass(frozen=True)
class PairFacts:
    """A skull beside its face, both measured in px of ``SIZE``.

    Attributes:
        outside: share of the bone that lies outside the face.
        shift: how far the middle of the face's vault is right of the skull's.
        gap: how far the crown of the face is above the skull's.
        scale: width of the face's vault over the skull's.
    """

    outside: float
    shift: float
    gap: float
    scale: float


def examine(
    skull: Path | None, face: Path | None
) -> tuple[PictureFacts | None, PictureFacts | None, PairFacts | None]:
    """Measure a pair; either of it may be missing."""
    bone, bone_shape = examine_picture(skull) if skull is not None else (None, None)
    skin, skin_shape = examine_picture(face) if face is not None else (None, None)
    if bone is None or skin is None or bone_shape is None or skin_shape is None or bone.blank or skin.blank:
        return bone, skin, None
    return bone, skin, compare(bone_shape, skin_shape)


def examine_picture(path: Path) -> tuple[PictureFacts, Silhouette | None]:
    """Measure one picture; its silhouette at ``SIZE`` px, or None where it cannot be read."""
    try:
        picture, note = read_image(path, SIZE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(read_bytes(path))) as image:
                kind, mode, (width, height) = image.format or "", image.mode, image.size
                native = None if image.size == (SIZE, SIZE) else _middle(image)
    except (ImageError, PackError, OSError) as error:
        return PictureFacts(path, problem=str(error)), None
    grey = picture @ np.full(3, 1 / 3, np.float32)
    shape = silhouette(grey)
    pixels = to_uint8(picture)
    channels = [picture[..., k] for k in range(3)]
    highest, lowest = np.maximum.reduce(channels), np.minimum.reduce(channels)
    levels = to_uint8(highest)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, key=f"{width}x{height}".encode()).digest()
    thumb = grey.reshape(THUMB, SIZE // THUMB, THUMB, SIZE // THUMB).mean((1, 3))
    facts = PictureFacts(
        path,
        note=note,
        format=kind,
        mode=mode,
        width=width,
        height=height,
        digest=digest,
        colour=float((highest - lowest).mean()),
        background=shape.background,
        area=float(shape.filled.mean()),
        stray=shape.stray,
        thumb=to_uint8(thumb),
    )
    if facts.blank:
        return facts, shape
    inside = grey[shape.head]
    rows, columns = np.flatnonzero(shape.head.any(1)), np.flatnonzero(shape.head.any(0))
    sides = (shape.head[:, 0], shape.head[0], shape.head[:, -1], shape.head[-1])
    return (
        PictureFacts(
            **{
                **vars(facts),
                "levels": tuple(float(level) for level in np.percentile(inside, PERCENTILES)),
                "white": float((levels[shape.head] >= 254).mean()),
                "distinct": len(np.unique(levels)),
                "lossy": lossiness(grey if native is None else native),
                "box": tuple(
                    float(edge) / SIZE for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                ),
                "touches": tuple(float(side.mean()) for side in sides),
            }
        ),
        shape,
    )


def lossiness(grey: np.ndarray) -> float:
    """How much less fine detail there is in the 8 px blocks of JPEG's grid than in blocks beside it.

    JPEG rounds the fine detail of its blocks away, and steps between them appear. About 1 in a picture that never was
    one; on ours 3 to 10 at quality 75 and below, which also shows after it was saved as PNG; hardly above 1 at 90.

    Args:
        grey: (H, W) in [0, 1], as it is in the file, not scaled.
    """
    on_grid, *beside = (_fine_detail(grey, top, left) for top, left in ((0, 0), *_BESIDE))
    if min(len(on_grid), *map(len, beside)) < _MIN_BLOCKS:
        return 1.0
    lowest = min(float(np.median(np.log(detail))) for detail in beside)
    return float(np.exp(lowest - np.median(np.log(on_grid))))


def _fine_detail(grey: np.ndarray, top: int, left: int) -> np.ndarray:
    """(N,) root mean square of the high frequencies of 8 px blocks that are not flat, in grey levels of 255."""
    rows, columns = (grey.shape[0] - 8) // 8, (grey.shape[1] - 8) // 8
    part = grey[top : top + 8 * rows, left : left + 8 * columns] * np.float32(255)
    blocks = part.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    blocks = blocks[blocks.max((1, 2)) - blocks.min((1, 2)) > 4]
    waves = blocks.reshape(-1, 64) @ _WAVES  # (N, 43)
    return np.sqrt((waves**2).mean(1)) + 0.1


def _middle(image: Image.Image) -> np.ndarray:
    """The middle of a picture, at most ``_GRID_SIDE`` px, cut along JPEG's grid: (H, W) float32 in [0, 1]."""
    left, top = (max(0, (side - _GRID_SIDE) // 16 * 8) for side in image.size)
    part = image.crop((left, top, min(left + _GRID_SIDE, image.width), min(top + _GRID_SIDE, image.height)))
    return np.asarray(part.convert("L"), np.float32) / 255


def compare(skull: Silhouette, face: Silhouette) -> PairFacts:
    """Measure how a skull lies in its face."""
    bone, skin = skull.filled, face.filled
    rows = np.flatnonzero(bone.any(1))
    vault = np.arange(rows[0] + len(rows) // 8, rows[0] + len(rows) // 3)
    vault = vault[skin[vault].any(1)]
    if not len(vault):
        return PairFacts(_outside(bone, skin), float("nan"), float("nan"), float("nan"))
    left, right = _ends(bone[vault])
    skin_left, skin_right = _ends(skin[vault])
    middle, half = int((left + right).mean() / 2), int((right - left).mean() / 4)
    crown = np.arange(middle - half, middle + half + 1)  # columns of the middle half of the vault
    crown = crown[bone[:, crown].any(0) & skin[:, crown].any(0)]
    return PairFacts(
        outside=_outside(bone, skin),
        shift=float((skin_left + skin_right - left - right).mean() / 2),
        gap=float((bone[:, crown].argmax(0) - skin[:, crown].argmax(0)).mean())
        if len(crown)
        else float("nan"),
        scale=float((skin_right - skin_left + 1).mean() / (right - left + 1).mean()),
    )


def _outside(bone: np.ndarray, skin: np.ndarray) -> float:
    return float((bone & ~grow(skin, 1)).sum() / bone.sum())


def _ends(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last column of a mask in each row."""
    return rows.argmax(1).astype(float), rows.shape[1] - 1 - rows[:, ::-1].argmax(1).astype(float)
