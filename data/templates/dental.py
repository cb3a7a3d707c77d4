"""Which vertices of a skull template belong to the zone of the teeth, and where in it they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.templates.mandible import Arch

CROWNS_MM = ((0.0, 9.5), (22.0, 9.0), (31.0, 7.5), (60.0, 6.5))  # along the arch, height of the crowns
DEEP_MM, WIDE_MM = 16.0, 8.5


def dental_zone(
    vertices: np.ndarray,
    is_upper: np.ndarray,
    is_lower: np.ndarray,
    upper: Arch,
    lower: Arch,
    edge: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """The dental_* arrays of a ``SkullTemplate``.

    Args:
        vertices: (S, 3).  is_upper, is_lower: (S,) of the cranium, of the mandible.
        upper, lower: the arches of the crowns.
        edge: depths z (N,) -> heights (N,) where upper and lower crowns meet.
    """
    ids, jaws, alongs, beyonds, weights = [], [], [], [], []
    for jaw, arch, chosen in ((1, upper, is_upper), (2, lower, is_lower)):
        near = np.flatnonzero(
            chosen & (np.abs(vertices[:, 0]) < 45) & (vertices[:, 2] > 20) & (vertices[:, 1] < -40)
        )
        points = vertices[near]
        along, outside = arch.locate(points[:, [0, 2]])
        crown = np.interp(np.abs(along), *np.array(CROWNS_MM).T)
        above = points[:, 1] - edge(points[:, 2])
        beyond = crown - (above if jaw == 1 else -above)
        weight = np.exp(-((np.abs(outside) / WIDE_MM) ** 6)) * np.clip((beyond + DEEP_MM) / 4, 0, 1)
        kept = (weight > 0.01) & (beyond < crown + 8)
        ids.append(near[kept])
        jaws.append(np.full(kept.sum(), jaw))
        alongs.append(along[kept])
        beyonds.append(beyond[kept])
        weights.append(weight[kept])
    order = np.argsort(np.concatenate(ids))
    joined = [np.concatenate(part)[order] for part in (ids, jaws, alongs, beyonds, weights)]
    names = ("dental_ids", "dental_jaw", "dental_along", "dental_beyond", "dental_weight")
    return dict(zip(names, joined, strict=True))
