"""Files of the small networks: read again they are the same network, and another file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ldm.checkpoint import CheckpointError, read_state_dict, write_state_dict
from muti_control.networks.config import (
    GeneratorConfig,
    GuidanceDecoderConfig,
    MatchConfig,
    PatchGanConfig,
    PipNetConfig,
)
from muti_control.networks.guidance_decoder import GuidanceDecoder, load_guidance_decoder
from muti_control.networks.match import MatchNet, load_match
from muti_control.networks.patchgan import PatchGan
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.networks.pix2pix import Generator

Load = Callable[[Path], nn.Module]
MEAN = np.random.default_rng(0).random((5, 2))
NETWORKS: dict[str, tuple[Callable[[], Any], Load]] = {
    "patchgan": (lambda: PatchGan(PatchGanConfig(width=3, num_scales=3, num_layers=2)), PatchGan.load),
    "pipnet": (
        lambda: LandmarkReader(
            PipNet(PipNetConfig(num_landmarks=5, num_neighbours=2, width=0.125)), MEAN, "skull"
        ),
        LandmarkReader.load,
    ),
    "pix2pix": (
        lambda: Generator(GeneratorConfig(image_size=32, width=4, levels=4, ethnicities=["Asian"])),
        lambda path: Generator.load(path)[0],
    ),
    "guidance_decoder": (
        lambda: GuidanceDecoder(GuidanceDecoderConfig(widths=[6, 5, 4], blocks=[1, 1, 0])),
        load_guidance_decoder,
    ),
    "match": (
        lambda: MatchNet(MatchConfig(image_size=32, widths=[4, 4, 4, 4], hidden=8, vector=4)),
        load_match,
    ),
}


def saved(net: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    first_stage = ([1.0],) if isinstance(net, GuidanceDecoder) else ()
    net.save(path, *first_stage, dtype=dtype, more={"stage": "x"})
    return path


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_is_read_again_frozen_in_fp32(kind: str, tmp_path: Path) -> None:
    make, load = NETWORKS[kind]
    net = make()
    again = load(saved(net, tmp_path / "x.safetensors"))
    assert read_state_dict(tmp_path / "x.safetensors")[1]["stage"] == "x"
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())
    half = load(saved(net, tmp_path / "half.safetensors", torch.float16))
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in half.parameters())
    assert not half.training


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("damage", ["no metadata", "other weights", "no JSON", "unknown setting"])
def test_another_file_is_refused_by_name(kind: str, damage: str, tmp_path: Path) -> None:
    make, load = NETWORKS[kind]
    path = saved(make(), tmp_path / "x.safetensors")
    state, metadata = read_state_dict(path, mmap=False)
    changed = {"no JSON": "{", "unknown setting": '{"depth": 3}'}.get(damage)
    metadata = {} if damage == "no metadata" else metadata | ({kind: changed} if changed else {})
    weights = state if changed else {"x": torch.zeros(1)}
    write_state_dict(path, weights, metadata)
    with pytest.raises(CheckpointError, match=r"x\.safetensors|do not fit"):
        load(path)


def test_a_discriminator_without_metadata_tells_its_architecture_by_its_shapes(tmp_path: Path) -> None:
    net = NETWORKS["patchgan"][0]()
    write_state_dict(tmp_path / "bare.pth", net.state_dict(), {})
    assert PatchGan.load(tmp_path / "bare.pth").cfg == net.cfg
