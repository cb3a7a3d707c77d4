"""``python -m benchmarks.cohort.style COHORT``: can the surface style be read off small patches, and from the skull?

From every face (and skull) of the frontal pairs, patches of 16 px that lie well inside are described by simple
statistics without any order or place: means over all patches of a picture of the strength and reach of its grey-level
changes. Linear ridge regression on these, fitted on half of the subjects, predicts the style's settings of the others:
R2 of 1 is perfect, 0 is guessing the mean. The texture condition can carry what the faces' patches tell; what the
skulls tell of the faces' style must be nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion

from data.cohort.config import FACE_DIR, SKULL_DIR, SUBJECT_DIR
from data.images import ImageError, read_image

SETTINGS = ("kernel", "grain", "gloss", "noise", "steps", "slice_mm")
PATCH, STRIDE, INSIDE = 16, 8, 4  # px
_LAGS = tuple(range(1, 9))


def patch_statistics(picture: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (F,) statistics of its patches.

    Of each patch: the logarithm of the mean square difference of pixels 1 to 8 px apart, along x and along y; the same
    of second differences; mean, 5th and 95th percentile. Of these, mean and standard deviation over the patches.
    """
    well_inside = binary_erosion(picture > 0, iterations=INSIDE)
    found = []
    for y in range(0, picture.shape[0] - PATCH, STRIDE):
        for x in range(0, picture.shape[1] - PATCH, STRIDE):
            if well_inside[y : y + PATCH, x : x + PATCH].all():
                found.append(_describe(picture[y : y + PATCH, x : x + PATCH]))
    if not found:
        raise ValueError(f"no patch of {PATCH} px lies within what is drawn")
    return np.concatenate([np.mean(found, axis=0), np.std(found, axis=0)])


def _describe(patch: np.ndarray) -> np.ndarray:
    flat = patch - _plane(patch)
    values: list[float] = []
    for picture in (flat, flat.T):
        squares = [np.mean((picture[lag:] - picture[:-lag]) ** 2) for lag in _LAGS]
        squares.append(np.mean(np.diff(picture, 2, axis=0) ** 2))
        values += [float(np.log(square + 1e-7)) for square in squares]
    return np.array([*values, float(patch.mean()), *np.quantile(patch, (0.05, 0.95))])


def _plane(patch: np.ndarray) -> np.ndarray:
    """The least-squares plane through a patch: the slow shading of the shape under it."""
    along = np.linspace(-1, 1, PATCH)
    slope_y = (patch.mean(1) @ along) / (along @ along)
    slope_x = (patch.mean(0) @ along) / (along @ along)
    return patch.mean() + slope_y * along[:, None] + slope_x * along[None]


def ridge_r2(x: np.ndarray, y: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """(N, F), (N, K) -> (K,) R2 on the second half of a ridge regression fitted on the first."""
    half = len(x) // 2
    centre, scale = x[:half].mean(0), x[:half].std(0) + 1e-9
    design = (x - centre) / scale
    mean = y[:half].mean(0)
    gram = design[:half].T @ design[:half] + strength * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, design[:half].T @ (y[:half] - mean))
    error = y[half:] - (mean + design[half:] @ weights)
    return 1 - (error**2).mean(0) / ((y[half:] - y[half:].mean(0)) ** 2).mean(0)


def measure(cohort: Path) -> dict[str, dict[str, float]]:
    """R2 by setting, of faces' styles from faces, and from the skulls of the same subjects.

    Raises:
        ValueError: not a cohort, or one too small to tell.
    """
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((cohort / SUBJECT_DIR).glob("s?????.json"))
    ]
    if len(records) < 100:
        raise ValueError(
            f"{cohort}: {len(records)} subjects, expected a cohort of at least 100 (python -m data.cohort)"
        )
    wanted = np.array([[record["face_scan"][setting] for setting in SETTINGS] for record in records])
    result = {}
    for name, folder, field in (("faces", FACE_DIR, "target"), ("skulls", SKULL_DIR, "source")):
        seen = [patch_statistics(read_image(cohort / folder / r[field])[0][..., 0]) for r in records]
        found = ridge_r2(np.array(seen), wanted, strength=1.0 if name == "faces" else 30.0)
        result[name] = dict(zip(SETTINGS, (round(float(value), 3) for value in found), strict=True))
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cohort.style", description=__doc__)
    parser.add_argument("cohort", type=Path, help="folder made by python -m data.cohort")
    args = parser.parse_args(argv)
    try:
        result = measure(args.cohort)
    except (ValueError, ImageError, OSError) as error:
        print(f"benchmarks.cohort.style: {error}", file=sys.stderr)
        return 2
    for name, values in result.items():
        print(f"R2 from {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
