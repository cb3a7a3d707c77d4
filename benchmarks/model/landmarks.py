"""How well the landmark networks read: on faces, and on skulls with biometrics, beside ridge and the mean face.

    python -m benchmarks.model.landmarks cohort=cohort [key=value ...]

On the test split of a cohort, all methods on the same subjects: normalised mean error (over the distance of the outer
eye corners) and its cumulative distribution (CED); paired bootstrap intervals over subjects of ridge minus network.
Ridge gets the same skull pictures and attributes and is chosen on validation. Where the cohort has expected faces
(`ceiling=true`) their landmarks are the floor: bone and prompt tell no more. The skulls' network reads them with bone
missing as well. Also how much faster the batched read-out
is than one point of one picture at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from muti_control.networks.config import EyeCorners
from settings.base import Settings

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.model.ridge_landmarks import Inputs, fit_ridge
from cldm.record import write_json
from data.landmarks import landmark_fractions
from data.manifest import Record, read_manifest
from data.partial import DRAWN, REGIONS, holds_skull, missing_bone
from ldm.checkpoint import git_revision
from muti_control.networks.pipnet.attributes import vocabulary
from muti_control.networks.pipnet.drawing import draw_points
from muti_control.networks.pipnet.measures import CED_LIMIT, ced, ced_area, eye_corners, nme
from muti_control.networks.pipnet.network import Maps
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.networks.pipnet.readout import read_points
from muti_control.training.crossfit import read_all
from muti_control.training.landmark_pairs import LandmarkDataset
from muti_control.training.pictures import write_grid
from settings.reading import parse_command_line

Floats = NDArray[np.floating]
SIDE = 256


class LandmarksConfig(Settings):
    """What is measured.

    cohort: folder of `python -m data.cohort`. split: the subjects that are asked about.
    face, skull: files of the two networks. resamples: of the bootstrap. seed: of it.
    eye_corners: indices of the outer eye corners; null: those of a known layout.
    out: OUT.json, OUT_ced.png and OUT_faces.png, OUT_skulls.png.
    """

    cohort: str = "cohort"
    split: Literal["test", "valid"] = "test"
    face: str = "models/demo/pipnet_face.safetensors"
    skull: str = "models/demo/pipnet_skull.safetensors"
    resamples: Annotated[int, Field(ge=100)] = 10_000
    seed: int = 0
    eye_corners: EyeCorners | None = None
    out: str = "benchmarks/results/landmarks"


class WithoutBone(LandmarkDataset):
    """Skulls without a region of bone; where it is cut follows from the place in the set."""

    def __init__(
        self, records: Sequence[Record], size: int, ethnicities: Sequence[str] | None, region: str
    ) -> None:
        super().__init__(records, "skull", size, ethnicities)
        self.region = region

    def picture(self, index: int) -> Tensor:
        picture = super().picture(index)  # (C, H, W) uint8
        drawn = (picture.amax(0) > 255 * DRAWN).numpy()
        if not holds_skull(drawn):
            return picture
        away = torch.from_numpy(missing_bone(drawn, self.region, index).copy())
        return torch.where(away, torch.zeros_like(picture), picture)


def interval(values: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over subjects."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def expected_points(root: Path, records: Sequence[Record]) -> Floats | None:
    """Points (M, N, 2) of the cohort's expected faces, or None where it has none for these subjects."""
    manifest = root / "split_data" / "ceiling.json"
    if not manifest.is_file():
        return None
    known = {record.subject: record for record in read_manifest(manifest)}
    if any(record.subject not in known for record in records):
        return None
    return np.stack([landmark_fractions(known[record.subject])[0] for record in records])


def errors_of(points: Floats, data: LandmarkDataset, corners: tuple[int, int]) -> Floats:
    """Normalised mean error of each subject (M,)."""
    return nme(torch.from_numpy(points).to(data.points), data.points, corners).numpy()


