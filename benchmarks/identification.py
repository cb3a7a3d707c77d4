"""Closed-set identification: how often is the true face the gallery face nearest to the reconstruction?

Pure functions of arrays; features and distances are those of muti_control/evaluation/features.py. A *rank* is 1 for the
nearest gallery face.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from muti_control.evaluation.features import DISTANCES
from muti_control.evaluation.statistics import (
    bootstrap_interval,
    rank1_gain,
    rank1_in_smaller_gallery,
    ranks_of_truth,
)

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


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
