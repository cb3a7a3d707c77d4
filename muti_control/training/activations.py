"""How much a training step keeps for its backward pass, counted without computing: on tensors without numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cldm.controlnet import ControlNet
from ldm.autoencoder import AutoencoderKL
from ldm.latent_diffusion import ModelConfig
from ldm.unet import UNetModel
from muti_control.networks.patchgan import PatchGan, PatchGanConfig


@dataclass(frozen=True)
class Activations:
    """Bytes that one picture leaves for the backward pass, in float32. kept: of them, if the blocks are recomputed.

    block: of the largest block, which comes back while it is recomputed.
    """

    all: int
    kept: int
    block: int


@dataclass(frozen=True)
class StepSizes:
    """Of a control stage. trained, unet: numbers of parameters. control, decoder: of that network, that half."""

    trained: int
    unet: int
    control: Activations
    decoder: Activations


class _Attention(torch.autograd.Function):
    """Keeps what a fused attention keeps: queries, keys, values and result, and no matrix of weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class _FusedAttention(TorchFunctionMode):
    """Without numbers PyTorch would attend by the matrix of weights, which no device does."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args)
        return func(*args, **(kwargs or {}))


class _Kept:
    """Counts the storages that autograd keeps within ``counting``, each once, but for parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._seen: dict[int, Any] = {p.untyped_storage()._cdata: p for p in parameters}
        self.bytes = 0

    def add(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # held, so that no other takes its place
            self.bytes += storage.nbytes()
        return value

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda value: value):
            yield


def measure(cfg: ModelConfig) -> StepSizes:
    """Sizes of a control stage's step for one picture of ``cfg.image_size``; takes a second or two at SD1.5's size."""
    plain = replace(cfg.unet, gradient_checkpointing=False)
    with torch.device("meta"):
        unet, control = UNetModel(plain).requires_grad_(False), ControlNet(plain, cfg.control)
    stored, recomputed = (_activations(cfg, unet, control, again) for again in (False, True))
    return StepSizes(
        sum(p.numel() for p in control.parameters()),
        sum(p.numel() for p in unet.parameters()),
        *(Activations(s[0], r[0], s[1]) for s, r in zip(stored, recomputed, strict=True)),
    )


def _activations(
    cfg: ModelConfig, unet: UNetModel, control: ControlNet, recompute: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes kept, and those of the largest block: of the control network and of the decoder."""
    unet.recomputes = control.recomputes = recompute
    z, h, w = cfg.latent_shape
    with torch.device("meta"), _FusedAttention():
        x, t = torch.empty(1, z, h, w), torch.empty(1, dtype=torch.int64)
        context = torch.empty(1, cfg.cond_stage.max_length, cfg.unet.context_dim)
        skull = torch.empty(1, cfg.control.hint_channels, cfg.image_size, cfg.image_size)
        first = _Kept(control.parameters())
        with first.counting(), _largest([*control.input_blocks, control.middle_block], first) as one:
            residuals = control(x, t, context, control.encode_hint(skull))
        second = _Kept(unet.parameters())
        with second.counting(), _largest(unet.output_blocks, second) as two:
            F.mse_loss(unet(x, t, context, residuals), torch.empty_like(x))
    return (first.bytes, one[0]), (second.bytes, two[0])


def measure_decoder(cfg: ModelConfig) -> Activations:
    """Of the autoencoder's decoder, for one picture of ``cfg.image_size``."""
    with torch.device("meta"), _FusedAttention():
        decoder = AutoencoderKL(cfg.first_stage).requires_grad_(False).decoder
        kept = []
        for recompute in (False, True):
            decoder.recompute(recompute)
            counted = _Kept(decoder.parameters())
            blocks = [
                decoder.mid,
                *(block for level in decoder.up for block in level.get_submodule("block").children()),
            ]
            z = torch.empty(1, *cfg.latent_shape, requires_grad=True)
            with counted.counting(), _largest(blocks, counted) as largest:
                decoder(z).sum()
            kept.append((counted.bytes, largest[0]))
    return Activations(kept[0][0], kept[1][0], kept[0][1])


def measure_discriminator(cfg: PatchGanConfig, size: int) -> tuple[int, int]:
    """Bytes that a face of ``size`` px leaves for the backward pass; number of parameters."""
    with torch.device("meta"):
        net = PatchGan(cfg)
        kept = _Kept(net.parameters())
        with kept.counting():
            net(torch.empty(1, cfg.in_channels, size, size, requires_grad=True))
    return kept.bytes, sum(p.numel() for p in net.parameters())


@contextmanager
def _largest(blocks: Iterable[nn.Module], kept: _Kept) -> Iterator[list[int]]:
    """The most that any of ``blocks`` adds to ``kept`` within the context."""
    found, before = [0], [0]
    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda *_: before.__setitem__(0, kept.bytes)))
        hooks.append(
            block.register_forward_hook(
                lambda *_: found.__setitem__(0, max(found[0], kept.bytes - before[0]))
            )
        )
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
