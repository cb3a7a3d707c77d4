"""Convolutions for encoders that end in a zero layer."""

from __future__ import annotations

from torch import nn

SILU_GAIN = 1.677  # 1 / sqrt(E[silu(x)^2]) for standard normal x; it keeps the variance through the layers


def variance_preserving(in_channels: int, out_channels: int, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """Return a 3 x 3 convolution for the place before a SiLU: normal inputs leave the SiLU with variance ``gain ** 2``.

    With PyTorch's default, the difference between two conditions fades from layer to layer.
    """
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=stride)
    nn.init.normal_(conv.weight, std=gain * SILU_GAIN / (9 * in_channels) ** 0.5)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
