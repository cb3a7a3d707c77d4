"""Measure how well any reconstruction can be recognised: the ceiling, its controls, and the recogniser's own limit.

    python -m benchmarks.model.ceiling [key=value ...]
    python -m benchmarks.model.ceiling data.root=cohort gallery=500

The gallery holds the true frontal faces of test subjects. A probe is one face of each. Its rank is the place of its own
subject by distance to the gallery. Two judges that train nothing here (dlib_recogniser.py): dlib's face descriptor, and
the Procrustes distance of dlib's 68 points. The probes:

- *ceiling*: the subject's own bone under the soft tissue to be expected from what the prompt says (sex, age level,
  ethnicity, body mass level), in the subject's surface style. No reconstruction from skull and prompt can know more.
- *ceiling, neutral surface*: the same in the middle of all surface styles, since neither skull nor prompt tells the
  subject's; an exemplar does.
- *ceiling of another*: the ceiling face of another subject of the same sex, age level, body mass and ethnicity, whose
  own face does not count: what a model scores that knows everything but the skull.
- *attributes only*: the mean training face of the group.
- *true face, turned*: another view of the true face: how far the recogniser itself can be trusted.

Needs a cohort made with ceiling=true, and views=1 or more for the last one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.results_file import run, table, write_figures
from data.biometrics import age_level
from data.manifest import Record, read_manifest
from ldm.checkpoint import git_revision
from muti_control.case.calibrate import DataSettings
from muti_control.evaluation.judges.dlib_recogniser import (
    Recogniser,
    descriptor_distances,
    procrustes_distances,
)
from muti_control.evaluation.methods.baselines import Group, group_weights, shuffle_within_groups
from muti_control.evaluation.results.statistics import bootstrap_interval, ranks_of_truth
from muti_control.record import check_creatable
from settings.base import Settings

Ints = NDArray[np.integer]
JUDGES = {"descriptor": descriptor_distances, "points": procrustes_distances}


class CeilingConfig(Settings):
    """What is measured."""

    data: DataSettings = DataSettings(root="cohort")
    gallery: int = 500
    """Test people, the first of the list; 0 takes all."""
    detector: bool = False
    """Let dlib look for each face; false takes the place where the cohort's camera has it."""
    seed: int = 0
    """Seed of the donors and of the bootstrap."""
    out: str = "benchmarks/results/ceiling"
    """OUT.json is written."""


@dataclass(frozen=True)
class Pair:
    """One line of a manifest with its face, (H, W) uint8."""

    record: Record
    face: NDArray[np.uint8]

    @property
    def group(self) -> Group:
        b = self.record.biometrics
        return b.sex, age_level(b.age), b.body_mass, b.ethnicity


def read_pairs(root: Path, name: str, num: int = 0) -> list[Pair]:
    """Return the pairs of ``split_data/NAME.json``, with ``num`` only the first that many; [] without such a list.

    Raises:
        ValueError: the manifest is wrong or a face picture is missing.
    """
    manifest = root / "split_data" / f"{name}.json"
    if not manifest.is_file():
        return []
    pairs = []
    for record in tqdm(read_manifest(manifest)[: num or None], desc=name, leave=False):
        if record.face_path is None:
            raise ValueError(f"{root}: {record.source} has no face picture: not a cohort of data.cohort")
        with Image.open(record.face_path) as picture:
            pairs.append(Pair(record, np.asarray(picture.convert("L"))))
    return pairs


@dataclass(frozen=True)
class Probes:
    """Pictures (P, H, W), the gallery column of each one's subject, and a column that does not count (-1: none)."""

    pictures: Sequence[NDArray[np.uint8]]
    truth: Ints
    excluded: Ints | None = None


def gallery_of(root: Path, size: int) -> list[Pair]:
    """Return the frontal pairs of the first ``size`` test subjects; 0 takes all.

    Raises:
        ValueError: there are fewer.
    """
    gallery = read_pairs(root, "test", size)
    if len(gallery) < max(size, 1):
        raise ValueError(
            f"gallery={size}: {root} has {len(gallery)} test subjects; make a cohort with test_subjects={size}, or "
            "give gallery=0 for all"
        )
    return gallery


