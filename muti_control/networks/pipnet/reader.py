"""A trained network ready to use: pictures in, points and confidences out; and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.biometrics import Biometrics
from ldm.checkpoint import CheckpointError, load_strict, read_state_dict, write_state_dict
from muti_control.networks.config import STAGE_WIDTHS, PipNetConfig
from muti_control.networks.pipnet.attributes import encode
from muti_control.networks.pipnet.meanface import neighbours, read_meanface, reverse_index
from muti_control.networks.pipnet.network import Maps, PipNet
from muti_control.networks.pipnet.readout import MIN_TEMPERATURE, read_points, soft_points
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
        """Maps of pictures (B, 3, H, W) in [0, 1]; ``people`` as they are or encoded (B, A), None: not known.

        Raises:
            ValueError: people for a network that takes no biometrics, or an ethnicity it does not know.
        """
        if people is None or isinstance(people, Tensor):
            return self.net(pictures, people)
        if not self.takes_biometrics:
            raise ValueError("this landmark network takes no biometrics; give it the pictures alone")
        return self.net(pictures, self.encode(people).to(pictures.device))

    def encode(self, people: Sequence[Biometrics]) -> Tensor:
        """Biometrics as the network takes them, (B, A). Raises: ValueError: an ethnicity it does not know."""
        return encode(people, self.net.cfg.ethnicities or ())

    def forward(
        self, pictures: Tensor, people: Sequence[Biometrics] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Landmarks of pictures (B, 3, H, W) in [0, 1].

        Returns:
            Points (B, N, 2), fractions of the picture (px = fraction * size - 0.5), and confidences (B, N) in [0, 1].
        """
        return read_points(self.maps(pictures, people), self.reverse)

    def soft(
        self,
        pictures: Tensor,
        people: Sequence[Biometrics] | Tensor | None = None,
        temperature: float = MIN_TEMPERATURE,
    ) -> tuple[Tensor, Tensor]:
        """The same, differentiable with respect to the pictures: for losses and guidance."""
        return soft_points(self.maps(pictures, people), self.reverse, temperature)

    # --- files --------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return {
            "pipnet": json.dumps(self.net.cfg.model_dump()),
            "meanface": json.dumps([round(float(value), 12) for value in self.mean.ravel()]),
            "role": self.role,
        }

    def save(
        self, path: Path, dtype: torch.dtype = torch.float32, more: Mapping[str, str] | None = None
    ) -> None:
        """Write weights, architecture and mean face as one safetensors file."""
        state = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.net.state_dict().items()
        }
        write_state_dict(path, state, {**self.metadata(), **(more or {})})

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", image_size: int = 256
    ) -> LandmarkReader:
        """A network in evaluation mode, fp32: of a file of :meth:`save`, or of the public release.

        A file of the release (a ``.pth`` of weights) needs its ``meanface.txt`` in the same folder, and does not say
        which side ``image_size``, px, the pictures had that it was trained on.

        Raises:
            CheckpointError: no such file, not a PIPNet, or weights that do not fit its architecture.
        """
        path = Path(path)
        state, metadata = read_state_dict(path, mmap=False)
        ours = {"pipnet", "meanface"} <= set(metadata)
        try:
            cfg = _metadata_config(metadata) if ours else infer_config(state, image_size)
            mean = _metadata_mean(metadata) if ours else read_meanface(path.parent / MEANFACE)
            net = PipNet(cfg)
            load_strict(net, {k: _fp32(v) for k, v in state.items()}, allow_unexpected=(r"^fc\.",))
            reader = cls(net, mean, metadata.get("role", "face"))
        except ValueError as error:
            raise CheckpointError(f"{path} is no landmark network that can be used: {error}") from error
        # as the pictures come to it: else every call would lay the weights out anew
        return reader.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def infer_config(state: Mapping[str, Tensor], image_size: int = 256) -> PipNetConfig:
    """The architecture of a file of the public release, from its shapes.

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


def _metadata_config(metadata: Mapping[str, str]) -> PipNetConfig:
    return from_json(PipNetConfig, metadata["pipnet"])


def _metadata_mean(metadata: Mapping[str, str]) -> NDArray[np.float64]:
    values: Any = json.loads(metadata["meanface"])
    return np.array(values, np.float64).reshape(-1, 2)


def _fp32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
