"""What the small decoder saves guidance: a picture and the gradient on its latent, beside the autoencoder's decoder.

    python -m benchmarks.sampling.guidance_decoder [key=value ...]
    python -m benchmarks.sampling.guidance_decoder                                  SD1.5's size, random weights
    python -m benchmarks.sampling.guidance_decoder weights=models/demo/iccr_demo.safetensors decoder=FILE

Both are timed in one process, in turn, and compared by their medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results_file import append_section, machine, table
from cldm.controlled import SD15_CONFIG, load_model_config, model_config_of
from ldm.checkpoint import load_strict, read_state_dict
from ldm.config import parse_command_line
from ldm.device import choose_device
from ldm.latent_diffusion import ModelConfig
from muti_control.networks.guidance_decoder import (
    GuidanceDecoder,
    GuidanceDecoderConfig,
    load_guidance_decoder,
)
from muti_control.training.first_stage import FirstStage

Decode = Callable[[Tensor], Tensor]


@dataclass
class DecoderBenchmarkConfig:
    """What is timed.

    weights: checkpoint whose decoder is timed; null: ``model``'s architecture with random weights.
    decoder: file of the guidance_decoder stage; null: ``network`` with random weights.
    size: side of the pictures, px; 0 takes the model's. batch: pictures at a time.
    reps: repetitions, after one untimed.
    """

    model: str = str(SD15_CONFIG)
    weights: str | None = None
    decoder: str | None = None
    network: GuidanceDecoderConfig = field(default_factory=GuidanceDecoderConfig)
    size: int = 0
    batch: int = 1
    reps: int = 5
    device: str = "auto"
    append: bool = False


def decoders(cfg: DecoderBenchmarkConfig, device: torch.device) -> tuple[FirstStage, GuidanceDecoder]:
    """The full and the small one. Raises: CheckpointError, ValueError."""
    model_cfg: ModelConfig | None = load_model_config(cfg.model)
    state: dict[str, Tensor] = {}
    if cfg.weights is not None:
        state, metadata = read_state_dict(cfg.weights)
        model_cfg = model_config_of(cfg.weights, metadata) or model_cfg
    assert model_cfg is not None
    full = FirstStage(model_cfg).requires_grad_(False)
    if state:
        load_strict(full.first_stage_model, state, prefix="first_stage_model.")
    small = (
        GuidanceDecoder(cfg.network) if cfg.decoder is None else load_guidance_decoder(cfg.decoder)
    ).requires_grad_(False)
    for net in (full, small):
        net.to(memory_format=torch.channels_last)
    return full.to(device), small.to(device)


def with_gradient(decode: Decode, z: Tensor) -> Tensor:
    """Decode, and differentiate the picture's mean square with respect to the latent."""
    leaf = z.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(decode(leaf).square().mean(), leaf)
    return gradient


def seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(cfg: DecoderBenchmarkConfig, device: torch.device) -> list[list[str]]:
    """Rows of the table: decoder, parameters, GFLOPs and seconds of forwards, seconds with the gradient."""
    full, small = decoders(cfg, device)
    side = (cfg.size or full.cfg.image_size) // full.cfg.first_stage.downscale
    z = torch.randn(cfg.batch, full.cfg.first_stage.z_channels, side, side, device=device)
    ways: dict[str, Decode] = {"autoencoder's": full.decode, "small": small}
    modules = (full.first_stage_model.decoder, small)
    times: dict[tuple[str, bool], list[float]] = {(name, back): [] for name in ways for back in (False, True)}
    for repetition in range(cfg.reps + 1):
        for name, decode in ways.items():
            with torch.no_grad():
                forward = seconds(partial(decode, z), device)
            both = seconds(partial(with_gradient, decode, z), device)
            if repetition:
                times[name, False].append(forward)
                times[name, True].append(both)
    medians = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for (name, decode), module in zip(ways.items(), modules, strict=True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            decode(z)
        rows.append(
            [
                name,
                f"{sum(p.numel() for p in module.parameters()):,}",
                f"{counter.get_total_flops() / 1e9:.2f}",
                *(f"{medians[name, back]:.4f}" for back in (False, True)),
            ]
        )
    ratios = [medians["autoencoder's", back] / medians["small", back] for back in (False, True)]
    flops = float(rows[0][2]) / float(rows[1][2])
    return [*rows, ["ratio", "", f"{flops:.1f}", *(f"{ratio:.1f}" for ratio in ratios)]]


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, or 2 for what the user can mend."""
    try:
        cfg = parse_command_line(DecoderBenchmarkConfig, arguments)
        device = choose_device(cfg.device)
        rows = measure(cfg, device)
    except ValueError as error:
        print(f"benchmarks.sampling.guidance_decoder: {error}", file=sys.stderr)
        return 2
    header = ["decoder", "parameters", "GFLOP, forwards", "s, forwards", "s, with the latent's gradient"]
    body = table(header, rows)
    print(f"{machine(device)}\n\n{body}")
    if cfg.append:
        command = " ".join(["python -m benchmarks.sampling.guidance_decoder", *arguments])
        append_section("The small decoder for guidance", command, device, body)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
