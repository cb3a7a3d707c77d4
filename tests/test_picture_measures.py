"""Measures on pictures against scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.kid import poly_mmd

from muti_control.evaluation.judges.picture_measures import MAX_PSNR, kid, psnr, ssim


@pytest.fixture
def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.integers(-3, 4, (4, 64, 48)), axis=2).clip(-100, 100) + 120
    y = (x + rng.normal(0, [[[2]], [[8]], [[20]], [[60]]], x.shape)).clip(0, 255)
    x[:, :, :12] = y[:, :, :12] = 0  # black background
    return x.astype(np.uint8), y.astype(np.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image(pictures):
    x, y = pictures
    for i in range(4):
        assert psnr(x, y)[i] == pytest.approx(peak_signal_noise_ratio(x[i], y[i]), abs=1e-6)
        expected = structural_similarity(
            x[i], y[i], gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert ssim(x, y)[i] == pytest.approx(expected, abs=1e-6)
    assert (np.diff(ssim(x, y)) < 0).all() and (np.diff(psnr(x, y)) < 0).all()  # more noise, less alike


def test_identical_pictures_and_colours(pictures):
    x, y = pictures
    assert ssim(x, x) == pytest.approx(1) and (psnr(x, x) == MAX_PSNR).all()
    colour = [np.repeat(p[..., None], 3, axis=-1) for p in (x, y)]
    np.testing.assert_allclose(ssim(*colour), ssim(x, y))
    np.testing.assert_allclose(psnr(*colour), psnr(x, y))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_that_cannot_be_compared_are_refused(pictures, measure):
    x, y = pictures
    for wrong in (y[:, :-1], y / 255, y[0]):
        with pytest.raises(ValueError, match="expected uint8 of one shape"):
            measure(x, wrong)
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(x[:, :10], y[:, :10])


def test_kid_is_that_of_torchmetrics_and_zero_for_one_distribution():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 16)), rng.standard_normal((60, 16)) * 1.2 + 0.3
    expected = poly_mmd(torch.from_numpy(x), torch.from_numpy(y), degree=3, gamma=None, coef=1.0)
    assert kid(x, y) == pytest.approx(float(expected), abs=1e-6)
    same = [kid(rng.standard_normal((60, 16)), rng.standard_normal((60, 16))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)  # unbiased
    assert 0.2 < np.mean(np.array(same) < 0) < 0.8 and kid(x, y) > max(same)
    with pytest.raises(ValueError, match="at least two rows"):
        kid(x[:1], y)
