"""Closed-set identification: how often is the true face the gallery face nearest to the reconstruction?

Pure functions of arrays. A *feature* is a face picture as grey in [0, 1], averaged over square blocks to
`FEATURE_SIZE` px and flattened: (N, D) float32, D = FEATURE_SIZE**2. A *rank* is 1 for the nearest gallery face.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.statistics import (
    bootstrap_interval,
    rank1_gain,
    rank1_in_smaller_gallery,
    ranks_of_truth,
)

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

FEATURE_SIZE = 64
BACKGROUND = 0.02  # grey below which a gallery face's pixel is background (the pictures' background is black)


def picture_features(pictures: Floats, size: int = FEATURE_SIZE) -> NDArray[np.float32]:
    """Block averages of grey pictures.

    Args:
        pictures: (N, H, W) or (N, H, W, C) in [0, 1]; channels are averaged. H and W must be multiples of `size`.

    Returns:
        (N, size * size) float32 in [0, 1].

    Raises:
        ValueError: where the shape does not divide into size x size blocks.
    """
    pictures = np.asarray(pictures, dtype=np.float32)
    if pictures.ndim == 4:
        pictures = pictures.mean(axis=-1)
    if pictures.ndim != 3 or pictures.shape[1] % size or pictures.shape[2] % size:
        raise ValueError(
            f"pictures of shape {pictures.shape}: expected (N, H, W), H and W multiples of {size}"
        )
    num, height, width = pictures.shape
    blocks = pictures.reshape(num, size, height // size, size, width // size)
    return blocks.mean(axis=(2, 4)).reshape(num, size * size)


def rms_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Root mean square difference over the whole picture, (P, G), in grey levels of [0, 1]. `mean` is not used."""
    return np.sqrt(_mean_square(probes, gallery, np.ones_like(gallery)))


def face_rms_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Root mean square difference inside each gallery face's own outline, (P, G). `mean` is not used."""
    return np.sqrt(_mean_square(probes, gallery, (gallery > BACKGROUND).astype(gallery.dtype)))


def mean_absolute_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """Mean absolute difference over the whole picture, (P, G), in grey levels of [0, 1]. `mean` is not used."""
    return np.stack([np.abs(gallery - probe).mean(axis=1) for probe in probes])


def deviation_distance(probes: Floats, gallery: Floats, mean: Floats) -> Floats:
    """1 - cosine between the two pictures' deviations from the mean training face `mean` (D,): (P, G) in [0, 2].

    It asks in which direction a face differs from the average, not by how much: a reconstruction that is drawn
    towards the average (as every estimate under uncertainty is) is not punished for it.
    """
    return 1 - _unit(probes - mean) @ _unit(gallery - mean).T


DISTANCES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "rms": rms_distance,
    "face_rms": face_rms_distance,
    "mean_absolute": mean_absolute_distance,
    "deviation": deviation_distance,
}


def _mean_square(probes: Floats, gallery: Floats, weights: Floats) -> Floats:
    """Weighted mean square difference with one weight per gallery picture and pixel (G, D): (P, G)."""
    p, g, w = (np.asarray(a, dtype=np.float64) for a in (probes, gallery, weights))
    total = (p**2) @ w.T - 2 * p @ (w * g).T + (w * g**2).sum(axis=1)
    return np.maximum(total, 0) / np.maximum(w.sum(axis=1), 1)


def _unit(rows: Floats) -> Floats:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Identification:
    """Figures of one method. Fractions in [0, 1]; intervals are (2.5 %, 97.5 %) over probes, the gallery fixed."""

    num_probes: int
    gallery_size: int
    rank1: float
    rank1_interval: tuple[float, float]
    rank5: float
    rank1_of_50: float | None
    mean_rank: float
    rms: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def identify(
    predictions: Floats,
    gallery: Floats,
    truth: Ints,
    mean: Floats,
    distance: str,
    seed: int = 0,
    excluded: Ints | None = None,
) -> tuple[Identification, Ints]:
    """Figures of one method's predicted faces (P, D) against the gallery (G, D), and the rank of every probe (P,).

    `excluded` is as for `ranks_of_truth`; a probe it names a face for has a gallery of one face less.

    Raises:
        ValueError: for a distance that does not exist.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance {distance!r}: expected one of {', '.join(DISTANCES)}")
    ranks = ranks_of_truth(DISTANCES[distance](predictions, gallery, mean), truth, excluded)
    hits = ranks == 1
    size = len(gallery)
    sizes = np.full(len(ranks), size) if excluded is None else size - (excluded >= 0)
    of_50 = None
    if sizes.min() >= 50:
        parts = [rank1_in_smaller_gallery(ranks[sizes == g], int(g), 50) for g in np.unique(sizes)]
        of_50 = float(np.concatenate(parts).mean())
    figures = Identification(
        num_probes=len(ranks),
        gallery_size=size,
        rank1=float(hits.mean()),
        rank1_interval=bootstrap_interval(hits, np.random.default_rng(seed)),
        rank5=float((ranks <= 5).mean()),
        rank1_of_50=of_50,
        mean_rank=float(ranks.mean()),
        rms=float(np.sqrt(((predictions - gallery[truth]) ** 2).mean(axis=1)).mean()),
    )
    return figures, ranks


def markdown_table(
    rows: Mapping[str, Identification], ranks: Mapping[str, Ints], reference: str | None
) -> str:
    """One line per method; with a `reference` method, its paired gain over every other one in the last column."""
    head = ["method", "rank-1 [95 %]", "rank-1 of 50", "rank-5", "mean rank", "RMS"]
    if reference is not None:
        head.append(f"{reference} minus this [95 %]")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        low, high = row.rank1_interval
        of_50 = "" if row.rank1_of_50 is None else f"{100 * row.rank1_of_50:.1f} %"
        cells = [
            name,
            f"{100 * row.rank1:.1f} % [{100 * low:.0f}, {100 * high:.0f}]",
            of_50,
            f"{100 * row.rank5:.1f} %",
            f"{row.mean_rank:.1f}",
            f"{row.rms:.4f}",
        ]
        if reference is not None:
            if name == reference:
                cells.append("")
            else:
                gain, low, high = (100 * value for value in rank1_gain(ranks[reference], ranks[name]))
                cells.append(f"{gain:+.1f} [{low:+.0f}, {high:+.0f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
