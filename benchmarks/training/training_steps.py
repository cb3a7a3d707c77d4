"""Do optimizer steps of the control stage in one of several ways, on random weights; training.py starts this.

    python -m benchmarks.training.training_steps '{"variant": "ours", "batch_size": 1, "size": 256, ...}'

Prints the times of the steps and the peak of the memory as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from benchmarks.results_file import machine
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config, restore_buffers
from ldm.attention import BasicTransformerBlock
from ldm.autoencoder import DiagonalGaussian
from ldm.config import ModelConfig
from ldm.device import choose_device
from ldm.schedule import predict_x0, q_sample
from ldm.unet import ResBlock
from muti_control.losses.config import LossesConfig
from muti_control.losses.decoding import SUMMED, decoder_layout, with_gradient
from muti_control.losses.picture import FacePairs, PictureLosses
from muti_control.networks.config import PatchGanConfig, PipNetConfig
from muti_control.networks.patchgan import PatchGan
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training.ema import Ema

PROMPT = "3D face scan,Asian male,age level 3,normal face."


@dataclass(frozen=True)
class Way:
    """How a step is computed.

    half: the frozen UNet held and run in bf16, autocast around the trained copy. cached: latents and texts are given,
    not computed from pictures and prompts. decoder_gradients: the UNet's decoder gets gradients that nobody uses.
    recompute: "no", "blocks" (ours, block by block of the UNet), or "layers" (residual and transformer layers).
    softmax: attention as a matrix of weights, as the published code has it. ema: averages of the weights.
    fused: the optimizer as one kernel. channels_last: memory layout.
    pictures: losses of decoded faces: "none"; "inert", of every face but without a gradient, as the published code
    computes them; "ours", of a sub-batch with a gradient, and the discriminator's step.
    """

    half: bool = True
    cached: bool = True
    decoder_gradients: bool = False
    recompute: str = "no"
    softmax: bool = False
    ema: bool = True
    fused: bool = True
    channels_last: bool = True
    pictures: str = "none"


ORIGINAL = Way(
    half=False, cached=False, decoder_gradients=True, recompute="layers", softmax=True, ema=False, fused=False,
    channels_last=False,
)  # fmt: skip
WAYS = {
    "original": ORIGINAL,
    "original_stored": replace(ORIGINAL, recompute="no"),
    "ours": Way(),
    "ours_recompute": Way(recompute="blocks"),
    "ours_fp32": Way(half=False, channels_last=False),
    "original_losses": replace(ORIGINAL, pictures="inert"),
    "ours_losses": Way(pictures="ours"),
    "ours_losses_recompute": Way(recompute="blocks", pictures="ours"),
    "ours_losses_fp32": Way(half=False, channels_last=False, pictures="ours"),
}


def random_weights(cfg: ModelConfig, device: torch.device) -> ControlledLatentDiffusion:
    """A model on ``device`` whose weights are small and random: the time does not depend on what they are."""
    with torch.device("meta"):
        model = ControlledLatentDiffusion(cfg)
    model = model.to_empty(device=device)
    restore_buffers(model)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.02, generator=generator)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return model


def prepare(model: ControlledLatentDiffusion, name: str) -> None:
    """Make the model compute ``name``'s way."""
    way = WAYS[name]
    model.requires_grad_(False)
    model.control_model.requires_grad_(True)
    if way.decoder_gradients:  # the published code freezes nothing; its encoder half runs without gradient
        model.unet.output_blocks.requires_grad_(True)
        model.unet.out.requires_grad_(True)
    if way.half:
        model.model.to(torch.bfloat16)
    if way.cached:
        for part in (model.first_stage_model.encoder, model.cond_stage_model):
            part.to("meta")
        if way.pictures == "none":
            model.first_stage_model.to("meta")
    model.to(memory_format=torch.channels_last if way.channels_last else torch.contiguous_format)
    if way.pictures == "ours":  # as the control stage has it
        device = next(model.control_model.parameters()).device
        model.first_stage_model.to(memory_format=decoder_layout(device))
    model.unet.recomputes = model.control_model.recomputes = way.recompute == "blocks"
    for module in model.modules() if way.recompute == "layers" else ():
        if isinstance(module, (ResBlock, BasicTransformerBlock)):
            _recompute(module)


def _recompute(module: nn.Module) -> None:
    forward = module.forward

    def recomputed(*inputs: Any) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)

    module.forward = recomputed


