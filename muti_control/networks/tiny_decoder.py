"""Public tiny decoders of Stable Diffusion 1.5's latents (TAESD), for guidance: their layers, under their key names.

Source: O. Boer Bohan, Tiny AutoEncoder for Stable Diffusion (madebyollin/taesd, MIT licence); the layout is that of
diffusers' ``AutoencoderTiny`` as well. The code here is our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import CheckpointError
from muti_control.networks.files import load_frozen

BLOCKS = (3, 3, 3, 1)  # at 1/8, 1/4, 1/2 and the whole of the picture's side
MAGNITUDE = 3.0  # latents beyond this are squeezed
SCALE = 0.18215  # of the latents that such decoders know: Stable Diffusion 1.5's
# diffusers: decoder.layers.0.weight; the original file: 1.weight, whose layer 0 squeezes the latents; both decoders
# also stand in files of whole autoencoders: decoder.1.weight
_KEY = re.compile(
    r"^(?P<before>decoder\.layers\.|decoder\.|)(?P<number>\d+)\.(?P<rest>(conv\.[024]\.)?(weight|bias))$"
)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class TinyDecoder(nn.Module):
    """Scaled latents (B, 4, h, w), as diffusion has them -> pictures (B, 3, 8 h, 8 w), about [-1, 1]."""

    def __init__(self, width: int = 64, z_channels: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(z_channels, width, 3, padding=1), nn.ReLU()]
        for level, num in enumerate(BLOCKS):
            layers += [_Block(width) for _ in range(num)]
            if level + 1 < len(BLOCKS):
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Carries gradient."""
        return self.layers(torch.tanh(z / MAGNITUDE) * MAGNITUDE) * 2 - 1


def tiny_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the decoder's tensors under the names of ``TinyDecoder``; None where the file is no such decoder."""
    matches = {name: match for name in state if (match := _KEY.match(name))}
    in_layers = {name: match for name, match in matches.items() if match["before"] == "decoder.layers."}
    if in_layers:
        return {f"layers.{match['number']}.{match['rest']}": state[name] for name, match in in_layers.items()}
    whole = any(match["before"] for match in matches.values())
    chosen = [match for match in matches.values() if bool(match["before"]) == whole]
    if not any(match["number"] == "1" and match["rest"] == "weight" for match in chosen):
        return None
    return {f"layers.{int(match['number']) - 1}.{match['rest']}": state[match[0]] for match in chosen}


def load_tiny_decoder(
    path: str | Path, tensors: Mapping[str, Tensor], scale_factor: float | None
) -> TinyDecoder:
    """Return the decoder, frozen, fp32. scale_factor: of the model's latents; None: of no model.

    Raises:
        CheckpointError: the tensors do not fit, or the model has other latents than Stable Diffusion 1.5.
    """
    if scale_factor is not None and abs(scale_factor - SCALE) > 1e-4:
        raise CheckpointError(
            f"{path} is a tiny decoder of Stable Diffusion 1.5's latents (scale {SCALE}), but this model's have "
            f"{scale_factor:g}; train one for it: python train.py configs/demo/guidance_decoder.yaml init=MODEL"
        )
    first = tensors.get("layers.0.weight")
    if first is None or first.ndim != 4:
        raise CheckpointError(f"{path} is no tiny decoder that can be used: its first convolution is missing")
    width, channels = first.shape[:2]
    return load_frozen(lambda: TinyDecoder(width, channels), tensors)
