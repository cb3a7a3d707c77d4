"""The plan for a card's memory, what it is computed from, and that training does what the plan says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tool_add_control
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config, model_metadata
from cldm.sampling import SamplingConfig
from data.pack import pack
from ldm.autoencoder import AutoencoderKL
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import ConfigError
from ldm.latent_diffusion import ModelConfig
from muti_control.losses.config import LossesConfig
from muti_control.networks.patchgan import PatchGan, PatchGanConfig
from muti_control.optim import OptimConfig
from muti_control.training.activations import StepSizes, measure, measure_decoder, measure_discriminator
from muti_control.training.config import DataConfig, DiffusionStageConfig, ExperimentConfig, TrainConfig
from muti_control.training.memory import GB, SPARE, MemoryConfig, Plan, choose, predicted_bytes
from muti_control.training.placement import READER_WEIGHTS, picture_bytes
from muti_control.training.run import Training, prepare


@pytest.fixture(scope="module")
def sd15() -> StepSizes:
    return measure(load_model_config(SD15_CONFIG))


def kept_bytes(model: ControlledLatentDiffusion) -> dict[int, int]:
    """What the forward pass of one picture really keeps, by the address of the storage."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack_(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    z, h, w = model.cfg.latent_shape
    with torch.autograd.graph.saved_tensors_hooks(pack_, lambda value: value):
        hint = model.encode_hint(torch.rand(1, 3, model.cfg.image_size, model.cfg.image_size))
        out = model.eps(torch.randn(1, z, h, w), torch.tensor([5]), torch.randn(1, 77, 16), hint)
        torch.nn.functional.mse_loss(out, torch.zeros_like(out))
    return {address: value.untyped_storage().nbytes() for address, value in kept.items()}


@pytest.mark.parametrize("recompute", [False, True])
def test_counted_activations_are_those_that_are_kept(tiny_config: ModelConfig, recompute: bool) -> None:
    model = ControlledLatentDiffusion(tiny_config).requires_grad_(False)
    model.control_model.requires_grad_(True)
    model.unet.recomputes = model.control_model.recomputes = recompute
    sizes = measure(tiny_config)
    assert sizes.trained == sum(p.numel() for p in model.control_model.parameters())
    parts = (sizes.control, sizes.decoder)
    counted = sum(part.kept if recompute else part.all for part in parts)
    assert counted == pytest.approx(sum(kept_bytes(model).values()), rel=0.03)
    assert all(0 < part.block < part.all and part.kept < part.all for part in parts)


def test_plans_for_the_usual_cards(sd15: StepSizes) -> None:
    """SD1.5 at 256 px; the numbers are sanity, not gold: a smaller card saves more and holds fewer at a time."""
    plans = {card: choose(MemoryConfig(card=card), 32, 1, sd15, int(0.3 * GB), True) for card in (12, 24, 80)}
    assert plans[12].ema_on_cpu and not plans[24].ema_on_cpu and not plans[80].recompute_control
    assert plans[12].batch_size <= plans[24].batch_size <= plans[80].batch_size == 32
    for card, plan in plans.items():
        assert plan.batch_size * plan.accumulate == 32
        assert plan.num_bytes <= (1 - SPARE) * card * GB
        assert f"batch_size={plan.batch_size}" in plan.describe(card) and "no GPU" in plan.describe(card)
    with pytest.raises(ValueError, match=r"memory\.card: 8 GB are too few: .* [0-9.]+ GB"):
        choose(MemoryConfig(card=8), 32, 1, sd15, 0, True)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([11.5, 12, 16, 24, 48, 80]),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, True, False]),
)
def test_what_is_given_stands_and_the_effective_batch_stays(
    sd15: StepSizes, card: float, batch: int, accumulate: int, recompute: bool | None, on_cpu: bool | None
) -> None:
    cfg = MemoryConfig(card=card, recompute_control=recompute, ema_on_cpu=on_cpu)
    least = Plan(1, 1, recompute is not False, True, on_cpu is not False)
    if predicted_bytes(sd15, least, 0, True) > (1 - SPARE) * card * GB:
        with pytest.raises(ValueError, match="too few"):
            choose(cfg, batch, accumulate, sd15, 0, True)
        return
    plan = choose(cfg, batch, accumulate, sd15, 0, True)
    assert plan.batch_size * plan.accumulate == batch * accumulate
    assert recompute in (None, plan.recompute_control) and on_cpu in (None, plan.ema_on_cpu)
    assert predicted_bytes(sd15, plan, 0, True) == plan.num_bytes <= (1 - SPARE) * card * GB