def training_step(
    model: ControlledLatentDiffusion, way: Way, device: torch.device, batch: int, size: int
) -> Callable[[], float]:
    """A function that does one optimizer step on a fixed batch and returns the loss."""
    parameters = dict(model.control_model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-5, fused=way.fused or None)
    ema = Ema(parameters, 0.999) if way.ema else None
    generator = torch.Generator().manual_seed(1)
    faces = torch.rand((batch, 3, size, size), generator=generator) * 2 - 1
    skulls = torch.rand((batch, 3, size, size), generator=generator)
    moments = torch.randn((batch, 8, size // 8, size // 8), generator=generator)
    texts = torch.randn((batch, 77, model.cfg.unet.context_dim), generator=generator)
    judges = None if way.pictures == "none" else Judges(model, way, faces.to(device), skulls.to(device))

    def step() -> float:
        if way.cached:
            z = DiagonalGaussian(moments.to(device)).sample(generator)
            context = texts.to(device)
        else:
            with torch.no_grad():
                z = model.first_stage_model.encode(faces.to(device)).sample(generator)
                context = model.encode_text([PROMPT] * batch)
        z = z * model.cfg.scale_factor
        t = torch.randint(0, 1000, (batch,), generator=generator).to(device)
        eps = torch.randn(z.shape, generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=way.half):
            x_t = q_sample(z, t, eps, model.alphas_cumprod)
            hint = model.encode_hint(skulls.to(device))
            eps_hat = model.eps(x_t, t, context, hint).float()
            loss = F.mse_loss(eps_hat, eps)
            if judges is not None:
                loss = judges.add_to(loss, predict_x0(x_t, t, eps_hat, model.alphas_cumprod))
        loss.backward()
        if way.ema:
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if judges is not None:
            with torch.autocast(device.type, torch.bfloat16, enabled=way.half):
                judges.discriminator_step()
        if ema is not None:
            ema.update(parameters)
        return float(loss.detach())

    return step


class Judges:
    """All losses of decoded faces, at random weights: a discriminator and a landmark network of the public size."""

    def __init__(self, model: ControlledLatentDiffusion, way: Way, faces: Tensor, skulls: Tensor) -> None:
        torch.manual_seed(0)
        self.model, self.way, self.faces, self.skulls = model, way, faces, skulls
        device = faces.device
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        network = PipNet(PipNetConfig(image_size=faces.shape[-1]))
        mean = np.random.default_rng(0).uniform(0.1, 0.9, (network.cfg.num_landmarks, 2))
        reader = (
            LandmarkReader(network, mean).eval().requires_grad_(False).to(device).to(memory_format=layout)
        )
        self.discriminator = PatchGan(PatchGanConfig()).to(device).to(memory_format=layout)
        cfg = LossesConfig(gan=1, fm=28, lm=150, by="weight", chunk=1)
        self.losses = PictureLosses(cfg, self.discriminator, reader)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=1e-4, fused=way.fused or None)
        self.pairs: FacePairs | None = None
        model.first_stage_model.decoder.recompute(way.recompute != "no" and way.pictures == "ours")

    def add_to(self, loss: Tensor, x_0_hat: Tensor) -> Tensor:
        """The noise loss with the others; of ours the dearest step, in which a whole sub-batch is decoded."""
        cfg, num = self.losses.cfg, len(x_0_hat)
        if self.way.pictures == "inert":
            with torch.no_grad():
                terms = self.losses.terms(self.model.decode(x_0_hat), self.faces, self.skulls)
            return 10 * loss + sum(cfg.terms[name] * value.mean() for name, value in terms.items())
        rows = torch.arange(min(num, cfg.sub_batch), device=x_0_hat.device)
        latents = x_0_hat[rows]
        parts, self.pairs = self.losses.differentiate(
            self.model.decode, latents, rows, self.skulls, lambda some: self.faces[some], cfg.terms
        )
        value = torch.stack([cfg.terms[name] * value.sum() for name, value in parts.values.items()]).sum()
        return with_gradient(10 * loss + value / num, latents, parts.gradients[SUMMED] / num)

    def discriminator_step(self) -> None:
        """Ours; the published code has one at every 40th batch only, which is left out."""
        if self.pairs is None:
            return
        self.losses.discriminator_loss(self.pairs, len(self.faces))["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def peak_bytes(device: torch.device) -> int:
    """The most memory there was in use: allocated on a GPU; on the CPU, resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_bytes` begin anew, from what is in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Prepare, do ``warmup`` and ``reps`` steps.

    Returns seconds of each (and the processor's own), losses, peak in bytes, and the machine.
    """
    device = choose_device(request["device"])
    if request.get("num_threads"):
        torch.set_num_threads(request["num_threads"])
    model = random_weights(load_model_config(request.get("model", SD15_CONFIG)), device)
    prepare(model, request["variant"])
    forget_peak(device)  # what building took is not what training takes
    way, warmup = WAYS[request["variant"]], request.get("warmup", 1)
    step = training_step(model, way, device, request["batch_size"], request["size"])
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(warmup + request["reps"]):
        began, cpu_began = time.perf_counter(), time.process_time()
        with sdpa_kernel(SDPBackend.MATH) if way.softmax else nullcontext():
            losses.append(step())  # reading the loss waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    return {
        "variant": request["variant"],
        "seconds": seconds[warmup:],
        "cpu_seconds": cpu_seconds[warmup:],
        "losses": losses,
        "peak": peak_bytes(device),
        "machine": machine(device),
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
