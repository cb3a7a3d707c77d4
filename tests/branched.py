"""A tiny model with a landmark branch and a texture branch, and conditions for it."""

from __future__ import annotations

import torch
from conftest import tiny_model_config

from cldm.branches import BRANCHES, Landmarks
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion
from cldm.texture import NUM_FEATURES, Texture
from ldm.config import LandmarkConfig, TextureConfig

NUM = 5  # landmarks of a face
TEXTURE = TextureConfig(num_patches=24, width=8)
SAMPLING = SamplingConfig(steps=2, spacing="trailing", guidance_scale=1.0, control_scales=[1.0])


def branched_model(perturbed: bool) -> ControlledLatentDiffusion:
    """None of its layers at zero, but those of the branches unless perturbed; the same at each call."""
    cfg = tiny_model_config()
    cfg.control.texture = TEXTURE
    cfg.control.landmarks = LandmarkConfig(num_points=NUM, widths=[8])
    torch.manual_seed(0)
    model = ControlledLatentDiffusion(cfg).eval()
    for name, p in model.named_parameters():
        if not p.any() and (perturbed or not name.startswith(BRANCHES)):
            torch.nn.init.normal_(p, std=0.2)
    return model


def random_landmarks(b: int = 2, n: int = NUM) -> Landmarks:
    points = torch.rand(b, n, 2, generator=torch.Generator().manual_seed(0))
    return Landmarks(points, torch.ones(b, n), torch.ones(b, dtype=torch.bool))


def random_texture(b: int = 2) -> Texture:
    features = torch.randn(b, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    return Texture(features, torch.ones(b, dtype=torch.bool))
