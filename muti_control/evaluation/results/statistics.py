"""The protocol's statistics, as pure functions of arrays.

Sizes: P probes, G gallery faces, K faces drawn per probe, N pairs. A *rank* is the place of a probe's true face in the
gallery, 1 for the nearest. Every interval comes from drawing probes (or pairs) with replacement; the gallery is fixed,
so it says what other probes would have given against the same gallery.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

NUM_DRAWS = 2000
CONFIDENCE = 0.95
_NO_CHANGE = 1e-9


# ---------------------------------------------------------------- ranks
def ranks_of_truth(distances: Floats, truth: Ints, excluded: Ints | None = None) -> Ints:
    """Return the rank of each probe's true gallery face; ties count against it.

    Args:
        distances: (P, G), smaller is nearer.
        truth: (P,) index of each probe's own face in the gallery.
        excluded: (P,) index of one gallery face that does not count for this probe, -1 for none.

    Returns:
        (P,) int, 1 .. G.

    Raises:
        ValueError: where a distance is not finite or the shapes disagree.
    """
    if distances.ndim != 2 or truth.shape != distances.shape[:1]:
        raise ValueError(f"distances {distances.shape} and truth {truth.shape}: expected (P, G) and (P,)")
    if not np.isfinite(distances).all():
        raise ValueError("distances hold values that are not finite: a reconstruction is broken")
    if excluded is not None:
        rows = np.flatnonzero(excluded >= 0)
        distances = distances.copy()
        distances[rows, excluded[rows]] = np.inf
    own = distances[np.arange(len(truth)), truth]
    return (distances <= own[:, None]).sum(axis=1)


def cmc_ranks(gallery_size: int) -> Ints:
    """Return the ranks of a stored cumulative match curve: all up to 20, then ever fewer, and G itself."""
    marks = [*range(1, 21), 25, 30, 40, 50, 75]
    decade = 100
    while decade < gallery_size:
        marks += [decade, decade * 3 // 2, 2 * decade, 3 * decade, 5 * decade, 7 * decade]
        decade *= 10
    return np.array(sorted({mark for mark in marks if mark < gallery_size} | {gallery_size}))


def found_within(ranks: ArrayLike, at: ArrayLike) -> Floats:
    """Return whether each rank (P,) is at most each of ``at`` (M,): (P, M) zeros and ones.

    Its mean over probes is the cumulative match characteristic.
    """
    return (np.asarray(ranks)[:, None] <= np.asarray(at)[None, :]).astype(np.float64)


# ---------------------------------------------------------------- intervals
@lru_cache(maxsize=24)
def _draw_counts(num_probes: int, num_draws: int, seed: int) -> Floats:
    """Return how often each probe comes up in each draw with replacement, (num_draws, P).

    The same for the same arguments, so methods measured on the same probes share their draws.
    """
    rng = np.random.default_rng((seed, num_probes))
    counts = rng.multinomial(num_probes, np.full(num_probes, 1 / num_probes), size=num_draws)
    table: Floats = counts.astype(np.float32)
    table.setflags(write=False)
    return table


def bootstrap_means(
    values: ArrayLike, weights: ArrayLike | None = None, num: int = NUM_DRAWS, seed: int = 0
) -> Floats:
    """Return means of `values` in `num` draws of probes with replacement.

    Args:
        values: (P,) or (P, M), finite.
        weights: (P,) >= 0, for values (P,): the mean is a ratio of sums. None: all alike.

    Returns:
        (num,) or (num, M) float64.

    Raises:
        ValueError: no probe, a value that is not finite, or weights that sum to nothing.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or not len(table):
        raise ValueError(f"values of shape {table.shape}: expected (P,) or (P, M) with at least one probe")
    if not np.isfinite(table).all():
        raise ValueError("values hold some that are not finite: leave out what was not measured")
    w = None if weights is None else np.asarray(weights, dtype=np.float64)
    if w is not None and (w.shape != table.shape or (w < 0).any() or not w.sum() > 0):
        raise ValueError(f"weights of shape {w.shape}: expected {table.shape}, none negative, not all zero")
    counts = _draw_counts(len(table), num, seed)
    if w is None:
        return np.asarray(counts @ table / len(table))
    return np.asarray(counts @ (table * w) / np.maximum(counts @ w, 1e-12 * w.sum()))


