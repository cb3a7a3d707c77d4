"""The generator: a U-Net from a skull picture, and what the prompt says of the person, to a face picture.

Convolutions are 4x4 with a stride of 2 all the way down to 1 px (at the defaults), and up again with skip connections.
Ours is how biometrics enter: as a scale and a shift behind every normalisation.
Sources: Pix2Pix, arXiv 1611.07004, section 6.1; FiLM, arXiv 1709.07871.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.biometrics import BODY_MASS_WORDS, Biometrics, age_level
from ldm.checkpoint import CheckpointError, read_state_dict
from muti_control.networks.config import GeneratorConfig
from muti_control.networks.files import load_frozen, save_network, usable_as
from settings.reading import from_json

METADATA = "pix2pix"
NUM_AGE_LEVELS = 5
NUM_LEVELS = 1 + NUM_AGE_LEVELS + len(BODY_MASS_WORDS)  # numbers of a person beside the ethnicity
NUM_DROPOUT = 3  # innermost layers of the way up
INITIAL_STD = 0.02
LEAK = 0.2


def encode(people: Sequence[Biometrics], ethnicities: Sequence[str]) -> Tensor:
    """Return (B, 11 + E): sex (-1 female, 1 male), which age level, which body mass level and which ethnicity.

    Raises:
        ValueError: an ethnicity that is not among ``ethnicities``.
    """
    rows = []
    for person in people:
        if person.ethnicity not in ethnicities:
            raise ValueError(
                f"ethnicity: got {person.ethnicity!r}, this Pix2Pix was trained on {', '.join(ethnicities)}; train one "
                "on pairs that have it"
            )
        row = [1.0 if person.sex == "male" else -1.0]
        row += [float(level == age_level(person.age)) for level in range(1, NUM_AGE_LEVELS + 1)]
        row += [float(level == person.body_mass) for level in BODY_MASS_WORDS]
        rows.append(row + [float(word == person.ethnicity) for word in ethnicities])
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), NUM_LEVELS + len(ethnicities))


class Generator(nn.Module):
    """Skulls (B, 3, H, W) in [0, 1] and encoded people (B, A) -> faces (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: a config that cannot be built, or whose ethnicities are open.
    """

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        if not cfg.ethnicities:
            raise ValueError("ethnicities: got none, expected the words that the training data have")
        self.cfg = cfg
        down = cfg.channels  # (C_1 ... C_L)
        up = [*reversed(down[:-1]), 3]  # what each layer of the way up gives
        # The layers without a normalisation have a bias; behind one, the biometrics' shift is the bias.
        ends = (0, cfg.levels - 1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, 1, bias=level in ends)
            for level, (a, b) in enumerate(zip([3, *down[:-1]], down, strict=True))
        )
        inputs = [down[-1], *(2 * c for c in up[:-1])]  # all but the innermost get a skip connection too
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=level == ends[1])
            for level, (a, b) in enumerate(zip(inputs, up, strict=True))
        )
        self.embed = nn.Sequential(
            nn.Linear(NUM_LEVELS + len(cfg.ethnicities), cfg.embedding),
            nn.SiLU(),
            nn.Linear(cfg.embedding, cfg.embedding),
            nn.SiLU(),
        )
        self.tell = nn.ModuleList(nn.Linear(cfg.embedding, 2 * c) for c in (*down[1:], *up[:-1]))
        self._init_weights()

    def _init_weights(self) -> None:
        for layers in (self.down, self.up):
            for name, p in layers.named_parameters():
                if name.endswith("weight"):
                    nn.init.normal_(p, std=INITIAL_STD)
                else:
                    nn.init.zeros_(p)
        for p in self.tell.parameters():
            nn.init.zeros_(p)

    def forward(self, skulls: Tensor, people: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return faces (B, 3, H, W) in [-1, 1].

        Args:
            skulls: (B, 3, H, W) in [0, 1]. people: (B, A) of :func:`encode`.
            noise: draws the dropout of training, on the CPU; None: without dropout.

        Raises:
            ValueError: pictures of another size.
        """
        size = self.cfg.image_size
        if skulls.shape[-2:] != (size, size):
            raise ValueError(f"Pix2Pix got pictures {tuple(skulls.shape)}, expected (B, 3, {size}, {size})")
        embedded = self.embed(people)  # (B, embedding)
        films = [layer(embedded)[..., None, None].chunk(2, dim=1) for layer in self.tell]
        h = (skulls * 2 - 1).contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, layer in enumerate(self.down):
            h = layer(F.leaky_relu(h, LEAK) if level else h)  # (B, C_l, H / 2^l, W / 2^l)
            if level:  # neither the first nor the innermost one is normalised
                h = _modulated(h, films[level - 1], level < len(self.down) - 1)
            skips.append(h)
        for level, layer in enumerate(self.up):
            inputs = h if level == 0 else torch.cat([h, skips[-1 - level]], dim=1)
            h = layer(F.relu(inputs))
            if level < len(self.up) - 1:
                h = _modulated(h, films[len(self.down) - 1 + level], True)
                if level < NUM_DROPOUT and noise is not None:
                    h = _dropout(h, self.cfg.dropout, noise)
        return torch.tanh(h)

    def save(
        self, path: Path, dtype: torch.dtype = torch.float32, more: Mapping[str, str] | None = None
    ) -> None:
        """Write weights and architecture as one safetensors file. Raises: CheckpointError."""
        save_network(path, self, {METADATA: json.dumps(self.cfg.model_dump()), **(more or {})}, dtype)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple[Generator, dict[str, str]]:
        """Load a network, frozen, in evaluation mode, fp32, and the metadata of its file.

        Raises:
            CheckpointError: no such file, not of the pix2pix stage, or weights that do not fit its architecture.
        """
        state, metadata = read_state_dict(path, mmap=False)
        if METADATA not in metadata:
            raise CheckpointError(
                f"{path} is no Pix2Pix; give what `python train.py configs/demo/pix2pix.yaml` writes"
            )
        with usable_as("Pix2Pix", path):
            cfg = from_json(GeneratorConfig, metadata[METADATA])
            net = load_frozen(lambda: cls(cfg), state)
        return net.to(device).to(memory_format=torch.channels_last), metadata


def _modulated(h: Tensor, film: tuple[Tensor, ...], normalised: bool) -> Tensor:
    """(B, C, H, W), its scale and shift (B, C, 1, 1) -> (B, C, H, W)."""
    scale, shift = film
    h = F.instance_norm(h) if normalised else h
    return h * (1 + scale) + shift


def _dropout(h: Tensor, share: float, noise: torch.Generator) -> Tensor:
    mask = torch.rand(h.shape, generator=noise) >= share
    return h * (mask.to(h) / (1 - share))
