"""A procedural skull inside the reference head: our own implicit model, no scan and no third-party mesh.

The outer form is the skin moved inwards by the tissue depth; orbits, nasal aperture, temporal fossae, zygomatic
arches, mandible and teeth are solids placed by hand. Positions are given in unscaled MakeHuman mm (``at``), where the
mid-sagittal plane is x = 0, the eyes are at y = 640 and the tip of the nose is at about z = 145.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.ndimage as ndimage
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree
from skimage import measure

from data.templates.implicit import Capsule, Ellipsoid, Grid, Solid, smooth_max
from data.templates.makehuman import to_template_frame
from data.templates.mandible import Arch

GRID_STEP_MM = 1.2
SIDES = (-1, 1)

# Skin site (unscaled mm, right side mirrored) -> tissue depth in mm. Rounded adult means in the range of published
# pooled tables; not taken from one of them (see the data card).
MIDLINE_DEPTHS = (
    ((0, 742, 48), 5.5),
    ((0, 708, 120), 5.0),
    ((0, 683, 130), 5.0),
    ((0, 657, 136), 6.0),
    ((0, 641, 130), 6.5),
    ((0, 620, 140), 3.5),
    ((0, 590, 136), 12.0),
    ((0, 578, 138), 12.5),
    ((0, 556, 130), 11.5),
    ((0, 545, 130), 11.0),
    ((0, 533, 110), 8.0),
    ((0, 660, -48), 7.0),
)
PAIRED_DEPTHS = (
    ((28, 653, 125), 7.0),
    ((31, 617, 122), 8.0),
    ((46, 603, 110), 14.0),
    ((32, 688, 122), 5.5),
    ((49, 668, 110), 6.5),
    ((19, 586, 126), 13.0),
    ((29, 544, 112), 11.0),
    ((62, 617, 82), 9.0),
    ((52, 564, 70), 13.0),
    ((66, 680, 28), 8.0),
    ((62, 655, 88), 15.0),
    ((62, 640, 75), 17.0),
    ((56, 588, 74), 20.0),
    ((45, 580, 100), 22.0),
    ((60, 610, 60), 11.0),
)

# Half widths (mm) of the teeth from the midline backwards.
UPPER_TEETH = (4.3, 3.4, 3.9, 3.5, 3.5, 5.0, 5.0)
LOWER_TEETH = (2.7, 3.0, 3.5, 3.5, 3.6, 5.4, 5.2)


MODEL_EDGE_Y = float(to_template_frame(np.array([0.0, 571.0, 0.0]))[1])  # where upper and lower teeth meet


def model_arches() -> tuple[Arch, Arch]:
    """The arches of the upper and of the lower crowns in the head's frame."""
    half = np.array([_arch(length) for length in np.arange(0.0, 62.0, 2.0)])
    places = [at(x, 571, 121 + z)[[0, 2]] for x, z in half]
    back = np.array([0.0, 2.2 * 1.05])
    return Arch.of_half(np.array(places)), Arch.of_half(np.array(places) - back)


def at(x: float, y: float, z: float) -> np.ndarray:
    """(3,) template frame from unscaled mm."""
    return to_template_frame(np.array([x, y, z], float))