def interval(means: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Return the percentile interval of bootstrap means (B,) or (B, M): low and high, 0-d or (M,)."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high


def share_interval(
    hits: ArrayLike, num: int = NUM_DRAWS, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Return the interval of a share: the bootstrap's, but the exact one where all probes agree.

    Drawn again, probes that agree always agree: the bootstrap would claim certainty from three probes. With no hit
    among P the exact (Clopper-Pearson) interval is [0, 1 - (tail)^(1/P)], with nothing but hits its mirror image.

    Args:
        hits: (P,) or (P, M) zeros and ones, or chances in [0, 1].

    Returns:
        low and high, 0-d or (M,).
    """
    hits = np.asarray(hits, dtype=np.float64)
    low, high = interval(bootstrap_means(hits, None, num, seed), confidence)
    margin = 1 - ((1 - confidence) / 2) ** (1 / len(hits))
    mean = hits.mean(axis=0)
    return np.where(mean == 1, 1 - margin, low), np.where(mean == 0, margin, high)


def bootstrap_interval(values: Floats, rng: np.random.Generator, num: int = 4000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `values` (P,), probes drawn with replacement from `rng`."""
    draws = rng.integers(0, len(values), size=(num, len(values)))
    low, high = np.percentile(np.asarray(values, dtype=np.float64)[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    num: int = NUM_DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[float, float, float, float]:
    """Return the mean of a - b over the same probes, with its paired bootstrap interval.

    Pairing takes away what both share (some probes are hard for every method), so it sees smaller differences than
    two intervals laid side by side.

    Args:
        a, b: (P,) one value per probe, of any kind (hits, reciprocal ranks, dB ...).
        weights: as for `bootstrap_means`.

    Returns:
        (difference, low, high, p): p is the two-sided bootstrap p-value, twice the share of draws at or beyond zero on
        the other side, at least 1 / num and at most 1.
    """
    gap = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    means = bootstrap_means(gap, weights, num, seed)
    low, high = interval(means, confidence)
    beyond = min((means <= 0).mean(), (means >= 0).mean())
    p = float(np.clip(2 * beyond, 1 / num, 1))
    mean = np.average(gap, weights=None if weights is None else np.asarray(weights))
    return float(mean), float(low), float(high), p


# ---------------------------------------------------------------- shapes and edits
def similarity_aligned(moving: Floats, fixed: Floats) -> Floats:
    """Return planar shapes laid onto others by the best shift, turn and scale, never a reflection (least squares).

    As complex numbers about their centroids the best turn and scale are <moving, fixed> / <moving, moving>.
    Source: Dryden and Mardia, Statistical Shape Analysis, 2nd edition 2016, section 4.1 (ordinary Procrustes).

    Args:
        moving, fixed: (N, L, 2), any unit.

    Returns:
        (N, L, 2), `moving` in the place of `fixed`.

    Raises:
        ValueError: shapes that disagree, or a shape whose points all coincide.
    """
    if moving.ndim != 3 or moving.shape[2] != 2 or moving.shape != fixed.shape:
        raise ValueError(f"shapes {moving.shape} and {fixed.shape}: expected (N, L, 2) both")
    m, f = (
        np.asarray(a, np.float64)[..., 0] + 1j * np.asarray(a, np.float64)[..., 1] for a in (moving, fixed)
    )
    m_centre, f_centre = m.mean(axis=1, keepdims=True), f.mean(axis=1, keepdims=True)
    m, f = m - m_centre, f - f_centre
    size = (np.abs(m) ** 2).sum(axis=1, keepdims=True)
    if (size < 1e-18).any():
        raise ValueError("a shape whose points all coincide has no form to align")
    laid = m * ((m.conj() * f).sum(axis=1, keepdims=True) / size) + f_centre
    return np.stack([laid.real, laid.imag], axis=-1)


def edit_projection(predicted: Floats, true: Floats) -> tuple[Floats, Floats]:
    """Return how much of the true change an edit makes, and the angle to it.

    Args:
        predicted, true: (N, D) changes (after minus before) of the reconstruction and of the person.

    Returns:
        projection (N,), the component of the predicted change along the true one in units of the true one (1 is
        right, 0 none, negative the wrong way), NaN where nothing truly changed; and the angle (N,) between the two in
        degrees (90 is unrelated), NaN where either is zero. A change of length below 1e-9 is none.
    """
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"changes {p.shape} and {t.shape}: expected (N, D) both")
    along, p_size, t_size = (p * t).sum(axis=1), np.linalg.norm(p, axis=1), np.linalg.norm(t, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        projection = np.where(t_size > _NO_CHANGE, along / t_size**2, np.nan)
        cosine = np.where((t_size > _NO_CHANGE) & (p_size > _NO_CHANGE), along / (p_size * t_size), np.nan)
    return projection, np.degrees(np.arccos(np.clip(cosine, -1, 1)))


# ---------------------------------------------------------------- several faces per skull
def best_of_chance(hits: ArrayLike, draws: int) -> Floats:
    """Return the chance that k of K faces hold at least one hit, for every k = 1 .. K, without bias.

    It averages over all ways to take k of the K draws: 1 - C(K - h, k) / C(K, k) with h hits. (1 - (1 - h / K)^k, which
    puts every draw back, is biased down.)
    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.

    Args:
        hits: (P,) hits among the K draws of each probe, 0 .. K.

    Returns:
        (P, K) in [0, 1].
    """
    missed = draws - np.asarray(hits)
    if draws < 1 or (missed < 0).any() or (missed > draws).any():
        raise ValueError(f"hits among {draws} draws: expected 0 .. {draws}")
    # all k misses: the product over i < k of (missed - i) / (K - i)
    steps = np.arange(draws)
    factors = np.maximum(missed[:, None] - steps, 0) / (draws - steps)
    return 1 - factors.cumprod(axis=1)


def mean_pairwise_distance(draws: Floats) -> Floats:
    """Return the mean Euclidean distance between the draws of each probe, (P, K, D) -> (P,); 0 if all are equal.

    Raises:
        ValueError: fewer than two draws.
    """
    x = np.asarray(draws, dtype=np.float64)
    if x.ndim != 3 or x.shape[1] < 2:
        raise ValueError(f"draws of shape {x.shape}: expected (P, K, D) with at least two draws")
    first, second = np.triu_indices(x.shape[1], 1)
    gaps = [np.linalg.norm(row[first] - row[second], axis=1).mean() for row in x]
    return np.asarray(gaps, dtype=np.float64)
