"""Pictures from anywhere, brought to the model's square; and PNG files written whole or not at all."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from data.files import PackError, read_bytes, replacing, split_pack_path

MAX_PIXELS = 64_000_000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_OTHERS = (  # place and beginning of files that people take for pictures, and what to do with them
    (0, b"%PDF", "it is a PDF; save the picture in it as PNG"),
    (4, b"ftyp", "it is a photo in HEIC or AVIF, or a film; save it as JPEG or PNG"),
    (0, b"PK", "it is a zip archive or an office document; take the picture out of it"),
    (128, b"DICM", "it is a DICOM file; python -m data.ct draws the skull of a head CT, save others as PNG"),
    *(
        (0, start, "it is a TIFF of numbers that are not read, such as float64; save it as 8- or 16-bit grey")
        for start in (b"II*\0", b"MM\0*")
    ),
    (0, b"\xd0\xcf\x11\xe0", "it is an office document; save the picture in it as PNG"),
)
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # tags of TIFF
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow warns of its own size limit (ours is lower) and of odd metadata: neither matters here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """A picture cannot be used; the message names the file, what is wrong and what to do."""


def read_image(path: str | os.PathLike[str] | bytes, size: int = 256) -> tuple[np.ndarray, str | None]:
    """Read any sane picture as a square RGB array.

    Grey, RGB, palette, CMYK, 16-bit grey, and transparent pictures (laid over black) are read; EXIF
    orientation is applied. A picture that is not square is scaled to fit and centred on black.

    Args:
        path: the file, also one in a pack (data.files), or its contents. These tell the format, not its name.
        size: side of the result in px.

    Returns:
        The picture, ``(size, size, 3)`` float32 in [0, 1], and a note on what had to be done to it or
        looks odd (letterboxed, enlarged, one flat colour, ...), or None.

    Raises:
        ImageError: missing, empty, broken or gigantic (above 64 million px; nothing is decoded then).
    """
    name = "the picture" if isinstance(path, bytes) else Path(path)
    with _opened(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} px")
        frames = int(getattr(image, "n_frames", 1))
        deep_colour = image.mode[:3] == "RGB" and f"{image.mode};16" in str(getattr(image, "tile", ""))
        image.load()
        tags = getattr(image, "tag_v2", {})
        if image.mode == "L" and tags.get(SAMPLE_FORMAT) in (2, (2,)):
            raise ValueError("its 8-bit values have a sign")
        upright = ImageOps.exif_transpose(image)
    notes = [f"only the first of {frames} frames is used"] if frames > 1 else []
    planes = _planes(name, upright, tags.get(PHOTOMETRIC) == 0, notes)
    levels = 1 + max(int(np.asarray(plane).max()) for plane in planes) if deep_colour else 256
    if levels <= 128:
        notes.append(f"very dark 16-bit colour: {levels} of 256 levels are used; export it as 8-bit")
    square = _letterbox(planes, size, notes)
    if float(square.max()) == float(square.min()):
        notes.append("the picture is one flat colour")
    if square.shape[2] == 1:
        square = np.repeat(square, 3, axis=2)
    return np.ascontiguousarray(square), "; ".join(notes) or None


def picture_size(path: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Return width and height in px, upright, from the head of the file.

    Raises:
        ImageError: missing, empty or no picture.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation
    return (height, width) if turned else (width, height)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes) -> Iterator[Image.Image]:
    """Open a picture for reading. Raises: ImageError for whatever goes wrong meanwhile."""
    path = "the picture" if isinstance(source, bytes) else Path(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else _source(Path(source))) as image:
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"the limit is {MAX_PIXELS // 1_000_000} million px: scale it down first"
        raise ImageError(f"{path}: too large ({error}); {limit}") from error
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            head = source[:256] if isinstance(source, bytes) else read_bytes(Path(source))[:256]
            kinds = (kind for place, start, kind in _OTHERS if head.startswith(start, place))
            reason = next(kinds, "unknown format")
        expected = "expected a whole PNG, JPEG, TIFF, BMP or WebP file"
        raise ImageError(f"{path}: cannot be read as a picture ({reason}); {expected}") from error


def _source(path: Path) -> Path | io.BytesIO:
    """Return the file itself, or its contents where it is packed."""
    if split_pack_path(path) is not None:
        try:
            contents = read_bytes(path)
        except PackError as error:
            raise ImageError(str(error)) from error
        if contents:
            return io.BytesIO(contents)
    elif not path.is_file():
        kind = "is no regular file" if path.exists() else "does not exist"
        raise ImageError(f"{path}: {'is a folder, not a picture' if path.is_dir() else kind}")
    elif path.stat().st_size:
        return path
    raise ImageError(f"{path}: the file is empty (0 bytes); copy or export it again")


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 1] as uint8, of any shape; values outside are clipped."""
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def write_png(path: str | os.PathLike[str], array: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG beside its final name and rename it, so that a file by that name is always a whole one.

    Args:
        path: the target; its folder must exist.
        array: ``(H, W)`` or ``(H, W, 3)`` uint8.
        text: what to keep in the file's text chunks, by keyword (1 to 79 Latin-1 characters).

    Raises:
        ValueError: an array of another shape or type.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"write_png: got {array.dtype} {array.shape}, expected uint8 (H, W) or (H, W, 3)")
    info = PngInfo()
    for key, value in (text or {}).items():
        # Latin-1 as tEXt, anything else as iTXt; bytes of file names that are no UTF-8 are escaped.
        info.add_text(key, value.encode("utf-8", "backslashreplace").decode())
    # The user's umask says who may read a face.
    with replacing(Path(path)) as temporary, temporary.open("xb") as file:
        Image.fromarray(array).save(file, format="PNG", pnginfo=info)


