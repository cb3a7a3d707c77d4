"""Faces from skulls of which bone is missing: is the person still found, and where do variants differ?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.model.conditions_drawing import Bench, Drawer, Floats
from data.cases import Case, read_skull
from data.partial import DRAWN, missing_bone

WHOLE = "whole"
EYES = (
    slice(36, 42),
    slice(42, 48),
)  # of dlib's points: the two eyes, whose distance is the unit of the error


def measure_partial(
    bench: Bench, drawer: Drawer, regions: Sequence[str], samples: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Variants of every subject from its whole skull and from skulls without each region.

    Errors are in distances between the eyes. ``inside`` is where bone is missing, ``outside`` the rest of the
    face; the whole skull's figures stand beside them for the same places, so that a region that varies more anyway
    does not count.

    Returns:
        The figures, and rows of eight pictures by their name.
    """
    truths = bench.truths(drawer.side)
    points = bench.gallery_seen[1][: len(truths)]
    results: dict[str, Any] = {}
    rows: dict[str, Tensor] = {}
    whole: dict[str, Any] = {}
    for region in (WHOLE, *regions):
        cases = [replace(case, missing=None if region == WHOLE else region) for case in bench.cases]
        variants = torch.stack([drawer(cases, variant=k) for k in range(samples)])  # (K, B, 3, H, W)
        spread = variants.mean(2).std(0).numpy()  # (B, H, W), of the grey levels
        seen = bench.seen(variants[0])[1]
        errors = _errors(seen, points)  # (B, 68)
        first = bench.found_first(variants[0])
        found = {"rank-1": bench.mean(first), "error": bench.mean(errors.mean(1))}
        if region == WHOLE:
            whole = {"spread": spread, "errors": errors, "first": first}
        else:
            inside = np.stack([_places(case, drawer.side) for case in cases])
            skin = (truths.mean(1) > DRAWN).numpy()
            found |= _compared(bench, whole, spread, errors, inside, skin, points)
            found["rank-1, less the whole skull's"] = bench.mean(first - whole["first"])
            rows[f"skull without {region}"] = bench.skulls(drawer.side, region)
        results[region] = found
        rows[f"drawn, {region}"] = variants[0, :8]
        shown = torch.from_numpy(np.minimum(8 * spread[:8], 1)).float()
        rows[f"spread x 8, {region}"] = shown[:, None].expand(-1, 3, -1, -1)
    return results, rows


def _places(case: Case, side: int) -> np.ndarray:
    """(side, side) bool: where a case's bone is missing, and the soft parts over it."""
    skull = read_skull(replace(case, missing=None), side).max(2) > DRAWN
    assert case.missing is not None
    return missing_bone(skull, case.missing, case.missing_seed)


def _errors(points: Floats, truths: Floats) -> Floats:
    """(B, 68) distances of dlib's points from those of the true faces, in distances between the eyes."""
    left, right = (truths[:, eye].mean(1) for eye in EYES)
    return np.linalg.norm(points - truths, axis=-1) / np.linalg.norm(left - right, axis=-1)[:, None]


def _compared(
    bench: Bench,
    whole: dict[str, Any],
    spread: Floats,
    errors: Floats,
    inside: np.ndarray,
    skin: np.ndarray,
    points: Floats,
) -> dict[str, Any]:
    scale = inside.shape[-1] / 256
    columns, lines = (np.clip((points[..., k] * scale).astype(int), 0, inside.shape[-1] - 1) for k in (0, 1))
    at_point = inside[np.arange(len(points))[:, None], lines, columns]  # (B, 68)
    found: dict[str, Any] = {}
    ratios = {}
    for name, where, of_points in (
        ("inside", inside & skin, at_point),
        ("outside", ~inside & skin, ~at_point),
    ):
        mine, other = (_mean_within(x, where) for x in (spread, whole["spread"]))
        ratios[name] = mine / np.maximum(other, 1e-6)
        found[f"spread {name}"] = bench.mean(mine)
        found[f"spread {name}, whole skull"] = bench.mean(other)
        any_point = of_points.any(1)
        if any_point.any():
            for title, values in (("", errors), (", whole skull", whole["errors"])):
                within = _mean_within(values[any_point], of_points[any_point])
                found[f"error {name}{title}"] = bench.mean(within)
    found["growth of the spread, inside over outside"] = bench.mean(ratios["inside"] / ratios["outside"])
    return found


def _mean_within(values: Floats, where: np.ndarray) -> Floats:
    """(B,) means of values (B, ...) over the places of each."""
    axes = tuple(range(1, values.ndim))
    return (values * where).sum(axes) / np.maximum(where.sum(axes), 1)
