"""What is measured on each picture and each pair: a few kilobytes a pair, whatever the pictures' size."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from data.check.dataset import DataSet
from data.files import PackError, read_bytes
from data.images import ImageError, read_image, to_uint8
from data.workers import begin, processes

SIZE = 256  # px at which everything is measured
THUMB = 64  # px of the small picture that is kept
PERCENTILES = (5, 25, 50, 75, 95)
_SERIAL_PAIRS = 200  # up to so many, starting processes takes longer than the work
_MIN_CONTRAST = 0.06  # grey level (of 1) by which the head differs from the background, at least
_PIECE = 0.02  # a piece smaller than this share of the largest is no part of the head
_SPECK = 4  # px; smaller pieces are noise
_REACH = 16  # px around the outline in which loose pieces (teeth, slivers of a vertebra) are the head's own
_GRID_SIDE = 512  # px of the part in which traces of JPEG are sought
_COSINES = np.cos(np.pi * (2 * np.arange(8) + 1) * np.arange(8)[:, None] / 16).astype(np.float32) / 2
_COSINES[0] /= np.sqrt(2)  # the 8-point discrete cosine transform, orthonormal
_MIN_BLOCKS = 100
_BESIDE = ((4, 4), (3, 5), (2, 3), (6, 5), (5, 2), (3, 6))  # px down and right of JPEG's grid
_FINE = np.add.outer(np.arange(8), np.arange(8)).ravel() >= 6
_WAVES = np.ascontiguousarray(np.kron(_COSINES, _COSINES)[_FINE].T)  # (64, 43)


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
        """Whether nothing in it could be a head."""
        return self.problem is None and self.area < 0.01

    @property
    def usable(self) -> bool:
        """Whether it could be read and is not blank."""
        return self.problem is None and not self.blank


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


@dataclass(frozen=True)
class Silhouette:
    """Where the head is in a picture.

    Attributes:
        head: (H, W) bool.
        filled: the same with its holes closed.
        stray: px of things that stand beside the head.
        background: grey level (0 to 1) along the picture's border.
    """

    head: np.ndarray
    filled: np.ndarray
    stray: int
    background: float


Job = tuple[Path | None, Path | None]
Result = tuple[PictureFacts | None, PictureFacts | None, PairFacts | None]


def measure(data: DataSet, num_workers: int, progress: bool = True) -> None:
    """Fill ``data.pictures`` and ``data.pairs``, with several processes.

    Raises:
        ChildProcessError: a process was killed.
    """
    jobs = list(dict.fromkeys((line.skull, line.face) for line in data.lines if line.skull or line.face))
    with tqdm(total=len(jobs), unit="pair", desc="measuring", mininterval=0.5, disable=not progress) as bar:
        for job, (bone, skin, pair) in zip(jobs, _results(jobs, num_workers), strict=True):
            for facts in (bone, skin):
                if facts is not None:
                    data.pictures.setdefault(facts.path, facts)
            if pair is not None and job[0] is not None and job[1] is not None:
                data.pairs[job[0], job[1]] = pair
            bar.update()


def _results(jobs: list[Job], num_workers: int) -> Iterator[Result]:
    """Yield the results in the order of ``jobs``."""
    if num_workers == 1 or len(jobs) <= _SERIAL_PAIRS:
        yield from map(measure_pair, jobs)
        return
    killed = f"a process was killed (out of memory?): use fewer than num_workers={num_workers}"
    with processes(num_workers, begin, (), killed) as pool:
        yield from pool.map(measure_pair, jobs, chunksize=16)


def measure_pair(job: Job) -> Result:
    """Measure a skull, a face, and the pair; either of them may be missing."""
    (bone, bone_shape), (skin, skin_shape) = (
        (None, None) if path is None else measure_picture(path) for path in job
    )
    if bone_shape is None or skin_shape is None or bone is None or skin is None or bone.blank or skin.blank:
        return bone, skin, None
    return bone, skin, compare(bone_shape, skin_shape)


def measure_picture(path: Path) -> tuple[PictureFacts, Silhouette | None]:
    """Measure one picture. Return its silhouette at ``SIZE`` px too, or None where it cannot be read."""
    try:
        picture, note = read_image(path, SIZE)
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            file_format, mode, (width, height) = image.format or "", image.mode, image.size
            native = None if image.size == (SIZE, SIZE) else _middle(image)
    except (ImageError, PackError, OSError) as error:
        return PictureFacts(path, problem=str(error)), None
    grey = picture @ np.full(3, 1 / 3, np.float32)
    shape = silhouette(grey)
    highest, lowest = picture.max(2), picture.min(2)
    key = f"{width}x{height}".encode()
    facts = PictureFacts(
        path,
        note=note,
        format=file_format,
        mode=mode,
        width=width,
        height=height,
        digest=hashlib.blake2b(to_uint8(picture).tobytes(), digest_size=16, key=key).digest(),
        colour=float((highest - lowest).mean()),
        background=shape.background,
        area=float(shape.filled.mean()),
        stray=shape.stray,
        thumb=to_uint8(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)),
    )
    if facts.blank:
        return facts, shape
    levels = to_uint8(highest)
    rows, columns = np.flatnonzero(shape.head.any(1)), np.flatnonzero(shape.head.any(0))
    box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    sides = shape.head[:, 0], shape.head[0], shape.head[:, -1], shape.head[-1]
    facts = replace(
        facts,
        levels=tuple(float(level) for level in np.percentile(grey[shape.head], PERCENTILES)),
        white=float((levels[shape.head] >= 254).mean()),
        distinct=len(np.unique(levels)),
        lossy=lossiness(grey if native is None else native),
        box=tuple(float(edge) / SIZE for edge in box),
        touches=tuple(float(side.mean()) for side in sides),
    )
    return facts, shape


def silhouette(grey: np.ndarray) -> Silhouette:
    """Find the head in a picture, (H, W) float in [0, 1], on a background of any even grey level."""
    rim = np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel(), grey[:, -2:].ravel()])
    background = float(np.median(rim))
    noise = 1.4826 * float(np.median(np.abs(rim - background)))
    foreground = np.abs(grey - background) > max(_MIN_CONTRAST, 6 * noise)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(foreground.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    if not areas.any():
        return Silhouette(foreground, foreground, 0, background)
    of_head = areas >= _PIECE * areas.max()
    head = of_head[labels]
    beside = (~of_head & (areas >= _SPECK))[labels]
    filled = fill(head)
    return Silhouette(head, filled, int((beside & ~grow(filled, _REACH)).sum()), background)


def fill(mask: np.ndarray) -> np.ndarray:
    """Close the holes of a mask: px that have some of it on all four sides belong to it."""
    left, right = np.logical_or.accumulate(mask, 1), np.logical_or.accumulate(mask[:, ::-1], 1)[:, ::-1]
    up, down = np.logical_or.accumulate(mask, 0), np.logical_or.accumulate(mask[::-1], 0)[::-1]
    return left & right & up & down


def grow(mask: np.ndarray, px: int) -> np.ndarray:
    """Return the mask with a square margin of ``px`` around it."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * px + 1, 2 * px + 1), np.uint8)) > 0


