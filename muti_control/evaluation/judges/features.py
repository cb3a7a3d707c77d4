"""A face picture as a vector of grey levels, and distances of such vectors: the judge without a network.

A *feature* is a face picture as grey in [0, 1], averaged over square blocks to ``FEATURE_SIZE`` px and flattened:
(N, D) float32, D = FEATURE_SIZE**2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

FEATURE_SIZE = 64
BACKGROUND = 0.02  # grey below which a gallery face's pixel is background (the pictures' background is black)


def feature(picture: NDArray[np.uint8], side: int = FEATURE_SIZE) -> NDArray[np.float32]:
    """Return the block averages (side * side,) in [0, 1] of a grey picture (H, W) uint8.

    Raises:
        ValueError: where the shape does not divide into side x side blocks.
    """
    if picture.ndim != 2 or picture.shape[0] % side or picture.shape[1] % side:
        raise ValueError(f"a picture of shape {picture.shape}: expected (H, W), multiples of {side}")
    height, width = picture.shape
    blocks = (picture.astype(np.float32) / 255).reshape(side, height // side, side, width // side)
    return blocks.mean(axis=(1, 3)).ravel()


def rms_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Return the root mean square difference over the whole picture, (P, G), in grey levels of [0, 1]."""
    return np.sqrt(_mean_square(probes, gallery, np.ones_like(gallery)))


def face_rms_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Return the root mean square difference inside each gallery face's own outline, (P, G)."""
    return np.sqrt(_mean_square(probes, gallery, (gallery > BACKGROUND).astype(gallery.dtype)))


def mean_absolute_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Return the mean absolute difference over the whole picture, (P, G), in grey levels of [0, 1]."""
    return np.stack([np.abs(gallery - probe).mean(axis=1) for probe in probes])


def deviation_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Return 1 - cosine between the two pictures' deviations from the mean face `mean` (D,): (P, G) in [0, 2].

    The direction of the deviation counts, not its size: a reconstruction near the average, as every estimate under
    uncertainty is, loses nothing by that.
    """
    return 1 - _unit(probes - mean) @ _unit(gallery - mean).T


DISTANCES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "rms": rms_distance,
    "face_rms": face_rms_distance,
    "mean_absolute": mean_absolute_distance,
    "deviation": deviation_distance,
}


def _mean_square(probes: Floats, gallery: Floats, weights: Floats) -> Floats:
    """Return the mean square difference (P, G), weighted for each gallery picture and pixel (G, D)."""
    p, g, w = (np.asarray(a, dtype=np.float64) for a in (probes, gallery, weights))
    total = (p**2) @ w.T - 2 * p @ (w * g).T + (w * g**2).sum(axis=1)
    return np.maximum(total, 0) / np.maximum(w.sum(axis=1), 1)


def _unit(rows: Floats) -> Floats:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
