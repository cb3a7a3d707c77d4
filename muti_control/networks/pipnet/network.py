"""The network: a ResNet-18 trunk of any width and PIPNet's five heads at stride 32.

Parameter names are those of the public release (torchvision's for the trunk), so its files load here and ours there;
what is ours, the modulation by biometrics, lives under ``biometrics.*``.
Sources: PIPNet, arXiv 2003.03771, section 3; ResNet-18, arXiv 1512.03385; FiLM, arXiv 1709.07871.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.biometrics import BODY_MASS_WORDS, Biometrics
from muti_control.networks.config import PipNetConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NUM_ATTRIBUTES = 5  # numbers that describe a person beside the ethnicity, see ``encode``
MIDDLE_AGE, AGE_SPREAD = 45.0, 20.0  # years


class Maps(NamedTuple):
    """The output of the heads, for N points with K neighbours on a G x G grid.

    score: (B, N, G, G), 1 where the point is. x, y: (B, N, G, G), its place within the cell, in cells.
    nb_x, nb_y: (B, N K, G, G), the places of its neighbours from the cell's corner, point by point.
    """

    score: Tensor
    x: Tensor
    y: Tensor
    nb_x: Tensor
    nb_y: Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, under torchvision's names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(h)) + shortcut, inplace=True)


class Modulation(nn.Module):
    """Biometrics as a scale and a shift of the channels of layer3 and layer4; exactly nothing where absent.

    The last layers start at zero, so a fresh modulation changes no output of a trained network.
    """

    def __init__(self, inputs: int, hidden: int, widths: tuple[int, int]) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.layer3 = nn.Linear(hidden, 2 * widths[0])
        self.layer4 = nn.Linear(hidden, 2 * widths[1])
        for layer in (self.layer3, self.layer4):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, attributes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A), (B,) bool -> scale and shift for layer3 and for layer4, (B, 2 C, 1, 1) each."""
        h = self.embed(torch.where(present[:, None], attributes, 0.0))  # (B, hidden)
        keep = present[:, None, None, None].to(h.dtype)
        return self.layer3(h)[..., None, None] * keep, self.layer4(h)[..., None, None] * keep


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """(B, C, G, G), (B, 2 C, 1, 1) -> (B, C, G, G)."""
    scale, shift = scale_shift.to(h.dtype).chunk(2, dim=1)
    return h * (1 + scale) + shift


class PipNet(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], or grey (B, 1, H, W) -> :class:`Maps`.

    Raises:
        ValueError: a config that cannot be built.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: PipNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c1, c2, c3, c4 = cfg.channels
        points, pairs = cfg.num_landmarks, cfg.num_landmarks * cfg.num_neighbours
        self.conv1 = nn.Conv2d(3, c1, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.layer1 = nn.Sequential(BasicBlock(c1, c1, 1), BasicBlock(c1, c1, 1))
        self.layer2 = nn.Sequential(BasicBlock(c1, c2, 2), BasicBlock(c2, c2, 1))
        self.layer3 = nn.Sequential(BasicBlock(c2, c3, 2), BasicBlock(c3, c3, 1))
        self.layer4 = nn.Sequential(BasicBlock(c3, c4, 2), BasicBlock(c4, c4, 1))
        self.cls_layer = nn.Conv2d(c4, points, 1)
        self.x_layer = nn.Conv2d(c4, points, 1)
        self.y_layer = nn.Conv2d(c4, points, 1)
        self.nb_x_layer = nn.Conv2d(c4, pairs, 1)
        self.nb_y_layer = nn.Conv2d(c4, pairs, 1)
        self.biometrics: Modulation | None = None
        if cfg.ethnicities is not None:
            self.biometrics = Modulation(NUM_ATTRIBUTES + len(cfg.ethnicities), cfg.attribute_width, (c3, c4))
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module.bias is None:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                else:  # the heads, as in the release
                    nn.init.normal_(module.weight, std=0.001)
                    nn.init.zeros_(module.bias)

    def normalise(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 1 or 3, H, W) in [0, 1] -> the trunk's input (B, 3, S, S).

        They are resized, and ImageNet's mean and deviation are taken out; a grey picture stands for all three colours.
        """
        size = self.cfg.image_size
        if pictures.shape[-2:] != (size, size):
            pictures = F.interpolate(
                pictures, (size, size), mode="bilinear", align_corners=False, antialias=True
            )
        return ((pictures - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(
        self, pictures: Tensor, attributes: Tensor | None = None, present: Tensor | None = None
    ) -> Maps:
        """Maps of pictures (B, 3, H, W) in [0, 1].

        Args:
            attributes: (B, A) of ``encode``; None: absent for everybody.
            present: (B,) bool, who has biometrics; None: everybody, if there are ``attributes``.

        Raises:
            ValueError: attributes for a network that takes none.
        """
        if attributes is not None and self.biometrics is None:
            raise ValueError("this network takes no biometrics: its config has no 'ethnicities'")
        h = self.normalise(pictures)  # (B, 3, S, S)
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(h)), inplace=True), 3, 2, 1)  # (B, c1, S/4, S/4)
        h = self.layer3(self.layer2(self.layer1(h)))  # (B, c3, S/16, S/16)
        scale_shifts = None
        if self.biometrics is not None and attributes is not None:
            if present is None:
                present = torch.ones(len(pictures), dtype=torch.bool, device=pictures.device)
            scale_shifts = self.biometrics(attributes, present)
            h = modulate(h, scale_shifts[0])
        h = self.layer4(h)  # (B, c4, G, G)
        if scale_shifts is not None:
            h = modulate(h, scale_shifts[1])
        heads = (self.cls_layer, self.x_layer, self.y_layer, self.nb_x_layer, self.nb_y_layer)
        with torch.autocast(h.device.type, enabled=False):  # in bf16 an offset of 2 cells is a pixel off
            return Maps(*(head(h.float()) for head in heads))


def encode(people: Sequence[Biometrics], ethnicities: Sequence[str]) -> Tensor:
    """Return (B, 5 + E): sex (-1 female, 1 male), age, its square, body mass, its square, and which ethnicity.

    Raises:
        ValueError: an ethnicity the network was not trained on.
    """
    rows = []
    words = [word.lower() for word in ethnicities]
    for person in people:
        if person.ethnicity.lower() not in words:
            raise ValueError(
                f"ethnicity: got {person.ethnicity!r}, the landmark network knows {', '.join(ethnicities)}; give "
                "one of these, or landmarks=none to do without the network"
            )
        age = (person.age - MIDDLE_AGE) / AGE_SPREAD
        mass = person.body_mass - (1 + len(BODY_MASS_WORDS)) / 2
        row = [1.0 if person.sex == "male" else -1.0, age, age * age - 1, mass / 2, mass * mass / 2 - 1]
        rows.append(row + [float(person.ethnicity.lower() == word) for word in words])
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), NUM_ATTRIBUTES + len(words))
