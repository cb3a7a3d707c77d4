"""The control network before it is trained: no effect, but something to learn from."""

from __future__ import annotations

import torch

from cldm.controlnet import hint_encoder
from ldm.config import ControlConfig


def test_the_difference_between_two_pictures_survives_the_fresh_hint_encoder() -> None:
    """Two smooth discs of different radius; with default initialisation the features differ by about 1e-5."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    discs = [torch.sigmoid((radius - (x**2 + y**2).sqrt()) * 30) for radius in (0.5, 0.6)]
    pictures = torch.stack(discs)[:, None].expand(-1, 3, -1, -1)
    encoder = hint_encoder(ControlConfig(), out_channels=8)
    with torch.no_grad():
        features = encoder[:-1](pictures)  # before the zero layer
        assert float(features.square().mean().sqrt()) > 0.1
        assert float((features[0] - features[1]).abs().mean()) > 0.01
        assert not encoder(pictures).any()
