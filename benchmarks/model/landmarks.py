"""Measure the landmark networks on faces, and on skulls with biometrics, beside ridge regression and the mean face.

    python -m benchmarks.model.landmarks data.root=cohort [key=value ...]

On the test split of a cohort, all methods on the same subjects: normalised mean error (over the distance of the outer
eye corners) and its cumulative distribution (CED); paired bootstrap intervals over subjects of ridge minus network.
Ridge gets the same skull pictures and attributes and is chosen on validation. Where the cohort has expected faces
(`ceiling=true`) their landmarks are the floor: bone and prompt tell no more. The skulls' network also reads skulls with
bone missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from benchmarks.model.ridge_landmarks import Inputs, fit_ridge
from benchmarks.results_file import run, table, write_figures
from data.landmarks import landmark_fractions
from data.manifest import Record, read_manifest
from data.partial import DRAWN, REGIONS, holds_skull, missing_bone
from ldm.checkpoint import git_revision
from muti_control.case.calibrate import DataSettings
from muti_control.evaluation.results.statistics import bootstrap_interval
from muti_control.networks.config import EyeCorners
from muti_control.networks.pipnet.measures import CED_LIMIT, ced, ced_area, draw_points, eye_corners, nme
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training.crossfit import read_all
from muti_control.training.landmark_pairs import LandmarkDataset
from muti_control.training.pictures import write_grid
from settings.base import Settings

Floats = NDArray[np.floating]
SIDE = 256


class LandmarksConfig(Settings):
    """What is measured."""

    data: DataSettings = DataSettings(root="cohort")
    split: Literal["test", "valid"] = "test"
    """List of the people."""
    face: str = "models/demo/pipnet_face.safetensors"
    """Network that reads landmarks off faces."""
    skull: str = "models/demo/pipnet_skull.safetensors"
    """Network that reads the face's landmarks off skulls."""
    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Draws of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    eye_corners: EyeCorners | None = None
    """Indices of the outer eye corners; null takes those of a known layout."""
    out: str = "benchmarks/results/landmarks"
    """OUT.json, OUT_ced.png, OUT_faces.png and OUT_skulls.png are written."""


class WithoutBone(LandmarkDataset):
    """Skulls without a region of bone; where it is cut follows from the place in the set."""

    def __init__(
        self, records: Sequence[Record], size: int, ethnicities: Sequence[str] | None, region: str
    ) -> None:
        super().__init__(records, "skull", size, ethnicities)
        self.region = region

    def picture(self, index: int) -> Tensor:
        picture = super().picture(index)  # (C, H, W) uint8
        bone = (picture.amax(0) > 255 * DRAWN).numpy()
        if not holds_skull(bone):
            return picture
        away = torch.from_numpy(missing_bone(bone, self.region, index).copy())
        return torch.where(away, torch.zeros_like(picture), picture)


def expected_points(root: Path, records: Sequence[Record]) -> Floats | None:
    """Points (M, N, 2) of the cohort's expected faces, or None where it has none for these subjects."""
    manifest = root / "split_data" / "ceiling.json"
    if not manifest.is_file():
        return None
    expected = {record.subject: record for record in read_manifest(manifest)}
    if any(record.subject not in expected for record in records):
        return None
    return np.stack([landmark_fractions(expected[record.subject])[0] for record in records])


def write_faces(path: Path, data: LandmarkDataset, points: Floats, errors: Floats) -> None:
    """Write the best, the middle and the worst subjects, true points in green, the network's in red."""
    order = np.argsort(errors)
    middle = len(order) // 2
    rows = []
    for chosen in (order[:4], order[middle - 2 : middle + 2], order[-4:]):
        pictures = torch.stack([data.picture(int(i)).expand(3, -1, -1).float() / 255 for i in chosen])
        rows.append(draw_points(pictures, torch.from_numpy(points[chosen]), data.points[chosen]))
    write_grid(path, rows)