def loop_read_out(maps: Maps, reverse: Tensor) -> Tensor:
    """The read-out, one point of one picture at a time: what the batched one is timed against."""
    batch, num, grid = maps.score.shape[:3]
    k = maps.nb_x.shape[1] // num
    points = torch.zeros(batch, num, 2)
    for b in range(batch):
        said = torch.zeros(num * k, 2)
        own = torch.zeros(num, 2)
        for i in range(num):
            row, column = divmod(int(maps.score[b, i].argmax()), grid)
            own[i, 0] = column + maps.x[b, i, row, column]
            own[i, 1] = row + maps.y[b, i, row, column]
            said[i * k : (i + 1) * k, 0] = column + maps.nb_x[b, i * k : (i + 1) * k, row, column]
            said[i * k : (i + 1) * k, 1] = row + maps.nb_y[b, i * k : (i + 1) * k, row, column]
        for i in range(num):
            heard = said[reverse[i]] if reverse[i, 0] >= 0 else own[i : i + 1]
            points[b, i] = torch.cat([own[i : i + 1], heard]).mean(0)
    return points / grid


@torch.no_grad()
def read_out_ratio(reader: LandmarkReader, batch: int = 32, repetitions: int = 5) -> dict[str, float]:
    """Milliseconds of both read-outs for one batch (best of several), their ratio, their largest difference in px."""
    maps = reader.net(torch.rand(batch, 1, SIDE, SIDE))
    took = {"batched": float("inf"), "loop": float("inf")}
    for name, read in (("batched", lambda: read_points(maps, reader.reverse)[0]), ("loop", None)):
        for _ in range(repetitions):
            start = time.perf_counter()
            found = read() if read is not None else loop_read_out(maps, reader.reverse)
            took[name] = min(took[name], time.perf_counter() - start)
        if name == "batched":
            batched = found
    return {
        "batched_ms": 1000 * took["batched"],
        "loop_ms": 1000 * took["loop"],
        "ratio": took["loop"] / took["batched"],
        "difference_px": float((found - batched).abs().max()) * SIDE,
    }


def show(path: Path, data: LandmarkDataset, points: Floats, errors: Floats) -> None:
    """The best, the middle and the worst subjects, true points in green, the network's in red."""
    order = np.argsort(errors)
    middle = len(order) // 2
    rows = []
    for chosen in (order[:4], order[middle - 2 : middle + 2], order[-4:]):
        pictures = torch.stack([data.picture(int(i)).expand(3, -1, -1).float() / 255 for i in chosen])
        rows.append(draw_points(pictures, torch.from_numpy(points[chosen]), data.points[chosen]))
    write_grid(path, rows)


