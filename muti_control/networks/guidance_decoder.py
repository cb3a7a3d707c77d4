"""A small decoder for guidance alone: latent -> picture, distilled from the autoencoder's, at a fraction of its work.

Guidance differentiates a decoded estimate many times for one face; the face itself is always decoded by the full
decoder. Its file says which autoencoder it was distilled from, and is refused beside another.
Source of the idea: small decoders that imitate Stable Diffusion's, such as TAESD; the layers here are our own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.checkpoint import CheckpointError, read_state_dict
from ldm.latent_diffusion import LatentDiffusion
from muti_control.networks.config import GuidanceDecoderConfig
from muti_control.networks.files import load_frozen, save_network, usable_as
from muti_control.networks.tiny_decoder import TinyDecoder, load_tiny_decoder, tiny_keys
from settings.parsing import parse_json
from settings.reading import from_json

METADATA = "guidance_decoder"
FIRST_STAGE = "first_stage"
SAME = 0.05  # two readings of one autoencoder's weights differ by less, also in half precision; of two by about 1


class _Block(nn.Module):
    """Two convolutions and a skip connection; nothing is normalised, so that no sample and no place sees another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class GuidanceDecoder(nn.Module):
    """Scaled latents (B, z, h, w), as diffusion has them -> pictures (B, 3, 8 h, 8 w), about [-1, 1].

    Raises:
        ValueError: a config that cannot be built.
    """

    def __init__(self, cfg: GuidanceDecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = [cfg.z_channels, *cfg.widths]
        self.conv_in = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(num)))
            for width, num in zip(cfg.widths, cfg.blocks, strict=True)
        )
        self.conv_out = nn.Conv2d(cfg.widths[-1], 3 * 4, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Carries gradient."""
        h = z.contiguous(memory_format=torch.channels_last)
        for level, (conv, blocks) in enumerate(zip(self.conv_in, self.blocks, strict=True)):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = blocks(conv(h))  # (B, C_l, 2^l h, 2^l w)
        return F.pixel_shuffle(self.conv_out(F.silu(h)), 2)  # (B, 3, 8 h, 8 w)

    def save(
        self,
        path: Path,
        first_stage: Sequence[float],
        dtype: torch.dtype = torch.float32,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """Write weights, architecture and whose decoder it imitates (:func:`signature`). Raises: CheckpointError."""
        own = {METADATA: json.dumps(self.cfg.model_dump()), FIRST_STAGE: json.dumps(list(first_stage))}
        save_network(path, self, {**own, **(more or {})}, dtype)


def load_guidance_decoder(
    path: str | Path, model: LatentDiffusion | None = None
) -> GuidanceDecoder | TinyDecoder:
    """Load a decoder, frozen, in evaluation mode, fp32; on the device of ``model``, whose autoencoder must be its own.

    A public tiny decoder (TAESD) serves models with Stable Diffusion 1.5's latents.

    Raises:
        CheckpointError: no such file, none of the guidance_decoder stage, or one of another autoencoder.
    """
    state, metadata = read_state_dict(path, mmap=False)
    if METADATA not in metadata and (tensors := tiny_keys(state)) is not None:
        tiny = load_tiny_decoder(path, tensors, None if model is None else model.cfg.scale_factor)
        return tiny if model is None else tiny.to(model.device)
    if METADATA not in metadata or FIRST_STAGE not in metadata:
        raise CheckpointError(
            f"{path} is no guidance decoder; give what `python train.py configs/demo/guidance_decoder.yaml` writes, "
            "or a public tiny decoder of Stable Diffusion 1.5 (TAESD)"
        )
    with usable_as("guidance decoder", path):
        cfg = from_json(GuidanceDecoderConfig, metadata[METADATA])
        net = load_frozen(lambda: GuidanceDecoder(cfg), state)
        own = parse_json(metadata[FIRST_STAGE], FIRST_STAGE, list[float])
    net = net.to(memory_format=torch.channels_last)
    if model is None:
        return net
    if not same_autoencoder(own, signature(model.first_stage_model)):
        raise CheckpointError(
            f"{path} imitates the decoder of another autoencoder than this model's; train one for it: python train.py "
            "configs/demo/guidance_decoder.yaml init=MODEL"
        )
    return net.to(model.device)


@torch.no_grad()
def signature(first_stage: AutoencoderKL) -> list[float]:
    """Return a number of each tensor of an autoencoder's decoder, about -3 to 3, by which it differs from others.

    The tensor's sum with pseudo-random signs, over its norm. Rounding to half precision moves it by a thousandth or
    so, so it is the same for a file in float16 and for a model in bf16, where a hash would not be.
    """
    parts = {"post_quant_conv": first_stage.post_quant_conv, "decoder": first_stage.decoder}
    numbers = []
    for part, module in parts.items():
        for _, value in sorted(module.state_dict(prefix=f"{part}.").items()):
            flat = value.detach().float().flatten()
            places = torch.arange(flat.numel(), device=flat.device)
            first_bits = (places * 2654435761) % 2**32 // 2**31  # of Knuth's multiplicative hash
            signs = 1 - 2 * first_bits
            norm = flat.norm()
            numbers.append(round(float((flat * signs).sum() / norm), 4) if norm > 0 else 0.0)
    return numbers


def same_autoencoder(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two signatures are of the same weights."""
    return len(one) == len(other) and all(abs(a - b) < SAME for a, b in zip(one, other, strict=True))
