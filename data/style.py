"""Surface style: how the scan and its processing show on a drawn surface, whatever its shape is.

A rendered surface looks smooth or rough, blotchy or crisp, matt or glossy, clean or noisy, stepped or not, depending on
dose, slice thickness, reconstruction kernel and viewer. All of it acts on normals and grey levels: no outline, no
landmark and no depth moves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from data.render import Lamp, Material, Surface

GRAIN_SLOPE = 0.08  # root mean square slope of the coarsest surface grain
GRAIN_MM = (2.4, 1.0)  # size of its grains under the smoothest and the sharpest kernel
# Highlight of the mattest and the glossiest surface; the first is a factor.
SPECULAR, SHINE = (0.25, 1.75), (7.0, 22.0)
NOISE = 0.018  # standard deviation of the strongest pixel noise; the brightest white is 1
STEP_SLOPE = 0.27  # share of the slope along the slice axis that steps take away and give back
SMOOTH_PX, SHARP_PX, SHARP_GAIN = 0.85, 1.0, 0.9  # of the kernel, at 256 px
_LATTICE = 32


@dataclass(frozen=True)
class SurfaceStyle:
    """How a surface looks: what the texture condition describes.

    Attributes:
        kernel: -1 the smoothest reconstruction kernel, 0 none, 1 the sharpest.
        grain: roughness of the surface, 0 to 1.
        gloss: 0 matt to 1 glossy.
        noise: of the pixels, 0 to 1.
        steps: how much the slices show as steps, 0 not at all to 1.
        slice_mm: their thickness along y.
    """

    kernel: float = 0.0
    grain: float = 0.0
    gloss: float = 0.5
    noise: float = 0.0
    steps: float = 0.0
    slice_mm: float = 3.0

    def __post_init__(self) -> None:
        limits = {"kernel": (-1, 1), "slice_mm": (0.1, 20)}
        for field in fields(self):
            low, high = limits.get(field.name, (0, 1))
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise ValueError(f"SurfaceStyle: {field.name}={value}, expected {low} to {high}")

    def material(self, base: Material) -> Material:
        """``base`` with the highlight of this gloss."""
        factor, power = (low + self.gloss * (high - low) for low, high in (SPECULAR, SHINE))
        return replace(base, specular=factor * base.specular, power=power)


def draw_styled(
    surface: Surface, material: Material, style: SurfaceStyle, seed: int, lamp: Lamp | None = None
) -> np.ndarray:
    """Draw a surface in a style.

    Args:
        surface: what the camera saw.
        material: of the surface; the style decides its highlight.
        style: see ``SurfaceStyle``.
        lamp: that lights it; None: a headlight.
        seed: of grain and noise. The grain belongs to the place on the surface: it turns with the head.

    Returns:
        (size, size) uint8; exactly 0 where the surface is not, and never there where it is.
    """
    grain, noise = np.random.default_rng(seed).spawn(2)
    normal = _stepped(surface, style)
    if style.grain > 0:
        normal = normal + _grain(surface, style, grain)[surface.pixel]
    grey = surface.per_pixel(surface.light(style.material(material), normal, lamp))
    cover = surface.coverage()
    grey = _filtered(grey, cover > 0, style.kernel, surface.camera.size / 256)
    if style.noise > 0:
        grey = grey + style.noise * NOISE * noise.standard_normal(grey.shape)
    levels = np.rint(np.clip(grey, 0, 1) * cover * 255)
    return np.where(cover > 0, np.maximum(levels, 1), 0).astype(np.uint8)


def _stepped(surface: Surface, style: SurfaceStyle) -> np.ndarray:
    """Return the normals (M, 3) of a surface built from slices.

    Between two slices the slope along y is lost, at each slice it is regained. What runs along y (a
    cheek) shows nothing, what lies across it (brow, vault, chin) shows contour lines.
    """
    if style.steps == 0:
        return surface.normal
    wave = np.cos(surface.point[:, 1] * np.float32(2 * np.pi / style.slice_mm))
    normal = surface.normal.copy()
    normal[:, 1] *= 1 + np.float32(STEP_SLOPE * style.steps) * wave
    return normal


def _grain(surface: Surface, style: SurfaceStyle, rng: np.random.Generator) -> np.ndarray:
    """(size * size, 3) float32 slopes: smooth noise in space, read where each pixel meets the surface."""
    lattice = rng.standard_normal((_LATTICE, _LATTICE, _LATTICE, 3)).astype(np.float32)
    size_mm = GRAIN_MM[0] + (style.kernel + 1) / 2 * (GRAIN_MM[1] - GRAIN_MM[0])
    cell = np.array([size_mm, max(size_mm, 0.5 * style.slice_mm * style.steps), size_mm])
    covered = np.flatnonzero(surface.coverage().ravel() > 0)
    points = surface.per_pixel(surface.point).reshape(-1, 3)[covered] / cell + rng.uniform(0, _LATTICE, 3)
    slopes = np.zeros((surface.camera.size**2, 3), np.float32)
    slopes[covered] = GRAIN_SLOPE * style.grain * _between(lattice, points)
    return slopes


def _between(lattice: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate a periodic (N, N, N, C) lattice of unit variance at (P, 3) points, to unit variance."""
    low = np.floor(points).astype(np.int64)
    share = (points - low).astype(np.float32)
    total = np.zeros((len(points), lattice.shape[-1]), np.float32)
    power = np.zeros(len(points), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, share, 1 - share), axis=1, dtype=np.float32)
        x, y, z = ((low + corner) % len(lattice)).T
        total += weight[:, None] * lattice[x, y, z]
        power += weight**2
    return total / np.sqrt(power)[:, None]


def _filtered(grey: np.ndarray, covered: np.ndarray, kernel: float, scale: float) -> np.ndarray:
    """Blur (kernel < 0) or sharpen (> 0) the surface; nothing leaks in from the background."""
    if kernel == 0:
        return grey
    sigma = scale * (SMOOTH_PX if kernel < 0 else SHARP_PX)
    weight = gaussian_filter(covered.astype(float), sigma)
    blurred = gaussian_filter(np.where(covered, grey, 0.0), sigma) / np.maximum(weight, 1e-6)
    gain = -kernel if kernel < 0 else -SHARP_GAIN * kernel
    return np.where(covered, grey + gain * (blurred - grey), 0.0)
