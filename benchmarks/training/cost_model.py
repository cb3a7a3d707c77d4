"""How long a training would take: counted arithmetic and traffic, divided by what a machine does in a second.

    python -m benchmarks.training.cost_model                       the table for known cards, all of it predicted
    python -m benchmarks.training.cost_model check=true            against steps and exchanges measured on this machine

step = accumulate * (launch + batch * flops / rate) + update + exchange

flops: of one picture, counted by PyTorch on tensors without numbers. rate: a card's peak in its data sheet times
``utilisation``, or, in the check, fitted. launch: the time of a micro-batch that does not depend on its size.
update: the bytes that clipping, AdamW and the averages read and write, over the memory's bandwidth.
exchange: a ring's 2 (n - 1) / n times the gradients' bytes (arXiv 1802.05799), over the link's bandwidth.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results_file import append_section, machine, table
from benchmarks.training.training_steps import WAYS, prepare
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from cldm.record import write_json
from ldm.config import parse_command_line
from muti_control.training.ranks import average_gradients

UPDATE_BYTES = 4 * (
    2 + 2 + 6 + 3
)  # per trained weight: clip r/w, gradient r and zeroed, AdamW's three r/w, average r/w
DAY = 86_400.0


@dataclass(frozen=True)
class Cost:
    """Of the control stage. flops: of one picture, forward and backward. trained: number of weights."""

    flops: float
    trained: int


@dataclass(frozen=True)
class Machine:
    """What one card does. flops: a second, at its peak. memory, link: bytes a second (link: to the other cards).

    Source: NVIDIA's data sheets (bf16 with fp32 accumulation, without sparsity); link: half of NVLink's both
    directions, or PCIe 4.0 x16 less a fifth for what has none.
    """

    name: str
    flops: float
    memory: float
    link: float
    launch: float = 0.02  # seconds: about 4,000 kernels of 5 us


CARDS = (
    Machine("RTX 4070, 12 GB", 58e12, 504e9, 25e9),
    Machine("RTX 4090, 24 GB", 165e12, 1008e9, 25e9),
    Machine("A100, 80 GB", 312e12, 2039e9, 300e9),
    Machine("H100, 80 GB", 989e12, 3350e9, 450e9),
)


@dataclass
class CostConfig:
    """What is predicted, and how it is checked.

    model: YAML of the architecture. sizes: px. batch: pictures of a micro-batch on each card. cards: how many of them.
    steps: of the training. utilisation: share of the peak that convolutions and attention reach, assumed.
    check: measure instead, at ``check_model``, ``check_batches`` and ``check_sizes``; the rate and the launch time are
    fitted to the first and the last of the points, all others are predicted. out: JSON file. append: to RESULTS.md.
    """

    model: str = str(SD15_CONFIG)
    sizes: list[int] = field(default_factory=lambda: [256, 512])
    batch: int = 16
    cards: list[int] = field(default_factory=lambda: [1, 8])
    steps: int = 50_000
    utilisation: float = 0.3
    check: bool = False
    check_model: str = str(SD15_CONFIG)
    check_batches: list[int] = field(default_factory=lambda: [1, 2, 4])
    check_sizes: list[int] = field(default_factory=lambda: [128, 192, 256])
    reps: int = 3
    out: str = "benchmarks/results/cost_model.json"
    append: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation: got {self.utilisation}, expected a share above 0, up to 1")
        for name in ("sizes", "cards", "check_batches", "check_sizes"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected numbers of at least 1")
        for name in ("batch", "steps", "reps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


def counted(model_yaml: str, size: int, way: str = "ours_fp32") -> Cost:
    """Arithmetic of one picture's step in a way of benchmarks.training.training_steps; precision does not change it."""
    cfg = load_model_config(model_yaml)
    with torch.device("meta"):
        model = ControlledLatentDiffusion(cfg)
        prepare(model, way)
        z, side = cfg.first_stage.z_channels, size // cfg.first_stage.downscale
        x, t = torch.empty(1, z, side, side), torch.empty(1, dtype=torch.int64)
        context = torch.empty(1, cfg.cond_stage.max_length, cfg.unet.context_dim)
        with FlopCounterMode(display=False) as counter:
            if not WAYS[way].cached:
                with torch.no_grad():
                    model.first_stage_model.encode(torch.empty(1, 3, size, size))
                    model.cond_stage_model(torch.empty(1, cfg.cond_stage.max_length, dtype=torch.int64))
            hint = model.encode_hint(torch.empty(1, cfg.control.hint_channels, size, size))
            F.mse_loss(model.eps(x, t, context, hint), torch.empty_like(x)).backward()
    return Cost(float(counter.get_total_flops()), sum(p.numel() for p in model.control_model.parameters()))


def exchange_seconds(num_bytes: float, cards: int, link: float) -> float:
    """Of one all-reduce in a ring."""
    return 2 * (cards - 1) / cards * num_bytes / link


def step_seconds(cost: Cost, card: Machine, batch: int, accumulate: int = 1, cards: int = 1) -> float:
    """Of one optimizer step. card.flops: those that are reached."""
    micro = card.launch + batch * cost.flops / card.flops
    update = UPDATE_BYTES * cost.trained / card.memory
    return accumulate * micro + update + exchange_seconds(4 * cost.trained, cards, card.link)