def lossiness(grey: np.ndarray) -> float:
    """Return how much less fine detail there is in the 8 px blocks of JPEG's grid than in blocks beside it.

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
    """Return the (N,) root mean square of the high frequencies of 8 px blocks that are not flat, in levels of 255."""
    rows, columns = (grey.shape[0] - 8) // 8, (grey.shape[1] - 8) // 8
    part = grey[top : top + 8 * rows, left : left + 8 * columns] * np.float32(255)
    blocks = part.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    blocks = blocks[blocks.max((1, 2)) - blocks.min((1, 2)) > 4]
    waves = blocks.reshape(-1, 64) @ _WAVES  # (N, 43)
    return np.sqrt((waves**2).mean(1)) + 0.1


def _middle(image: Image.Image) -> np.ndarray:
    """Return the middle of a picture, at most ``_GRID_SIDE`` px, cut along JPEG's grid: (H, W) float32 in [0, 1]."""
    left, top = (max(0, (side - _GRID_SIDE) // 16 * 8) for side in image.size)
    part = image.crop((left, top, min(left + _GRID_SIDE, image.width), min(top + _GRID_SIDE, image.height)))
    return np.asarray(part.convert("L"), np.float32) / 255


def compare(skull: Silhouette, face: Silhouette) -> PairFacts:
    """Measure how a skull lies in its face."""
    bone, skin = skull.filled, face.filled
    outside = float((bone & ~grow(skin, 1)).sum() / bone.sum())
    rows = np.flatnonzero(bone.any(1))
    vault = np.arange(rows[0] + len(rows) // 8, rows[0] + len(rows) // 3)
    vault = vault[skin[vault].any(1)]
    nan = float("nan")
    if not len(vault):
        return PairFacts(outside, nan, nan, nan)
    (left, right), (skin_left, skin_right) = _ends(bone[vault]), _ends(skin[vault])
    middle, half = int((left + right).mean() / 2), int((right - left).mean() / 4)
    crown = np.arange(middle - half, middle + half + 1)  # columns of the middle half of the vault
    crown = crown[bone[:, crown].any(0) & skin[:, crown].any(0)]
    gaps = bone[:, crown].argmax(0) - skin[:, crown].argmax(0)
    return PairFacts(
        outside,
        shift=float((skin_left + skin_right - left - right).mean() / 2),
        gap=float(gaps.mean()) if len(crown) else nan,
        scale=float((skin_right - skin_left + 1).mean() / (right - left + 1).mean()),
    )


def _ends(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last column of a mask in each row."""
    return rows.argmax(1).astype(float), rows.shape[1] - 1 - rows[:, ::-1].argmax(1).astype(float)