def test_without_a_card_the_config_stands(sd15: StepSizes) -> None:
    assert choose(MemoryConfig(), 4, 3, None, 0, True) == Plan(4, 3)
    assert choose(MemoryConfig(batch_size=6), 4, 3, None, 0, True) == Plan(6, 2)
    with pytest.raises(ValueError, match=r"memory\.batch_size: got 5, expected a divisor of 12"):
        choose(MemoryConfig(batch_size=5), 4, 3, None, 0, True)


@pytest.fixture
def control(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path]
) -> Callable[[str, str, MemoryConfig], Training]:
    """A control stage of three steps in a folder: control(name, precision, memory) -> checked, ready to fit."""
    root = make_pairs(train=8, valid=2)
    base = ControlledLatentDiffusion(tiny_config)
    for p in base.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    state = {k: v for k, v in base.state_dict().items() if not k.startswith(("control_model.", "logvar"))}
    write_state_dict(root / "base.safetensors", state, model_metadata(tiny_config))
    arguments = [str(root / "base.safetensors"), str(root / "ini.safetensors")]
    assert tool_add_control.main(arguments) == 0

    def make(
        name: str,
        precision: str,
        memory: MemoryConfig,
        data: Path = root,
        workers: int = 0,
        unlocked: str = "none",
    ) -> Training:
        cfg = ExperimentConfig(
            stage="control", name=name, out=str(root / "runs"), init=str(root / "ini.safetensors"),
            data=DataConfig(root=str(data), num_workers=workers),
            train=TrainConfig(
                max_steps=3, batch_size=2, accumulate=2, val_every=3, save_every=3, num_valid=2,
                precision=precision, accelerator="cpu", export="last",
            ),
            optim=OptimConfig(lr=1e-2, warmup_steps=0),
            sampling=SamplingConfig(steps=2, control_scales=[1.0]),
            memory=memory,
            diffusion=DiffusionStageConfig(unlocked=unlocked),
        )  # fmt: skip
        return prepare(cfg)

    return make


def fitted(training: Training) -> dict[str, Tensor]:
    exported = training.fit()
    assert exported is not None
    return read_state_dict(exported)[0]


