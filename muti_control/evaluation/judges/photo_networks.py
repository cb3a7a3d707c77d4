"""Networks for photographs whose weights the user gives by path: the features behind KID, and LPIPS by torchmetrics.

LPIPS is the distance of two pictures for a network, weighted by people's judgement of likeness. Its backbone is
torchvision's AlexNet (``alexnet-owt-7be5be79.pth``, 233 MB). The weights per channel are those of the authors, version
0.1; torchmetrics carries a copy. torchmetrics' public class downloads a backbone, so the network behind it is used. It
imports matplotlib, so it is imported only where it is used.

Source: Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual
metric", CVPR 2018, arXiv 1801.03924, equation 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.checkpoint import read_state_dict, sha256
from muti_control.evaluation.judges.picture_measures import Pictures, tensors
from muti_control.evaluation.judges.recognisers import Vector
from muti_control.evaluation.results.results import Measure

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS = {  # a key that only this network has -> its name in torchvision, side of its input in px
    "Mixed_7c.branch_pool.conv.weight": ("inception_v3", 299),
    "layer4.2.conv3.weight": ("resnet50", 224),
}


LPIPS = Measure(
    "lpips", "LPIPS", "", "lower", 3, "Learned perceptual distance to the true face (AlexNet, version 0.1)."
)
_MIN_SIDE = 35  # px: below, the last pooling has nothing left


class BackboneError(ValueError):
    """Weights of an unknown network; the message names the known ones."""


class Backbone:
    """2,048 features of a picture from torchvision's Inception v3 or ResNet-50, before the last layer.

    It is an eye (``recognisers.Eye``), so that its features are stored like those of the recognisers.

    Args:
        path: a state dict in torchvision's layout (.pth, .safetensors).

    Raises:
        BackboneError: other weights, or torchvision is not installed. CheckpointError: the file cannot be read.
    """

    name, cached = "kid", True

    def __init__(self, path: Path) -> None:
        if find_spec("torchvision") is None:
            raise BackboneError("kid: python -m pip install torchvision  (the `eval` extra) has the network")
        from torchvision import models

        state = {
            key: value for key, value in read_state_dict(path)[0].items() if not key.startswith("AuxLogits.")
        }
        layouts = [layout for key, layout in LAYOUTS.items() if key in state]
        if not layouts:
            names = " or ".join(name for name, _ in LAYOUTS.values())
            raise BackboneError(f"kid: {path} is no state dict of torchvision's {names}")
        self.network, self._side = layouts[0]
        extra = {"init_weights": False, "aux_logits": False} if self.network == "inception_v3" else {}
        network: Any = getattr(models, self.network)(weights=None, **extra)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise BackboneError(
                f"kid: {path} does not fit {self.network}: {' '.join(str(error).split())[:300]}"
            ) from error
        network.fc = nn.Identity()
        self._network = network.eval()
        self.identity: dict[str, Any] = {"network": self.network, "sha256": sha256(path)}

    def look(self, picture: Pictures) -> Vector:
        """Return the features (2048,) of one grey picture (H, W) uint8."""
        return self.features(picture[None])[0]

    @torch.no_grad()
    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """Return features (N, 2048) of grey pictures (N, H, W) uint8, normalised as in the network's training."""
        x = torch.from_numpy(pictures).float()[:, None].div(255).expand(-1, 3, -1, -1)
        x = F.interpolate(x, (self._side, self._side), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self._network((x - mean) / std).numpy().astype(np.float32)


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
    def distance(self, x: Pictures, y: Pictures) -> float:
        """Return the distance, 0 for equal pictures, of two grey pictures (H, W) uint8.

        Raises:
            ValueError: pictures of different shape or type, or smaller than 35 px.
        """
        colour = (grey.float().expand(-1, 3, -1, -1) for grey in tensors(x, y))  # (1, 3, H, W)
        a, b = (c.contiguous(memory_format=torch.channels_last) / 127.5 - 1 for c in colour)
        if min(x.shape) < _MIN_SIDE:
            raise ValueError(f"pictures of {x.shape} px: LPIPS needs at least {_MIN_SIDE} px a side")
        return float(self._network(a, b))


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
