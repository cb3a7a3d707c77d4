"""What guidance costs: time and peak memory of each way of guiding a sampling, as ratios to an unguided one.

    python -m benchmarks.sampling.spgd_cost                                          SD1.5 size, random weights
    python -m benchmarks.sampling.spgd_cost weights=models/demo/iccr_demo.safetensors cfg_scale=1 whole=20
    python -m benchmarks.sampling.spgd_cost ways=[off,spgd/estimate/small] inner=3 append=true

A way is MODE/GRADIENT/DECODER: the decoder full (the model's own) or small (of the size that the guidance_decoder
stage trains; random weights, or decoder=FILE). Each way runs in a process of its own, in turns. A step's time is the
median of those guided; from it comes the time of a sampling of ``whole`` steps, with its first step unguided and the
face decoded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_file import append_section, machine, table
from benchmarks.sampling.speed_variants import random_model
from benchmarks.training.training_steps import forget_peak, peak_bytes
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model, load_model_config
from cldm.record import check_creatable, write_json
from cldm.sampling import SamplingConfig, reconstruct
from cldm.spgd import GRADIENTS, MODES
from data.cases import Case
from ldm.config import parse_command_line
from ldm.device import choose_device, choose_precision, preferred_layout
from muti_control.networks.guidance_decoder import GuidanceDecoder, GuidanceDecoderConfig
from muti_control.sampling.prepare import SKULL_LANDMARKS, shipped, shipped_networks
from muti_control.sampling.spgd import GuidanceConfig, load_guidance

GIB = 2**30
DECODERS = ("full", "small")


@dataclass
class CostConfig:
    """What is timed.

    weights: checkpoint; else random weights of the architecture ``model``, a YAML. decoder: file of the small one.
    size: px; batch: faces together; steps: denoising steps that are run; whole: of the sampling that is told of.
    cfg_scale: of the guidance towards the text; other than 1 it doubles the denoiser's work. inner: warm-up steps.
    ways: see above; the first is what the others are compared with. rounds: processes of each way.
    threads: of torch on the CPU, 0 for its own choice. out: JSON file. append: add the table to benchmarks/RESULTS.md.
    """

    weights: str | None = None
    model: str = str(SD15_CONFIG)
    decoder: str | None = None
    device: str = "auto"
    precision: str = "auto"
    size: int = 256
    batch: int = 1
    steps: int = 4
    whole: int = 50
    cfg_scale: float = 9.0
    inner: int = 3
    ways: list[str] = field(
        default_factory=lambda: [
            "off",
            *("plain/estimate/small", "spgd/estimate/small", "spgd/estimate/full", "spgd/denoiser/small"),
        ]
    )
    rounds: int = 2
    threads: int = 0
    out: str = "benchmarks/results/guidance_cost.json"
    append: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        self.ways = ["off" if way == "False" else way for way in self.ways]  # YAML reads a bare off as false
        for way in self.ways:
            mode, *rest = way.split("/")
            good = mode in MODES[1:] and len(rest) == 2 and rest[0] in GRADIENTS and rest[1] in DECODERS
            if way != "off" and not good:
                raise ValueError(f"ways: got {way!r}, expected off or such as spgd/estimate/small")
        if not self.ways:
            raise ValueError("ways: got none, expected some, such as [off, spgd/estimate/small]")
        for name in ("size", "batch", "whole", "inner", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.steps < 2:
            raise ValueError(f"steps: got {self.steps}, expected at least 2: the first is not guided")


# --- in a process of its own --------------------------------------------------------------------------------


def run(cfg: CostConfig, way: str) -> dict[str, Any]:
    """Seconds of each step and of decoding; peak bytes of the sampling (on the CPU all that is resident)."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg.device)
    model = _model(cfg, device)
    skulls = torch.rand(cfg.batch, 3, cfg.size, cfg.size, generator=torch.Generator().manual_seed(0))
    sampling = SamplingConfig(
        cfg.steps, "trailing", guidance_scale=cfg.cfg_scale, control_scales=[1.0], eta=1.0
    )
    cases = [Case(f"random{i}", Path("random.png"), None) for i in range(cfg.batch)]
    guide = None
    if way != "off":
        mode, gradient, decoder = way.split("/")
        settings = shipped_networks(
            GuidanceConfig(
                mode, gradient, inner=cfg.inner, decoder=cfg.decoder if decoder == "small" else None
            )
        )
        guidance = load_guidance(settings, model, cases, None, shipped(SKULL_LANDMARKS))
        assert guidance is not None
        if decoder == "small" and cfg.decoder is None:
            small = GuidanceDecoder(GuidanceDecoderConfig(model.cfg.first_stage.z_channels))
            small = small.eval().requires_grad_(False).to(device)
            guidance = replace(guidance, decoder=small)
        guide = guidance.of(model, cases, skulls)
    forget_peak(device)
    times = [time.perf_counter()]

    def tick(_done: int, _of: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    faces = reconstruct(
        model, skulls, [""] * cfg.batch, range(cfg.batch), sampling, guide=guide, progress=tick
    )
    times.append(time.perf_counter())
    assert bool(faces.isfinite().all())
    steps = [b - a for a, b in pairwise(times[:-1])]
    return {
        "way": way,
        "first": steps[0],
        "steps": steps[1:],
        "decoding": times[-1] - times[-2],
        "peak": peak_bytes(device),
        "machine": machine(device),
    }


def _model(cfg: CostConfig, device: torch.device) -> ControlledLatentDiffusion:
    dtype = choose_precision(cfg.precision, device)
    if cfg.weights is not None:
        return load_model(cfg.weights, None, device, dtype)[0]
    shape = load_model_config(cfg.model)
    shape.image_size = cfg.size
    shape.cond_stage.layers = 1  # not timed: the text is encoded once
    return random_model(shape).to(device, dtype).to(memory_format=preferred_layout(device, dtype))


# --- the table ------------------------------------------------------------------------------------------------


def rows(cfg: CostConfig, runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a way: its step, the whole sampling and the peak of the memory, with the ratios to the first way."""
    lines, whole, middle, peaks = [], {}, {}, {}
    for way in cfg.ways:
        own = [one for one in runs if one["way"] == way]
        middle[way] = statistics.median([s for one in own for s in one["steps"]])
        free = statistics.median([s for one in runs if one["way"] == cfg.ways[0] for s in one["steps"]])
        decoding = statistics.median([one["decoding"] for one in own])
        whole[way] = free + (cfg.whole - 1) * middle[way] + decoding
        peaks[way] = max(one["peak"] for one in own)
    for way in cfg.ways:
        lines.append(
            [
                way,
                f"{middle[way]:.3f} s",
                f"{middle[way] / middle[cfg.ways[0]]:.2f}",
                f"{whole[way]:.1f} s",
                f"{whole[way] / whole[cfg.ways[0]]:.2f}",
                f"{peaks[way] / GIB:.2f} GiB",
                f"{peaks[way] / peaks[cfg.ways[0]]:.2f}",
            ]
        )
    return lines


def measured(cfg: CostConfig, way: str) -> dict[str, Any]:
    """One process of one way. Raises: RuntimeError with the end of its messages if it fails."""
    command = [sys.executable, "-m", "benchmarks.sampling.spgd_cost", "--one", way, json.dumps(asdict(cfg))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, or 2 for arguments that cannot be used."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"{__doc__}\n{CostConfig.__doc__}")
        return 0
    if argv[:1] == ["--one"]:
        print(json.dumps(run(CostConfig(**json.loads(argv[2])), argv[1])))
        return 0
    try:
        cfg = parse_command_line(CostConfig, argv)
        cfg.validate()
        device = choose_device(cfg.device)
        check_creatable(Path(cfg.out).parent)
    except ValueError as error:
        print(f"benchmarks.sampling.spgd_cost: {error}", file=sys.stderr)
        return 2
    turns = [way for k in range(cfg.rounds) for way in (cfg.ways if k % 2 == 0 else cfg.ways[::-1])]
    runs = [measured(cfg, way) for way in turns]
    header = ["way", "a step", "ratio", f"{cfg.whole} steps and decoding", "ratio", "peak memory", "ratio"]
    text = f"{cfg.size} px, batch {cfg.batch}, {cfg.inner} inner steps, text guidance {cfg.cfg_scale:g}:\n\n"
    text += table(header, rows(cfg, runs))
    print(f"{runs[0]['machine']}\n\n{text}")
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(cfg.out), {"config": asdict(cfg), "runs": runs})
    if cfg.append:
        append_section(
            "What guidance costs", " ".join(["python -m benchmarks.sampling.spgd_cost", *argv]), device, text
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