def plot_ced(path: Path, errors: dict[str, Floats]) -> None:
    """Draw the cumulative error distributions of all methods."""
    figure = Figure(figsize=(6.4, 4.2), layout="tight")
    axis = figure.subplots()
    for name, values in errors.items():
        limits, share = ced(values)
        axis.plot(100 * limits, 100 * share, label=f"{name} ({100 * values.mean():.2f} %)")
    axis.set(
        xlim=(0, 100 * CED_LIMIT),
        xlabel="normalised mean error, % of the distance of the outer eye corners",
        ylabel="subjects within it, %",
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def measure(config: LandmarksConfig, out: Path) -> dict[str, Any]:
    """All figures; writes the pictures too.

    Raises:
        ValueError: files or data that cannot be used.
    """
    root = Path(config.data.root)
    face, skull = LandmarkReader.load(config.face), LandmarkReader.load(config.skull)
    lists = {
        part: read_manifest(root / "split_data" / f"{part}.json") for part in {"train", "valid", config.split}
    }
    ethnicities = skull.net.cfg.ethnicities or sorted({r.biometrics.ethnicity for r in lists["train"]})
    skulls = LandmarkDataset(lists[config.split], "skull", SIDE, ethnicities)
    faces = LandmarkDataset(lists[config.split], "face", SIDE)
    corners = eye_corners(skulls.points.shape[1], config.eye_corners)

    points: dict[str, Floats] = {"face: network": read_all(face, faces)[0]}
    points["skull: network"] = read_all(skull, skulls)[0]
    points["skull: network, biometrics withheld"] = read_all(skull, skulls, informed=False)[0]
    for region in REGIONS:
        damaged = WithoutBone(lists[config.split], SIDE, ethnicities, region)
        points[f"skull without {region}: network"] = read_all(skull, damaged)[0]
    inputs = {
        part: Inputs.of(LandmarkDataset(records, "skull", SIDE, ethnicities))
        for part, records in lists.items()
    }
    ridge = fit_ridge(inputs["train"], inputs["valid"], corners)
    points["skull: ridge"] = ridge(inputs[config.split])
    points["mean face"] = np.broadcast_to(inputs["train"].points.mean(0), skulls.points.shape).copy()
    if (expected := expected_points(root, skulls.records)) is not None:
        points["expected face (floor)"] = expected

    def mean(values: Floats) -> dict[str, Any]:
        generator = np.random.default_rng(config.seed)
        interval = bootstrap_interval(values, generator, config.resamples)
        return {"mean": float(values.mean()), "interval": interval}

    errors = {
        name: nme(torch.from_numpy(result).to(skulls.points), skulls.points, corners).numpy()
        for name, result in points.items()
    }
    gain = errors["skull: ridge"] - errors["skull: network"]
    plot_ced(out.with_name(out.name + "_ced.png"), errors)
    for role, data in (("face", faces), ("skull", skulls)):
        name = f"{role}: network"
        write_faces(out.with_name(f"{out.name}_{role}s.png"), data, points[name], errors[name])
    return {
        "num": len(skulls),
        "nme": {
            name: mean(values)
            | {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}
            | {"ced_area": ced_area(values)}
            for name, values in errors.items()
        },
        "ridge_minus_network": mean(gain) | {"better": float((gain > 0).mean())},
        "ridge": {"components": ridge.components, "strength": ridge.strength, "products": ridge.crossed},
    }


def table_of(result: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = []
    for name, f in result["nme"].items():
        low, high = f["interval"]
        mean = f"{100 * f['mean']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
        rows.append(
            [name, mean, *(f"{100 * f[key]:.2f}" for key in ("median", "p95")), f"{f['ced_area']:.3f}"]
        )
    header = ["landmarks of the face from", "NME, % [95 %]", "median", "95th percentile", "CED area"]
    gain = result["ridge_minus_network"]
    low, high = gain["interval"]
    return (
        f"{table(header, rows)}\n\n"
        f"ridge minus network, paired: {100 * gain['mean']:.3f} [{100 * low:.3f}, {100 * high:.3f}] percentage "
        f"points; the network is nearer for {100 * gain['better']:.0f} % of subjects. Ridge: {result['ridge']}"
    )


def work(config: LandmarksConfig) -> None:
    """Measure, write the pictures and OUT.json, and print the table."""
    out = Path(config.out).with_suffix("")
    out.parent.mkdir(parents=True, exist_ok=True)
    result = measure(config, out)
    file = write_figures(config.out, {"config": config.model_dump(), "git": git_revision(), **result})
    print(f"{result['num']} subjects of {config.split}\n\n{table_of(result)}\n\nfigures: {file}")


def main(arguments: Sequence[str]) -> int:
    return run("model.landmarks", LandmarksConfig, arguments, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