def png_of(picture: Image.Image | np.ndarray) -> bytes:
    """Return a picture in memory as the contents of a PNG file, which ``read_image`` reads as it reads a file.

    Args:
        picture: of Pillow, or an array (H, W) or (H, W, 3 or 4): uint8, uint16 (grey), bool, or floats in [0, 1].

    Raises:
        ImageError: another shape, type or range.
    """
    if isinstance(picture, np.ndarray) or picture.mode == "F":
        values = np.asarray(picture)
        low, high = (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)
        if values.dtype.kind == "f" and low >= 0 and high <= 1:
            values = to_uint8(values)
        grey = values.ndim == 2 and values.dtype in (np.uint8, np.uint16, bool)
        colour = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8
        if not values.size or not (grey or colour):
            got = f"an array {values.shape} of {values.dtype} from {low:g} to {high:g}"
            expected = "(H, W) or (H, W, 3), uint8, or floats in [0, 1]"
            raise ImageError(f"the picture: got {got}, expected {expected}")
        picture = Image.fromarray(values)
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", *_SIXTEEN_BIT[:2]):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _planes(path: Path | str, image: Image.Image, white_is_zero: bool, notes: list[str]) -> list[Image.Image]:
    """Split into one (grey) or three (RGB) planes, each mode "L" (0 to 255) or "F" (0 to 1).

    Grey of more than 8 bits whose brightest value is at most half of white, or beyond it, is read by its own maximum.
    ``white_is_zero`` holds for such values alone: Pillow turns 8-bit ones itself.
    """
    if image.mode in (*_SIXTEEN_BIT, "I", "F"):
        values = np.asarray(image).astype(np.float32)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and math.isfinite(high)):
            span = f"values from {low:g} to {high:g}"
            raise ImageError(f"{path}: {span}, expected 0 or more; export it as 8- or 16-bit grey")
        white = 1.0 if image.mode == "F" else 65535.0
        if high and not 0.501 * white < high <= white:  # 0.501: 15 bits may end at 32768
            notes.append(f"its brightest value is {high:g} of {white:g}: this was taken as white")
            white = high
        return [Image.fromarray(1 - values / white if white_is_zero else values / white)]
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return [image.convert("L")]
    return list(image.convert("RGB").split())


def _letterbox(planes: list[Image.Image], size: int, notes: list[str]) -> np.ndarray:
    """Scale planes to fit a square, centred on black: (size, size, number of planes) float32 in [0, 1]."""
    width, height = planes[0].size
    longer = max(width, height)
    inner = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
    if width != height:
        notes.append(f"letterboxed from {width} x {height} px")
    if longer < size:
        notes.append(f"enlarged from {width} x {height} px")
    square = np.zeros((size, size, len(planes)), dtype=np.float32)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    for channel, plane in enumerate(planes):
        if plane.size != inner:
            plane = plane.resize(inner, Image.Resampling.BICUBIC)  # antialiased when it shrinks
        values = np.asarray(plane, dtype=np.float32)
        if plane.mode == "L":
            values = values / np.float32(255)
        square[top : top + inner[1], left : left + inner[0], channel] = values.clip(0, 1)
    return square