def test_recomputing_and_averages_elsewhere_change_no_weight(
    control: Callable[..., Training], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fitted(control("plain", "32-true", MemoryConfig()))
    saving = MemoryConfig(recompute_control=True, recompute_unet=True, ema_on_cpu=True)
    training = control("saving", "32-true", saving)
    assert training.stage.ema.device == torch.device("cpu")
    assert training.stage.net.unet.recomputes and training.stage.net.control_model.recomputes
    assert "recompute_control=true recompute_unet=true ema_on_cpu=true" in capsys.readouterr().out
    saved = fitted(training)
    assert plain.keys() == saved.keys() and all(torch.equal(plain[name], saved[name]) for name in plain)


def test_the_frozen_part_is_exported_as_it_came(control: Callable[..., Training]) -> None:
    """In training the UNet is held in bf16, and the encoders are parked; the file has all of it in float32."""
    training = control("half", "bf16-mixed", MemoryConfig())
    assert training.stage.net.dtype == torch.bfloat16
    exported = fitted(training)
    init, _ = read_state_dict(str(training.cfg.init))
    assert init.keys() <= exported.keys() | {"logvar"}
    for name, value in exported.items():
        if not name.startswith("control_model."):
            assert torch.equal(value, init[name]), name
    assert any(
        not torch.equal(exported[name], init[name]) for name in init if name.startswith("control_model.")
    )
    assert all(value.dtype == torch.float32 for value in exported.values() if value.is_floating_point())


def test_an_unlocked_unet_is_trained_in_full_precision(control: Callable[..., Training]) -> None:
    training = control("unlocked", "bf16-mixed", MemoryConfig(), unlocked="decoder")
    assert training.stage.net.dtype == torch.float32
    exported = fitted(training)
    init, _ = read_state_dict(str(training.cfg.init))
    changed = {name for name in init if not torch.equal(exported[name], init[name])}
    assert {name.split(".")[2] for name in changed if name.startswith("model.")} == {"output_blocks", "out"}
    assert any(name.startswith("control_model.") for name in changed)
    assert not any(name.startswith(("first_stage_model.", "cond_stage_model.")) for name in changed)
    for memory, key in ((MemoryConfig(card=24), "card"), (MemoryConfig(half_unet=True), "half_unet")):
        with pytest.raises(
            ConfigError, match=rf"memory\.{key}: is for a locked UNet, and diffusion\.unlocked is all"
        ):
            control("both", "bf16-mixed", memory, unlocked="all")


def test_a_card_plans_the_control_stage_and_no_other(control: Callable[..., Training]) -> None:
    training = control("planned", "32-true", MemoryConfig(card=24))
    assert (training.cfg.train.batch_size, training.cfg.train.accumulate) == (4, 1)
    training.cfg.stage = "base"
    with pytest.raises(ConfigError, match=r"memory\.card: plans the control stage only"):
        prepare(training.cfg)


def test_a_pack_trains_like_its_folder(control: Callable[..., Training], tmp_path: Path) -> None:
    folder = control("folder", "32-true", MemoryConfig())
    pack(Path(folder.cfg.data.root), tmp_path / "packed", progress=False)
    expected = fitted(folder)
    packed = control("packed", "32-true", MemoryConfig(), data=tmp_path / "packed", workers=2)
    found = fitted(packed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    curves = [
        next((training.cfg.run_dir / "csv").rglob("metrics.csv")).read_text().splitlines()
        for training in (folder, packed)
    ]
    columns = curves[0][0].split(",")
    kept = [k for k, column in enumerate(columns) if column.startswith("train/")]
    assert kept
    rows = [[[line.split(",")[k] for k in kept] for line in curve[1:]] for curve in curves]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_decoders_activations_are_those_that_are_kept(tiny_config: ModelConfig, recompute: bool) -> None:
    decoder = AutoencoderKL(tiny_config.first_stage).requires_grad_(False).decoder
    decoder.recompute(recompute)
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    kept: dict[int, Tensor] = {}

    def pack_(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack_, lambda value: value):
        decoder(torch.randn(1, *tiny_config.latent_shape, requires_grad=True)).sum()
    counted = measure_decoder(tiny_config)
    expected = sum(value.untyped_storage().nbytes() for value in kept.values())
    assert (counted.kept if recompute else counted.all) == pytest.approx(expected, rel=0.03)
    assert 0 < counted.block < counted.all and counted.kept < counted.all


def test_losses_of_decoded_faces_count(tiny_config: ModelConfig) -> None:
    cfg = ExperimentConfig(stage="control", train=TrainConfig(batch_size=8))
    assert picture_bytes(cfg, tiny_config, False) == 0
    cfg.losses = LossesConfig(lm=0.3, chunk=1, recompute=False)
    one = picture_bytes(cfg, tiny_config, False)
    cfg.losses.chunk = 4
    four = picture_bytes(cfg, tiny_config, False)
    assert four - READER_WEIGHTS == pytest.approx(4 * (one - READER_WEIGHTS), rel=1e-6)
    cfg.losses.recompute = True
    assert picture_bytes(cfg, tiny_config, False) < four
    cfg.losses.gan = 0.1
    assert picture_bytes(cfg, tiny_config, False) > 16 * 5_535_618


def test_what_a_discriminator_keeps_grows_with_the_picture(tiny_config: ModelConfig) -> None:
    """Four times as much at twice the side; and as much as autograd holds of a real face."""
    net = PatchGanConfig(width=8, num_layers=2)
    seen = [measure_discriminator(net, size)[0] for size in (64, 128, 256)]
    assert seen[1] / seen[0] == pytest.approx(4, rel=0.15) and seen[2] / seen[1] == pytest.approx(4, rel=0.1)
    kept: dict[int, int] = {}
    real = PatchGan(net)
    own = {p.untyped_storage().data_ptr() for p in real.parameters()}

    def pack_(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack_, lambda value: value):
        held = real(torch.rand(1, 6, 64, 64, requires_grad=True))
    assert held and seen[0] == pytest.approx(sum(n for at, n in kept.items() if at not in own), rel=0.05)
    cfg = ExperimentConfig(stage="control", losses=LossesConfig(gan=0.1, chunk=1))
    judges = []
    for side in (64, 128):
        model = replace(tiny_config, image_size=side)
        decoder = measure_decoder(model)
        judges.append(picture_bytes(cfg, model, False) - decoder.kept - decoder.block - 16 * 5_535_618)
    assert judges[1] / judges[0] == pytest.approx(4, rel=0.15)
