"""Robust statistics: they rest on medians, so that the flaws themselves do not hide what sticks out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

MIN_PICTURES = 20  # fewer say nothing about what is usual
_SIGMAS = 6.0
_SAMPLE = 1500  # rows that principal axes are found from
_BLOCK = 2000  # rows at a time


def limit(
    values: np.ndarray, floor: float, tolerance: float = 1.0, sigmas: float = _SIGMAS
) -> tuple[float, float]:
    """Return the usual value and how far from it is still usual.

    Args:
        values: (N,) of the data set.
        floor: a difference that is never called unusual, however alike the values are.
        tolerance: factor on the result.

    Returns:
        The median, and the larger of ``floor`` and ``sigmas`` robust standard deviations.
    """
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, tolerance * max(floor, sigmas * spread)


def outliers(
    measures: Mapping[str, tuple[np.ndarray, float]],
    tolerance: float,
    describe: Callable[[str, float, float, float], str],
) -> dict[int, list[str]]:
    """Return notes on unusual values, by index.

    Args:
        measures: name -> values (N,) and the ``floor`` of ``limit``.
        describe: writes a note from a name, a value, the usual value and how far from it is still usual.
    """
    notes: dict[int, list[str]] = defaultdict(list)
    for name, (values, floor) in measures.items():
        middle, allowed = limit(values, floor, tolerance)
        for k in np.flatnonzero(~(np.abs(values - middle) <= allowed)).tolist():
            notes[k].append(describe(name, values[k], middle, allowed))
    return notes


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows (N, D) scaled to length 1 each; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return a function of rows, computed a few rows at a time to save memory."""
    return np.concatenate([function(rows[k : k + _BLOCK]) for k in range(0, len(rows), _BLOCK)])


def principal_axes(
    rows: np.ndarray, count: int, prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray:
    """Return the first principal axes about zero of ``prepare(rows)``, (N, D): at most (D, count), from a sample."""
    some = rows if len(rows) <= _SAMPLE else rows[np.linspace(0, len(rows) - 1, _SAMPLE).astype(int)]
    sample = prepare(some)
    tall = len(sample) >= sample.shape[1]
    values, vectors = np.linalg.eigh((sample.T @ sample if tall else sample @ sample.T).astype(np.float64))
    keep = np.argsort(-values)[:count]
    keep = keep[values[keep] > 1e-9 * max(values.max(), 1e-30)]
    axes = vectors[:, keep] if tall else sample.T @ vectors[:, keep] / np.sqrt(values[keep])
    return axes.astype(np.float32)


def nearest(
    rows: np.ndarray, count: int, group: np.ndarray | None = None, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``count`` largest products of each row with the rows of ``others`` (default: of ``rows``).

    Args:
        rows: (N, D).
        group: (N,); rows of the same group, a row itself at least, do not count.
        others: (N, D), in the same order as ``rows``.

    Returns:
        Products and indices, both (N, count), the largest first; a product of -inf where there are too few.
    """
    others = rows if others is None else others
    group = np.arange(len(rows)) if group is None else group
    count = min(count, len(others))
    products = np.empty((len(rows), count), np.float32)
    indices = np.empty((len(rows), count), int)
    block = max(1, 16_000_000 // max(1, len(others)))  # 64 MB of products at a time
    for start in range(0, len(rows), block):
        part = rows[start : start + block] @ others.T
        part[group[start : start + block, None] == group[None]] = -np.inf
        top = np.argpartition(-part, count - 1, axis=1)[:, :count]
        value = np.take_along_axis(part, top, 1)
        order = np.argsort(-value, axis=1, kind="stable")
        products[start : start + block] = np.take_along_axis(value, order, 1)
        indices[start : start + block] = np.take_along_axis(top, order, 1)
    return products, indices