def plot_ced(path: Path, errors: dict[str, Floats]) -> None:
    """The cumulative error distributions of all methods."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    for name, values in errors.items():
        limits, share = ced(values)
        axis.plot(100 * limits, 100 * share, label=f"{name} ({100 * values.mean():.2f} %)")
    axis.set_xlim(0, 100 * CED_LIMIT)
    axis.set_xlabel("normalised mean error, % of the distance of the outer eye corners")
    axis.set_ylabel("subjects within it, %")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measure(config: LandmarksConfig, out: Path) -> dict[str, Any]:
    """All figures; writes the pictures too.

    Raises:
        ValueError: files or data that cannot be used.
    """
    root = Path(config.cohort)
    face, skull = LandmarkReader.load(config.face), LandmarkReader.load(config.skull)
    lists = {
        part: read_manifest(root / "split_data" / f"{part}.json") for part in {"train", "valid", config.split}
    }
    known = skull.net.cfg.ethnicities or vocabulary(r.biometrics for r in lists["train"])
    asked = LandmarkDataset(lists[config.split], "skull", SIDE, known)
    faces = LandmarkDataset(lists[config.split], "face", SIDE)
    given = (config.eye_corners[0], config.eye_corners[1]) if config.eye_corners else None
    corners = eye_corners(asked.points.shape[1], given)

    points: dict[str, Floats] = {"face: network": read_all(face, faces)[0]}
    points["skull: network"] = read_all(skull, asked)[0]
    points["skull: network, biometrics withheld"] = read_all(skull, asked, informed=False)[0]
    for region in REGIONS:
        damaged = WithoutBone(lists[config.split], SIDE, known, region)
        points[f"skull without {region}: network"] = read_all(skull, damaged)[0]
    sets = {
        part: asked if part == config.split else LandmarkDataset(lists[part], "skull", SIDE, known)
        for part in lists
    }
    inputs = {part: Inputs.of(data) for part, data in sets.items()}
    ridge = fit_ridge(inputs["train"], inputs["valid"], corners)
    points["skull: ridge"] = ridge(inputs[config.split])
    points["mean face"] = np.broadcast_to(inputs["train"].points.mean(0), asked.points.shape).copy()
    if (expected := expected_points(root, asked.records)) is not None:
        points["expected face (floor)"] = expected

    errors = {name: errors_of(found, asked, corners) for name, found in points.items()}
    gain = errors["skull: ridge"] - errors["skull: network"]
    plot_ced(out.with_name(out.name + "_ced.png"), errors)
    show(out.with_name(out.name + "_faces.png"), faces, points["face: network"], errors["face: network"])
    show(out.with_name(out.name + "_skulls.png"), asked, points["skull: network"], errors["skull: network"])
    return {
        "num": len(asked),
        "nme": {
            name: {
                "mean": float(values.mean()),
                "interval": interval(values, config.resamples, config.seed),
                "median": float(np.median(values)),
                "p95": float(np.percentile(values, 95)),
                "ced_area": ced_area(values),
            }
            for name, values in errors.items()
        },
        "ridge_minus_network": {
            "mean": float(gain.mean()),
            "interval": interval(gain, config.resamples, config.seed),
            "better": float((gain > 0).mean()),
        },
        "ridge": {"components": ridge.components, "strength": ridge.strength, "products": ridge.crossed},
        "read_out": read_out_ratio(skull),
    }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| landmarks of the face from | NME, % [95 %] | median | 95th percentile | CED area |",
        "|---" * 5 + "|",
    ]
    for name, f in found["nme"].items():
        low, high = f["interval"]
        lines.append(
            f"| {name} | {100 * f['mean']:.2f} [{100 * low:.2f}, {100 * high:.2f}] | {100 * f['median']:.2f} | "
            f"{100 * f['p95']:.2f} | {f['ced_area']:.3f} |"
        )
    gain, read = found["ridge_minus_network"], found["read_out"]
    low, high = gain["interval"]
    lines.append(
        f"\nridge minus network, paired: {100 * gain['mean']:.3f} [{100 * low:.3f}, {100 * high:.3f}] percentage "
        f"points; the network is nearer for {100 * gain['better']:.0f} % of subjects. Ridge: {found['ridge']}"
    )
    lines.append(
        f"read-out of 32 pictures: {read['batched_ms']:.1f} ms batched, {read['loop_ms']:.0f} ms in a loop "
        f"({read['ratio']:.0f} times), at most {read['difference_px']:.1g} px apart"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 (130: interrupted) with one message on stderr."""
    try:
        config = parse_command_line(LandmarksConfig, arguments)
        out = Path(config.out).with_suffix("")
        out.parent.mkdir(parents=True, exist_ok=True)
        found = measure(config, out)
        write_json(out.with_suffix(".json"), {"config": config.model_dump(), "git": git_revision(), **found})
    except (ValueError, OSError) as error:
        print(f"landmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlandmarks: interrupted; no figures were written", file=sys.stderr)
        return 130
    print(f"{found['num']} subjects of {config.split}\n\n{table(found)}\n\nfigures: {out}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
