"""Features for KID: a network for photographs, whose weights the user gives by path."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ldm.checkpoint import read_state_dict, sha256
from muti_control.evaluation.judges.dlib_recogniser import Pictures
from muti_control.evaluation.judges.recognisers import Vector

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS = {  # a key that only this network has -> its name in torchvision, side of its input in px
    "Mixed_7c.branch_pool.conv.weight": ("inception_v3", 299),
    "layer4.2.conv3.weight": ("resnet50", 224),
}


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
