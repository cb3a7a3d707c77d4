"""The discriminator: PatchGANs that look at a skull with a face at several scales, and what is computed from scores.

Parameter names and layers are those of pix2pixHD's multi-scale discriminator with intermediate features, so its files
load here and ours there. The last of the ``scale{i}`` networks sees the picture as it is, each one before it half the
size of its follower.
Sources: PatchGAN, arXiv 1611.07004; its multi-scale form, arXiv 1711.11585; LSGAN, arXiv 1611.04076.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import read_state_dict
from muti_control.networks.config import MOST_CHANNELS, PatchGanConfig
from muti_control.networks.files import load_frozen, save_network, usable_as
from settings.reading import from_json

LEAK = 0.2
INITIAL_STD = 0.02
METADATA = "patchgan"

# Of each scale, finest first: the features of the layers, and the score map as the last.
Features = list[list[Tensor]]


class PatchGan(nn.Module):
    """Skull and face (B, 6, H, W) in [-1, 1] -> features and scores, see :data:`Features`.

    Samples do not influence each other: the normalisation is of each picture by itself.

    Raises:
        ValueError: a config that cannot be built.
    """

    def __init__(self, cfg: PatchGanConfig) -> None:
        super().__init__()
        self.cfg = cfg
        for scale in range(cfg.num_scales):
            for number, layer in enumerate(_layers(cfg)):
                self.add_module(f"scale{scale}_layer{number}", layer)

    def forward(self, pictures: Tensor) -> Features:
        """Features of (B, 6, H, W) in [-1, 1], from the whole size down; of 256 px the scores are 35 and 19 a side.

        Raises:
            ValueError: another number of channels.
        """
        if pictures.ndim != 4 or pictures.shape[1] != self.cfg.in_channels:
            raise ValueError(
                f"the discriminator got {tuple(pictures.shape)}, expected (B, {self.cfg.in_channels}, H, W): "
                "the skull and the face stacked, see judged"
            )
        results = []
        for scale in reversed(range(self.cfg.num_scales)):
            h, features = pictures, []
            for number in range(self.cfg.num_layers + 2):
                h = self.get_submodule(f"scale{scale}_layer{number}")(h)
                features.append(h)
            results.append(features)  # (B, C_n, H_n, W_n) ..., (B, 1, H', W')
            if scale:
                pictures = F.avg_pool2d(pictures, 3, 2, 1, count_include_pad=False)  # (B, 6, H/2, W/2)
        return results

    def save(
        self, path: Path, dtype: torch.dtype = torch.float32, more: Mapping[str, str] | None = None
    ) -> None:
        """Write weights and architecture as one safetensors file. Raises: CheckpointError."""
        save_network(path, self, {METADATA: json.dumps(self.cfg.model_dump()), **(more or {})}, dtype)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> PatchGan:
        """Load a file of :meth:`save`, or pix2pixHD's weights: frozen, in evaluation mode, fp32.

        Raises:
            CheckpointError: no such file, not such a discriminator, or weights that do not fit its architecture.
        """
        state, metadata = read_state_dict(path, mmap=False)
        with usable_as("discriminator", path):
            text = metadata.get(METADATA)
            cfg = infer_config(state) if text is None else from_json(PatchGanConfig, text)
            return load_frozen(lambda: cls(cfg), state).to(device)


def _layers(cfg: PatchGanConfig) -> list[nn.Sequential]:
    """Return the layers of one scale. Convolutions are 4x4, padded by 2; the first and the last are not normalised."""
    layers = []
    inputs = cfg.in_channels
    for number in range(cfg.num_layers + 1):
        outputs = min(cfg.width * 2**number, MOST_CHANNELS)
        parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, 2 if number < cfg.num_layers else 1, 2)]
        if number:
            parts.append(nn.InstanceNorm2d(outputs))
        layers.append(nn.Sequential(*parts, nn.LeakyReLU(LEAK)))
        inputs = outputs
    layers.append(nn.Sequential(nn.Conv2d(inputs, 1, 4, 1, 2)))
    for layer in layers:
        nn.init.normal_(layer.get_parameter("0.weight"), std=INITIAL_STD)
    return layers


def infer_config(state: Mapping[str, Tensor]) -> PatchGanConfig:
    """Return the architecture of a file without metadata, from its names and shapes.

    Raises:
        ValueError: the names are not a multi-scale discriminator's.
    """
    names = [re.fullmatch(r"scale(\d+)_layer(\d+)\.0\.weight", name) for name in state]
    layers = [(int(name[1]), int(name[2])) for name in names if name]
    first = state.get("scale0_layer0.0.weight")
    if first is None or first.ndim != 4 or len(layers) < 3:
        raise ValueError("it has no scale0_layer0.0.weight of a convolution; expected scale{i}_layer{j}.*")
    return PatchGanConfig(
        in_channels=first.shape[1],
        width=first.shape[0],
        num_scales=1 + max(scale for scale, _ in layers),
        num_layers=max(layer for _, layer in layers) - 1,
    )


# --- what goes in, and what is made of the scores -----------------------------------------------------------


def judged(skulls: Tensor, faces: Tensor) -> Tensor:
    """Return the input (B, 6, H, W) of skulls (B, 3, H, W) in [0, 1] and faces (B, 3, H, W) in [-1, 1]."""
    return torch.cat([skulls.to(faces) * 2 - 1, faces], dim=1)


def scores_of(features: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the score maps (B, 1, H', W') of each scale, float32."""
    return [scale[-1].float() for scale in features]


def lsgan_generator(fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the sum over the scales of mean (D(fake) - 1)^2, (B,). Source: arXiv 1611.04076, eq. 9."""
    return torch.stack([_distance(scores, 1.0) for scores in scores_of(fake)]).sum(0)


def lsgan_discriminator(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the sum over the scales of [mean (D(real) - 1)^2 + mean D(fake)^2] / 2, one value per sample (B,).

    0.25 a scale is what a discriminator gets that always says 1/2. Source: arXiv 1611.04076, eq. 9.
    """
    goods, bads = scores_of(real), scores_of(fake)
    halves = [_distance(good, 1.0) + _distance(bad, 0.0) for good, bad in zip(goods, bads, strict=True)]
    return torch.stack(halves).sum(0) / 2


def accuracy(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the share of the patches of all scales on the right side of 1/2: real above, fake below; a scalar."""
    right = [(scores > 0.5).float().mean() for scores in scores_of(real)]
    right += [(scores < 0.5).float().mean() for scores in scores_of(fake)]
    return torch.stack(right).mean()


def _distance(scores: Tensor, target: float) -> Tensor:
    return (scores - target).square().flatten(1).mean(1)  # (B,)
