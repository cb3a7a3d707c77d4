"""Any sane picture is read; a broken, empty or gigantic one is refused in one line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.images import ImageError, read_image, write_png

RAMP = np.tile(np.arange(256, dtype=np.uint8), (256, 1))


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_is_exact_and_has_no_note(tmp_path: Path) -> None:
    picture, note = read_image(saved(tmp_path / "a.png", Image.fromarray(RAMP)))
    assert (picture.shape, picture.dtype, note) == ((256, 256, 3), np.float32, None)
    np.testing.assert_array_equal(np.rint(picture[..., 1] * 255), RAMP)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_gives_the_same_grey(tmp_path: Path, mode: str) -> None:
    grey = np.where(RAMP > 127, 255, 0).astype(np.uint8)
    deep = {"I;16": np.uint16, "I": np.int32}.get(mode)
    image = Image.fromarray(grey.astype(deep) * 257) if deep else Image.fromarray(grey).convert(mode)
    suffix = ".tif" if mode in ("CMYK", "I") else ".png"
    picture, note = read_image(saved(tmp_path / f"a{suffix}", image))
    assert note is None
    np.testing.assert_allclose(picture, np.repeat(grey[..., None] / 255, 3, axis=2), atol=1e-6)


def test_sixteen_bit_keeps_its_range_and_a_12_bit_picture_is_noted(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(256, 0)
    picture, note = read_image(saved(tmp_path / "a.png", Image.fromarray(deep)))
    assert note is None
    np.testing.assert_allclose(picture[..., 0], deep / 65535, atol=1e-6)
    _, note = read_image(saved(tmp_path / "b.png", Image.fromarray(deep // 16)))
    assert "4095 of 65535" in str(note)


def test_transparency_is_laid_over_black_and_colours_stay_in_place(tmp_path: Path) -> None:
    rgba = np.full((256, 256, 4), (255, 0, 0, 255), np.uint8)
    rgba[:, 128:, 3] = 0
    picture, _ = read_image(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    assert (picture[:, :128] == [1, 0, 0]).all() and not picture[:, 128:].any()


@given(width=st.integers(1, 600), height=st.integers(1, 600), size=st.sampled_from([32, 64]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_letterboxed_for_every_shape(tmp_path: Path, width: int, height: int, size: int) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (width, height), 255))
    picture, note = read_image(path, size)
    assert picture.shape == (size, size, 3)
    assert ("letterboxed" in (note or "")) == (width != height)
    assert ("enlarged" in (note or "")) == (max(width, height) < size)
    across, down = (max(1, round(side * size / max(width, height))) for side in (width, height))
    assert (picture[..., 0] > 0.5).sum() == across * down
    rows = np.flatnonzero(picture[..., 0].max(1))
    assert abs(rows[0] - (size - 1 - rows[-1])) <= 1  # centred


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    dark_left = Image.fromarray(np.where(RAMP > 127, 255, 0).astype(np.uint8))
    picture, _ = read_image(saved(tmp_path / "a.jpg", dark_left, exif=exif))
    assert picture[:100].mean() < 0.05
    assert picture[-100:].mean() > 0.95


def test_flat_pictures_and_further_frames_are_noted(tmp_path: Path) -> None:
    _, note = read_image(saved(tmp_path / "a.png", Image.new("L", (256, 256), 0)))
    assert note == "the picture is one flat colour"
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP.T.copy())]
    _, note = read_image(saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:]))
    assert note == "only the first of 2 frames is used"


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("side", [8_001, 60_000])
def test_gigantic_is_refused_by_its_header(
    tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side) + struct.pack(">I", 64) + b"IDAT" + b"\x00" * 64)
    with pytest.raises(ImageError, match=r"a\.png: too large"):
        read_image(path)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("kind", "high"),
    [("<i2", 32640), ("<i2", 4095), ("<u2", 16383), ("<u2", 32768), ("<i4", 9e6), ("<u4", 70000),
     (">i2", 255), ("<f4", 250), (">f4", 0.4), ("<f4", 0.8), ("<u2", 60000), ("<u2 white is zero", 60000),
     ("<u2 white is zero", 4095)],
)  # fmt: skip
def test_deep_grey_fills_the_range_by_its_own_maximum_and_says_so(
    tmp_path: Path, kind: str, high: float
) -> None:
    """The file is written by hand. Source: TIFF 6.0, sections 3 and 19."""
    values = (RAMP / 255 * high).astype(kind[:3])
    order, inverted = kind[0], kind.endswith("zero")
    fields = {256: 256, 257: 256, 258: 8 * values.itemsize, 259: 1, 262: 0 if inverted else 1, 273: 8 + 2 + 120 + 4,
              277: 1, 278: 256, 279: values.nbytes, 339: {"u": 1, "i": 2, "f": 3}[kind[1]]}  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(fields))
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in fields.items())
    (tmp_path / "a.tif").write_bytes(head + entries + bytes(4) + values.tobytes())
    picture, note = read_image(tmp_path / "a.tif")
    white = 1 if kind[1] == "f" else 65535
    own = high <= 0.501 * white or high > white
    expected = values.astype(float) / (high if own else white)
    np.testing.assert_allclose(picture[..., 1], 1 - expected if inverted else expected, atol=2e-4)
    assert (f"{high:g} of {white}" in str(note)) if own else note is None


def test_dark_16_bit_colour_is_noted_and_signed_bytes_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([RAMP.astype(np.uint16) * 16] * 3))
    assert "16 of 256" in str(read_image(tmp_path / "a.png")[1])
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([RAMP.astype(np.uint16) * 257] * 3))
    assert read_image(tmp_path / "a.png")[1] is None
    image = Image.fromarray(RAMP)
    (tmp_path / "c.tif").write_bytes(
        struct.pack("<2sHIHHHIIHHIII", b"II", 42, 8, 2, 258, 3, 1, 64, 339, 3, 1, 3, 0)
    )
    with pytest.raises(ImageError, match="TIFF of numbers that are not read"):
        read_image(tmp_path / "c.tif")
    with pytest.raises(ImageError, match="sign"):
        read_image(saved(tmp_path / "b.tif", image, tiffinfo={339: 2}))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_unknown_range_are_refused(tmp_path: Path, kind: type) -> None:
    with pytest.raises(ImageError, match="8- or 16-bit"):
        read_image(saved(tmp_path / "a.tif", Image.fromarray(RAMP.astype(kind) - 5)))


@given(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "GIF"]), st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused_never_worse(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    whole = io.BytesIO()
    Image.fromarray(RAMP[:64, :64]).save(whole, kind)
    content = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        picture, _ = read_image(path, 32)
    except ImageError:
        return
    assert picture.shape == (32, 32, 3)
    assert 0 <= picture.min() <= picture.max() <= 1


def test_written_png_holds_the_pixels_and_the_text(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", rgb, {"prompt": "x", "name": "颅骨"})
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), rgb)
        assert (image.info["prompt"], image.info["name"]) == ("x", "颅骨")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
def test_the_umask_says_who_may_read_a_picture(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_png(tmp_path / "a.png", RAMP)
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RAMP)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ValueError, match="expected uint8"):
        write_png(tmp_path / "a.png", RAMP / 255)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        write_png(tmp_path / "a.png", RAMP, {"": "no keyword", "k" * 100: 3})
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
