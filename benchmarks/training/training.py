"""Time a step of control training beside the published code's way, on the same random weights at SD1.5 size.

    python -m benchmarks.training.training                            one picture a step
    python -m benchmarks.training.training device=cuda batch=22 rounds=3 reps=10 append=true
    python -m benchmarks.training.training variants=[original_losses,ours_losses,ours_losses_recompute]

The same loss in the variants that are compared: of the noise alone, or (``_losses``) with realism, feature matching and
landmarks of decoded faces: the published code decodes every face and gets no gradient for it; ours decodes up to four
of a batch with a gradient, and trains the discriminator. ``original``: fp32; autoencoder and text encoder at every
step; gradients of the UNet's decoder that no optimizer takes; residual and transformer layers recomputed, attention by
its matrix, as the published configuration says. ``original_stored``: the same without recomputation. ``ours``: what
train.py does.
Each runs in a process of its own, in turns. The medians and the peaks of the memory are compared. On a busy machine:
clock=cpu num_threads=1.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from tqdm import tqdm

from benchmarks.results_file import append_section, run, table, write_figures
from benchmarks.training.training_steps import WAYS
from cldm.controlled import SD15_CONFIG
from ldm.device import choose_device
from muti_control.record import check_creatable
from settings.base import Settings, one_of

CLOCKS = {"wall": "seconds", "cpu": "cpu_seconds"}


class TrainingConfig(Settings):
    """What is timed."""

    model: str = str(SD15_CONFIG)
    """YAML of the architecture."""
    device: str = "auto"
    """auto, cpu, cuda."""
    size: PositiveInt = 256
    """Side of the pictures, px."""
    batch_size: PositiveInt = 1
    """Pictures of a step."""
    variants: Annotated[list[Annotated[str, one_of(WAYS)]], Field(min_length=1)] = ["original", "ours"]
    """Names of benchmarks.training.training_steps.WAYS. The others are compared with the first."""
    rounds: PositiveInt = 2
    """Processes of each variant."""
    reps: PositiveInt = 3
    """Timed steps of each process."""
    warmup: NonNegativeInt = 1
    """Steps before them that are not timed."""
    num_threads: NonNegativeInt = 0
    """Threads of torch on the CPU; 0 leaves it to torch."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu: the processor's own seconds, of all threads."""
    out: str = "benchmarks/results/training.json"
    """JSON file with every time."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


def measured(cfg: TrainingConfig, variant: str) -> dict[str, Any]:
    """One process of one variant. Raises: RuntimeError with the end of its messages if it fails."""
    request = {
        key: getattr(cfg, key) for key in ("model", "size", "batch_size", "reps", "warmup", "num_threads")
    }
    request |= {"variant": variant, "device": str(choose_device(cfg.device))}
    command = [sys.executable, "-m", "benchmarks.training.training_steps", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{variant} failed:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(cfg: TrainingConfig, runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a line per variant: median and fastest step, pictures a second, peak memory, relative to the first."""
    clock = CLOCKS[cfg.clock]
    of = {name: [run for run in runs if run["variant"] == name] for name in cfg.variants}
    seconds = {name: [s for run in own for s in run[clock]] for name, own in of.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: max(run["peak"] for run in own) for name, own in of.items()}
    first = cfg.variants[0]
    return [
        [
            name,
            f"{medians[name]:.3f} s ({min(seconds[name]):.3f})",
            f"{cfg.batch_size / medians[name]:.3g}",
            f"{medians[first] / medians[name]:.2f}",
            f"{peaks[name] / 2**30:.2f} GiB",
            f"{peaks[name] / peaks[first]:.2f}",
        ]
        for name in cfg.variants
    ]


def work(cfg: TrainingConfig, arguments: Sequence[str]) -> None:
    """Time the variants, write OUT, print the table, and append it to RESULTS.md where that is set."""
    device = choose_device(cfg.device)
    check_creatable(Path(cfg.out).parent)
    turns = [name for k in range(cfg.rounds) for name in (cfg.variants if k % 2 == 0 else cfg.variants[::-1])]
    runs = [measured(cfg, name) for name in tqdm(turns, desc="processes", file=sys.stderr, disable=None)]
    header = ["way", f"step: median (fastest), {cfg.clock}", "pictures/s", "times faster", "peak memory"]
    text = table([*header, "of the first's"], rows(cfg, runs))
    print(f"{runs[0]['machine']}; {cfg.size} px, batch {cfg.batch_size}\n\n{text}")
    write_figures(cfg.out, {"config": cfg.model_dump(), "runs": runs})
    if cfg.append:
        command = " ".join(["python -m benchmarks.training.training", *arguments])
        append_section("A step of training", command, device, text)


def main(arguments: Sequence[str]) -> int:
    return run("training.training", TrainingConfig, arguments, lambda cfg: work(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
