"""Does the matching network find the face of a skull? Test people, and a gallery of one face of each.

    python -m benchmarks.model.match data.root=wide [key=value ...]

Three galleries of growing difficulty: the face of the skull's own picture, which lies exactly over it; the face of
another picture of the person, in another pose; and that face altered as users' pictures are (moved, turned, scaled,
relit, regraded, blurred, JPEG), searched for with the altered and prepared skull. Beside the network stands the linear
baseline, principal components and ridge regression from skull picture to face picture, retrieved by distance of pixels
(its distance chosen on validation people). The control gives each person the skull of somebody else of the same sex,
age level and body mass. Intervals: 95 %, people drawn with replacement. ``scan=SCAN person=male``: the rank of a real
head's own face among synthetic faces; no choice may ever use it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from benchmarks.results_file import append_section, run, table
from data.ct.as_skull import draw_scan_skull
from data.ct.config import CtConfig
from data.images import read_image, to_uint8
from data.manifest import Record, read_manifest
from muti_control.case.calibrate import DataSettings
from muti_control.evaluation.judges.features import DISTANCES, feature
from muti_control.evaluation.methods.baselines import Vocabulary, choose_ridge, shuffle_within_groups
from muti_control.evaluation.protocol.inputs import group_of
from muti_control.evaluation.results.statistics import (
    bootstrap_means,
    interval,
    ranks_of_truth,
    share_interval,
)
from muti_control.evaluation.results.summary import groups_of
from muti_control.sampling.config import MATCH_WEIGHTS
from muti_control.search.calibrate import embedded
from muti_control.search.calibration import load_match_calibration
from muti_control.search.vectors import Embedder
from settings.base import Settings

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
GALLERIES = ("the skull's own picture", "another pose", "another pose, altered")


class MatchBenchmarkConfig(Settings):
    """What is measured."""

    weights: str = MATCH_WEIGHTS
    """The matching network."""
    data: DataSettings = DataSettings(root="wide")
    people: PositiveInt | None = None
    """Test people at most; null takes all."""
    ridge: bool = True
    """Also fit the linear baseline."""
    scan: str | None = None
    """Head CT whose face is searched for among others."""
    person: Literal["female", "male"] = "male"
    """Sex of the head CT."""
    others: PositiveInt = 100
    """Test faces beside that of the head CT."""
    plot: str | None = None
    """PNG of the calibration's reliability."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    append: bool = False
    """Add the tables to benchmarks/RESULTS.md."""


def one_each(records: Sequence[Record], people: int | None = None) -> tuple[list[Record], list[Record]]:
    """Return the first picture of each person, and another one of the same people."""
    rows: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[record.subject].append(record)
    own = [*rows.values()][:people]
    return [pictures[0] for pictures in own], [pictures[-1] for pictures in own]


def cells(ranks: Ints) -> list[str]:
    """Return rank-1 and rank-10 in %, and the mean average precision, with intervals."""
    texts = []
    for rank in (1, 10):
        low, high = share_interval(ranks <= rank)
        texts.append(f"{100 * (ranks <= rank).mean():.1f} [{100 * low:.0f}, {100 * high:.0f}]")
    low, high = interval(bootstrap_means(1 / ranks))
    return [*texts, f"{(1 / ranks).mean():.3f} [{low:.3f}, {high:.3f}]"]


class Linear:
    """Ridge regression from skull to face pictures; faces are retrieved by a distance chosen on validation people."""

    def __init__(self, train: Sequence[Record], valid: tuple[Sequence[Record], Sequence[Record]]) -> None:
        self._vocabulary = Vocabulary.of([group_of(record) for record in train])
        fitted = (*self._inputs(train), _features(train, "face"))
        self._model, self._strength, _ = choose_ridge(
            fitted, (*self._inputs(valid[0]), _features(valid[0], "face"))
        )
        self._mean, gallery = fitted[2].mean(0), _features(valid[1], "face")
        predicted, truth = self.predict(valid[0]), np.arange(len(gallery))
        found = {
            name: (1 / ranks_of_truth(distance(predicted, gallery, self._mean), truth)).mean()
            for name, distance in DISTANCES.items()
        }
        self.distance = max(found, key=lambda name: found[name])

    def _inputs(self, records: Sequence[Record]) -> tuple[Floats, Floats]:
        return _features(records, "skull"), self._vocabulary.encode([group_of(record) for record in records])

    def predict(self, records: Sequence[Record], pictures: Floats | None = None) -> Floats:
        """Return faces (P, D). pictures: of the skulls, if they are not the records' own."""
        skulls, attributes = self._inputs(records)
        return self._model.predict(skulls if pictures is None else pictures, attributes, self._strength)

    def distances(self, predicted: Floats, gallery: Floats) -> Floats:
        """Return (P, G)."""
        return DISTANCES[self.distance](predicted, gallery, self._mean)


def _features(records: Sequence[Record], kind: str) -> NDArray[np.float32]:
    paths = [record.skull_path if kind == "skull" else record.face_path for record in records]
    return np.stack([feature(to_uint8(read_image(path)[0].mean(2))) for path in paths if path is not None])


