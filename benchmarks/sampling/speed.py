"""Time sampling beside diffusers and the published code's way, on the same random weights.

    python -m benchmarks.sampling.speed [CONFIG.yaml] [key=value ...]
    python -m benchmarks.sampling.speed             SD1.5 size on the CPU or GPU at hand
    python -m benchmarks.sampling.speed batches=[1,8,32] steps=50 variants=[ours_bf16,ours_blocks,diffusers_compiled]

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
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.results_file import append_section, machine, run, table, write_figures
from benchmarks.sampling.speed_variants import (
    Inputs,
    Variant,
    as_the_original,
    in_layout,
    ours,
    with_diffusers,
)
from benchmarks.training.training_steps import random_weights
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from ldm.device import choose_device, computes_in_bf16
from muti_control.record import check_creatable
from settings.base import Settings, one_of

GUIDANCE = 7.5
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense bf16, the makers' data sheets


@dataclass(frozen=True)
class Kind:
    """Precision, memory layout and code of a variant."""

    dtype: torch.dtype
    channels_last: bool
    make: Callable[[ControlledLatentDiffusion], Variant]


COMPILED = ("diffusers_compiled", "ours_blocks", "ours_whole")
VARIANTS = {
    "original": Kind(torch.float32, False, as_the_original),
    "diffusers_default": Kind(torch.float32, False, with_diffusers),
    "ours_fp32": Kind(torch.float32, False, ours),
    "diffusers_fp32_last": Kind(torch.float32, True, with_diffusers),
    "ours_fp32_last": Kind(torch.float32, True, ours),
    "diffusers_bf16": Kind(torch.bfloat16, True, with_diffusers),
    "ours_bf16": Kind(torch.bfloat16, True, ours),
    "diffusers_compiled": Kind(torch.bfloat16, True, partial(with_diffusers, compiled=True)),
    "ours_blocks": Kind(torch.bfloat16, True, partial(ours, compiled="blocks")),
    "ours_whole": Kind(torch.bfloat16, True, partial(ours, compiled="whole")),
}


class SpeedConfig(Settings):
    """What is timed."""

    model: str = str(SD15_CONFIG)
    """YAML of the architecture."""
    device: str = "auto"
    """auto, cpu, cuda."""
    size: PositiveInt = 256
    """Side of the pictures, px."""
    batches: Annotated[list[PositiveInt], Field(min_length=1)] = [1]
    """Pictures drawn together."""
    variants: list[Annotated[str, one_of(VARIANTS)]] = []
    """Names of VARIANTS; [] takes those that suit the device, without compilation on the CPU."""
    steps: NonNegativeInt = 0
    """Denoising steps of the whole sampling; 0 leaves it out."""
    reps: PositiveInt = 7
    """Timed repetitions."""
    warmup: NonNegativeInt = 1
    """Repetitions before them that are not timed."""
    out: str = "benchmarks/results/speed.json"
    """JSON file with every time."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


def build(names: Sequence[str], cfg: SpeedConfig, device: torch.device) -> dict[str, Variant]:
    """The variants; those of one precision and layout share their tensors, but for compiled ones."""
    model_config = load_model_config(cfg.model)
    model_config.image_size = cfg.size
    model_config.cond_stage.layers = 1  # not timed: the text is encoded once
    base = random_weights(model_config, torch.device("cpu")).eval().requires_grad_(False)
    twins: dict[Any, ControlledLatentDiffusion] = {}
    variants = {}
    for name in names:
        kind = VARIANTS[name]
        key = (kind.dtype, kind.channels_last, name if name in COMPILED else "")
        if key not in twins:
            twins[key] = in_layout(base, kind.dtype, kind.channels_last, device)
        variants[name] = kind.make(twins[key])
    del base
    gc.collect()
    return variants


