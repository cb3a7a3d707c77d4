"""How alike two pictures are, and how alike two sets of pictures: PSNR, and SSIM and KID by torchmetrics.

These measures compare grey levels. They do not say whether two faces show one person: the black background and the
common shading make any two faces alike. torchmetrics imports matplotlib, so it is imported only where it is used.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
_RANGE, _RADIUS = 255.0, 5  # grey levels; px of the SSIM window on each side of its middle
MAX_PSNR = 100.0  # dB of identical pictures, whose PSNR is infinite and has no mean


def psnr(x: Pictures, y: Pictures) -> float:
    """Return the peak signal-to-noise ratio in dB, at most ``MAX_PSNR``, of two grey pictures (H, W) uint8.

    torchmetrics' own takes a logarithm in single precision, and every value shifts by up to 1e-6 dB.
    """
    a, b = tensors(x, y)
    error = float(((a - b) ** 2).mean())
    return min(10 * math.log10(_RANGE**2 / error), MAX_PSNR) if error else MAX_PSNR


def ssim(x: Pictures, y: Pictures) -> float:
    """Return the mean structural similarity, in [-1, 1], of two grey pictures (H, W) uint8.

    The mean is taken where the whole window lies inside the picture; torchmetrics' own also counts its padded border.

    Source: Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13(4), 2004, equation 13 with K1 = 0.01, K2 = 0.03.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = tensors(x, y)
    _, every = structural_similarity_index_measure(a, b, sigma=1.5, data_range=_RANGE, return_full_image=True)
    return float(every[..., _RADIUS:-_RADIUS, _RADIUS:-_RADIUS].mean())


def kid(x: Floats, y: Floats) -> float:
    """Return the kernel inception distance of two sets of as many features, (N, D) each, N at least 2.

    It is the squared maximum mean discrepancy without bias, with the kernel (x . y / D + 1)^3: about 0 for two samples
    of one distribution, and then below 0 in half of all cases. Each backbone has a scale of its own.

    Source: Binkowski et al., ICLR 2018, arXiv 1801.01401, section 4.
    """
    from torchmetrics.image.kid import poly_mmd

    a, b = (torch.from_numpy(np.asarray(features, np.float64)) for features in (x, y))
    return float(poly_mmd(a, b, degree=3, gamma=None, coef=1.0))


def tensors(x: Pictures, y: Pictures) -> tuple[Tensor, Tensor]:
    """Return both as (1, 1, H, W) float64 in [0, 255]."""
    if x.dtype != np.uint8 or y.dtype != np.uint8 or x.shape != y.shape or x.ndim != 2:
        raise ValueError(
            f"pictures {x.shape} {x.dtype} and {y.shape} {y.dtype}: expected (H, W) uint8, one shape"
        )
    a, b = (torch.from_numpy(picture.astype(np.float64))[None, None] for picture in (x, y))
    return a, b
