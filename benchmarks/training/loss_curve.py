"""The loss and validation curves of a run, over all its starts, as one picture.

    python -m benchmarks.training.loss_curve RUN_DIR OUT.png

Reads RUN_DIR/csv/version_*/metrics.csv: one log for every start of the run. Where a resumed run repeats steps that a
kill had cut off before they were saved, both lines are drawn.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Curve = list[tuple[int, float]]


def read_curves(run_dir: Path) -> dict[str, list[Curve]]:
    """For every logged quantity, one curve (step, value) per start of the run.

    Raises:
        FileNotFoundError: the folder holds no log.
    """
    logs = sorted(
        run_dir.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])
    )
    if not logs:
        raise FileNotFoundError(
            f"{run_dir} holds no csv/version_*/metrics.csv: is it a folder that train.py wrote?"
        )
    curves: dict[str, list[Curve]] = {}
    for log in logs:
        found: dict[str, Curve] = {}
        with log.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name.startswith(("train/", "valid/")):
                        found.setdefault(name, []).append((int(row["step"]) + 1, float(value)))
        for name, curve in found.items():
            curves.setdefault(name, []).append(curve)
    return curves


def plot(curves: dict[str, list[Curve]], out: Path) -> None:
    """One panel per quantity, a colour per start, the training loss on a logarithmic axis."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2), squeeze=False)
    for axis, (name, starts) in zip(axes[0], sorted(curves.items()), strict=True):
        for curve in starts:
            axis.plot(*zip(*curve, strict=True), marker="." if len(curve) < 30 else "", linewidth=0.9)
        axis.set_title(name)
        axis.set_xlabel("optimizer steps")
        if name == "train/loss":
            axis.set_yscale("log")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)


def main(argv: list[str]) -> int:
    """Exit status: 0, or 2 for a wrong command line or folder."""
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        plot(read_curves(Path(argv[0])), Path(argv[1]))
    except OSError as error:
        print(f"loss_curve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
