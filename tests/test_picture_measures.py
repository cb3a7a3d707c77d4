"""Measures on pictures against scikit-image and their definition."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from muti_control.evaluation.judges.picture_measures import MAX_PSNR, kid, psnr, ssim


@pytest.fixture
def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.integers(-3, 4, (4, 64, 48)), axis=2).clip(-100, 100) + 120
    y = (x + rng.normal(0, [[[2]], [[8]], [[20]], [[60]]], x.shape)).clip(0, 255)
    x[:, :, :12] = y[:, :, :12] = 0  # black background
    return x.astype(np.uint8), y.astype(np.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image(pictures):
    for x, y in zip(*pictures, strict=True):
        assert psnr(x, y) == pytest.approx(peak_signal_noise_ratio(x, y), abs=1e-9)
        expected = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert ssim(x, y) == pytest.approx(expected, abs=1e-6)
        assert psnr(x, x) == MAX_PSNR and ssim(x, x) == pytest.approx(1)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_that_cannot_be_compared_are_refused(pictures, measure):
    x, y = (side[0] for side in pictures)
    for wrong in (y[:-1], y / 255, y[0]):
        with pytest.raises(ValueError, match="expected"):
            measure(x, wrong)


def test_kid_is_its_definition_and_zero_for_one_distribution():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 16)), rng.standard_normal((60, 16)) * 1.2 + 0.3
    xx, yy, xy = ((a @ b.T / 16 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    other = ~np.eye(60, dtype=bool)
    assert kid(x, y) == pytest.approx(xx[other].mean() + yy[other].mean() - 2 * xy.mean(), abs=1e-9)
    same = [kid(rng.standard_normal((60, 16)), rng.standard_normal((60, 16))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)  # unbiased
    assert 0.2 < np.mean(np.array(same) < 0) < 0.8 and kid(x, y) > max(same)