def build_skull(skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skull of the reference head.

    Args:
        skin: (N, 3) points that cover the closed skin (eyes included) less than 1 mm apart.

    Returns:
        vertices (S, 3) in mm and triangles (T, 3), facing outwards.
    """
    grid = Grid((-92, -112, -120), (92, 118, 116), GRID_STEP_MM)
    bone = _bone_field(skin, grid)
    head = _cranium(bone, grid).join(_mandible(bone, grid), 0.8).join(_teeth(grid), 0.8)
    vertices, triangles, _, _ = measure.marching_cubes(
        ndimage.gaussian_filter(head.values, 0.6), 0.0, gradient_direction="ascent"
    )
    return vertices * GRID_STEP_MM + np.array(grid.low), triangles


def _bone_field(skin: np.ndarray, grid: Grid) -> np.ndarray:
    """Grid-shaped field, negative where there may be bone: deeper under the skin than the local tissue depth."""
    index = np.rint((skin - np.array(grid.low)) / GRID_STEP_MM).astype(int)
    on_grid = ((index >= 0) & (index < np.array(grid.shape))).all(1)
    shell = np.zeros(grid.shape, bool)
    shell[tuple(index[on_grid].T)] = True
    shell = ndimage.binary_dilation(shell)
    neck = 2  # the skin goes on below the grid: closed there
    shell[:, :neck] = True
    label, _ = ndimage.label(~shell)
    inside = label != label[0, -1, 0]
    inside[:, :neck] = False
    depth, nearest = ndimage.distance_transform_edt(inside, sampling=GRID_STEP_MM, return_indices=True)
    depth -= 2 * GRID_STEP_MM  # the nearest voxel outside is about that far from the skin itself

    sites = [site for site, _ in MIDLINE_DEPTHS]
    tissue = [mm for _, mm in MIDLINE_DEPTHS]
    for (x, y, z), mm in PAIRED_DEPTHS:
        sites += [(s * x, y, z) for s in SIDES]
        tissue += [mm, mm]
    skin = skin[::100]
    tree = cKDTree(skin)
    on_skin = tree.query(to_template_frame(np.array(sites, float)))[1]
    tissue_map = RBFInterpolator(skin[on_skin], np.array(tissue), kernel="linear", smoothing=1.0)(skin)
    tissue_map = np.clip(tissue_map, 3, 24)
    half = (slice(None, None, 2),) * 3
    surface = np.stack([grid.axes[k][nearest[k][half]] for k in range(3)], -1)
    wanted = tissue_map[tree.query(surface.reshape(-1, 3))[1]].reshape(surface.shape[:3])
    zoom = [n / m for n, m in zip(grid.shape, wanted.shape, strict=True)]
    wanted = ndimage.zoom(wanted, zoom, order=1, grid_mode=True, mode="nearest")
    return ndimage.gaussian_filter(wanted, 2.0) - ndimage.gaussian_filter(depth, 2.0)


def _cranium(bone: np.ndarray, grid: Grid) -> Solid:
    height = grid.axes[1][None, :, None]
    upper = smooth_max(bone, at(0, 577, 0)[1] - height, 2.0)

    midface = Solid(grid)
    midface.add(Ellipsoid(at(0, 590, 94), (25, 34, 35), 2.6), 3)
    midface.add(Ellipsoid(at(0, 617, 96), (44, 16, 34), 2.4), 9)
    for s in SIDES:
        midface.add(Ellipsoid(at(s * 45, 612, 98), (13, 11, 14), 2.2), 6)
    midface.add(Ellipsoid(at(0, 620, 20), (58, 34, 62), 2.5), 3)  # base of the skull
    below_orbits = height < at(0, 622, 0)[1]
    skull = Solid(grid, np.where(below_orbits, smooth_max(upper, midface.values, 3.0), upper))

    for s in SIDES:
        _orbit_and_temple(skull, s)
        _cheekbone(skull, s)
        skull.add(Capsule(at(s * 52, 606, 44), at(s * 50, 588, 47), 10, 5), 5)  # mastoid
    _nose(skull)
    return skull.cut(Ellipsoid(at(0, 675, 35), (58, 48, 74), 2.4), 1)  # brain


def _orbit_and_temple(skull: Solid, s: int) -> None:
    """On side ``s``: -1 the subject's right, 1 the left."""
    skull.cut(Ellipsoid(at(s * 69, 652, 92), (13, 30, 24)), 9)  # temporal fossa
    rim = Capsule(at(s * 13, 652, 119), at(s * 44, 653, 106), 6, 4.5)
    lateral_rim = Capsule(at(s * 48, 618, 100), at(s * 49, 650, 99), 6, 5, (1.1, 1, 0.8))
    skull.add(rim, 5).add(lateral_rim, 5)
    opening = Ellipsoid(at(s * 32.5, 634.5, 116), (18.5, 16.5, 17), 2.8, tilt=s * -8)
    cone = Capsule(at(s * 33, 634.5, 116), at(s * 17, 631, 66), 16, 3)  # towards the apex
    skull.cut(opening, 3).cut(cone, 3)


def _cheekbone(skull: Solid, s: int) -> None:
    behind = Capsule(at(s * 60, 648, 92), at(s * 59, 600, 78), 8, 10)  # the gap that the arch spans
    body = Ellipsoid(at(s * 45, 612, 100), (12, 10, 9), 2.2, tilt=s * 25)
    arch_root = Capsule(at(s * 49, 614, 99), at(s * 58.5, 616, 82), 7, 4, (1.2, 0.7, 1))
    arch = Capsule(at(s * 58.5, 616, 82), at(s * 58, 618, 52), 3.8, 3.4, (1.5, 0.75, 1))
    skull.cut(behind, 2.5).add(body, 5).add(arch_root, 4).add(arch, 2)


def _nose(skull: Solid) -> None:
    skull.cut(Ellipsoid(at(0, 612, 118), (7, 17, 30), 2.2), 1.5)
    for s in SIDES:
        skull.cut(Ellipsoid(at(s * 5.5, 603, 112), (6.5, 9, 34), 2.2), 1.5)
    skull.add(Capsule(at(0, 616, 92), at(0, 597, 116), 1.0, 1.6), 1)  # septum and spine


def _mandible(bone: np.ndarray, grid: Grid) -> Solid:
    jaw = Solid(grid)
    half_path = ((0, 552, 111), (14, 552, 108), (28, 554, 99), (38, 562, 86), (43, 570, 72))
    for s in SIDES:
        points = [at(s * x, y, z) for x, y, z in half_path]
        for start, end in pairwise(points):
            jaw.add(Capsule(start, end, 9, 9, (1.3, 0.62, 1.3)), 0.5)
    jaw.add(Ellipsoid(at(0, 546, 113), (15, 8, 8), 2.2), 3)  # mental protuberance
    height = grid.axes[1][None, :, None]
    for s in SIDES:
        ramus = Solid(grid)
        ramus.add(Capsule(at(s * 44, 574, 74), at(s * 49, 604, 70), 14, 14, (2.2, 1, 1)))
        ramus.add(Capsule(at(s * 48, 600, 62), at(s * 50, 614, 60), 5, 4.5), 3)  # condyle
        ramus.add(Capsule(at(s * 47, 598, 82), at(s * 47, 618, 84), 4, 2), 3)  # coronoid process
        ramus.cut(Capsule(at(s * 58, 617, 73), at(s * 38, 613, 73), 7.5, 7.5))  # notch
        ramus.keep_within(at(0, 546, 0)[1] - height, 3)
        jaw.join(ramus, 4)
    return jaw.keep_within(bone - 6, 3)


def _arch(length: float) -> tuple[float, float]:
    """Arc length (mm) from the midline along the dental arch -> lateral and backward position (mm)."""
    front = min(length, 38.0)
    x = 26 * np.sin(front / 26) + 0.12 * max(0.0, length - 38)
    return x, -26 * (1 - np.cos(front / 26)) - 0.95 * max(0.0, length - 38)


def _teeth(grid: Grid) -> Solid:
    teeth = Solid(grid)
    for half_widths, rise, set_back in ((UPPER_TEETH, 4.6, 0.0), (LOWER_TEETH, -4.6, 2.2)):
        length = 0.0
        for i, half_width in enumerate(half_widths):
            x, z = _arch(length + half_width)
            length += 2 * half_width
            front = i < 5
            radii = (half_width * 0.98, 6.2 if front else 5.0, 3.6 if front else 5.0)
            for s in SIDES:
                teeth.add(Ellipsoid(at(s * x, 571 + rise, 121 + z - set_back), radii, 2.8), 0.3)
    return teeth
