"""What the skull tells of the face and of its owner, by a linear method: how strong the cohort's signal is.

    python -m benchmarks.cohort.signal [key=value ...]
    python -m benchmarks.cohort.signal cohort=cohort

A ridge regression on principal components is fitted on some subjects and asked about others, pose fixed, several
times over. Faces: the 106 landmarks (px, as they lie in the picture) or the picture in 64 x 64 blocks. The true face's
rank is its place among the gallery's faces by distance in the face's principal components. Attributes are sex, age in
years, ethnicity and body mass: the BMI where the cohort recorded it, else the level.
The controls are attributes only, and skulls permuted among the training subjects, which must do as well as chance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.cohort.cohort_pictures import SPLITS, Shown, blocks, read_cohort
from benchmarks.cohort.norms import AGE_FROM_SKULL, SEX_FROM_SKULL
from cldm.record import write_json
from ldm.checkpoint import git_revision
from ldm.config import parse_command_line
from muti_control.evaluation.methods.baselines import Components
from muti_control.evaluation.results.statistics import ranks_of_truth

Floats = NDArray[np.floating]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge penalty, per training subject
INPUTS = ("skull + attributes", "skull only", "attributes only", "permuted")
SIDE = 64


@dataclass
class SignalConfig:
    """What is measured.

    cohort: folder of `python -m data.cohort`; all its frontal pairs are used.
    train, gallery: subjects that are learned from and asked about in each repetition.
    repetitions: random partitions of the subjects. The figures are means over them.
    components: of skull and face each.  seed: of the partitions.  out: OUT.json.
    """

    cohort: str = "cohort"
    train: int = 300
    gallery: int = 100
    repetitions: int = 10
    components: int = 60
    seed: int = 0
    out: str = "benchmarks/results/signal"

    def check(self) -> None:
        """Raises: ValueError naming the setting."""
        if min(self.train, self.gallery, self.repetitions, self.components) < 2:
            raise ValueError(
                f"train={self.train}, gallery={self.gallery}, repetitions={self.repetitions}, "
                f"components={self.components}: expected at least 2 of each"
            )


@dataclass(frozen=True)
class People:
    """Arrays over subjects: skulls (N, S), attributes (N, A) standardised, faces by kind (N, D), facts by name (N,)."""

    skulls: Floats
    attributes: Floats
    faces: dict[str, Floats]
    facts: dict[str, Floats]


def people_of(shown: Sequence[Shown]) -> People:
    """Features of the pairs."""
    sex = np.array([s.record.biometrics.sex == "female" for s in shown], float)
    age = np.array([s.record.biometrics.age for s in shown], float)
    mass = np.array([s.known.get("bmi", s.record.biometrics.body_mass) for s in shown], float)
    ethnicity = [s.record.biometrics.ethnicity for s in shown]
    columns = [
        sex,
        age,
        mass,
        *(np.array([e == kind for e in ethnicity], float) for kind in sorted(set(ethnicity))[1:]),
    ]
    attributes = np.stack(columns, 1)
    return People(
        skulls=blocks([s.skull for s in shown], SIDE),
        attributes=(attributes - attributes.mean(0)) / np.maximum(attributes.std(0), 1e-9),
        faces={
            "landmarks": np.stack([s.landmarks.ravel() for s in shown]).astype(float),
            "picture": blocks([s.face for s in shown], SIDE),
        },
        facts={"sex": sex, "age": age, "body mass": mass},
    )


def ridge(inputs: Floats, targets: Floats, asked: Floats, groups: int = 4) -> Floats:
    """Predictions (P, T) for ``asked`` (P, I); the penalty is the one of STRENGTHS with the least error in cross-
    validation over ``groups`` parts of the training rows (N, I), (N, T)."""

    def solve(x: Floats, y: Floats, z: Floats, strength: float) -> Floats:
        mx, my = x.mean(0), y.mean(0)
        gram = (x - mx).T @ (x - mx) + strength * len(x) * np.eye(x.shape[1])
        return (z - mx) @ np.linalg.solve(gram, (x - mx).T @ (y - my)) + my

    part = np.arange(len(inputs)) % groups
    errors = [
        sum(
            (
                (solve(inputs[part != k], targets[part != k], inputs[part == k], s) - targets[part == k]) ** 2
            ).sum()
            for k in range(groups)
        )
        for s in STRENGTHS
    ]
    return solve(inputs, targets, asked, STRENGTHS[int(np.argmin(errors))])


def r_squared(predicted: Floats, truth: Floats, mean: Floats) -> float:
    """Share of the variance about the training mean that is explained, over all columns together."""
    return float(1 - ((predicted - truth) ** 2).sum() / ((truth - mean) ** 2).sum())


def area_under_curve(scores: Floats, labels: Floats) -> float:
    """Chance that a random 1 scores above a random 0, ties half (Mann-Whitney)."""
    ones, zeros = scores[labels == 1], scores[labels == 0]
    above = (ones[:, None] > zeros[None]).mean() + 0.5 * (ones[:, None] == zeros[None]).mean()
    return float(above)


def one_partition(
    people: People,
    train: NDArray[np.integer],
    asked: NDArray[np.integer],
    components: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """All figures of one partition, by name."""
    skull = Components.fit(people.skulls[train], components)
    bone, bone_asked = (skull.project(people.skulls[rows]) / skull.deviations[0] for rows in (train, asked))
    known, known_asked = 0.5 * people.attributes[train], 0.5 * people.attributes[asked]
    mixed = rng.permutation(len(train))
    result: dict[str, float] = {}
    for kind, faces in people.faces.items():
        face = Components.fit(faces[train], components)
        scores, truth = face.project(faces[train]), face.project(faces[asked])
        inputs = {
            "skull + attributes": (np.hstack([bone, known]), np.hstack([bone_asked, known_asked]), scores),
            "skull only": (bone, bone_asked, scores),
            "attributes only": (known, known_asked, scores),
            "permuted": (np.hstack([bone, known]), np.hstack([bone_asked, known_asked]), scores[mixed]),
        }
        for name, (given, given_asked, target) in inputs.items():
            predicted = ridge(given, target, given_asked)
            distances = np.linalg.norm(predicted[:, None] - truth[None], axis=-1)
            ranks = ranks_of_truth(distances, np.arange(len(asked)))
            result[f"{kind}: {name}: rank1"] = float((ranks == 1).mean())
            result[f"{kind}: {name}: rank5"] = float((ranks <= 5).mean())
            result[f"{kind}: {name}: R2"] = r_squared(predicted, truth, np.zeros(truth.shape[1]))
    for fact, values in people.facts.items():
        answer = ridge(bone, values[train, None], bone_asked)[:, 0]
        result[f"skull -> {fact}: R2"] = r_squared(answer, values[asked], values[train].mean())
        if fact == "sex":
            result["skull -> sex: right"] = float(((answer > 0.5) == (values[asked] == 1)).mean())
            result["skull -> sex: AUC"] = area_under_curve(answer, values[asked])
        else:
            result[f"skull -> {fact}: mean error"] = float(np.abs(answer - values[asked]).mean())
    return result


def measure(config: SignalConfig, people: People, progress: bool = True) -> dict[str, dict[str, float]]:
    """Mean and 2.5th and 97.5th percentile over the partitions, by name.

    Raises:
        ValueError: too few subjects.
    """
    total = len(people.skulls)
    if config.train + config.gallery > total:
        raise ValueError(
            f"train={config.train} and gallery={config.gallery} need {config.train + config.gallery} subjects, but "
            f"the cohort has {total}"
        )
    rng = np.random.default_rng(config.seed)
    rows: list[dict[str, float]] = []
    for _ in tqdm(range(config.repetitions), unit="partition", disable=not progress):
        order = rng.permutation(total)
        train, asked = order[: config.train], order[config.train : config.train + config.gallery]
        rows.append(one_partition(people, train, asked, config.components, rng))
    result = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        low, high = np.percentile(values, [2.5, 97.5])
        result[name] = {"mean": float(values.mean()), "low": float(low), "high": float(high)}
    return result


def tables(found: dict[str, dict[str, float]]) -> str:
    """Two Markdown tables: skull -> face, and skull -> its owner."""

    def cell(name: str, scale: float, digits: int) -> str:
        f = found[name]
        low, high = scale * f["low"], scale * f["high"]
        return f"{scale * f['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = ["| face as | told | rank-1, % | rank-5, % | R2 |", "|---" * 5 + "|"]
    for kind in dict.fromkeys(name.split(":")[0] for name in found if "->" not in name):
        for told in INPUTS:
            key = f"{kind}: {told}"
            parts = [cell(f"{key}: rank1", 100, 0), cell(f"{key}: rank5", 100, 0), cell(f"{key}: R2", 1, 2)]
            lines.append(f"| {kind} | {told} | " + " | ".join(parts) + " |")
    sexes = ", ".join(f"{100 * share:.0f} % {source}" for source, share in SEX_FROM_SKULL.items())
    ages = ", ".join(f"R2 {r2:.2f} {source}" for source, r2 in AGE_FROM_SKULL.items())
    lines += ["", "| skull -> | | real skulls |", "|---" * 3 + "|"]
    lines.append(f"| sex, % right | {cell('skull -> sex: right', 100, 1)} | {sexes} |")
    lines.append(f"| sex, AUC | {cell('skull -> sex: AUC', 1, 3)} | |")
    lines.append(f"| age, R2 | {cell('skull -> age: R2', 1, 2)} | {ages} |")
    lines.append(f"| age, mean error in years | {cell('skull -> age: mean error', 1, 1)} | |")
    lines.append(f"| body mass, R2 | {cell('skull -> body mass: R2', 1, 2)} | 0 wanted |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 (130: interrupted) with one message on stderr."""
    try:
        config = parse_command_line(SignalConfig, arguments)
        config.check()
        out = Path(config.out).with_suffix(".json")
        out.parent.mkdir(parents=True, exist_ok=True)
        shown = [pair for split in SPLITS for pair in read_cohort(Path(config.cohort), split)]
        found = measure(config, people_of(shown))
        write_json(
            out, {"config": asdict(config), "git": git_revision(), "num": len(shown), "figures": found}
        )
    except (ValueError, OSError) as error:
        print(f"signal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsignal: interrupted; no figures were written", file=sys.stderr)
        return 130
    print(
        f"{len(shown)} subjects; mean [2.5th, 97.5th percentile] over partitions\n\n{tables(found)}\n\nfigures: {out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
