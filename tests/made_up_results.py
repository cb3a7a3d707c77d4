"""Made-up results that look like real ones: people are points, faces are noisy copies of them, pictures are ovals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.biometrics import Biometrics
from data.images import write_png
from muti_control.evaluation.results.results import (
    CasePicture,
    Diversity,
    EditPicture,
    Evaluation,
    HashedFile,
    Measure,
    Method,
    NotRun,
    OutOfDistribution,
    Probe,
    Protocol,
    Recogniser,
    Sensitivity,
    ShownCase,
    Subject,
)
from muti_control.evaluation.results.statistics import ranks_of_truth
from muti_control.evaluation.results.summary import (
    Resampling,
    coverage,
    edit,
    groups_of,
    identification,
    measured,
)

METHODS = {  # name: (label, kind, note, share of the person in the face, noise)
    "model": ("ICCR model", "model", "The evaluated weights, told skull and prompt.", 0.62, 0.60),
    "ridge": ("PCA + ridge", "baseline", "Linear: skull picture and attributes to face picture.", 0.75, 0.55),
    "nearest": ("nearest skull's face", "baseline", "The face of the most similar training skull.", 0.4, 0.8),
    "mean_face": ("mean face", "baseline", "The mean training face.", 0.0, 0.01),
    "shuffled": ("model, skull of another", "control", "The skull of another person of the group.", 0.12, 0.7),
    "attributes": ("model, no skull", "control", "The control network is off.", 0.1, 0.7),
    "ceiling": ("ceiling", "ceiling", "The true bone under the soft tissue to be expected.", 0.95, 0.35),
    "ceiling_neutral": ("ceiling, neutral", "ceiling", "The same in a neutral style.", 0.9, 0.4),
    "turned": ("true face, turned", "limit", "Another view of the true face.", 0.97, 0.3),
}  # fmt: skip
MEASURES = (
    Measure("psnr", "PSNR", "dB", "higher", 2, "Against the true face, over the whole picture."),
    Measure("ssim", "SSIM", "", "higher", 3, "Against the true face, over the whole picture."),
    Measure("mean_absolute", "picture change", "grey levels", "", 2, "Mean absolute difference."),
    Measure("dlib", "descriptor change", "", "", 3, "Distance between dlib descriptors."),
)


WEIGHTS = HashedFile("models/demo/iccr_demo.safetensors", "ab" * 32)
SPACE = "dlib's 68 points, similarity-aligned, px"
RECOGNISERS = (
    Recogniser("dlib", "dlib descriptor", "Euclidean", "Blind to body mass.", {"dlib": "20"}, "ef" * 32),
    Recogniser("landmarks", "dlib's 68 points", "Procrustes", "A weak judge.", {"dlib": "20"}, "ef" * 32),
)


def oval(role: str, probe: int, size: int = 48) -> np.ndarray:
    """Return a picture (size, size) uint8 that depends on the role and the person."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    width = 0.5 + 0.02 * (probe % 7) + 0.02 * len(role)
    return (255 * np.clip(1.2 - (x / width) ** 2 - (y / 0.85) ** 2, 0, 1)).astype(np.uint8)


NUM, GALLERY, SEED = 60, 100, 0
PROTOCOL = Protocol(
    preset="quick",
    split="test",
    manifests=(HashedFile("split_data/test.json", "cd" * 32),),
    num_training=4000,
    gallery_size=GALLERY,
    gallery_subjects=tuple(str(i) for i in range(GALLERY)),
    confidence=0.95,
    bootstrap=500,
    seed=SEED,
    sampling={"steps": 20, "guidance_scale": 4.0},
    config={"num": NUM, "weights": WEIGHTS.path},
    cohort={"format": 7, "num_subjects": 5000},
    remarks=(f"The probes are a part of the test split: num={NUM}.",),
)