def measure(cfg: MatchBenchmarkConfig, arguments: Sequence[str]) -> None:
    """Print the tables, and append them to RESULTS.md where that is set."""
    embedder = Embedder.load(cfg.weights, device=cfg.device)
    calibrated = load_match_calibration(embedder.weights, embedder.digest)
    if calibrated is not None and cfg.plot is not None:
        draw_reliability(calibrated[0].test["reliability"], cfg.plot)
    split = Path(cfg.data.root, "split_data")
    probes, others = one_each(read_manifest(split / "test_views.json"), cfg.people)
    sex, num = [record.biometrics.sex for record in probes], len(probes)
    galleries = [
        embedded(probes, "face", embedder, 0.0),
        embedded(others, "face", embedder, 0.0),
        embedded(others, "face", embedder, 1.0),
    ]
    plain, altered = (embedded(probes, "skull", embedder, strength, sex) for strength in (0.0, 1.0))
    skulls = [plain, plain, altered]
    truth = np.arange(num)
    ranks = [ranks_of_truth(-(s @ g.T), truth) for s, g in zip(skulls, galleries, strict=True)]
    names = [record.subject for record in probes]
    kinds = [group_of(record)[:3] for record in probes]
    donors = shuffle_within_groups(kinds, kinds, names, names, np.random.default_rng(0))
    has = np.flatnonzero(donors >= 0)
    rows = []
    for k, gallery in enumerate(GALLERIES):
        rows.append([gallery, "network", *cells(ranks[k])])
        rows.append(
            [gallery, "network, face -> skull", *cells(ranks_of_truth(-(galleries[k] @ skulls[k].T), truth))]
        )
        shuffled = ranks_of_truth(-(skulls[k][donors[has]] @ galleries[k].T), has)
        rows.append(
            [gallery, f"network, skull of somebody else of the group ({len(has)} people)", *cells(shuffled)]
        )
    if cfg.ridge:
        valid = one_each(read_manifest(split / "valid_views.json"))
        linear = Linear(read_manifest(split / "train.json"), valid)
        predicted = linear.predict(probes)
        for gallery, own in zip(GALLERIES[:2], (probes, others), strict=True):
            result = ranks_of_truth(linear.distances(predicted, _features(own, "face")), truth)
            rows.append([gallery, f"ridge ({linear.distance})", *cells(result)])
    random = np.arange(1, num + 1)
    rows.append(["any", "chance", f"{100 / num:.1f}", f"{1000 / num:.1f}", f"{(1 / random).mean():.3f}"])
    text = table(["gallery", "method", "rank-1, %", "rank-10, %", "mAP"], rows)
    by_group: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for k, record in enumerate(probes):
        for attribute, group in groups_of(record.biometrics).items():
            if attribute in ("sex", "age"):
                by_group[attribute, group].append(k)
    rows = [
        [group, str(len(own)), *cells(ranks[1][own]), *cells(ranks[2][own])[:1]]
        for (_, group), own in sorted(by_group.items())
    ]
    header = ["another pose, by group", "people", "rank-1, %", "rank-10, %", "mAP", "altered: rank-1, %"]
    text += "\n\n" + table(header, rows)
    if cfg.scan is not None:
        text += "\n\n" + real_head(cfg, embedder, galleries[0][: cfg.others])
    print(text)
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.match", *arguments])
        append_section("Matching", command, torch.device("cpu"), text)


def draw_reliability(rows: Sequence[Mapping[str, float]], path: str) -> None:
    """Write a plot: the ratio that pairs really have against the one they were told, each bin a point."""
    from matplotlib.figure import Figure

    figure = Figure((4.2, 4), layout="constrained")
    axes = figure.subplots()
    told, true = ([row[key] for row in rows] for key in ("told", "true"))
    axes.loglog([1e-3, 1e3], [1e-3, 1e3], color="0.7", linewidth=1)
    axes.loglog(told, true, "o-", color="C0")
    for row in rows:
        text = f"{row['mated']:g} / {row['others']:g}"
        axes.annotate(text, (row["told"], row["true"]), (6, -10), textcoords="offset points", fontsize=7)
    axes.set(xlabel="likelihood ratio told", ylabel="ratio of the pairs (own / other faces in the bin)")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def real_head(cfg: MatchBenchmarkConfig, embedder: Embedder, faces: Floats) -> str:
    """Return the rank of a real head's face for its own skull among synthetic faces."""
    assert cfg.scan is not None
    drawn = draw_scan_skull(Path(cfg.scan), CtConfig())
    skull, face = (
        np.repeat(picture[None].astype(np.float32) / 255, 3, 0) for picture in (drawn.skull, drawn.face)
    )
    own = embedder.vectors(skull[None], "skull", [cfg.person])[0]
    score, rest = float(embedder.vectors(face[None], "face")[0] @ own), faces @ own
    rank = 1 + int((rest >= score).sum())
    return (
        f"Real head: its own face has rank {rank} of {len(rest) + 1}; score {score:.3f}, the others "
        f"{rest.mean():.3f} ± {rest.std():.3f}, the best {rest.max():.3f}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return run("model.match", MatchBenchmarkConfig, arguments, lambda cfg: measure(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main())
