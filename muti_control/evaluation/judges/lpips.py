"""LPIPS by torchmetrics: the distance of two pictures for a network, weighted by people's judgement of likeness.

The backbone is torchvision's AlexNet, whose weights the user has to bring (``alexnet-owt-7be5be79.pth``, 233 MB). The
weights per channel are those of the authors, version 0.1; torchmetrics carries a copy. torchmetrics' public class
downloads a backbone, so the network behind it is used. It imports matplotlib, so it is imported only where it is used.

Source: Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual
metric", CVPR 2018, arXiv 1801.03924, equation 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.checkpoint import read_state_dict
from muti_control.evaluation.results.results import Measure

LPIPS = Measure(
    "lpips", "LPIPS", "", "lower", 3, "Learned perceptual distance to the true face (AlexNet, version 0.1)."
)
_MIN_SIDE = 35  # px: below, the last pooling has nothing left


class Lpips:
    """The distance, on the CPU.

    Args:
        backbone: AlexNet's state dict as torchvision writes it (``features.0.weight`` ...), or safetensors of it.
        heads: state dict with ``lin0.model.1.weight`` ...; None takes torchmetrics' copy of the authors'.

    Raises:
        ValueError: torchvision is not installed; a file that lacks a key or has another shape (CheckpointError, its
            kin, where it cannot be read).
    """

    def __init__(self, backbone: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None) -> None:
        if find_spec("torchvision") is None:
            raise ValueError("lpips: python -m pip install torchvision  (the `eval` extra) has the network")
        from torchmetrics.functional.image.lpips import _LPIPS

        with torch.random.fork_rng(devices=[]):  # the backbone is random until its file is read
            self._network = _LPIPS(net="alex", pnet_rand=True)
        layers = [layer for part in self._network.net.children() for layer in part.state_dict().items()]
        _fill({f"features.{name}": tensor for name, tensor in layers}, Path(backbone))
        if heads is not None:
            weights = self._network.named_parameters()
            _fill({name: weight for name, weight in weights if name.startswith("lin")}, Path(heads))

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
        return self._network(_input(x), _input(y)).flatten().double().numpy()


def _input(pictures: NDArray[np.uint8]) -> Tensor:
    """Return (N, 3, H, W) in [-1, 1]."""
    colour = pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, axis=-1)
    return torch.from_numpy(np.ascontiguousarray(colour)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of a file into those of a network. Raises: ValueError."""
    state, _ = read_state_dict(path, mmap=False)
    for key, tensor in tensors.items():
        if key not in state:
            raise ValueError(
                f"{path}: has no {key}; LPIPS needs torchvision's AlexNet (alexnet-owt-7be5be79.pth)"
            )
        if state[key].shape != tensor.shape:
            raise ValueError(f"{path}: {key} is {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(state[key])
