"""Surface styles: they change how a surface looks and never where it is, and each setting shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.cohort.config import NUM_PROTOCOLS
from data.cohort.protocols import draw_face_style, draw_skull_style, protocol, scanned_again, with_protocol
from data.render import SKIN, Camera, Material, Scene, Surface
from data.style import SurfaceStyle, draw_styled
from tests.test_render import sphere

PLAIN = SurfaceStyle()
EVERYTHING = SurfaceStyle(kernel=0.6, grain=1, gloss=1, noise=1, steps=1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(*sphere(60, rings=64), Camera(size=128, half_field=70))


@pytest.fixture(scope="module")
def surface(scene: Scene) -> Surface:
    return scene.trace()


def drawn(surface: Surface, style: SurfaceStyle, seed: int = 1) -> np.ndarray:
    return draw_styled(surface, SKIN, style, seed).astype(float)


def test_a_style_moves_no_outline_and_none_is_the_plain_picture(scene, surface):
    inside = surface.coverage() > 0
    for style in (PLAIN, EVERYTHING, replace(EVERYTHING, kernel=-1)):
        picture = draw_styled(surface, SKIN, style, 3)
        assert picture.dtype == np.uint8 and np.array_equal(picture > 0, inside)
    assert np.abs(drawn(surface, PLAIN) - scene.render(PLAIN.material(SKIN))).max() <= 1


def test_the_seed_decides_grain_and_noise(surface):
    for style in (SurfaceStyle(grain=1), SurfaceStyle(noise=1)):
        assert np.array_equal(drawn(surface, style, 1), drawn(surface, style, 1))
        assert not np.array_equal(drawn(surface, style, 1), drawn(surface, style, 2))
    assert np.array_equal(drawn(surface, PLAIN, 1), drawn(surface, PLAIN, 2))


def roughness(picture: np.ndarray) -> float:
    """Mean difference of neighbours, well inside."""
    middle = picture[40:90, 40:90]
    return float(np.abs(np.diff(middle, axis=0)).mean() + np.abs(np.diff(middle, axis=1)).mean())


@pytest.mark.parametrize("setting", ["grain", "noise", "kernel"])
def test_more_grain_more_noise_and_a_sharper_kernel_are_rougher(setting, surface):
    base, lowest = (SurfaceStyle(grain=0.5, kernel=-1), -1) if setting == "kernel" else (PLAIN, 0)
    rough = [roughness(drawn(surface, replace(base, **{setting: value}))) for value in (lowest, 0.5, 1)]
    assert rough[0] < 0.9 * rough[1] < 0.81 * rough[2]


def test_gloss_brightens_the_highlight_alone(surface):
    dim = Material(ambient=0.2, diffuse=0.4, specular=0.2)  # nothing is blown out
    glossy, matt = (draw_styled(surface, dim, SurfaceStyle(gloss=gloss), 1).astype(float) for gloss in (1, 0))
    from_middle = np.hypot(*(np.indices((128, 128)) - 63.5))
    gain = glossy - matt
    assert gain[from_middle < 18].mean() > 8
    assert np.abs(gain)[(surface.coverage() == 1) & (from_middle > 45)].max() < 3


def test_steps_repeat_with_the_slices_along_y(surface):
    slice_mm = 70 / 16  # 16 slices in the middle 64 px
    change = drawn(surface, SurfaceStyle(steps=1, slice_mm=slice_mm)) - drawn(surface, PLAIN)
    # In the upper half the slope along y has one sign. A column beside the middle: 35 mm are 8 slices.
    column = change[4:36, 60:68].mean(1)
    assert np.abs(np.fft.rfft(column - column.mean())).argmax() == 8
    across = change[20:30].mean(0)[40:88]
    assert np.std(np.diff(across)) < 0.2 * np.std(np.diff(column))


def test_the_grain_stays_on_the_surface_when_the_head_turns(scene):
    style, still = SurfaceStyle(grain=1), scene.trace()
    turned = scene.seen_by(replace(scene.camera, yaw=10)).trace()
    grain = [drawn(one, style) - drawn(one, PLAIN) for one in (still, turned)]
    rows, columns = np.indices((20, 20))
    x, y = (columns + 54 - 63.5) * scene.camera.mm_per_px, -(rows + 20 - 63.5) * scene.camera.mm_per_px
    points = np.stack([x, y, np.sqrt(60**2 - x**2 - y**2)], -1).reshape(-1, 3)
    places = [np.rint(one.camera.project(points)).astype(int) for one in (still, turned)]
    first, second = (picture[at[:, 1], at[:, 0]] for picture, at in zip(grain, places, strict=True))
    in_place = grain[1][places[0][:, 1], places[0][:, 0]]
    assert np.corrcoef(first, second)[0, 1] > 0.5 > 0.2 > abs(np.corrcoef(first, in_place)[0, 1])


@pytest.mark.parametrize("wrong", [{"kernel": -1.1}, {"grain": 2}, {"noise": -0.1}, {"slice_mm": 0}])
def test_an_impossible_style_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SurfaceStyle(**wrong)


def test_protocols_are_spread_over_every_setting_and_no_two_settings_go_together():
    table = np.array([list(vars(protocol(k)).values()) for k in range(1, NUM_PROTOCOLS + 1)])
    assert (table.min(0) < [-0.8, 0.15, 0.15, 0.15, 0.15, 2.8]).all()
    assert (table.max(0) > [0.8, 0.85, 0.85, 0.85, 0.85, 4.5]).all()
    assert np.abs(np.corrcoef(table.T) - np.eye(6)).max() < 0.45
    with pytest.raises(ValueError, match="protocol 0"):
        protocol(0)


def test_a_scan_lies_about_its_protocol_and_a_variant_on_it():
    for index in range(50):
        scan = draw_face_style(5, index)
        apart = np.array(list(vars(scan.surface).values())) - list(vars(protocol(scan.protocol)).values())
        assert (np.abs(apart) < np.array([2, 1, 1, 1, 1, 2.6]) * 0.04 * 5).all() and np.abs(apart).max() > 0
        other, again = with_protocol(scan, 7), scanned_again(scan)
        assert (other.surface, other.seed) == (protocol(7), scan.seed)
        assert again.protocol == scan.protocol and again.seed != scan.seed
        assert again.surface == protocol(scan.protocol)


def test_the_style_of_a_face_follows_from_nothing_else():
    num = 1600
    faces, skulls, others = (
        np.array([draw(seed, k).protocol for k in range(num)])
        for draw, seed in ((draw_face_style, 1), (draw_skull_style, 1), (draw_face_style, 2))
    )
    for part in (faces, faces[::2], skulls):
        expected = len(part) / NUM_PROTOCOLS
        counts = np.bincount(part, minlength=NUM_PROTOCOLS + 1)[1:]
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    for other in (skulls, others, np.roll(faces, 1)):
        assert abs((faces == other).mean() - 1 / NUM_PROTOCOLS) < 5 * np.sqrt(1 / NUM_PROTOCOLS / num)
