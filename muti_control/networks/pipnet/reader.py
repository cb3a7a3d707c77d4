"""A trained network ready to use: pictures in, points and confidences out; and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.biometrics import Biometrics
from ldm.checkpoint import read_state_dict
from muti_control.networks.config import STAGE_WIDTHS, PipNetConfig
from muti_control.networks.files import load_frozen, save_network, usable_as
from muti_control.networks.pipnet.meanface import neighbours, read_meanface, reverse_index
from muti_control.networks.pipnet.network import Maps, PipNet, encode
from muti_control.networks.pipnet.readout import MIN_TEMPERATURE, read_points, soft_points
from settings.parsing import parse_json
from settings.reading import from_json

MEANFACE = "meanface.txt"


class LandmarkReader(nn.Module):
    """A network with its mean face.

    Args:
        mean: (N, 2), fractions of the picture.
        role: what it reads landmarks off, "face" or "skull".
    """

    reverse: Tensor
    nearest: Tensor

    def __init__(self, net: PipNet, mean: NDArray[np.floating], role: str = "face") -> None:
        super().__init__()
        if mean.shape != (net.cfg.num_landmarks, 2):
            raise ValueError(
                f"the mean face has {len(mean)} points, the network {net.cfg.num_landmarks}; they belong together"
            )
        self.net, self.mean, self.role = net, mean, role
        nearest = neighbours(mean, net.cfg.num_neighbours)
        self.register_buffer("nearest", torch.from_numpy(nearest), persistent=False)
        self.register_buffer("reverse", reverse_index(nearest), persistent=False)

    @property
    def takes_biometrics(self) -> bool:
        return self.net.cfg.ethnicities is not None

    def maps(self, pictures: Tensor, people: Sequence[Biometrics] | Tensor | None = None) -> Maps:
        """Return the maps of pictures (B, 3, H, W) in [0, 1]; ``people`` as they are or encoded (B, A), None: without.

        Raises:
            ValueError: people for a network that takes no biometrics, or an ethnicity it does not know.
        """
        if people is None or isinstance(people, Tensor):
            return self.net(pictures, people)
        if not self.takes_biometrics:
            raise ValueError("this landmark network takes no biometrics; give it the pictures alone")
        return self.net(pictures, self.encode(people).to(pictures.device))

    def encode(self, people: Sequence[Biometrics]) -> Tensor:
        """Return biometrics as numbers, (B, A). Raises: ValueError: an ethnicity it was not trained on."""
        return encode(people, self.net.cfg.ethnicities or ())

    def forward(
        self, pictures: Tensor, people: Sequence[Biometrics] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the landmarks of pictures (B, 3, H, W) in [0, 1].

        Returns:
            Points (B, N, 2), fractions of the picture (px = fraction * size - 0.5), and confidences (B, N) in [0, 1].

        Raises:
            ValueError: they are no numbers.
        """
        points, confidences = read_points(self.maps(pictures, people), self.reverse)
        if not (points.isfinite().all() and confidences.isfinite().all()):
            raise ValueError(
                f"the landmark network for {self.role}s answers with NaN: its weights are damaged; give another file"
            )
        return points, confidences

    def soft(
        self,
        pictures: Tensor,
        people: Sequence[Biometrics] | Tensor | None = None,
        temperature: float = MIN_TEMPERATURE,
    ) -> tuple[Tensor, Tensor]:
        """Return the same, differentiable with respect to the pictures: for losses and guidance."""
        return soft_points(self.maps(pictures, people), self.reverse, temperature)

    def save(
        self, path: Path, dtype: torch.dtype = torch.float32, more: Mapping[str, str] | None = None
    ) -> None:
        """Write weights, architecture and mean face as one safetensors file."""
        own = {
            "pipnet": json.dumps(self.net.cfg.model_dump()),
            "meanface": json.dumps([round(float(value), 12) for value in self.mean.ravel()]),
            "role": self.role,
        }
        save_network(path, self.net, {**own, **(more or {})}, dtype)

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", image_size: int = 256
    ) -> LandmarkReader:
        """Load a file of :meth:`save`, or of the public release; the network is in evaluation mode, fp32.

        A file of the release (a ``.pth`` of weights) needs its ``meanface.txt`` in the same folder, and does not say
        which side ``image_size``, px, the pictures had that it was trained on.

        Raises:
            CheckpointError: no such file, not a PIPNet, or weights that do not fit its architecture.
        """
        path = Path(path)
        state, metadata = read_state_dict(path, mmap=False)
        with usable_as("landmark network", path):
            if {"pipnet", "meanface"} <= set(metadata):
                cfg = from_json(PipNetConfig, metadata["pipnet"])
                mean = np.array(parse_json(metadata["meanface"], "meanface", list[float])).reshape(-1, 2)
            else:
                cfg, mean = infer_config(state, image_size), read_meanface(path.parent / MEANFACE)
            net = load_frozen(lambda: PipNet(cfg), state, allow_unexpected=(r"^fc\.",))
            reader = cls(net, mean, metadata.get("role", "face"))
        # as the pictures come to it: else every call would lay the weights out anew
        return reader.eval().to(device).to(memory_format=torch.channels_last)


def infer_config(state: Mapping[str, Tensor], image_size: int = 256) -> PipNetConfig:
    """Return the architecture of a file of the public release, from its shapes.

    Raises:
        ValueError: a key that every PIPNet on a ResNet-18 has is missing.
    """
    lacking = [k for k in ("conv1.weight", "cls_layer.weight", "nb_x_layer.weight") if k not in state]
    if lacking or "layer1.0.conv3.weight" in state:
        reason = f"it has no {lacking[0]}" if lacking else "its trunk is deeper than ResNet-18"
        raise ValueError(f"{reason}; expected PIPNet on ResNet-18, stride 32")
    points = len(state["cls_layer.weight"])
    return PipNetConfig(
        num_landmarks=points,
        num_neighbours=len(state["nb_x_layer.weight"]) // points,
        image_size=image_size,
        width=len(state["conv1.weight"]) / STAGE_WIDTHS[0],
    )
