"""Ray-cast pictures: geometry, shading and depth against closed forms on a sphere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.cohort.heads.template import triangulate
from data.render import BONE, SKIN, Camera, Lamp, Scene

RADIUS = 50.0


def sphere(radius: float = RADIUS, center: tuple[float, float, float] = (0, 0, 0), rings: int = 96):
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, rings), indexing="ij")
    unit = np.stack([np.sin(polar) * np.cos(around), np.cos(polar), np.sin(polar) * np.sin(around)], -1)
    ids = np.arange(rings * rings).reshape(rings, rings)
    quads = np.stack([ids[:-1, :-1], ids[:-1, 1:], ids[1:, 1:], ids[1:, :-1]], -1).reshape(-1, 4)
    return unit.reshape(-1, 3) * radius + np.array(center), triangulate(quads)


def test_a_sphere_is_shaded_by_the_phong_formula_and_stands_where_it_should():
    camera = Camera(size=129, half_field=60)
    scene = Scene(*sphere(), camera)
    grey, depth = scene.render(SKIN), scene.trace().nearest()
    assert grey.dtype == np.uint8 and grey.shape == depth.shape == (129, 129)
    x = (np.arange(129) - 64) * camera.mm_per_px
    across = np.hypot(*np.meshgrid(x, x))
    inside = across < RADIUS - 3
    facing = np.sqrt(1 - np.minimum(across / RADIUS, 1) ** 2)
    mirrored = np.clip(2 * facing**2 - 1, 0, 1)
    expected = (
        np.clip(SKIN.ambient + SKIN.diffuse * facing + SKIN.specular * mirrored**SKIN.power, 0, 1) * 255
    )
    assert np.abs(grey - expected)[inside].max() < 3
    # the depth of a pixel is its nearest ray's: half a step from the centre
    assert np.abs(depth - RADIUS * facing)[across < 0.8 * RADIUS].max() < camera.mm_per_px
    outside = across > RADIUS + 1
    assert not grey[outside].any() and np.isneginf(depth[outside]).all()


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (10, -8, 0), (-5, 4, 6)])
def test_projection_agrees_with_the_picture(yaw, pitch, roll):
    camera = Camera(size=200, half_field=100, center_x=4, center_y=-7, yaw=yaw, pitch=pitch, roll=roll)
    center = (31.0, -42.0, 20.0)
    grey = Scene(*sphere(6, center), camera).render(BONE).astype(float)
    rows, columns = np.indices(grey.shape)
    centre = np.array([(columns * grey).sum(), (rows * grey).sum()]) / grey.sum()
    assert np.abs(centre - camera.project(np.array([center]))[0]).max() < 0.1


def test_a_lamp_lights_its_side_by_the_phong_formula_and_its_light_falls_off():
    camera = Camera(size=129, half_field=60)
    surface = Scene(*sphere(), camera).trace()
    plain, headlit = surface.light(SKIN), surface.light(SKIN, lamp=Lamp(0, 0, 0))
    assert np.abs(plain - headlit).max() < 1e-3
    matt = replace(SKIN, specular=0.0)
    x, y = surface.point[:, :2].T / RADIUS
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    inside = z > 0.3
    for degrees, at in ((40, 90), (30, 180)):
        side = x * np.cos(np.radians(at)) + y * np.sin(np.radians(at))
        cosine = np.clip(side * np.sin(np.radians(degrees)) + z * np.cos(np.radians(degrees)), 0, 1)
        lit = surface.light(matt, lamp=Lamp(degrees, at, 0))
        assert np.abs(lit - (matt.ambient + matt.diffuse * cosine))[inside].max() < 0.02
        falling = surface.light(matt, lamp=Lamp(degrees, at, 0.4))
        expected = np.clip(lit * (1 + 0.4 * side * RADIUS / 60), 0, 1)
        assert np.abs(falling - expected)[inside].max() < 0.01 and np.ptp(falling - lit) > 0.3


def test_depth_tells_visible_points_from_hidden_ones():
    scene = Scene(*sphere(), Camera(half_field=100))
    ahead = scene.depth_at(np.array([[0, 0, RADIUS], [0, 0, -RADIUS], [0, 90, 0]]))
    assert abs(ahead[0]) < 0.2 and abs(ahead[1] - 2 * RADIUS) < 0.2 and np.isneginf(ahead[2])


def test_nothing_below_the_floor_is_drawn():
    camera = Camera(size=128, half_field=64)
    full = Scene(*sphere(), camera).render(SKIN)
    cut = Scene(*sphere(), camera, floor=-20.2).render(SKIN)
    lowest = np.flatnonzero(cut.any(1)).max()
    assert abs(camera.project(np.array([[0, -20.2, 0]]))[0, 1] - lowest) <= 1
    assert np.array_equal(cut[:lowest], full[:lowest])


def test_camera_axes():
    nose = np.array([[0.0, 0.0, 100.0]])
    still, turned, nodded = (Camera(yaw=y, pitch=p).project(nose)[0] for y, p in ((0, 0), (10, 0), (0, 10)))
    assert turned[0] > still[0] + 10 and abs(turned[1] - still[1]) < 1e-6
    assert nodded[1] > still[1] + 10 and abs(nodded[0] - still[0]) < 1e-6


@pytest.mark.parametrize("settings", [{"size": 4}, {"half_field": 0}, {"supersampling": 0}])
def test_an_impossible_camera_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Camera(**settings)
