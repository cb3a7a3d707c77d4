"""How fast sampling is, beside diffusers and the published code's way, on the same random weights.

    python -m benchmarks.sampling.speed [CONFIG.yaml] [key=value ...]
    python -m benchmarks.sampling.speed                                     SD1.5 size on the CPU or GPU at hand
    python -m benchmarks.sampling.speed size=256 batches=[1,8,32] steps=50 variants=[ours_bf16,ours_blocks,diffusers_compiled]

Three things are timed, interleaved (every repetition goes once through all variants, in changing order), and compared
by their medians: one denoiser evaluation, one guided step (both branches, with control), and a whole sampling with
decoding. The pictures are compared as well: a fast way that draws something else is no way.
"""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.results_file import append_section, machine, table
from benchmarks.sampling.speed_variants import (
    Inputs,
    Variant,
    as_the_original,
    diffusers_parts,
    in_layout,
    ours,
    random_model,
    with_diffusers,
)
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from cldm.record import check_creatable, write_json
from ldm.device import choose_device, computes_in_bf16
from settings.base import Settings
from settings.reading import parse_command_line

GUIDANCE = 7.5
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense bf16, the makers' data sheets


class SpeedConfig(Settings):
    """What is timed.

    model: YAML of the architecture. device: auto, cpu, cuda. size: px. batches: pictures drawn together.
    variants: names of VARIANTS (_last: channels-last, as bf16 always is); empty takes those that suit the device,
    without compilation on the CPU.
    steps: denoising steps of the whole sampling; 0 leaves it out. reps: timed repetitions, after `warmup` untimed.
    out: JSON file with every time. append: add the table to benchmarks/RESULTS.md.
    """

    model: str = str(SD15_CONFIG)
    device: str = "auto"
    size: int = 256
    batches: list[int] = [1]
    variants: list[str] = []
    steps: int = 0
    reps: int = 7
    warmup: int = 1
    out: str = "benchmarks/results/speed.json"
    append: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ValueError(f"variants: got {unknown[0]!r}, expected some of {', '.join(VARIANTS)}")
        for name in ("size", "reps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.steps < 0 or self.warmup < 0:
            raise ValueError(f"steps={self.steps}, warmup={self.warmup}: expected 0 or more")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches: got {self.batches}, expected numbers of at least 1")


@dataclass(frozen=True)
class Kind:
    """Precision, memory layout and code of a variant."""

    dtype: torch.dtype
    channels_last: bool
    make: Callable[[ControlledLatentDiffusion, str], Variant]


def _diffusers(compiled: bool) -> Callable[[ControlledLatentDiffusion, str], Variant]:
    return lambda model, name: with_diffusers(diffusers_parts(model), name, compiled)


def _ours(compiled: str) -> Callable[[ControlledLatentDiffusion, str], Variant]:
    return lambda model, name: ours(model, name, compiled)


VARIANTS = {
    "original": Kind(torch.float32, False, as_the_original),
    "diffusers_default": Kind(torch.float32, False, _diffusers(False)),
    "ours_fp32": Kind(torch.float32, False, _ours("no")),
    "diffusers_fp32_last": Kind(torch.float32, True, _diffusers(False)),
    "ours_fp32_last": Kind(torch.float32, True, _ours("no")),
    "diffusers_bf16": Kind(torch.bfloat16, True, _diffusers(False)),
    "ours_bf16": Kind(torch.bfloat16, True, _ours("no")),
    "diffusers_compiled": Kind(torch.bfloat16, True, _diffusers(True)),
    "ours_blocks": Kind(torch.bfloat16, True, _ours("blocks")),
    "ours_whole": Kind(torch.bfloat16, True, _ours("whole")),
}


COMPILED = ("diffusers_compiled", "ours_blocks", "ours_whole")


def build(names: Sequence[str], cfg: SpeedConfig, device: torch.device) -> dict[str, Variant]:
    """The variants; those of one precision and layout share their tensors, but for compiled ones."""
    model_config = load_model_config(cfg.model)
    model_config.image_size = cfg.size
    model_config.cond_stage.layers = 1  # not timed: the text is encoded once
    model_config.validate()
    base = random_model(model_config)
    twins: dict[Any, ControlledLatentDiffusion] = {}
    variants = {}
    for name in names:
        kind = VARIANTS[name]
        key = (kind.dtype, kind.channels_last, name if name in COMPILED else "")
        if key not in twins:
            twins[key] = in_layout(base, kind.dtype, kind.channels_last, device)
        variants[name] = kind.make(twins[key], name)
    del base
    gc.collect()
    return variants


def make_inputs(model: str, size: int, num: int, seed: int = 0) -> Inputs:
    """Random skulls, noise and text embeddings."""
    shape = load_model_config(model)
    g = torch.Generator().manual_seed(seed)

    def randn(*of: int) -> Tensor:
        return torch.randn(of, generator=g)

    side, width = size // 8, shape.unet.context_dim
    return Inputs(
        torch.rand(num, 3, size, size, generator=g),
        randn(num, shape.unet.in_channels, side, side),
        randn(num, 77, width),
        randn(1, 77, width).expand(num, -1, -1).contiguous(),
    )


def timed(
    work: dict[str, Callable[[], Tensor]], cfg: SpeedConfig, device: torch.device, what: str
) -> tuple[dict[str, list[float]], dict[str, Tensor], dict[str, float]]:
    """Seconds of every repetition, the last result and the peak GPU memory in GiB, by variant."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    results: dict[str, Tensor] = {}
    peaks: dict[str, float] = {}
    names = list(work)
    for rep in tqdm(range(cfg.warmup + cfg.reps), desc=what, file=sys.stderr, dynamic_ncols=True):
        shift = rep % len(names)
        for name in names[shift:] + names[:shift]:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            result = work[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                peaks[name] = torch.cuda.max_memory_allocated(device) / 2**30
            if rep >= cfg.warmup:
                seconds[name].append(time.perf_counter() - started)
            results[name] = result.detach().float().cpu()
    return seconds, results, peaks


def best_product(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of some large matrix products: what this machine reaches at all."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(10 if device.type == "cuda" else 1):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed = (time.perf_counter() - started) / (10 if device.type == "cuda" else 1)
        best = max(best, 2 * n**3 / passed)
    return best


@torch.inference_mode()
def measure(cfg: SpeedConfig, variants: dict[str, Variant], num: int, device: torch.device) -> dict[str, Any]:
    """All measurements at one batch size: seconds, median, peak memory and the relative mean difference of results."""
    inputs = {
        name: make_inputs(cfg.model, cfg.size, num).to(device, VARIANTS[name].dtype) for name in variants
    }
    t = torch.full((num,), 501, device=device)
    steps = {name: variant.guided(inputs[name]) for name, variant in variants.items()}

    def eps(name: str) -> Tensor:
        return variants[name].eps(inputs[name], t)

    def guided_step(name: str) -> Tensor:
        return steps[name](inputs[name].noise, t, 0)

    def sampling(name: str) -> Tensor:
        return variants[name].sample(inputs[name], cfg.steps, GUIDANCE)

    found: dict[str, Any] = {"batch": num, "flops": {}}
    for what, function in (("eps", eps), ("guided step", guided_step), ("sampling", sampling)):
        if function is sampling and not cfg.steps:
            continue
        eager = [name for name in variants if name not in COMPILED]
        if eager and function is not sampling:
            with FlopCounterMode(display=False) as counter:
                function(eager[0])
            found["flops"][what] = counter.get_total_flops()
        work: dict[str, Callable[[], Tensor]] = {name: partial(function, name) for name in variants}
        seconds, results, peaks = timed(work, cfg, device, f"batch {num}, {what}")
        reference = results.get("ours_fp32", next(iter(results.values())))
        found[what] = {
            name: {
                "seconds": seconds[name],
                "median": statistics.median(seconds[name]),
                "peak_gib": peaks.get(name),
                "difference": float((results[name] - reference).abs().mean() / reference.abs().mean()),
            }
            for name in variants
        }
    return found


def report(
    cfg: SpeedConfig, found: list[dict[str, Any]], products: dict[str, float], peak: float | None
) -> str:
    """The Markdown tables of a run: one for each batch size and measurement."""
    parts = []
    for at_batch in found:
        for what in ("eps", "guided step", "sampling"):
            if what not in at_batch:
                continue
            flops = at_batch["flops"].get(what)
            slowest = next(iter(at_batch[what].values()))["median"]
            rows = []
            for name, one in at_batch[what].items():
                speed = flops / one["median"] if flops else None
                product = products[str(VARIANTS[name].dtype)]
                row = [
                    name,
                    f"{one['median']:.4g} s",
                    f"{min(one['seconds']):.4g} s",
                    f"{slowest / one['median']:.2f}",
                ]
                row += [f"{at_batch['batch'] / one['median']:.3g}"] if what == "sampling" else []
                row += [f"{speed / 1e12:.3g}", f"{speed / product:.0%}"] if speed else []
                row += (
                    [f"{speed / peak:.0%}"]
                    if speed and peak and VARIANTS[name].dtype != torch.float32
                    else []
                )
                row += [""] if speed and peak and VARIANTS[name].dtype == torch.float32 else []
                row += [f"{one['peak_gib']:.1f}"] if one["peak_gib"] is not None else []
                rows.append([*row, f"{one['difference']:.1e}"])
            header = ["way", "median", "fastest", "times as fast as the first"]
            header += ["pictures/s"] if what == "sampling" else []
            header += ["TFLOP/s", "of the best matrix product"] if flops else []
            header += ["of the data sheet's peak"] if flops and peak else []
            header += (
                ["GPU memory, GiB"] if rows and at_batch[what][rows[0][0]]["peak_gib"] is not None else []
            )
            title = f"**{what}**, {cfg.size} px, batch {at_batch['batch']}"
            title += f", {cfg.steps} steps" if what == "sampling" else ""
            title += f", {flops / 1e9:.0f} GFLOP" if flops else ""
            parts.append(f"{title}, {cfg.reps} repetitions:\n\n{table([*header, 'difference'], rows)}")
    return "\n\n".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, or 2 for what the user can mend."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(f"{__doc__}\n{SpeedConfig.__doc__}")
        return 0
    try:
        cfg = parse_command_line(SpeedConfig, arguments)
        cfg.validate()
        device = choose_device(cfg.device)
        load_model_config(cfg.model).with_(image_size=cfg.size).validate()
        check_creatable(Path(cfg.out).parent)  # not when the hours are over
    except (ValueError, OSError) as error:
        print(f"benchmarks.sampling.speed: {error}", file=sys.stderr)
        return 2
    names = list(cfg.variants) or [
        name
        for name, kind in VARIANTS.items()
        if (kind.dtype == torch.float32 or computes_in_bf16(device))
        and (device.type == "cuda" or name not in COMPILED)
    ]
    variants = build(names, cfg, device)
    found = [measure(cfg, variants, num, device) for num in cfg.batches]
    products = {str(d): best_product(d, device) for d in {VARIANTS[name].dtype for name in names}}
    known = [flops for key, flops in PEAK_FLOPS.items() if key in machine(device)]
    body = report(cfg, found, products, known[0] if known else None)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    body += (
        f"\n\n*difference*: mean absolute, relative to the mean absolute value of "
        f"{'ours_fp32' if 'ours_fp32' in names else names[0]}'s. Best matrix product: "
        + ", ".join(f"{d.removeprefix('torch.')} {flops / 1e12:.3g} TFLOP/s" for d, flops in products.items())
        + f". Memory of the whole process at its peak: {memory:.1f} GiB."
    )
    command = "python -m benchmarks.sampling.speed " + " ".join(arguments)
    print(f"{machine(device)}\n\n{body}")
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(
        Path(cfg.out), {"command": command, "machine": machine(device), "found": found, "products": products}
    )
    if cfg.append:
        append_section("Speed of sampling", command, device, body)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