def probes_of(root: Path, gallery: Sequence[Pair], seed: int) -> dict[str, Probes]:
    """Return all kinds of probes that the cohort has pictures for.

    Raises:
        ValueError: the cohort has no expected faces.
    """
    column = {pair.record.subject: k for k, pair in enumerate(gallery)}

    def listed(name: str) -> list[Pair]:
        return [pair for pair in read_pairs(root, name) if pair.record.subject in column]

    def probes(pairs: Sequence[Pair]) -> Probes:
        return Probes([p.face for p in pairs], np.array([column[p.record.subject] for p in pairs], int))

    expected = listed("ceiling")
    if not expected:
        raise ValueError(f"{root} has no expected faces: run python -m data.cohort {root} ... ceiling=true")
    truth = probes(expected).truth
    groups = [gallery[k].group for k in truth]
    names = [pair.record.subject for pair in expected]
    donors = shuffle_within_groups(groups, groups, names, names, np.random.default_rng(seed))
    lent = donors >= 0
    others = Probes([expected[k].face for k in donors[lent]], truth[lent], truth[donors[lent]])
    train = read_pairs(root, "train")
    faces = np.stack([pair.face.astype(np.float32).ravel() for pair in train])
    means = group_weights([pair.group for pair in train], [pair.group for pair in gallery]) @ faces
    means = np.rint(means).astype(np.uint8).reshape(len(gallery), *gallery[0].face.shape)
    frontal = {pair.record.target for pair in gallery}
    views = [pair for pair in listed("test_views") if pair.record.target not in frontal]
    turned = {pair.record.subject: pair for pair in reversed(views)}
    kinds = {
        "ceiling": probes(expected),
        "ceiling, neutral surface": probes(listed("ceiling_neutral")),  # older cohorts have none
        "ceiling of another": others,
        "attributes only": Probes(list(means), np.arange(len(gallery))),
        "true face, turned": probes(list(turned.values())[::-1]),
    }
    return {name: kind for name, kind in kinds.items() if len(kind.truth)}


def rank_figures(
    distances: NDArray[np.floating], truth: Ints, excluded: Ints | None, seed: int
) -> dict[str, Any]:
    """Rank-1 and rank-5 with 95 % bootstrap intervals over probes (gallery fixed), mean rank, and median distances.

    Args:
        distances: (P, G), smaller is nearer.  truth: (P,) column of each probe's subject.
        excluded: as for `ranks_of_truth`.
    """
    ranks = ranks_of_truth(distances, truth, excluded)
    rng = np.random.default_rng(seed)
    own = distances[np.arange(len(truth)), truth]
    others = distances.copy()
    others[np.arange(len(truth)), truth] = np.nan
    return {
        "num": len(truth),
        "rank1": float((ranks == 1).mean()),
        "rank1_interval": bootstrap_interval((ranks == 1).astype(float), rng),
        "rank5": float((ranks <= 5).mean()),
        "rank5_interval": bootstrap_interval((ranks <= 5).astype(float), rng),
        "mean_rank": float(ranks.mean()),
        "distance_own": float(np.median(own)),
        "distance_others": float(np.nanmedian(others)),
    }


def measure(config: CeilingConfig) -> dict[str, Any]:
    """All figures with what made them.

    Raises:
        ValueError: as its parts do (RecogniserError and ManifestError are such).
    """
    recogniser = Recogniser(rectangle=None) if config.detector else Recogniser()
    root = Path(config.data.root)
    gallery = gallery_of(root, config.gallery)
    kinds = probes_of(root, gallery, config.seed)

    def look(name: str, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        features = [
            recogniser.look(picture) for picture in tqdm(pictures, desc=name, unit="face", leave=False)
        ]
        descriptors, points = zip(*features, strict=True)
        return {"descriptor": np.stack(descriptors), "points": np.stack(points)}

    started = time.perf_counter()
    gallery_features = look("gallery", [pair.face for pair in gallery])
    figures: dict[str, Any] = {}
    for name, probes in kinds.items():
        features = look(name, probes.pictures)
        figures[name] = {
            judge: rank_figures(
                distance(features[judge], gallery_features[judge]), probes.truth, probes.excluded, config.seed
            )
            for judge, distance in JUDGES.items()
        }
    return {
        "config": config.model_dump(),
        "git": git_revision(),
        "recogniser": recogniser.identity,
        "gallery": len(gallery),
        "seconds": time.perf_counter() - started,
        "figures": figures,
    }


def table_of(record: dict[str, Any]) -> str:
    """Return a Markdown table with a line for each kind of probe."""
    header = ["probe", "probes"]
    for judge in JUDGES:
        header += [f"{judge}: rank-1 [95 %]", "rank-5 [95 %]", "mean rank", "own / others"]
    rows = []
    for name, by_judge in record["figures"].items():
        row = [name, str(by_judge["descriptor"]["num"])]
        for judge in JUDGES:
            f = by_judge[judge]
            for rank in ("rank1", "rank5"):
                low, high = f[f"{rank}_interval"]
                row.append(f"{100 * f[rank]:.1f} % [{100 * low:.0f}, {100 * high:.0f}]")
            row += [f"{f['mean_rank']:.1f}", f"{f['distance_own']:.3f} / {f['distance_others']:.3f}"]
        rows.append(row)
    size = record["gallery"]
    chance = [f"{100 / size:.1f} %", f"{500 / size:.1f} %", f"{(size + 1) / 2:.1f}", ""]
    return table(header, [*rows, ["chance", "", *chance, *chance]])


def work(config: CeilingConfig) -> None:
    """Measure, write OUT.json and print the table."""
    check_creatable(Path(config.out).parent)
    record = measure(config)
    out = write_figures(config.out, record)
    print(f"gallery of {record['gallery']}\n\n{table_of(record)}\n\nfigures: {out}")


def main(arguments: Sequence[str]) -> int:
    return run("model.ceiling", CeilingConfig, arguments, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
