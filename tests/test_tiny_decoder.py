"""Public tiny decoders: their key names, held against diffusers' own network with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cldm.controlled import load_model
from ldm.checkpoint import CheckpointError, write_state_dict
from muti_control.networks.guidance_decoder import load_guidance_decoder

tiny = pytest.importorskip("diffusers.models.autoencoders.autoencoder_tiny")
SETTINGS = {f"{part}_block_out_channels": (8,) * 4 for part in ("encoder", "decoder")}


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny.AutoencoderTiny(**SETTINGS).eval()


def original(state: dict[str, Tensor], before: str) -> dict[str, Tensor]:
    """The release's names: one more, for layer 0 squeezes the latents."""
    names = {name: name.removeprefix("decoder.layers.").partition(".") for name in state}
    return {f"{before}{int(number) + 1}.{rest}": state[name] for name, (number, _, rest) in names.items()}


@pytest.mark.parametrize("layout", ["diffusers", "original", "original, whole"])
def test_a_tiny_decoder_draws_as_that_of_diffusers(reference, layout, tmp_path):
    whole = reference.state_dict()
    decoder = {name: value for name, value in whole.items() if name.startswith("decoder.")}
    state = whole if layout == "diffusers" else original(decoder, "decoder." if "whole" in layout else "")
    if "whole" in layout:
        state |= {"encoder.0.weight": torch.zeros(8, 3, 3, 3)}
    path = tmp_path / "taesd.safetensors"
    write_state_dict(path, state, {})
    z = 3 * torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(load_guidance_decoder(path)(z), reference.decoder(z))


def test_a_pickled_file_serves_too_and_other_latents_are_refused(reference, weights, tmp_path):
    path = tmp_path / "taesd_decoder.pth"
    decoder = {name: value for name, value in reference.state_dict().items() if name.startswith("decoder.")}
    torch.save(original(decoder, ""), path)
    model, _ = load_model(weights)
    assert model.cfg.scale_factor == pytest.approx(0.18215)
    assert load_guidance_decoder(path, model)(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 16, 16)
    model.cfg.scale_factor = 0.3
    with pytest.raises(CheckpointError, match="0\\.3"):
        load_guidance_decoder(path, model)


@pytest.mark.parametrize("change", ["lacks", "shape"])
def test_a_broken_tiny_decoder_is_refused(reference, change, tmp_path):
    state = dict(reference.state_dict())
    if change == "lacks":
        del state["decoder.layers.2.conv.0.weight"]
    else:
        state["decoder.layers.2.conv.0.weight"] = torch.zeros(8, 9, 3, 3)
    path: Path = tmp_path / "taesd.safetensors"
    write_state_dict(path, state, {})
    with pytest.raises(CheckpointError):
        load_guidance_decoder(path)
