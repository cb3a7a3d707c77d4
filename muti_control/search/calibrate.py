"""Make the calibration of a matching network, beside it: what a score is worth as a likelihood ratio.

    python -m muti_control.search.calibrate weights=FILE data.root=FOLDER [key=value ...]

Each person's first skull picture is altered as users' pictures are, then prepared as the search does it; the faces are
the person's other pictures, altered apart from it. The ratio is fitted to validation people, against others of the same
sex (sex alone is worth nothing then); its interval comes from drawing people with replacement. The figures are of test
people.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt
from tqdm import tqdm

from data.images import read_image
from data.manifest import Record, check_disjoint, read_manifest
from data.program import run_program
from ldm.checkpoint import git_revision
from muti_control.case.calibrate import SYNTHETIC, DataSettings
from muti_control.case.calibration import CalibrationError, calibration_path
from muti_control.case.prepare import checked_skull
from muti_control.conditions.altered import alteration_of, on_tensor
from muti_control.evaluation.results.statistics import interval, ranks_of_truth, share_interval
from muti_control.sampling.config import MATCH_WEIGHTS
from muti_control.search.calibration import MatchCalibration
from muti_control.search.vectors import BATCH, SIZE, Embedder, Kind
from settings.base import Settings

Floats = NDArray[np.floating]
Masks = NDArray[np.bool_]
HIGH = 100.0  # the ratio whose errors are counted
EDGES = np.array([-np.inf, -2, -1, -0.5, 0, 0.5, 1, 2, np.inf])  # of the reliability's bins, powers of 10


class CalibrateConfig(Settings):
    """What is measured for a matching network."""

    weights: str = MATCH_WEIGHTS
    """The file to calibrate."""
    data: DataSettings = DataSettings(root="wide")
    valid: str = "valid_views.json"
    """List that the ratio is fitted to."""
    test: str = "test_views.json"
    """List that the error rates are of."""
    augment: NonNegativeFloat = 1.0
    """Strength at which the pictures are altered; 1 is usual."""
    draws: PositiveInt = 200
    """Draws of the people, for the intervals."""
    people: PositiveInt | None = None
    """People at most of each list; null takes all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True)
class Pairs:
    """Scores (P, F) of each person's skull with faces of all of them. person: (F,) whose face it is.

    records: of the skulls, one of each person.
    """

    scores: Floats
    person: NDArray[np.int64]
    records: Sequence[Record]

    @property
    def mated(self) -> Masks:
        """(P, F) bool."""
        own: Masks = np.arange(len(self.scores))[:, None] == self.person
        return own

    @property
    def other(self) -> Masks:
        """(P, F) bool: of another person of the same sex."""
        sex = np.array([record.biometrics.sex for record in self.records])
        other: Masks = (sex[:, None] == sex[self.person]) & ~self.mated
        return other

    @property
    def ranks(self) -> NDArray[np.integer]:
        """(P,) rank of each person's own face among one face of everybody."""
        first = np.unique(self.person, return_index=True)[1]
        return ranks_of_truth(-self.scores[:, first], np.arange(len(self.scores)))


def pairs_of(records: Sequence[Record], embedder: Embedder, augment: float) -> Pairs:
    """Return the scores of a list; people without a second picture keep the face of their first one."""
    rows: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[record.subject].append(record)
    first = [own[0] for own in rows.values()]
    faces = [(k, record) for k, own in enumerate(rows.values()) for record in own[1:] or own]
    sex = [record.biometrics.sex for record in first]
    skulls = embedded(first, "skull", embedder, augment, sex)
    vectors = embedded([record for _, record in faces], "face", embedder, augment)
    return Pairs((skulls @ vectors.T).astype(np.float64), np.array([k for k, _ in faces]), first)


def embedded(
    records: Sequence[Record], kind: Kind, embedder: Embedder, augment: float, sex: Sequence[str] = ()
) -> Floats:
    """Return unit vectors (N, V) of the records' skulls, which are prepared, or faces, altered at a strength."""
    results = []
    for start in tqdm(range(0, len(records), BATCH), desc=f"{kind}s", disable=None):
        pictures = []
        for record in records[start : start + BATCH]:
            path = record.skull_path if kind == "skull" else record.face_path
            assert path is not None
            picture = torch.from_numpy(read_image(path, SIZE)[0]).permute(2, 0, 1)
            if augment:
                change = alteration_of(f"{kind} {record.source}", 0, 0, augment)
                picture = on_tensor(change.skull, picture)
            shown = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
            if kind == "skull":
                shown = checked_skull(shown, embedder.checks, None, embedder.prepare).picture
            pictures.append(shown.transpose(2, 0, 1))
        part = [*sex[start : start + BATCH]]
        results.append(embedder.vectors(np.stack(pictures), kind, part))
    return np.concatenate(results)