def made_up(folder: Path, gain: float = 0.0) -> Evaluation:
    """An evaluation whose pictures lie in ``folder``; nothing else is written.

    gain: how much better the model is than in ``METHODS``; all evaluations have the same probes.
    """
    rng = np.random.default_rng(SEED)
    faces = rng.standard_normal((GALLERY, 10))
    how = Resampling(500, SEED)
    probes = tuple(make_probes(NUM, rng))
    groups = [probe.groups for probe in probes]
    truth = np.arange(NUM)
    methods, nearest = [], {}
    for name, (label, kind, note, share, noise) in METHODS.items():
        share = share + gain if name == "model" else share
        ranked, figures = {}, {}
        for judge, blur in (("dlib", 1.0), ("landmarks", 1.9)):
            drawn = share * faces[:NUM] + blur * noise * rng.standard_normal((NUM, 10))
            distances = np.linalg.norm(drawn[:, None] - faces[None], axis=-1) / 10
            ranks = ranks_of_truth(distances, truth)
            own = distances[truth, truth]
            others, missed = distances.mean(axis=1), int(judge == "dlib")
            ranked[judge] = identification(ranks, GALLERY, groups, own, others, how=how, missed=missed)
            nearest.setdefault((name, judge), distances.argmin(axis=1))
        if kind not in ("control", "limit"):
            figures = {
                "psnr": measured(24 + 6 * share - 2 * noise + rng.normal(0, 1.5, NUM), how),
                "ssim": measured(0.7 + 0.2 * share - 0.1 * noise + rng.normal(0, 0.02, NUM), how),
            }
        seconds = 12.0 if kind == "model" else None
        methods.append(Method(name, label, kind, note, ranked, figures, seconds=seconds))

    model = methods[0].identification["dlib"]
    subset = np.arange(0, NUM, 2)
    several = {
        name: rng.geometric(p, (len(subset), 8)).clip(1, GALLERY)
        for name, p in (("model", 0.12), ("shuffled", 0.03))
    }
    joint = {name: np.minimum.accumulate(ranks, axis=1) for name, ranks in several.items()}
    edges = np.linspace(0, 8, 33)
    return Evaluation(
        title="Evaluation of iccr_demo on the cohort",
        date="2026-01-01T10:00:00+00:00",
        command=f"python evaluate.py weights={WEIGHTS.path} data.root=cohort preset=quick",
        seconds=1234.5,
        notice="An approximation, not an identification.",
        environment={"iccr_diff": "0.1.0", "torch": "2.11.0", "device": "cpu", "libraries": {"numpy": "2.0"}},
        subject=Subject("model", "iccr_demo", (WEIGHTS,), {"step": 20000}),
        protocol=PROTOCOL,
        probes=probes,
        recognisers=RECOGNISERS,
        measures=MEASURES,
        methods=tuple(methods),
        not_run=(NotRun("pix2pix", "Pix2Pix", "No weights."), NotRun("kid", "KID", "No feature network.")),
        coverage=tuple(coverage("dlib", several, within, subset.tolist(), how, joint) for within in (1, 5)),
        diversity=(Diversity("model", 8, {"mean_absolute": measured(rng.gamma(9, 0.5, NUM), how)}),),
        edits=tuple(make_edits(folder, rng, how)),
        sensitivity=tuple(make_sensitivity(rng, how)),
        ood=OutOfDistribution(
            score="distance to the mean training skull, in standard deviations of its components",
            threshold=4.0,
            rule="the 99th percentile of the validation skulls",
            num_reference=200,
            edges=tuple(edges.tolist()),
            reference=tuple((np.histogram(rng.gamma(6, 0.3, 200), edges)[0] / 200).tolist()),
        ),
        cases=tuple(make_cases(folder, model, nearest["model", "dlib"])),
    )


def make_sensitivity(rng: np.random.Generator, how: Resampling, num: int = NUM):
    changes = ("skull", "of another person", 1.0), ("body mass", "two levels up", 0.6)
    for name, change, size in (*changes, ("noise", "another seed", 0.8)):
        scales = {"mean_absolute": 0.5, "dlib": 0.02}
        measures = {key: measured(rng.gamma(9 * size, scale, num), how) for key, scale in scales.items()}
        yield Sensitivity("model", name, change, measures)


def make_probes(num: int, rng: np.random.Generator) -> Iterator[Probe]:
    for i in range(num):
        sex, age = "female" if rng.uniform() < 0.5 else "male", round(rng.uniform(8, 88), 1)
        person = Biometrics(sex, age, "Asian", int(rng.integers(1, 6)))
        yield Probe(
            f"{i}_0.png", str(i), f"{i:064x}", f"{i + 1000:064x}", person.sex, person.age, person.ethnicity,
            person.body_mass, groups_of(person), float(rng.gamma(6, 0.32)) + 3 * (i % 29 == 28),
        )  # fmt: skip


def make_edits(folder: Path, rng: np.random.Generator, how: Resampling, num: int = NUM):
    before = rng.uniform(60, 200, (num, 68, 2))
    change = rng.normal(0, 2, (num, 68, 2))
    shown = [
        EditPicture(i, *(save(folder, role, i) for role in ("reconstruction", "edited", "truth", "variant")),
                    "body mass 2 to 4")
        for i in range(2)
    ]  # fmt: skip
    edits = ("body_mass+2", "body mass two levels up", 0.6), ("age+1", "age one level up", 0.2)
    for name, label, part in edits:
        noisy = before + part * change + rng.normal(0, 0.8, change.shape)
        yield edit(
            "model", name, label, SPACE, (before, noisy), (before, before + change),
            range(num), rng.uniform(size=num) < 0.4, rng.uniform(size=num) < 0.5, shown if part > 0.5 else (), how,
        )  # fmt: skip


def make_cases(folder: Path, figures, nearest: np.ndarray, num: int = 2):
    order = np.argsort(figures.ranks, kind="stable")
    middle = len(order) // 2
    parts = {"best": order[:num], "median": order[middle : middle + num], "worst": order[-num:]}
    for kind, chosen in parts.items():
        for i in chosen.tolist():
            people = {"skull": i, "reconstruction": i, "truth": i, "nearest": int(nearest[i]), "ridge": i}
            pictures = tuple(
                CasePicture(role, f"the {role}", save(folder, role, who), f"subject {who}")
                for role, who in people.items()
            )
            yield ShownCase(kind, i, "model", "dlib", int(figures.ranks[i]), figures.distances[i], pictures)


def save(folder: Path, role: str, probe: int) -> str:
    """Write the picture as PNG; its path relative to the folder."""
    path = folder / "pictures" / f"{probe}_{role}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, oval(role, probe))
    return path.relative_to(folder).as_posix()