def make_inputs(model: str, size: int, num: int) -> Inputs:
    """Return random skulls, noise and text embeddings."""
    shape = load_model_config(model).unet
    g = torch.Generator().manual_seed(0)
    return Inputs(
        torch.rand(num, 3, size, size, generator=g),
        torch.randn(num, shape.in_channels, size // 8, size // 8, generator=g),
        torch.randn(num, 77, shape.context_dim, generator=g),
        torch.randn(1, 77, shape.context_dim, generator=g).expand(num, -1, -1).contiguous(),
    )


def timed(
    work: dict[str, Callable[[], Tensor]], cfg: SpeedConfig, device: torch.device, what: str
) -> tuple[dict[str, list[float]], dict[str, Tensor], dict[str, float]]:
    """Return the seconds of every repetition, the last result and the peak GPU memory in GiB, by variant."""
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
    """Return the FLOP/s of the best of some large matrix products: the most that this machine reaches."""
    on_gpu = device.type == "cuda"
    n, times = (8192, 10) if on_gpu else (1024, 1)  # 1024: a CPU that emulates bf16 takes seconds for 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(times):
            a @ b
        if on_gpu:
            torch.cuda.synchronize(device)
        best = max(best, times * 2 * n**3 / (time.perf_counter() - started))
    return best


@torch.inference_mode()
def measure(cfg: SpeedConfig, variants: dict[str, Variant], num: int, device: torch.device) -> dict[str, Any]:
    """Return what was measured at one batch size: seconds, median, peak memory, relative mean difference of results."""
    inputs = {
        name: make_inputs(cfg.model, cfg.size, num).to(device, VARIANTS[name].dtype) for name in variants
    }
    t = torch.full((num,), 501, device=device)
    steps = {name: variant.guided(inputs[name]) for name, variant in variants.items()}

    timed_parts: dict[str, Callable[[str], Tensor]] = {
        "eps": lambda name: variants[name].eps(inputs[name], t),
        "guided step": lambda name: steps[name](inputs[name].noise, t, 0),
    }
    if cfg.steps:
        timed_parts["sampling"] = lambda name: variants[name].sample(inputs[name], cfg.steps, GUIDANCE)
    result: dict[str, Any] = {"batch": num, "flops": {}}
    eager = [name for name in variants if name not in COMPILED]
    for what, function in timed_parts.items():
        if eager and what != "sampling":
            with FlopCounterMode(display=False) as counter:
                function(eager[0])
            result["flops"][what] = counter.get_total_flops()
        work: dict[str, Callable[[], Tensor]] = {name: partial(function, name) for name in variants}
        seconds, results, peaks = timed(work, cfg, device, f"batch {num}, {what}")
        reference = results.get("ours_fp32", next(iter(results.values())))
        result[what] = {
            name: {
                "seconds": seconds[name],
                "median": statistics.median(seconds[name]),
                "peak_gib": peaks.get(name),
                "difference": float((results[name] - reference).abs().mean() / reference.abs().mean()),
            }
            for name in variants
        }
    return result


def report(
    cfg: SpeedConfig, results: list[dict[str, Any]], products: dict[str, float], peak: float | None
) -> str:
    """Return the Markdown tables of a run: one for each batch size and measurement."""
    parts = []
    for at_batch in results:
        for what in (key for key in ("eps", "guided step", "sampling") if key in at_batch):
            flops = at_batch["flops"].get(what)
            slowest = next(iter(at_batch[what].values()))["median"]
            rows: list[dict[str, str]] = []
            for name, one in at_batch[what].items():
                dtype = VARIANTS[name].dtype
                row = {"way": name, "median": f"{one['median']:.4g} s"}
                row["fastest"] = f"{min(one['seconds']):.4g} s"
                row["times as fast as the first"] = f"{slowest / one['median']:.2f}"
                if what == "sampling":
                    row["pictures/s"] = f"{at_batch['batch'] / one['median']:.3g}"
                if flops:
                    speed = flops / one["median"]
                    row["TFLOP/s"] = f"{speed / 1e12:.3g}"
                    row["of the best matrix product"] = f"{speed / products[str(dtype)]:.0%}"
                    if peak:
                        share = "" if dtype == torch.float32 else f"{speed / peak:.0%}"
                        row["of the data sheet's peak"] = share
                if one["peak_gib"] is not None:
                    row["GPU memory, GiB"] = f"{one['peak_gib']:.1f}"
                rows.append(row | {"difference": f"{one['difference']:.1e}"})
            title = f"**{what}**, {cfg.size} px, batch {at_batch['batch']}"
            title += f", {cfg.steps} steps" if what == "sampling" else ""
            title += f", {flops / 1e9:.0f} GFLOP" if flops else ""
            text = table(list(rows[0]), [list(row.values()) for row in rows])
            parts.append(f"{title}, {cfg.reps} repetitions:\n\n{text}")
    return "\n\n".join(parts)


def work(cfg: SpeedConfig, arguments: Sequence[str]) -> None:
    """Time the variants, write OUT, print the report, and append it to RESULTS.md where that is set."""
    device = choose_device(cfg.device)
    load_model_config(cfg.model).with_(image_size=cfg.size)
    check_creatable(Path(cfg.out).parent)  # not when the hours are over
    names = list(cfg.variants) or [
        name
        for name, kind in VARIANTS.items()
        if (kind.dtype == torch.float32 or computes_in_bf16(device))
        and (device.type == "cuda" or name not in COMPILED)
    ]
    variants = build(names, cfg, device)
    results = [measure(cfg, variants, num, device) for num in cfg.batches]
    products = {str(d): best_product(d, device) for d in {VARIANTS[name].dtype for name in names}}
    peaks = [flops for key, flops in PEAK_FLOPS.items() if key in machine(device)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    reference = "ours_fp32" if "ours_fp32" in names else names[0]
    best = ", ".join(f"{d.removeprefix('torch.')} {f / 1e12:.3g} TFLOP/s" for d, f in products.items())
    body = report(cfg, results, products, peaks[0] if peaks else None)
    body += (
        f"\n\n*difference*: mean absolute, relative to the mean absolute value of {reference}'s. "
        f"Best matrix product: {best}. Memory of the whole process at its peak: {memory:.1f} GiB."
    )
    command = "python -m benchmarks.sampling.speed " + " ".join(arguments)
    print(f"{machine(device)}\n\n{body}")
    record = {"command": command, "machine": machine(device), "found": results, "products": products}
    write_figures(cfg.out, record)
    if cfg.append:
        append_section("Speed of sampling", command, device, body)


def main(arguments: Sequence[str]) -> int:
    return run("sampling.speed", SpeedConfig, arguments, lambda cfg: work(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
