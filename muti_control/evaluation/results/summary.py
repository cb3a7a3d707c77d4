"""From values per probe to the figures of ``metrics.json``: every one with its interval, none with a NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.biometrics import BODY_MASS_WORDS, Biometrics, age_level
from muti_control.evaluation.results.results import (
    Coverage,
    Curve,
    Edit,
    EditPicture,
    Figure,
    GroupFigures,
    Identification,
    Measured,
)
from muti_control.evaluation.results.statistics import (
    CONFIDENCE,
    NUM_DRAWS,
    best_of_chance,
    bootstrap_means,
    cmc_ranks,
    edit_projection,
    found_within,
    interval,
    share_interval,
    similarity_aligned,
)

Floats = NDArray[np.floating]
MIN_PROBES = 2  # fewer have no interval
AGE_BANDS = ("under 14", "14 to 29", "30 to 49", "50 to 64", "65 and over")
GROUPS: dict[str, tuple[str, ...]] = {  # attributes and their groups, in the order of the report
    "sex": ("female", "male"),
    "age": AGE_BANDS,
    "body mass": tuple(BODY_MASS_WORDS.values()),
}


class NoChangeError(ValueError):
    """No true face changes with an edit: there is no change to compare with."""


@dataclass(frozen=True)
class Resampling:
    """The settings of intervals. draws: of probes. seed: the same for all figures of a run, which pairs them."""

    draws: int = NUM_DRAWS
    seed: int = 0
    confidence: float = CONFIDENCE

    def mean(self, values: ArrayLike, weights: Floats | None = None) -> Figure:
        """Return the mean of (n,) finite values.

        Raises:
            ValueError: there are none, or one is not finite.
        """
        table = np.asarray(values, dtype=np.float64)
        if len(table) < MIN_PROBES:
            if not len(table) or not np.isfinite(table).all():
                raise ValueError(f"a figure of {len(table)} values: expected at least one, all finite")
            return Figure(float(table[0]), None, None, 1)
        low, high = interval(bootstrap_means(table, weights, self.draws, self.seed), self.confidence)
        return Figure(float(np.average(table, weights=weights)), float(low), float(high), len(table))

    def share(self, hits: ArrayLike) -> Figure:
        """Return the share of ones among (n,) zeros and ones."""
        table = np.asarray(hits, dtype=np.float64)
        low, high = share_interval(table, self.draws, self.seed, self.confidence)
        return Figure(float(table.mean()), float(low), float(high), len(table))

    def share_curve(self, x: ArrayLike, chances: Floats) -> Curve:
        """Return the mean of each column of chances (n, M) in [0, 1], over x (M,)."""
        low, high = share_interval(chances, self.draws, self.seed, self.confidence)
        rows = (chances.mean(axis=0), low, high)
        return Curve(tuple(np.asarray(x).tolist()), *(tuple(row.tolist()) for row in rows))


DEFAULT = Resampling()


def groups_of(person: Biometrics) -> dict[str, str]:
    """Return the groups of one person, for ``Probe.groups``: sex, age band (the prompt's levels) and body mass."""
    return {
        "sex": person.sex,
        "age": AGE_BANDS[age_level(person.age) - 1],
        "body mass": BODY_MASS_WORDS[person.body_mass],
    }


def identification(
    ranks: Sequence[int | None] | NDArray[np.integer],
    gallery_size: int,
    groups: Sequence[Mapping[str, str]],
    distances: ArrayLike | None = None,
    others: ArrayLike | None = None,
    missed: int = 0,
    excluded: int = 0,
    how: Resampling = DEFAULT,
) -> Identification:
    """Return the figures of one method's faces under one recogniser.

    Args:
        ranks: (P,) of every probe of the run; None or 0 where the probe was not measured. A face in which the
            recogniser finds none is a miss: rank ``gallery_size``, and counted in ``missed``.
        groups: (P,) ``Probe.groups``.
        distances, others: (P,) distance to the true face, and mean distance to the rest of the gallery; NaN where
            there is none.

    Raises:
        ValueError: no probe was measured, or a rank outside 1 .. gallery_size.
    """
    every = np.array([0 if rank is None else int(rank) for rank in ranks])
    measured_here = every > 0
    if not measured_here.any() or every.max() > gallery_size or every.min() < 0:
        raise ValueError(
            f"ranks from {every.min(initial=0)} to {every.max(initial=0)}, {measured_here.sum()} measured: "
            f"expected at least one, within 1 .. {gallery_size}"
        )
    own_ranks = every[measured_here]
    at = cmc_ranks(gallery_size)
    own = None if distances is None else np.asarray(distances, dtype=np.float64)
    return Identification(
        ranks=tuple(int(rank) or None for rank in every),
        distances=None if own is None else tuple(float(d) if np.isfinite(d) else None for d in own),
        excluded=excluded,
        missed=missed,
        rank1=how.share(own_ranks <= 1),
        rank5=how.share(own_ranks <= 5),
        rank10=how.share(own_ranks <= 10),
        mean_average_precision=how.mean(1 / own_ranks),
        mean_reciprocal_rank=how.mean(1 / own_ranks),
        mean_rank=how.mean(own_ranks),
        distance=_mean_of_known(own, measured_here, how),
        other_distance=_mean_of_known(others, measured_here, how),
        cmc=how.share_curve(at, found_within(own_ranks, at)),
        groups=_by_group(every, groups, how),
    )


def _mean_of_known(values: ArrayLike | None, where: NDArray[np.bool_], how: Resampling) -> Figure | None:
    if values is None:
        return None
    finite = np.asarray(values, dtype=np.float64)[where]
    finite = finite[np.isfinite(finite)]
    return how.mean(finite) if len(finite) else None


def _by_group(
    ranks: NDArray[np.integer], groups: Sequence[Mapping[str, str]], how: Resampling
) -> tuple[GroupFigures, ...]:
    if len(groups) != len(ranks):
        raise ValueError(f"{len(groups)} probes with groups and {len(ranks)} ranks")
    rows = []
    for attribute, names in GROUPS.items():
        of_probes = np.array([group[attribute] for group in groups])
        for name in names:
            own = ranks[(of_probes == name) & (ranks > 0)]
            if len(own):
                shares = how.share(own <= 1), how.share(own <= 5)
                rows.append(GroupFigures(attribute, name, *shares, how.mean(1 / own)))
    return tuple(rows)


def measured(values: ArrayLike, how: Resampling = DEFAULT) -> Measured:
    """Return a measure from its values per probe (P,); NaN where the probe was not measured.

    Raises:
        ValueError: no probe was measured.
    """
    every = np.asarray(values, dtype=np.float64)
    figure = _mean_of_known(every, np.isfinite(every), how)
    if figure is None:
        raise ValueError("a measure without a single value: leave it out, and say why in not_run")
    return Measured(figure, tuple(float(v) if np.isfinite(v) else None for v in every))


def coverage(
    recogniser: str,
    ranks: Mapping[str, ArrayLike],
    within: int,
    probes: Sequence[int],
    how: Resampling = DEFAULT,
    together: Mapping[str, ArrayLike] | None = None,
) -> Coverage:
    """Return the best of k of K draws, and the first k of them together.

    Args:
        ranks: method's name -> (P', K) rank of every draw, P' the entries of ``probes``; K is the same for all.
        within: a draw of at most this rank is a hit.
        together: method's name -> (P', K) rank by the first k draws together.

    Raises:
        ValueError: shapes that disagree.
    """
    tables = {name: np.asarray(table) for name, table in ranks.items()}
    joint = {name: np.asarray(table) for name, table in (together or {}).items()}
    shapes = {table.shape for table in (*tables.values(), *joint.values())}
    if len(shapes) != 1 or next(iter(shapes))[:1] != (len(probes),):
        raise ValueError(f"ranks of shapes {sorted(shapes)}: expected one shape ({len(probes)}, K)")
    draws = next(iter(shapes))[1]
    hits = {name: (table <= within).sum(axis=1) for name, table in tables.items()}
    at = np.arange(1, draws + 1)
    return Coverage(
        recogniser=recogniser,
        within=within,
        draws=draws,
        probes=tuple(int(i) for i in probes),
        curves={name: how.share_curve(at, best_of_chance(count, draws)) for name, count in hits.items()},
        hits={name: tuple(int(h) for h in count) for name, count in hits.items()},
        together={
            name: how.share_curve(at, (table <= within).astype(np.float64)) for name, table in joint.items()
        },
        ranks_together={name: tuple(int(rank) for rank in table[:, -1]) for name, table in joint.items()},
    )


def edit(
    method: str,
    name: str,
    label: str,
    space: str,
    predicted: tuple[Floats, Floats],
    true: tuple[Floats, Floats],
    probes: Sequence[int],
    kept: ArrayLike | None = None,
    kept_before: ArrayLike | None = None,
    pictures: Sequence[EditPicture] = (),
    how: Resampling = DEFAULT,
) -> Edit:
    """Return one kind of edit in landmark space.

    Args:
        predicted, true: (before, after) each, (N, L, 2) points in px, of the reconstruction and of the person; each
            "after" is laid onto its "before" by shift, turn and scale, so that only the change of form counts.
        probes: (N,) indices into the run's probes.
        kept, kept_before: (N,) whether the own face is the nearest, after the edit and before.

    Raises:
        NoChangeError: no pair whose true face changed.
    """
    changes = [
        (similarity_aligned(after, before) - before).reshape(len(probes), -1)
        for before, after in (predicted, true)
    ]
    projections, angles = edit_projection(*changes)
    per_point = np.sqrt(changes[0].shape[1] / 2)  # sizes are root mean squares over points: px a point
    predicted_sizes, true_sizes = (np.linalg.norm(change, axis=1) / per_point for change in changes)
    finite = np.isfinite(projections)
    if not finite.any():
        raise NoChangeError(f"no true face changed in {space}, so there is nothing to compare with")
    turned = np.isfinite(angles)
    return Edit(
        method=method,
        name=name,
        label=label,
        space=space,
        projection=how.mean(projections[finite], true_sizes[finite] ** 2),
        angle=how.mean(angles[turned]) if turned.any() else None,
        true_size=how.mean(true_sizes),
        predicted_size=how.mean(predicted_sizes),
        kept=None if kept is None else how.share(kept),
        kept_before=None if kept_before is None else how.share(kept_before),
        probes=tuple(int(i) for i in probes),
        projections=tuple(float(p) if np.isfinite(p) else None for p in projections),
        true_sizes=tuple(float(s) for s in true_sizes),
        pictures=tuple(pictures),
    )
