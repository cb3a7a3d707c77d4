"""Pairs whose landmarks can be seen: bright discs on black, in a face and in a skull that hides one of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from conftest import tiny_model_config
from PIL import Image

from cldm.branches import BRANCHES
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from ldm.checkpoint import write_state_dict
from ldm.config import LandmarkConfig
from muti_control.networks.config import PipNetConfig
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader

LAYOUT = np.array(  # a face of 12 points, the same on both sides: eyes 0-3, nose 4-6, mouth 7-9, jaw 10-11
    [
        *((0.28, 0.38), (0.42, 0.38), (0.58, 0.38), (0.72, 0.38)),
        *((0.44, 0.55), (0.5, 0.58), (0.56, 0.55)),
        *((0.38, 0.7), (0.5, 0.72), (0.62, 0.7)),
        *((0.2, 0.75), (0.8, 0.75)),
    ]
)
MIRRORED = (3, 2, 1, 0, 6, 5, 4, 9, 8, 7, 11, 10)
CORNERS = (0, 3)


def picture_of(points: np.ndarray, side: int) -> np.ndarray:
    """(side, side) uint8 with a soft disc at each point (N, 2), fractions."""
    y, x = np.mgrid[:side, :side] + 0.5
    squared = ((points[:, 0, None, None] * side - x) ** 2 + (points[:, 1, None, None] * side - y) ** 2).min(0)
    return (255 * np.exp(-squared / (0.03 * side) ** 2)).astype(np.uint8)


def write_landmark_pairs(root: Path, side: int = 64, **splits: int) -> Path:
    """A data folder: write_landmark_pairs(root, train=8, valid=4) -> root. Body mass widens the jaw of the face."""
    rng = np.random.default_rng(0)
    for folder in ("pairedCS/skull", "pairedCS/craniofacial", "pairedCS/landmarks", "split_data"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, num in splits.items():
        lines = []
        for i in range(num):
            name, mass = f"{split}_{i}", 1 + i % 5
            points = LAYOUT + rng.uniform(-0.04, 0.04, 2) + rng.normal(0, 0.01, LAYOUT.shape)
            points[10:, 0] += np.array([-0.02, 0.02]) * (mass - 3)
            Image.fromarray(picture_of(points, side)).save(root / f"pairedCS/craniofacial/{name}.png")
            Image.fromarray(picture_of(points[:10], side)).save(root / f"pairedCS/skull/{name}.png")
            content = {"points": (points * side - 0.5).round(3).tolist(), "visible": [True] * len(points)}
            (root / f"pairedCS/landmarks/{name}.json").write_text(json.dumps(content), encoding="utf-8")
            fields = {
                "source": f"{name}.png",
                "target": f"{name}.png",
                "subject": name,
                "gender": "MF"[i % 2],
            }
            fields |= {"age": 30 + i % 40, "body_mass": str(mass), "ethnicity": ("Asian", "African")[i % 2]}
            lines.append(json.dumps(fields | {"landmarks": f"landmarks/{name}.json"}))
        (root / "split_data" / f"{split}.json").write_text("\n".join(lines), encoding="utf-8")
    return root


def write_landmark_model(
    root: Path, num_points: int, ethnicities: tuple[str, ...] = ("Asian",)
) -> LandmarkReader:
    """model.safetensors with a landmark branch that matters, and pipnet.safetensors, returned, that reads skulls."""
    torch.manual_seed(0)
    cfg = tiny_model_config()
    cfg.control.landmarks = LandmarkConfig(num_points=num_points, widths=[8])
    model = ControlledLatentDiffusion(cfg)
    for name, p in model.named_parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=1.0 if name.startswith(BRANCHES) else 0.2)
    sampling = json.dumps(vars(SamplingConfig(steps=2, control_scales=[1.0], guidance_scale=1.0, eta=0.0)))
    metadata = model_metadata(cfg) | {"sampling": sampling}
    write_state_dict(root / "model.safetensors", model.state_dict(), metadata)
    shape = {"num_landmarks": num_points, "num_neighbours": 2, "image_size": 64, "width": 0.25}
    net = PipNet(PipNetConfig(**shape, ethnicities=list(ethnicities)))
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    mean = np.random.default_rng(0).uniform(0.2, 0.8, (num_points, 2))
    reader = LandmarkReader(net.eval(), mean, role="skull")
    reader.save(root / "pipnet.safetensors")
    return reader
