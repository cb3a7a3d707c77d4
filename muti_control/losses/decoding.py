"""Losses of decoded pictures, as a gradient on the latents they are decoded from: gated, chunk by chunk.

Decoder and loss networks run forwards and backwards chunk by chunk, and leave values and a gradient on the latents. So
memory holds the activations of one chunk, no parameter of theirs gets a gradient, and the network that predicted the
latents is differentiated once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SUMMED = ""  # the name of the weighted sum among the gradients
FP16_SCALE = 4096.0  # float16 would round the gradient of a picture's mean to zero

# (faces (n, 3, H, W) about [-1, 1], rows (n,) of the batch) -> terms by name, one value per face (n,)
Terms = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def gated_rows(t: Tensor, low: int, high: int, at_most: int, generator: torch.Generator) -> Tensor:
    """Return the rows (n,), ascending, of samples with low <= t <= high; at most ``at_most``, chosen at random.

    t: (B,) on the CPU, where ``generator`` is. Where t is large, the predicted clean latent says little.
    """
    rows = ((t >= low) & (t <= high)).nonzero().flatten()
    chosen = torch.randperm(len(rows), generator=generator)[:at_most]
    return rows[chosen].sort().values


@dataclass(frozen=True)
class TermGradients:
    """The result of :func:`differentiate`.

    values: of each term, (n,) float32. gradients: of each term (or of the weighted sum, under ``SUMMED``), summed over
    the samples, with respect to the latents, (n, z, h, w) float32. faces: detached (n, 3, H, W) float32, about [-1, 1].
    """

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]
    faces: Tensor


def differentiate(
    decode: Callable[[Tensor], Tensor],
    z: Tensor,
    rows: Tensor,
    terms: Terms,
    chunk: int,
    weights: Mapping[str, float] | None = None,
) -> TermGradients:
    """Decode latents and differentiate the ``terms`` of the faces with respect to them.

    Samples must not influence each other: then the size of a chunk changes nothing but memory.

    Args:
        decode: latents -> faces, with gradient. z: (n, z, h, w) float32; its own graph is left alone.
        rows: (n,), the samples' rows in the batch. chunk: faces at a time.
        weights: of the terms in the sum that is differentiated; None: each term by itself, a backward pass each.
    """
    device = z.device.type
    fp16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    scale = FP16_SCALE if fp16 else 1.0
    parts = []
    with torch.enable_grad():
        for latents, some in zip(z.detach().split(chunk), rows.split(chunk), strict=True):
            leaf = latents.contiguous(memory_format=decoder_layout(z.device)).requires_grad_(True)
            faces = decode(leaf).float()  # (n, 3, H, W)
            values = terms(faces, some)
            sums = {name: value.float().sum() for name, value in values.items()}
            if weights is not None:
                sums = {SUMMED: torch.stack([weights[name] * value for name, value in sums.items()]).sum()}
            gradients = {}
            for left, (name, value) in zip(reversed(range(len(sums))), sums.items(), strict=True):
                with torch.autocast(device, enabled=False):
                    (gradient,) = torch.autograd.grad(value * scale, leaf, retain_graph=left > 0)
                gradients[name] = gradient.float() / scale
            detached = {name: value.detach().float() for name, value in values.items()}
            parts.append(TermGradients(detached, gradients, faces.detach()))
    return TermGradients(
        {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
        {name: torch.cat([part.gradients[name] for part in parts]) for name in parts[0].gradients},
        torch.cat([part.faces for part in parts]),
    )


def decoder_layout(device: torch.device) -> torch.memory_format:
    """Return the layout in which a decoder is differentiated fastest.

    On a CPU the backward pass of GroupNorm in bf16 takes up to 23 times as long with channels last (16 channels of
    256 px, torch 2.15), which costs more than the convolutions gain: the demo's decoder took 1.04 s against 0.76 s.
    """
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def with_gradient(value: Tensor, z: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar of the value ``value`` whose gradient on ``z`` is ``gradient`` (of z's shape)."""
    inner = (z * gradient).sum()
    return value + (inner - inner.detach())
