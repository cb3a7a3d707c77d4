"""Where the head is in a picture: foreground, connected pieces, outline. NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_CONTRAST = 0.06  # grey level (of 1) by which the head differs from the background, at least
_PIECE = 0.02  # a piece smaller than this share of the largest is no part of the head
_SPECK = 4  # px; smaller pieces are noise
_REACH = 16  # px around the outline in which loose pieces (teeth, slivers of a vertebra) are the head's own


@dataclass(frozen=True)
class Silhouette:
    """``head`` and ``filled`` (its holes closed): (H, W) bool. ``stray``: px of things that stand beside the head.

    ``background`` is the grey level (0 to 1) along the picture's border.
    """

    head: np.ndarray
    filled: np.ndarray
    stray: int
    background: float


def silhouette(grey: np.ndarray) -> Silhouette:
    """Find the head in a picture, (H, W) float in [0, 1], on a background of any even grey level."""
    rim = np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel(), grey[:, -2:].ravel()])
    background = float(np.median(rim))
    noise = 1.4826 * float(np.median(np.abs(rim - background)))
    foreground = np.abs(grey - background) > max(MIN_CONTRAST, 6 * noise)
    labels, areas = pieces(foreground)
    if not len(areas):
        return Silhouette(foreground, foreground, 0, background)
    of_head = areas >= _PIECE * areas.max()
    head = np.concatenate([[False], of_head])[labels]
    beside = np.concatenate([[False], ~of_head & (areas >= _SPECK)])[labels]
    filled = fill(head)
    return Silhouette(head, filled, int((beside & ~grow(filled, _REACH)).sum()), background)


def pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 8-connected pieces of a (H, W) bool mask: (H, W) int labels from 1, and their areas in px."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)  # runs, row by row
    ends = np.nonzero(steps == -1)[1]  # one past the last px
    parent = np.arange(len(rows))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    first = np.searchsorted(rows, np.arange(height + 1))
    for y in range(1, height):
        above, here = first[y - 1], first[y]
        while above < first[y] and here < first[y + 1]:
            if starts[here] <= ends[above] and starts[above] <= ends[here]:  # touch, diagonally too
                a, b = root(int(above)), root(int(here))
                parent[max(a, b)] = min(a, b)
            if ends[above] < ends[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(i) for i in range(len(rows))], int)
    _, run_label = np.unique(roots, return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(run_label + 1, ends - starts)
    return labels, np.bincount(labels.ravel())[1:]


def fill(mask: np.ndarray) -> np.ndarray:
    """Close the holes of a mask: px that have some of it on all four sides belong to it."""
    left, right = np.logical_or.accumulate(mask, 1), np.logical_or.accumulate(mask[:, ::-1], 1)[:, ::-1]
    up, down = np.logical_or.accumulate(mask, 0), np.logical_or.accumulate(mask[::-1], 0)[::-1]
    return left & right & up & down


def grow(mask: np.ndarray, px: int) -> np.ndarray:
    """The mask with a square margin of ``px`` around it."""
    side = 2 * px + 1
    sums = np.pad(np.pad(mask, px).cumsum(0, dtype=np.int32).cumsum(1), ((1, 0), (1, 0)))
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) > 0


def outline(mask: np.ndarray) -> np.ndarray:
    """The px of a mask that touch one outside it."""
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    return mask & ~inside