def days_table(cfg: CostConfig) -> str:
    """Days of a training on the known cards."""
    lines = []
    for size in cfg.sizes:
        cost = counted(cfg.model, size)
        for card in CARDS:
            reached = replace(card, flops=card.flops * cfg.utilisation)
            seconds = [step_seconds(cost, reached, cfg.batch, cards=n) for n in cfg.cards]
            rates = [f"{cfg.batch * n / s:.0f}" for n, s in zip(cfg.cards, seconds, strict=True)]
            days = [f"{cfg.steps * s / DAY:.2f}" for s in seconds]
            lines.append([f"{size} px", card.name, f"{1000 * seconds[0]:.0f} ms", *rates, *days])
    header = ["size", "card", "step on one"]
    header += [f"pictures/s on {n}" for n in cfg.cards] + [f"days on {n}" for n in cfg.cards]
    return table(header, lines)


def fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Rate and constant through the first and the last of (arithmetic, seconds): seconds = constant + work / rate."""
    (w0, s0), (w1, s1) = points[0], points[-1]
    rate = (w1 - w0) / (s1 - s0)
    return rate, s0 - w0 / rate


def check_steps(cfg: CostConfig) -> tuple[str, list[dict[str, Any]]]:
    """Measured steps beside predicted ones: a table, and the points. One thread; seconds are the processor's own."""
    points = []
    for size, batch in sorted(product(cfg.check_sizes, cfg.check_batches), key=lambda p: p[0] ** 2 * p[1]):
        request = {"variant": "ours_fp32", "device": "cpu", "threads": 1, "warmup": 1, "reps": cfg.reps}
        request |= {"model": cfg.check_model, "size": size, "batch": batch}
        command = [sys.executable, "-m", "benchmarks.training.training_steps", json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = statistics.median(json.loads(done.stdout.splitlines()[-1])["cpu_seconds"])
        points.append({"size": size, "batch": batch, "seconds": seconds})
    costs = {size: counted(cfg.check_model, size) for size in cfg.check_sizes}
    work = [(p["batch"] * costs[p["size"]].flops, p["seconds"]) for p in points]
    rate, constant = fitted(work)
    lines = []
    for k, (point, (flops, seconds)) in enumerate(zip(points, work, strict=True)):
        point["predicted"] = constant + flops / rate
        error = (
            "fitted" if k in (0, len(points) - 1) else f"{100 * (point['predicted'] / seconds - 1):+.0f} %"
        )
        shape = [f"{point['size']} px", str(point["batch"]), f"{flops / 1e9:.0f}"]
        lines.append([*shape, f"{seconds:.2f}", f"{point['predicted']:.2f}", error])
    text = table(["size", "batch", "GFLOP", "measured, s", "predicted, s", "error"], lines)
    return f"rate {rate / 1e9:.1f} GFLOP/s, constant {constant:.2f} s\n\n{text}", points


def _exchange(rank: int, port: int, numbers: Sequence[int], results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for number in numbers:
        parameter = torch.nn.Parameter(torch.zeros(number))
        times = []
        for _ in range(5):
            parameter.grad = torch.full((number,), float(rank))
            dist.barrier()
            began = time.perf_counter()
            average_gradients([parameter])
            times.append(time.perf_counter() - began)
        assert parameter.grad is not None and float(parameter.grad.mean()) == 0.5
        if rank == 0:
            results.put((number, statistics.median(times)))
    dist.destroy_process_group()


def check_exchange(port: int = 29713) -> str:
    """Two processes over gloo: the exchange of gradients, predicted from the smallest and the largest."""
    numbers = [4_000_000, 8_000_000, 16_000_000, 32_000_000]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=_exchange, args=(rank, port, numbers, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get() for _ in numbers]
    for process in processes:
        process.join()
    link, constant = fitted([(4.0 * number, seconds) for number, seconds in found])
    lines = []
    for k, (number, seconds) in enumerate(found):
        predicted = constant + exchange_seconds(4 * number, 2, link)
        error = "fitted" if k in (0, len(found) - 1) else f"{100 * (predicted / seconds - 1):+.0f} %"
        lines.append([f"{4 * number / 1e6:.0f} MB", f"{seconds:.3f}", f"{predicted:.3f}", error])
    text = table(["gradients", "measured, s", "predicted, s", "error"], lines)
    return f"link {link / 1e9:.2f} GB/s, constant {constant:.3f} s\n\n{text}"


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, or 2 for arguments that cannot be used."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return 0
    try:
        cfg = parse_command_line(CostConfig, argv)
        cfg.validate()
    except ValueError as error:
        print(f"benchmarks.training.cost_model: {error}", file=sys.stderr)
        return 2
    points: list[dict[str, Any]] = []
    if cfg.check:
        steps, points = check_steps(cfg)
        text = f"{steps}\n\n{check_exchange()}"
    else:
        text = days_table(cfg)
    print(f"{machine(torch.device('cpu'))}\n\n{text}" if cfg.check else text)
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(cfg.out), {"check": cfg.check, "points": points, "text": text})
    if cfg.append:
        title = "The cost model, checked" if cfg.check else "Days of training, predicted"
        command = " ".join(["python -m benchmarks.training.cost_model", *argv])
        append_section(title, command, torch.device("cpu"), text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