def fitted_line(pairs: Pairs, weights: Floats | None = None) -> tuple[float, float]:
    """Return slope and offset of the log likelihood ratio: logistic regression, both kinds of pairs weighing alike.

    weights: (P,) of the people; None: all alike.

    Raises:
        CalibrationError: one kind of pairs is missing.
    """
    own = np.ones(len(pairs.scores)) if weights is None else np.asarray(weights, np.float64)
    both = own[:, None] * own[pairs.person]
    kinds = [(pairs.mated, np.broadcast_to(own[:, None], both.shape), 1.0), (pairs.other, both, 0.0)]
    x, w, y = [], [], []
    for mask, weights_of, kind in kinds:
        if not weights_of[mask].sum() > 0:
            raise CalibrationError("data: too few people to compare; give a list of some hundred")
        x.append(pairs.scores[mask])
        w.append(weights_of[mask] / weights_of[mask].sum())
        y.append(np.full(int(mask.sum()), kind))
    score, weight, target = (np.concatenate(parts) for parts in (x, w, y))
    design = np.stack([score, np.ones_like(score)], 1)
    line = np.zeros(2)
    for _ in range(50):  # Newton's method
        chance = 1 / (1 + np.exp(-np.clip(design @ line, -50, 50)))
        gradient = design.T @ (weight * (chance - target)) + 1e-6 * line
        curvature = (design * (weight * chance * (1 - chance))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        line -= step
        if np.abs(step).max() < 1e-8:
            break
    return float(line[0]), float(line[1])


def cllr(mated: Floats, other: Floats, mated_weights: Floats, other_weights: Floats) -> float:
    """Return the cost of log likelihood ratios: 0 for perfect ones, 1 for ratios that are always 1.

    Source: N. Brümmer and J. du Preez, Computer Speech and Language 20 (2006), equation 22.
    """
    costs = np.average(np.log2(1 + 1 / mated), weights=mated_weights)
    return float(costs + np.average(np.log2(1 + other), weights=other_weights)) / 2


def drawn_people(rng: np.random.Generator, num: int) -> NDArray[np.float64]:
    """Return how often each of ``num`` people comes up in a draw with replacement, (num,)."""
    return np.bincount(rng.integers(num, size=num), minlength=num).astype(np.float64)


def figures(calibration: MatchCalibration, pairs: Pairs, draws: int) -> dict[str, Any]:
    """Return what the ratios are worth on other people: error rates, Cllr, reliability; intervals over the people."""
    ratios = calibration.ratios(pairs.scores.ravel()).reshape(pairs.scores.shape)
    num, ranks = len(ratios), pairs.ranks
    rng, costs = np.random.default_rng(0), []
    for draw in range(draws + 1):
        own = np.ones(num) if draw == 0 else drawn_people(rng, num)
        both = own[:, None] * own[pairs.person]
        costs.append(
            cllr(
                ratios[pairs.mated],
                ratios[pairs.other],
                np.broadcast_to(own[:, None], both.shape)[pairs.mated],
                both[pairs.other],
            )
        )
    low, high = interval(np.array(costs[1:]))
    mated, other = ratios[pairs.mated], ratios[pairs.other]
    right, wrong = int((mated > HIGH).sum()), int((other > HIGH).sum())
    result: dict[str, Any] = {
        "people": num,
        "gallery": num,
        "cllr": costs[0],
        "cllr_low": float(low),
        "cllr_high": float(high),
        "mrr": float((1 / ranks).mean()),
        "pairs_above_100": right + wrong,
        "wrong_above_100": wrong / max(1, right + wrong),
        "mated_above_100": float((mated > HIGH).mean()),
        "others_above_100": float((other > HIGH).mean()),
        "reliability": reliability(mated, other),
    }
    for rank in (1, 10):
        low, high = share_interval(ranks <= rank)
        result |= {
            f"rank_{rank}": float((ranks <= rank).mean()),
            f"rank_{rank}_low": float(low),
            f"rank_{rank}_high": float(high),
        }
    return result


def reliability(mated: Floats, other: Floats) -> list[dict[str, float]]:
    """Return, for bins of the ratio, its geometric mean, and the ratio that the pairs in the bin really have."""
    rows = []
    for low, high in itertools.pairwise(EDGES):
        a, b = (x[(np.log10(x) > low) & (np.log10(x) <= high)] for x in (mated, other))
        if len(a) and len(b):
            told = float(np.exp(np.log(np.concatenate([a, b])).mean()))
            true = (len(a) / len(mated)) / (len(b) / len(other))
            rows.append({"told": told, "true": true, "mated": len(a), "others": len(b)})
    return rows


def calibrate(cfg: CalibrateConfig) -> None:
    """Fit, measure, write the file and print a summary."""
    embedder = Embedder.load(cfg.weights, device=cfg.device)
    lists = {
        name: read_manifest(Path(cfg.data.root, "split_data", name))
        for name in dict.fromkeys((cfg.valid, cfg.test))
    }
    check_disjoint(lists)
    valid, test = (
        pairs_of(_some(lists[name], cfg.people), embedder, cfg.augment) for name in (cfg.valid, cfg.test)
    )
    slope, offset = fitted_line(valid)
    if not slope > 0:
        raise CalibrationError(
            f"weights: {cfg.weights} scores other people's faces higher than the own; train it longer"
        )
    num, rng = len(valid.scores), np.random.default_rng(0)
    lines = [fitted_line(valid, drawn_people(rng, num)) for _ in range(cfg.draws)]
    made_with = {"git": git_revision(), "settings": cfg.model_dump()}
    result = MatchCalibration(
        weights_sha256=embedder.digest,
        slope=slope,
        offset=offset,
        limit=float(num),
        people=num,
        made_with=made_with,
    )
    synthetic = Path(cfg.data.root, "cohort.json").is_file()
    report = figures(result, test, cfg.draws)
    report["kind_of_people"] = f"people ({SYNTHETIC})" if synthetic else "people"
    result = result.with_(test=report)
    path = calibration_path(embedder.weights)
    result.save(path, np.array(lines))
    print(json.dumps(report, indent=1))
    print(f"wrote {path}: log LR = {slope:.2f} score {offset:+.2f}, ratios from 1/{num} to {num}")


def _some(records: Sequence[Record], people: int | None) -> list[Record]:
    """Return the records of the first people."""
    names = [*dict.fromkeys(record.subject for record in records)][:people]
    return [record for record in records if record.subject in {*names}]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after one line on stderr."""
    return run_program(
        "muti_control.search.calibrate", __doc__, CalibrateConfig, calibrate, arguments, paths=""
    )


if __name__ == "__main__":
    sys.exit(main())
