"""LPIPS: the distance of two pictures for a network, weighted by people's judgement of likeness.

AlexNet's features of both pictures, unit length over channels, are subtracted and squared; learnt weights sum them. The
backbone is torchvision's AlexNet, which the user has to bring (``alexnet-owt-7be5be79.pth``, 233 MB). The weights per
channel are those of the authors, version 0.1; torchmetrics, which pytorch-lightning brings along, carries a copy.

Source: Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual
metric", CVPR 2018, arXiv 1801.03924, equation 1.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ldm.checkpoint import read_state_dict
from muti_control.evaluation.results.results import Measure

LPIPS = Measure(
    "lpips", "LPIPS", "", "lower", 3, "Learned perceptual distance to the true face (AlexNet, version 0.1)."
)
_CONVOLUTIONS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # index in AlexNet: stride, padding
_POOLED_BEFORE = (3, 6)
_SHAPES = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of RGB in [-1, 1], as in ImageNet
_MIN_SIDE = 35  # px: below, the last pooling has nothing left


class Lpips:
    """The distance, on one device.

    Args:
        backbone: AlexNet's state dict as torchvision writes it (``features.0.weight`` ...), or safetensors of it.
        heads: state dict with ``lin0.model.1.weight`` ...; None takes torchmetrics' copy of the authors'.

    Raises:
        ValueError: a file that lacks a key or has another shape (CheckpointError, its kin, where it cannot be read).
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str],
        heads: str | os.PathLike[str] | None = None,
        device: str = "cpu",
    ) -> None:
        files = Path(backbone), _bundled_heads() if heads is None else Path(heads)
        state, weights = (read_state_dict(path, mmap=False)[0] for path in files)
        self._layers = []
        for k, (index, shape) in enumerate(_SHAPES.items()):
            weight = _take(state, f"features.{index}.weight", shape, files[0])
            bias = _take(state, f"features.{index}.bias", shape[:1], files[0])
            head = _take(weights, f"lin{k}.model.1.weight", (1, shape[0], 1, 1), files[1])
            self._layers.append(tuple(tensor.float().to(device) for tensor in (weight, bias, head)))
        self._device = device

    @torch.inference_mode()
    def distances(self, x: NDArray[np.uint8], y: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return distances (N,), 0 for equal pictures, of pictures (N, H, W) or (N, H, W, 3) uint8, N small (a batch).

        Raises:
            ValueError: pictures of different shape or type, or smaller than 35 px.
        """
        if x.dtype != np.uint8 or y.dtype != np.uint8 or x.shape != y.shape or x.ndim not in (3, 4):
            raise ValueError(
                f"pictures {x.shape} {x.dtype} and {y.shape} {y.dtype}: expected uint8 of one shape"
            )
        if min(x.shape[1:3]) < _MIN_SIDE:
            raise ValueError(f"pictures of {x.shape[1:3]} px: LPIPS needs at least {_MIN_SIDE} px a side")
        a, b = self._input(x), self._input(y)
        total = torch.zeros(len(x), device=self._device)
        for (index, (stride, padding)), (weight, bias, head) in zip(
            _CONVOLUTIONS.items(), self._layers, strict=True
        ):
            if index in _POOLED_BEFORE:
                a, b = F.max_pool2d(a, 3, 2), F.max_pool2d(b, 3, 2)
            a, b = (F.relu(F.conv2d(side, weight, bias, stride, padding)) for side in (a, b))  # (N, C, h, w)
            gap = (_unit(a) - _unit(b)) ** 2
            total += F.conv2d(gap, head).mean(dim=(1, 2, 3))
        return total.double().cpu().numpy()

    def _input(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return (N, 3, H, W), normalised as in the network's training."""
        colour = pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, axis=-1)
        tensor = torch.from_numpy(np.ascontiguousarray(colour)).to(self._device).permute(0, 3, 1, 2).float()
        shift, scale = (torch.tensor(v, device=self._device)[:, None, None] for v in (_SHIFT, _SCALE))
        return (tensor / 127.5 - 1 - shift) / scale


def _unit(features: Tensor) -> Tensor:
    """Return features of unit length over channels."""
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


def _take(state: dict[str, Tensor], key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    if key not in state:
        raise ValueError(
            f"{path}: has no {key}; LPIPS needs torchvision's AlexNet (alexnet-owt-7be5be79.pth)"
        )
    if tuple(state[key].shape) != shape:
        raise ValueError(f"{path}: {key} is {tuple(state[key].shape)}, expected {shape}")
    return state[key]


def _bundled_heads() -> Path:
    spec = find_spec("torchmetrics")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "functional" / "image" / "lpips_models" / "alex.pth"
        if path.is_file():
            return path
    raise ValueError("LPIPS's weights per channel were not found in torchmetrics; give their file (alex.pth)")
