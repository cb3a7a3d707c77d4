"""How alike are two pictures, and two sets of pictures?

Pictures are uint8, (N, H, W) grey or (N, H, W, 3); colours are averaged, since renders are grey. They say how close a
face is in grey levels, not whether it is the same person: black background and shared shading make any two faces alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.results.results import Measure

Floats = NDArray[np.floating]
Pictures = NDArray[np.uint8]

PSNR = Measure(
    "psnr", "PSNR", "dB", "higher", 2, "Peak signal-to-noise ratio to the true face over the whole picture."
)
SSIM = Measure(
    "ssim", "SSIM", "", "higher", 3,
    "Structural similarity to the true face over the whole picture: Gaussian window of sigma 1.5 px, 11 px wide.",
)  # fmt: skip
KID = Measure(
    "kid", "KID", "x 1000", "lower", 2,
    "Kernel inception distance between the set of faces and the set of true faces: unbiased, cubic kernel.",
)  # fmt: skip

_SIGMA, _RADIUS = 1.5, 5  # px
_K1, _K2 = 0.01, 0.03
_RANGE = 255.0
MAX_PSNR = 100.0  # dB, of identical pictures: what is infinite has no mean


def psnr(x: Pictures, y: Pictures) -> Floats:
    """Peak signal-to-noise ratio in dB, (N,), at most ``MAX_PSNR``.

    Raises:
        ValueError: pictures of different shape or type.
    """
    a, b = _grey(x, y)
    error = ((a - b) ** 2).mean(axis=(1, 2))
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(_RANGE**2 / error), MAX_PSNR)


def ssim(x: Pictures, y: Pictures) -> Floats:
    """Mean structural similarity, (N,) in [-1, 1]: 11 x 11 Gaussian window (sigma 1.5), only where it lies inside.

    Source: Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13(4), 2004, equation 13 with K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: pictures of different shape or type, or smaller than the window.
    """
    a, b = _grey(x, y)
    if min(a.shape[1:]) < 2 * _RADIUS + 1:
        raise ValueError(f"pictures of {a.shape[1:]} px: SSIM needs at least {2 * _RADIUS + 1} px a side")
    mean_a, mean_b = _window(a), _window(b)
    var_a, var_b = _window(a * a) - mean_a**2, _window(b * b) - mean_b**2
    cov = _window(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    likeness = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return np.asarray(likeness.mean(axis=(1, 2)), dtype=np.float64)


def kid(x: Floats, y: Floats) -> float:
    """Kernel inception distance between two sets of features: squared maximum mean discrepancy, unbiased.

    The kernel is (x . y / D + 1)^3. About 0 for two samples of one distribution, and then below 0 in half of all cases.
    The usual value is that of Inception features; those of another network make another scale.
    Source: Binkowski et al., ICLR 2018, arXiv 1801.01401, section 4.

    Args:
        x, y: (N, D) and (M, D), at least two rows each.

    Raises:
        ValueError: fewer rows, or features of different width.
    """
    a, b = (np.asarray(features, dtype=np.float64) for features in (x, y))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features {a.shape} and {b.shape}: expected (N, D) and (M, D), at least two rows each"
        )
    within = [(_cubic(f, f).sum() - np.trace(_cubic(f, f))) / (len(f) * (len(f) - 1)) for f in (a, b)]
    return float(within[0] + within[1] - 2 * _cubic(a, b).mean())


def _cubic(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _grey(x: Pictures, y: Pictures) -> tuple[Floats, Floats]:
    """Both as (N, H, W) float64 grey levels in [0, 255]."""
    if x.dtype != np.uint8 or y.dtype != np.uint8 or x.shape != y.shape or x.ndim not in (3, 4) or not x.size:
        raise ValueError(
            f"pictures {x.shape} {x.dtype} and {y.shape} {y.dtype}: expected uint8 of one shape, (N, H, W) or "
            "(N, H, W, 3)"
        )
    a, b = (np.asarray(pictures, dtype=np.float64) for pictures in (x, y))
    return (a, b) if x.ndim == 3 else (a.mean(axis=-1), b.mean(axis=-1))


def _window(x: Floats) -> Floats:
    """Gaussian means (N, H - 10, W - 10) of (N, H, W)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    height, width = x.shape[1] - 2 * _RADIUS, x.shape[2] - 2 * _RADIUS
    rows = np.zeros((len(x), height, x.shape[2]))
    for k, weight in enumerate(weights):
        rows += weight * x[:, k : k + height]
    both = np.zeros((len(x), height, width))
    for k, weight in enumerate(weights):
        both += weight * rows[:, :, k : k + width]
    return both
