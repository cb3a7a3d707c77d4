"""The small decoder for guidance: its layers, whose decoder it imitates, its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import train
from cldm.controlled import load_model
from ldm.autoencoder import AutoencoderKL
from ldm.checkpoint import CheckpointError
from ldm.config import AutoencoderConfig
from muti_control.networks.config import GuidanceDecoderConfig, GuidanceDecoderStageConfig
from muti_control.networks.guidance_decoder import (
    GuidanceDecoder,
    load_guidance_decoder,
    same_autoencoder,
    signature,
)
from muti_control.training.config import DataConfig, ExperimentConfig, TrainConfig
from muti_control.training.run import build_stage
from muti_control.training.stages.guidance_decoder import GuidanceDecoderStage, altered

TINY = GuidanceDecoderConfig(widths=[6, 5, 4], blocks=[1, 1, 0])


def latents(num: int = 2, size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(num, 4, size, size, generator=torch.Generator().manual_seed(seed))


def by_hand(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The decoder of ``TINY`` from tensors by name."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), w[f"{name}.weight"], w[f"{name}.bias"])

    def silu(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    for level, num in enumerate((1, 1, 0)):
        if level:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = conv(x, f"conv_in.{level}")
        for k in range(num):
            name = f"blocks.{level}.{k}"
            x = x + conv(silu(conv(silu(x), f"{name}.conv1")), f"{name}.conv2")
    x = conv(silu(x), "conv_out")  # (B, 12, 4 h, 4 w): four pixels of each of three colours
    b, _, h, width = x.shape
    return x.view(b, 3, 2, 2, h, width).permute(0, 1, 4, 2, 5, 3).reshape(b, 3, 2 * h, 2 * width)


def test_the_decoder_is_that_of_an_independent_statement() -> None:
    net = GuidanceDecoder(TINY)
    expected = by_hand(net.state_dict(), latents())
    assert expected.shape == (2, 3, 32, 32)
    torch.testing.assert_close(net(latents()), expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- whose decoder it is
def autoencoder(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(AutoencoderConfig(ch=8, ch_mult=[1, 1, 1, 1], num_res_blocks=1, norm_groups=4))


def test_the_signature_tells_autoencoders_apart_and_not_their_precision() -> None:
    one = signature(autoencoder(0))
    assert len(one) == len(autoencoder(0).decoder.state_dict()) + 2
    for dtype in (torch.float16, torch.bfloat16):
        assert same_autoencoder(one, signature(autoencoder(0).to(dtype)))
    other = autoencoder(0)
    other.decoder.conv_out.weight.data.normal_()
    assert not same_autoencoder(one, signature(other))
    assert not same_autoencoder(one, signature(autoencoder(1))) and not same_autoencoder(one, one[:-1])


def test_the_signature_is_a_number_worked_by_hand() -> None:
    net = autoencoder(0)
    weight = net.post_quant_conv.weight.data
    signs = torch.tensor([1.0 if (i * 2654435761) % 2**32 < 2**31 else -1.0 for i in range(weight.numel())])
    expected = float((weight.flatten() * signs).sum() / weight.norm())
    assert signature(net)[1] == pytest.approx(expected, abs=1e-4)  # behind its bias
    assert 0.3 < float((signs > 0).float().mean()) < 0.7


def test_a_decoder_of_another_autoencoder_is_refused(weights: Path, tmp_path: Path) -> None:
    net = GuidanceDecoder(TINY)
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load_model(weights, dtype=dtype)
        net.save(tmp_path / "own.safetensors", signature(load_model(weights)[0].first_stage_model))
        found = load_guidance_decoder(tmp_path / "own.safetensors", model)
        assert torch.equal(found(latents()), net(latents())) and found.conv_out.weight.dtype == torch.float32
        assert not any(p.requires_grad for p in found.parameters())
    net.save(tmp_path / "other.safetensors", signature(autoencoder(5)))
    with pytest.raises(
        CheckpointError, match=r"other.safetensors imitates the decoder of another autoencoder"
    ):
        load_guidance_decoder(tmp_path / "other.safetensors", model)
    assert load_guidance_decoder(tmp_path / "other.safetensors").cfg == TINY


# ---------------------------------------------------------------- training
def test_altered_latents_lie_between_neighbours_and_are_noisy() -> None:
    z = latents(64, 8)

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    assert torch.equal(altered(z, 0.0, 0.0, draws()), z)
    mixed = altered(z, 0.0, 0.8, draws()) - z
    towards = z.roll(1, dims=0) - z
    shares = (mixed * towards).flatten(1).sum(1) / towards.square().flatten(1).sum(1)
    torch.testing.assert_close(mixed, shares[:, None, None, None] * towards)
    assert 0 <= shares.min() < 0.1 and 0.7 < shares.max() <= 0.8
    deviations = (altered(z, 0.5, 0.0, draws()) - z).flatten(1).std(1)
    assert deviations.min() < 0.1 and 0.4 < deviations.max() < 0.6
    assert torch.equal(altered(z, 0.5, 0.8, draws()), altered(z, 0.5, 0.8, draws()))


def tiny_stage(root: Path, weights: Path) -> GuidanceDecoderStage:
    cfg = ExperimentConfig(
        stage="guidance_decoder",
        name="g",
        out=str(root / "runs"),
        init=str(weights),
        data=DataConfig(root=str(root)),
        train=TrainConfig(batch_size=2, num_valid=2, precision="fp32"),
        guidance_decoder=GuidanceDecoderStageConfig(network=TINY),
    )
    stage = build_stage(cfg)
    assert isinstance(stage, GuidanceDecoderStage)
    return stage


def test_the_small_decoder_learns_and_the_full_one_does_not(
    make_pairs: Callable[..., Path], weights: Path
) -> None:
    stage = tiny_stage(make_pairs(train=4, valid=2), weights)
    batch = torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])
    assert "skull" not in batch and "face" not in batch
    stage.loss_of(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in stage.net.parameters())
    assert all(p.grad is None and not p.requires_grad for p in stage.first_stage.parameters())


def test_its_loss_vanishes_for_the_full_decoder_itself(
    make_pairs: Callable[..., Path], weights: Path
) -> None:
    stage = tiny_stage(make_pairs(train=4, valid=2), weights)
    model, _ = load_model(weights)
    stage.net.forward = model.decode  # type: ignore[method-assign]
    batch = torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])
    assert float(stage.loss_of(batch)["loss"]) < 1e-5
    cosines = stage.gradient_cosines(latents(3, 8))
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-4, rtol=0)


SETTINGS = (
    "train.batch_size=4", "train.num_valid=3", "train.val_every=1000", "train.device=cpu",
    "train.precision=fp32", "optim.lr=1e-2", "optim.warmup_steps=1", "optim.ema_decay=0.5",
    "guidance_decoder.network.widths=[8,8,8]", "guidance_decoder.network.blocks=[1,0,0]",
)  # fmt: skip


def arguments(root: Path, weights: Path) -> list[str]:
    (root / "config.yaml").write_text("stage: guidance_decoder\nname: g\n")
    paths = [f"init={weights}", f"data.root={root}", f"out={root / 'runs'}"]
    return [str(root / "config.yaml"), *SETTINGS, *paths]


def test_training_brings_it_near_and_its_file_is_taken_by_its_model(
    make_pairs: Callable[..., Path], weights: Path
) -> None:
    root = make_pairs(train=4, valid=3)
    settings = ["train.max_steps=80", "train.val_every=40", "guidance_decoder.altered=0"]
    assert train.main([*arguments(root, weights), *settings]) == 0
    run = root / "runs/g"
    lines = (run / "csv/version_0/metrics.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    losses = [float(row["train/l1"]) for row in rows if row["train/l1"]]
    # A decoder of random weights draws noise, which is hard to imitate.
    assert sum(losses[-5:]) / 5 < 0.93 * sum(losses[:3]) / 3
    assert {"valid/l1", "valid/psnr", "valid/psnr_altered", "valid/gradient_cosine"} <= set(head)
    assert len(list((run / "images").glob("decoded_*.png"))) == 2
    model, _ = load_model(weights)
    net = load_guidance_decoder(run / "model.safetensors", model)
    with torch.no_grad():
        z = model.encode_first_stage(torch.zeros(1, 3, 64, 64), sample=False)
        assert net(z).shape == (1, 3, 64, 64)


def test_another_latent_is_refused(
    make_pairs: Callable[..., Path], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pairs(train=2, valid=2)
    assert train.main([*arguments(root, weights), "guidance_decoder.network.z_channels=3"]) == 2
    assert "guidance_decoder.network.z_channels: got 3" in capsys.readouterr().err
    assert not (root / "runs").exists()
