"""What the network needs to know of a set of landmarks, all of it derived from the training points.

The mean face gives every point's nearest neighbours (PIPNet, arXiv 2003.03771, section 3.2); its mirror image gives
the point on the other side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.files import write_text

MIRROR_TOLERANCE = (
    0.06  # largest distance of a point from its counterpart's mirror image, of the face's width
)


def mean_face(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """(M, N, 2) points of M pictures in [0, 1] -> their mean (N, 2)."""
    return points.mean(axis=0, dtype=np.float64)


def neighbours(mean: NDArray[np.floating], num: int) -> NDArray[np.int64]:
    """The ``num`` nearest other points of each point of a mean face (N, 2), nearest first: (N, num).

    Raises:
        ValueError: there are not that many others.
    """
    if not 1 <= num < len(mean):
        raise ValueError(f"num_neighbours: got {num}, expected 1 to {len(mean) - 1} with {len(mean)} points")
    squared = ((mean[:, None] - mean[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, -1.0)  # each is its own nearest, also where two points coincide
    return np.argsort(squared, axis=1, kind="stable")[:, 1 : 1 + num]


def reverse_index(nearest: NDArray[np.integer]) -> Tensor:
    """Which of the N * K neighbour predictions speak of each point: (N, L), indices into N * K.

    L is the most that any point has. Points of whom fewer others speak hear theirs again from the first one on, as in
    the original, where a mean over a row weighs those twice; a point of which none speaks has -1 throughout.
    """
    num, k = nearest.shape
    speak: list[list[int]] = [[] for _ in range(num)]
    for i in range(num):
        for j in range(k):
            speak[nearest[i, j]].append(i * k + j)
    longest = max(len(row) for row in speak)
    rows = [[row[n % len(row)] for n in range(longest)] if row else [-1] * longest for row in speak]
    return torch.tensor(rows, dtype=torch.long)


def flip_table(mean: NDArray[np.floating]) -> NDArray[np.int64]:
    """For each point of a mean face (N, 2), which one takes its place in the mirrored picture: (N,), an involution.

    Points are matched to mirror images about the vertical through the centroid, closest pairs first.

    Raises:
        ValueError: the points are not the same on both sides.
    """
    mirrored = np.stack([2 * mean[:, 0].mean() - mean[:, 0], mean[:, 1]], 1)
    distance = np.linalg.norm(mirrored[:, None] - mean[None], axis=-1)  # symmetric: mirroring is an isometry
    table = np.full(len(mean), -1)
    for flat in np.argsort(distance, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(mean))
        if table[i] < 0 and table[j] < 0:
            table[i], table[j] = j, i
    table = _improved(table, distance)
    worst = int(distance[np.arange(len(mean)), table].argmax())
    width = float(np.ptp(mean[:, 0]))
    if distance[worst, table[worst]] > MIRROR_TOLERANCE * width:
        raise ValueError(
            f"landmark {worst} has no counterpart on the other side (the nearest is "
            f"{distance[worst, table[worst]] / width:.0%} of the face's width off); pictures cannot be flipped: "
            "set pipnet.augment.flip=0"
        )
    return table


def _improved(table: NDArray[np.int64], distance: NDArray[np.floating]) -> NDArray[np.int64]:
    """Exchange partners between two pairs as long as that brings mirror images closer."""
    table = table.copy()
    changed = True
    while changed:
        changed = False
        for i in range(len(table)):
            for j in range(i + 1, len(table)):
                a, b = int(table[i]), int(table[j])
                if len({i, j, a, b}) < 4:
                    continue
                if distance[i, b] + distance[j, a] < distance[i, a] + distance[j, b] - 1e-12:
                    table[[i, b]], table[[j, a]] = (b, i), (a, j)
                    changed = True
    return table


def write_meanface(path: Path, mean: NDArray[np.floating]) -> None:
    """Write ``meanface.txt`` as the original reads it: one line, x y x y ... in [0, 1]."""
    write_text(path, " ".join(f"{value:.12g}" for value in mean.ravel()) + "\n")


def read_meanface(path: Path) -> NDArray[np.float64]:
    """The points (N, 2) of a ``meanface.txt``.

    Raises:
        ValueError: missing, not numbers, or an odd count of them.
    """
    try:
        values = np.array(
            [float(word) for word in path.read_text(encoding="utf-8").replace(",", " ").split()]
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a mean face ({error}); expected x y x y ... in [0, 1]"
        ) from error
    if len(values) < 4 or len(values) % 2 or not np.isfinite(values).all():
        raise ValueError(
            f"{path} holds {len(values)} numbers, expected x and y of at least two points, all finite"
        )
    return values.reshape(-1, 2)
