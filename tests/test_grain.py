"""The grain head: what it adds to a decoded picture, what it leaves alone, and the files of models with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import tool_add_control
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_metadata
from cldm.sampling import reconstruct
from cldm.texture import NUM_FEATURES, Texture
from ldm.autoencoder import GRAIN, fresh_grain
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import ModelConfig, TextureConfig
from ldm.grain import ENERGY_FLOOR, MARGIN, Grain, grain_noise, inside, log_energies, num_summary, summary
from muti_control.distributed import Team
from muti_control.evaluation.methods.sampled import through_autoencoder
from muti_control.evaluation.protocol.run_folder import identity_of
from muti_control.record import OutputError
from muti_control.sampling.record import TEXT_KEY, _check_same
from settings.reading import to_yaml

CFG = SamplingConfig(steps=2, spacing="trailing", eta=1.0, guidance_scale=1.0, control_scales=[1.0])
PROMPTS = ["3D face scan,Asian male,age level 3,normal face."] * 3


def faces(num: int, size: int) -> Tensor:
    """Smooth discs on black: (N, 3, size, size)."""
    draws = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, size)
    disc = ((x[:, None] ** 2 + x**2) < 0.7).float()
    shade = 0.3 * (2 * x[None] * torch.rand(num, 1, 1, generator=draws) + x[:, None])
    grey = torch.where(disc > 0, shade * torch.ones(num, size, size), torch.tensor(-1.0))
    return grey[:, None].repeat(1, 3, 1, 1)


def trained_head(num_filters: int = 3, features: int = 8, num_exemplar: int = 0) -> Grain:
    """A head whose amplitudes depend on everything they may depend on."""
    torch.manual_seed(1)
    head = Grain(features, 4, num_filters, num_exemplar)
    with torch.no_grad():
        for p in (*head.amplitude.parameters(), *head.shift.parameters()):
            p.add_(0.3 * torch.randn_like(p))
        head.amplitude.bias.add_(2.5)
    head.measure(torch.randn(5, num_summary(4)) - 5)
    return head


def inputs(num: int = 2, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    pictures = faces(num, size)
    z = torch.randn(num, 4, size // 8, size // 8)
    return torch.randn(num, 8, size, size), pictures, summary(pictures, z)


# ---------------------------------------------------------------- what is added
def test_grain_has_mean_zero_and_leaves_black_black() -> None:
    head, (features, pictures, summaries) = trained_head(), inputs(1)
    noises = (grain_noise([key], 32, 32) for key in range(400))
    many = torch.cat([head(features, pictures, summaries, noise) for noise in noises]).detach()
    spread = many.std(0)
    grey = pictures.mean(1)
    lit = grey > -0.8
    assert float(spread[lit].min()) > 0.05 and not spread[grey < -0.96].any()
    assert float((many.mean(0)[lit] / spread[lit]).abs().max()) < 0.25  # 5 deviations of a mean over 400


def test_strength_depends_on_the_place_and_on_the_whole_picture() -> None:
    head, (features, pictures, summaries) = trained_head(), inputs(1)
    noise = grain_noise([0], 32, 32)
    first = head(features, pictures, summaries, noise)
    assert not torch.allclose(first, head(features.flip(1), pictures, summaries, noise))
    assert not torch.allclose(first, head(features, pictures, summaries + 1, noise))
    window = head(features[..., 8:24, 8:24], pictures[..., 8:24, 8:24], summaries, noise[..., 8:28, 8:28])
    torch.testing.assert_close(
        window[..., 1:-1, 1:-1], first[..., 9:23, 9:23]
    )  # but for what a 3x3 sees beside it


def test_an_exemplar_replaces_the_summary_of_the_whole_picture() -> None:
    head = trained_head(num_exemplar=5)
    features, pictures, summaries = inputs(2)
    noise, exemplars = grain_noise([0, 1], 32, 32), torch.randn(2, 5)
    with torch.no_grad():
        without = head(features, pictures, summaries, noise)
        mixed = head(features, pictures, summaries, noise, exemplars, torch.tensor([True, False]))
        assert not torch.allclose(mixed[0], without[0])
        assert torch.equal(mixed[1], without[1])
        both = torch.ones(2, dtype=torch.bool)
        moved = head(features, pictures, summaries + 1, noise, exemplars, both)
        assert torch.equal(moved, head(features, pictures, summaries, noise, exemplars, both))
    for wrong, numbers in ((head, exemplars[:, :4]), (trained_head(), exemplars)):
        with pytest.raises(ValueError, match="the head takes"):
            wrong(features, pictures, summaries, noise, numbers, both)


def test_a_head_that_was_not_measured_adds_nothing() -> None:
    given, noise = inputs(), grain_noise([1, 2], 32, 32)
    fresh = Grain(8, 4, 3)
    assert not fresh.measured and not fresh(*given, noise).any()
    fresh.measure(torch.randn(4, num_summary(4)))
    assert fresh.measured and fresh(*given, noise).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_little(dtype: torch.dtype) -> None:
    """Also where a summary is the same for all the pictures it was measured on."""
    features, pictures, summaries = inputs(6)
    head = trained_head()
    head.measure(summaries * torch.linspace(0, 1, summaries.shape[1]) - 7.77)
    usual = summaries * torch.linspace(0, 1, summaries.shape[1]) - 7.77
    noise = grain_noise(range(6), 32, 32)
    exact = head(features, pictures, usual, noise)
    rounded = head.to(dtype)(features.to(dtype), pictures, usual, noise)
    assert rounded.dtype == torch.float32
    assert float(((exact - rounded).std() / exact.std()).detach()) < 0.05


def test_noise_follows_from_the_key_alone() -> None:
    both = grain_noise([3, "face.png"], 16, 24)
    assert both.shape == (2, 1, 16 + 2 * MARGIN, 24 + 2 * MARGIN)
    assert torch.equal(both[1:], grain_noise(["face.png"], 16, 24))
    assert not torch.equal(both[:1], grain_noise([4], 16, 24))
    plain = torch.randn(both[0].shape, generator=torch.Generator().manual_seed(3))
    assert float((plain - both[0]).abs().max()) > 1  # not the noise that the sampler starts from
    assert abs(float(both.mean())) < 0.2 and 0.9 < float(both.std()) < 1.1


def test_log_energies_are_those_worked_by_hand() -> None:
    grey = torch.zeros(1, 1, 12, 12)
    grey[..., ::2] = 0.5  # stripes: neighbours across differ, those two apart do not
    energies = log_energies(grey, torch.ones_like(grey))[0].exp()
    expected = [0.25, 0, 0, 0, 0.25, 0, 0.25, 0]
    torch.testing.assert_close(energies, torch.tensor(expected) + ENERGY_FLOOR)
    where = inside(faces(1, 64)[:, :1])
    assert where[0, 0, 32, 32] == 1 and where[0, 0, 32, 6] == 0 and where[0, 0, 0, 0] == 0
    black = torch.full((1, 1, 32, 32), -1.0)
    assert summary(black, torch.zeros(1, 4, 4, 4)).isfinite().all() and inside(black).all()


# ---------------------------------------------------------------- models with it
def model_of(cfg: ModelConfig, grain: int, num_exemplar: int = 0) -> ControlledLatentDiffusion:
    """The same weights with and without a head; the head is one that draws."""
    torch.manual_seed(0)
    cfg = cfg.with_(first_stage=cfg.first_stage.with_(grain=grain, grain_exemplar=num_exemplar))
    model = ControlledLatentDiffusion(cfg)
    if grain:
        head = trained_head(grain, num_exemplar=num_exemplar)
        model.first_stage_model.grain.load_state_dict(head.state_dict())
    return model.eval()


def test_a_model_without_a_head_is_the_public_one(tiny_config: ModelConfig) -> None:
    assert tiny_config.first_stage.grain == 0
    plain, grained = model_of(tiny_config, 0), model_of(tiny_config, 3)
    assert not [key for key in plain.state_dict() if "grain" in key]
    differing = plain.state_dict().keys() ^ grained.state_dict().keys()
    assert differing and all(key.startswith(GRAIN) for key in differing)
    for key, value in plain.state_dict().items():  # whose fresh weights are not shifted by it either
        assert torch.equal(value, grained.state_dict()[key]), key


def test_faces_differ_by_grain_alone_and_a_batch_is_what_its_faces_are_alone(
    tiny_config: ModelConfig,
) -> None:
    plain, grained = model_of(tiny_config, 0), model_of(tiny_config, 3)
    skulls = torch.rand(3, 3, 64, 64)
    before = reconstruct(plain, skulls, PROMPTS, [7, 8, 9], CFG)
    mean = reconstruct(grained, skulls, PROMPTS, [7, 8, 9], CFG.with_(grain=False))
    assert torch.equal(before, mean)  # the same x_T and the same steps, and no grain
    drawn = reconstruct(grained, skulls, PROMPTS, [7, 8, 9], CFG)
    assert float((drawn - mean).abs().max()) > 0.02
    alone = reconstruct(grained, skulls[1:2], PROMPTS[:1], [8], CFG)
    torch.testing.assert_close(drawn[1:2], alone, atol=1e-4, rtol=0)
    blurred = [F.avg_pool2d(faces, 16) for faces in (drawn, mean)]
    assert float((blurred[0] - blurred[1]).abs().max()) < float((drawn - mean).abs().max()) / 3


def test_the_exemplar_of_a_reconstruction_is_followed_and_geometry_stays(tiny_config: ModelConfig) -> None:
    """The branch's last layer is still zero: what changes is grain alone."""
    tiny_config = tiny_config.with_(
        control=tiny_config.control.with_(texture=TextureConfig(patch_size=9, num_patches=8, width=8))
    )
    model, skulls = model_of(tiny_config, 3, NUM_FEATURES), torch.rand(3, 3, 64, 64)
    texture = Texture(torch.randn(3, NUM_FEATURES), torch.tensor([True, False, True]))

    def drawn(texture: Texture | None, cfg: SamplingConfig = CFG) -> Tensor:
        return reconstruct(model, skulls, PROMPTS, [7, 8, 9], cfg, texture=texture)

    without, followed = drawn(None), drawn(texture)
    assert float((followed[0] - without[0]).abs().max()) > 0.02
    assert torch.equal(followed[1], without[1])
    assert torch.equal(drawn(texture, CFG.with_(grain=False)), drawn(None, CFG.with_(grain=False)))
    assert torch.equal(drawn(texture, CFG.with_(texture_scale=0.0)), without)
    alone = reconstruct(model, skulls[2:], PROMPTS[2:], [9], CFG,
                        texture=Texture(texture.features[2:], texture.present[2:]))  # fmt: skip
    torch.testing.assert_close(followed[2:], alone, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- files
def yaml_of(cfg: ModelConfig, path: Path, grain: int, num_exemplar: int = 0) -> Path:
    first_stage = cfg.first_stage.with_(grain=grain, grain_exemplar=num_exemplar)
    path.write_text(to_yaml(cfg.with_(first_stage=first_stage)), encoding="utf-8")
    return path


@pytest.fixture
def written(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    model = model_of(tiny_config, 3)
    write_state_dict(tmp_path / "grain.safetensors", model.state_dict(), model_metadata(model.cfg))
    return tmp_path / "grain.safetensors"


def test_an_older_file_loads_with_a_head_that_adds_nothing(
    written: Path, weights: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """Without a head; and with one from before there were exemplars, which keeps its weights and learns those anew."""
    later, _ = load_model(weights, yaml_of(load_model(weights)[0].cfg, tmp_path / "grain.yaml", 5))
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_model(weights)[0].decode(z), later.draw(z, [1, 2]))
    config = yaml_of(tiny_config, tmp_path / "exemplar.yaml", 3, 7)
    before, later = load_model(written)[0], load_model(written, config)[0]
    with torch.no_grad():
        assert torch.equal(before.draw(z, [1, 2]), later.draw(z, [1, 2]))
    first_stage, exemplar = later.cfg.first_stage, {f"{GRAIN}exemplar.weight", f"{GRAIN}exemplar.bias"}
    assert fresh_grain(before.state_dict(), first_stage).keys() == exemplar
    damaged = {key: value for key, value in later.state_dict().items() if key != f"{GRAIN}exemplar.bias"}
    assert fresh_grain(damaged, first_stage) == {}  # what is lost is not made up


def test_add_control_passes_the_head_through(written: Path, tiny_config: ModelConfig, tmp_path: Path) -> None:
    state, metadata = read_state_dict(written)
    base = {key: value for key, value in state.items() if not key.startswith(("control_model.", "logvar"))}
    heads = [key for key in state if key.startswith(GRAIN)]
    plain = {key: value for key, value in base.items() if key not in heads}  # a config makes its head
    config = yaml_of(tiny_config, tmp_path / "grain.yaml", 3)
    for weights, facts, more in ((base, metadata, []), (plain, {}, [f"config={config}"])):
        write_state_dict(tmp_path / "in.ckpt", weights, facts)
        files = [str(tmp_path / "in.ckpt"), str(tmp_path / "out.ckpt"), "overwrite=true"]
        assert tool_add_control.main([*files, *more]) == 0
        model, _ = load_model(tmp_path / "out.ckpt")
        assert model.first_stage_model.grain.measured == (weights is base)
        if weights is base:
            assert heads and all(torch.equal(model.state_dict()[key], state[key]) for key in heads)


def test_true_faces_through_the_autoencoder_get_grain_of_their_name(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((64, 64), 150, np.uint8)).save(tmp_path / name)

    def drawn(folder: str, names: str, batch_size: int, grain: bool = True) -> list[np.ndarray]:
        pairs = [(tmp_path / f"{name}.png", tmp_path / folder / f"{name}.png") for name in names]
        through_autoencoder(model_of(tiny_config, 3), pairs, grain, batch_size, Team(), lambda _: None)
        return [np.asarray(Image.open(target)).astype(int) for _, target in pairs]

    both, alone = drawn("both", "ab", 2), drawn("alone", "b", 1)
    assert abs(both[1] - alone[0]).max() <= 1 < abs(both[0] - both[1]).max()
    mean = drawn("mean", "ab", 2, grain=False)
    assert np.array_equal(mean[0], mean[1]) and abs(mean[0] - both[0]).max() > 1


def test_runs_from_before_there_was_the_setting_go_on(tmp_path: Path) -> None:
    before = CFG.model_dump()
    del before["grain"]
    identities = [identity_of({"sampling": how}, {}) for how in (before, CFG.model_dump())]
    assert (
        identities[0] == identities[1] != identity_of({"sampling": CFG.with_(grain=False).model_dump()}, {})
    )
    note = PngInfo()
    note.add_text(TEXT_KEY, json.dumps({"sampling": before}))
    Image.new("L", (2, 2)).save(tmp_path / "face.png", pnginfo=note)
    _check_same(tmp_path / "face.png", {"sampling": CFG.model_dump()})
    with pytest.raises(OutputError, match=r"sampling\.grain"):
        _check_same(tmp_path / "face.png", {"sampling": CFG.with_(grain=False).model_dump()})
